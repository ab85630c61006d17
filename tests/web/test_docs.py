"""The page that shows the documents: what it may do, and that it does so in a real browser, and asks nobody else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from tests import browser
from tests.browser import Browser
from tests.fleet import NO_TLS, Fleet

ROOT = Path(__file__).parents[2]
CHROMIUM = browser.program()
PREFIXES = ["", "/compat/code-server"]


@pytest.mark.parametrize("of", PREFIXES)
async def test_the_page_may_run_the_servers_own_files_only_and_they_are_there(fleet: Fleet, of: str) -> None:
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        page = await client.get(f"{fleet[0].url}{of}/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
        assert rules.pop("img-src") == "data:"
        assert {name: rules.pop(f"{name}-src") for name in ("script", "style", "connect")} == dict.fromkeys(
            ("script", "style", "connect"), "'self'"
        )
        assert set(rules.values()) == {"'none'"}
        assert "unsafe" not in page.headers["content-security-policy"]
        assert not re.findall(r"(?:https?:)?//[a-z0-9]|<script>|<style| on[a-z]+=| style=", page.text)
        files = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
        assert len(files) == 3
        for file in files:
            answer = await client.get(f"{fleet[0].url}{of}/{file}")
            assert answer.status_code == 200, file
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_package_has_the_files() -> None:
    for path in Path(str(resources.files("apps.api.web").joinpath("viewer"))).rglob("*.*"):
        assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT).returncode != 0, path


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    async with browser.running(CHROMIUM) as started:
        yield started


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("of", PREFIXES)
async def test_a_browser_shows_the_document_without_a_complaint_and_asks_nobody_else(
    chromium: Browser, fleet: Fleet, of: str
) -> None:
    async with chromium.page(f"{fleet[0].url}{of}/docs") as page:
        await page.when("document.querySelectorAll('.opblock-tag').length > 0")
        await page.evaluate(
            "document.querySelectorAll('.opblock-tag[data-is-open=false]').forEach((tag) => tag.click())"
        )
        await page.when("document.querySelectorAll('.opblock').length > 1")
        await page.click(".opblock-summary-control")
        await page.when("document.querySelector('.opblock-body') !== null")
        assert page.complaints == []
        urls = [request["url"] for request in page.requests]
        assert f"{fleet[0].url}{of}/openapi.json" in urls
        assert [url for url in urls if not url.startswith((f"{fleet[0].url}{of}/", "data:"))] == []
