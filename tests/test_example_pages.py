"""The pages of examples/ in a browser, against what `scripts/dev` starts; built by the test, as their readers do."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests import browser
from tests.clients.surfaces.installed import installed
from tests.dev_process import BOUND, OURS, Dev
from tests.free_ports import free_ports
from tests.test_example_programs import EXAMPLES, running

CHROMIUM = browser.program()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a reader of examples/README.md has in the environment."""
    dev = Dev(tmp_path_factory.mktemp("pages"))
    try:
        dev.ready()
        url, clean = f"http://127.0.0.1:{dev.port}", {n: value for n, value in os.environ.items() if n not in OURS}
        preset = {"name": "helper", "permission_mode": "default"}
        headers = {"X-API-Key": dev.key()}
        assert httpx.post(f"{url}/api/v1/agents", json=preset, headers=headers).status_code == 201
        yield {**clean, "CLAUDE_AGENT_API_URL": url, "CLAUDE_AGENT_API_KEY": dev.key()}
    finally:
        dev.process.terminate()
        dev.exit_code()


@asynccontextmanager
async def page_of(name: str, env: dict[str, str], directory: Path) -> AsyncIterator[browser.Page]:
    """The page of an example, built and served by Vite."""
    assert CHROMIUM is not None
    home = await asyncio.to_thread(shutil.copytree, EXAMPLES / name, directory / name)
    await asyncio.to_thread(installed, home)
    vite = [str(home / "node_modules/.bin/vite")]
    built = await asyncio.to_thread(
        subprocess.run, [*vite, "build", "--outDir", str(directory / "built"), "--emptyOutDir"],
        cwd=home, env=env, capture_output=True, text=True, timeout=BOUND,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    port = free_ports(1)
    serve = [*vite, "preview", "--outDir", str(directory / "built"), "--host", "127.0.0.1", "--port", str(port)]
    with running([*serve, "--strictPort"], "127.0.0.1", directory / "vite", cwd=home, env=env):
        async with browser.running(CHROMIUM) as chromium, chromium.page(f"http://127.0.0.1:{port}/") as page:
            yield page


async def send(page: browser.Page, text: str) -> None:
    field = "document.querySelector('[aria-label=Message]')"
    await page.when(f"{field} !== null")
    await page.evaluate(f"{field}.focus()")
    await page.call("Input.insertText", text=text)
    await page.press("Send")


def says(text: str) -> str:
    return f"document.querySelector('main').innerText.includes({text!r})"


@pytest.mark.parametrize("name", ["use-chat", "ag-ui"])
async def test_a_person_talks_to_an_agent_and_allows_what_it_asks(
    name: str, env: dict[str, str], tmp_path: Path
) -> None:
    async with page_of(name, env, tmp_path) as page:
        await send(page, "say hello")
        await page.when(says("scripted] hello"))
        await send(page, "run touch made.txt && echo made")
        await page.when("[...document.querySelectorAll('button')].some((b) => b.innerText === 'Allow')")
        await page.call("Page.reload")
        await page.press("Allow")
        await page.when(says("the tool answered: made"))
        assert "hello" in await page.text("main")
        await send(page, "run touch other.txt && echo other")
        await page.press("Deny")
        await page.when("document.querySelector('[role=status]').innerText === 'ready'")
        assert "answered: other" not in await page.text("main")
        key = env["CLAUDE_AGENT_API_KEY"]
        assert [asked["url"] for asked in page.requests if key in str(asked)] == [], "the browser has the key"
        assert [asked["url"] for asked in page.requests if "127.0.0.1" not in asked["url"]] == []
