"""A browser, and pages of the console through a balancer in front of three instances."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests import browser
from tests.balancer import Balancer, balancing
from tests.browser import Browser, Page
from tests.fleet import API_KEY, Fleet

CHROMIUM = browser.program()


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    async with browser.running(CHROMIUM) as started:
        yield started


@pytest.fixture(scope="module")
async def balancer(fleet: Fleet) -> AsyncIterator[Balancer]:
    async with balancing(fleet.instances) as made:
        yield made


async def sign_in(page: Page, key: str = API_KEY) -> None:
    await page.when("document.getElementById('api-key') !== null")
    await page.type("api-key", key)
    await page.press("Sign in")
    await page.when("document.querySelector('nav[aria-label=Pages]') !== null")


async def visit(page: Page, path: str) -> None:
    """Another page of the console, as a link leads there: a reload would ask for the key again."""
    target = json.dumps(f"/console{path}")
    await page.evaluate(f"(history.pushState(null, '', {target}), dispatchEvent(new PopStateEvent('popstate')))")


def says(text: str, selector: str = "main") -> str:
    """An expression: whether this text is to be seen."""
    return f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(text)})"


Console = Callable[..., AbstractAsyncContextManager[Page]]


@pytest.fixture
async def console(chromium: Browser, balancer: Balancer) -> Console:
    """Pages of the console, signed in. Afterwards: the page has complained of nothing that was not expected, has asked
    nobody else, and has written the key nowhere."""

    @asynccontextmanager
    async def opened(path: str = "/sessions", key: str = API_KEY, refused: tuple[str, ...] = ()) -> AsyncIterator[Page]:
        async with chromium.page(f"{balancer.url}/console{path}") as page:
            await sign_in(page, key)
            yield page
            assert [said for said in page.complaints if not any(word in said for word in refused)] == []
            urls = [request["url"] for request in page.requests]
            assert [url for url in urls if not url.startswith((f"{balancer.url}/", "data:", "blob:"))] == []
            assert [url for url in urls if key in url] == []

    return opened
