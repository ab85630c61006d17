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

from tests.clients.stage import Drive

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


DRIVERS: dict[str, Callable[[], AbstractAsyncContextManager[Drive]]] = {
    "python": partial(program, sys.executable, str(HERE / "drive.py"), "sync"),
    "python-async": partial(program, sys.executable, str(HERE / "drive.py"), "async"),
}
"""By the name of the client. A new one comes here, and plays every scenario."""


def driven(name: str) -> AbstractAsyncContextManager[Drive]:
    """The driver of this client."""
    return DRIVERS[name]()
