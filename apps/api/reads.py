"""Single entries that many ask for at the same time, read in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any


class Reads:
    """Gathers what is asked for in one round of the event loop: under load a call costs more than what it carries.

    Nobody is told what was read before it was asked for: what asks when a call is under way is in the next one.
    """

    def __init__(self, read_all: Callable[[list[str]], Awaitable[Sequence[Any] | None]]) -> None:
        """`read_all`: the entries of those names, None for what is not there; None if they cannot be read."""
        self._read_all = read_all
        self._wanted: dict[str, list[asyncio.Future[Any]]] = {}
        self._reading: set[asyncio.Task[None]] = set()

    async def one(self, name: str) -> Any:
        """The entry of that name; None without one, and if it cannot be read."""
        if not self._wanted:
            task = asyncio.create_task(self._read(), name="reads")
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        found = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(name, []).append(found)
        return await found

    async def _read(self) -> None:
        wanted, self._wanted = self._wanted, {}
        entries: Sequence[Any] | None = None
        try:
            entries = await self._read_all(list(wanted))
        finally:
            _tell(wanted, entries)

    async def close(self) -> None:
        """End what is being read; who waits for it is told None."""
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading)
        _tell(self._wanted, None)


def _tell(wanted: Mapping[str, list[asyncio.Future[Any]]], entries: Sequence[Any] | None) -> None:
    for waiting, entry in zip(wanted.values(), entries or [None] * len(wanted), strict=True):
        for found in waiting:
            if not found.done():
                found.set_result(entry)
