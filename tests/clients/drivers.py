"""The programs that play scenarios, one for each client: see `scenarios`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import browser
from tests.clients.stage import Drive
from tests.clients.typescript import ROOT, built
from tests.receiver import Received, Reply, receiving

HERE = Path(__file__).parent
SECONDS = 150


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[Drive]:
    """A driver that is a program."""

    async def drive(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
        words = (*command, name, json.dumps(parameters, ensure_ascii=False))
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(SECONDS):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        answer: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
        return answer

    yield drive


@asynccontextmanager
async def node() -> AsyncIterator[Drive]:
    await asyncio.to_thread(built)
    async with program("node", str(HERE / "drive.mjs")) as drive:
        yield drive


@asynccontextmanager
async def chromium() -> AsyncIterator[Drive]:
    """The same driver in a page of another origin than the API's."""
    path = browser.program()
    if path is None:
        pytest.skip("Chromium is not installed")
    await asyncio.to_thread(built)
    async with receiving() as server, browser.running(path) as running:
        server.answer = _served
        async with running.page(server.url("/")) as page:

            async def drive(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
                words = f"{json.dumps(name)}, {json.dumps(parameters)}"
                played = f"import('/tests/clients/drive.mjs').then(({{ play }}) => play({words}))"
                answer: dict[str, Any] = json.loads(await page.evaluate(f"{played}.then(JSON.stringify)"))
                return answer

            yield drive


async def _served(request: Received) -> Reply:
    """The driver and the client that it imports, by their paths in the repository; else a page."""
    file = ROOT / request.target.lstrip("/")
    if file.suffix in (".js", ".mjs"):
        return Reply(file.read_bytes(), headers={"Content-Type": "text/javascript"})
    return Reply(b"<!doctype html><title>A page</title>", headers={"Content-Type": "text/html"})


DRIVERS: dict[str, Callable[[], AbstractAsyncContextManager[Drive]]] = {
    "python": partial(program, sys.executable, str(HERE / "drive.py"), "sync"),
    "python-async": partial(program, sys.executable, str(HERE / "drive.py"), "async"),
    "node": node,
    "chromium": chromium,
}
"""By the name of the client. A new one comes here, and plays every scenario."""


def driven(name: str) -> AbstractAsyncContextManager[Drive]:
    """The driver of this client."""
    return DRIVERS[name]()
