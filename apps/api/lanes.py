"""Queues of bounded length and time before what is scarce: connections to PostgreSQL, and work that costs much.

A `Line` is a semaphore with a bound on how many wait for it and for how long. Who would wait too long gets 503 at once,
with a time to come again. `Turns` has such lines for costly requests, of each tenant and of all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from uuid import UUID
from weakref import WeakValueDictionary

from apps.api.errors import Busy

MAX_WAITING = 500
"""In one line. A prompt holds a connection for some milliseconds, so that this many wait for about a second."""


class Line:
    """A semaphore with a bounded queue, first come first served: `async with line:` holds one of its places.

    Nobody joins while so many wait already, or while the first of them has waited for half of the longest time: those
    behind would wait for longer.
    """

    def __init__(self, places: int, seconds: float, busy: str, *, most: int = MAX_WAITING) -> None:
        """
        Args:
            places: how many have a turn at a time.
            seconds: the longest wait.
            busy: what those are told who are sent away.
            most: how many may wait.
        """
        self._turns = asyncio.Semaphore(places)
        self._seconds, self._busy, self._most = seconds, busy, most
        self._waiting: dict[object, float] = {}  # since when, the first of the line first

    async def __aenter__(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        first = next(iter(self._waiting.values()), None)
        late = first is not None and time.monotonic() - first > self._seconds / 2
        if late or len(self._waiting) >= self._most:
            raise Busy(self._busy)
        me = object()
        self._waiting[me] = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Busy(self._busy) from None
        finally:
            del self._waiting[me]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.release()


AT_ONCE, AT_ONCE_IN_ALL = 2, 4
"""Costly requests of one tenant, and of all, that an instance serves at a time, of each kind."""

LONGEST_WAIT = 30.0
"""Seconds that one of them waits for those before it; it holds nothing meanwhile."""


class Turns:
    """Bounds how many costly requests are served at a time, for each tenant and in all: two lines for each kind."""

    def __init__(self) -> None:
        # Weak: only who has or wants a place refers to a tenant's line, so it is gone with the last of them.
        self._of_tenants: WeakValueDictionary[tuple[str, UUID], Line] = WeakValueDictionary()
        self._of_all: dict[str, Line] = {}

    def copying(self, tenant_id: UUID) -> AbstractAsyncContextManager[None]:
        """For what copies a session."""
        return self._turn("copying", tenant_id)

    def removing(self, tenant_id: UUID) -> AbstractAsyncContextManager[None]:
        """For what removes all that a session has said."""
        return self._turn("removing", tenant_id)

    def reading(self, tenant_id: UUID) -> AbstractAsyncContextManager[None]:
        """For what reads as much as a tenant has."""
        return self._turn("reading", tenant_id)

    @asynccontextmanager
    async def _turn(self, what: str, tenant_id: UUID) -> AsyncIterator[None]:
        # The tenant's line first: of those in the other one no tenant has more than AT_ONCE.
        line = self._of_tenants.get((what, tenant_id))
        if line is None:
            text = f"{AT_ONCE} requests of this tenant like this one are served at a time, and too many wait."
            line = self._of_tenants[what, tenant_id] = Line(AT_ONCE, LONGEST_WAIT, text)
        text = f"{AT_ONCE_IN_ALL} requests like this one are served at a time, and too many wait."
        async with line, self._of_all.setdefault(what, Line(AT_ONCE_IN_ALL, LONGEST_WAIT, text)):
            yield
