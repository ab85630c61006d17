"""Queues of bounded length and time before what is scarce: connections to PostgreSQL, and work that costs much.

A `Line` is a semaphore with a bound on how many wait for it and for how long; tenants that wait have its places by
turns. Who would wait too long gets 503 at once, with a time to come again; not so who has stored something already, and
would be told that it was not begun. `Turns` has such lines for costly requests, of each tenant and of all.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from types import TracebackType
from uuid import UUID
from weakref import WeakValueDictionary

from apps.api.errors import Busy

MAX_WAITING = 500
"""In one line. A prompt holds a connection for some milliseconds, so that this many wait for about a second."""

ASKING: ContextVar[UUID | str | None] = ContextVar("asking", default=None)
"""For whom this task works: a tenant, or the hash of a key while its tenant is looked up. None: for the service."""

STANDING = 10.0
"""Seconds for which who has stored something goes before everybody else: enough to read what its answer says, and no
privilege for a stream that it then follows."""

_STORED: ContextVar[float] = ContextVar("stored", default=-math.inf)
_FIRST = "who has stored something"


def stored() -> None:
    """This task has stored something: for STANDING seconds it goes first where connections are waited for, and is not
    sent away: else it would be told that what it asked for was not begun."""
    _STORED.set(asyncio.get_running_loop().time())


class Line:
    """A semaphore with a bounded queue for each who asks: `async with line:` holds one of its places.

    A place that becomes free goes to the first in the queue whose turn it is, which then is the last queue. Nobody
    joins a queue whose first has waited for half of the longest time: those behind would wait for longer. Where as many
    wait as may, the last of the longest queue is sent away, be it another or who has just come.
    """

    def __init__(
        self, places: int, seconds: float, busy: str, *, most: int = MAX_WAITING, ends_first: bool = False
    ) -> None:
        """
        Args:
            places: how many have a turn at a time.
            seconds: the longest wait.
            busy: what those are told who are sent away.
            most: how many may wait, in all queues.
            ends_first: who has `stored` something goes before all others. They are few: each has had a place before.
        """
        self._free, self._seconds, self._busy, self._most = places, seconds, busy, most
        self._ends_first = ends_first
        # The queue whose turn it is first; in each since when they wait, on the loop's clock. None is empty.
        self._queues: OrderedDict[UUID | str | None, dict[asyncio.Future[None], float]] = OrderedDict()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        asking = _FIRST if self._ends_first and self._has_stored() else ASKING.get()
        turn = self._join(asking)
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and not turn.exception():
                self._pass_on()  # the place came at the same time
            else:
                self._leave(asking, turn)
            if isinstance(error, TimeoutError):
                raise Busy(self._busy) from None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pass_on()

    @staticmethod
    def _has_stored() -> bool:
        return asyncio.get_running_loop().time() - _STORED.get() < STANDING

    def _join(self, asking: UUID | str | None) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        queue = self._queues.get(asking, {})
        if asking is not _FIRST:
            self._make_room(queue)
        turn = loop.create_future()
        self._queues.setdefault(asking, queue)[turn] = loop.time()
        return turn

    def _make_room(self, queue: dict[asyncio.Future[None], float]) -> None:
        """For one more in this queue. Raises Busy."""
        if queue and asyncio.get_running_loop().time() - next(iter(queue.values())) > self._seconds / 2:
            raise Busy(self._busy)
        waiting = {asking: len(those) for asking, those in self._queues.items() if asking is not _FIRST}
        if sum(waiting.values()) >= self._most:
            longest = max(waiting, key=lambda asking: waiting[asking])
            if waiting[longest] <= len(queue) + 1:
                raise Busy(self._busy)
            last = next(reversed(self._queues[longest]))
            last.set_exception(Busy(self._busy))
            self._leave(longest, last)

    def _leave(self, asking: UUID | str | None, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(asking, {})
        queue.pop(turn, None)
        if not queue:
            self._queues.pop(asking, None)

    def _pass_on(self) -> None:
        while self._queues:
            asking = _FIRST if _FIRST in self._queues else next(iter(self._queues))
            turn = next(iter(self._queues[asking]))
            self._queues.move_to_end(asking)
            self._leave(asking, turn)
            if not turn.done():  # else it has been cancelled, and does not know yet
                turn.set_result(None)
                return
        self._free += 1


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
