"""Whether a server stays well while somebody works against it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psutil

from tests.fleet import Instance

MAX_GROWTH = 50 << 20
MAX_STALL = 2.0
"""Seconds without an answer: to read or remove what is planted in the event loop takes longer."""


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.1)


class Watch:
    """How much the memory of a server grows, and how long it does not answer."""

    def __init__(self, instance: Instance) -> None:
        self._instance, self._process = instance, psutil.Process(instance.process.pid)
        self._base = self._process.memory_info().rss
        self.growth, self.stall = 0, 0.0

    async def run(self) -> None:
        while self._instance.process.poll() is None:
            began = time.monotonic()
            await self._instance.client.get("/health/live")
            self.stall = max(self.stall, time.monotonic() - began)
            self.growth = max(self.growth, self._process.memory_info().rss - self._base)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watched(instance: Instance, max_stall: float = MAX_STALL) -> AsyncIterator[None]:
    """Raises AssertionError when it has grown by more than MAX_GROWTH, or was silent for longer."""
    watch = Watch(instance)
    watching = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        watching.cancel()
    assert watch.growth < MAX_GROWTH
    assert watch.stall < max_stall
