"""What the server does outside for tenants: so much of each kind at a time for each of them, and every one counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, get_args
from uuid import UUID
from weakref import WeakValueDictionary

Kind = Literal["webhook", "hook", "check", "lookup", "clone", "download"]
"""`check`: a connection to a hook or an MCP server, to see whether there is one. `lookup`: a name that is looked up to
see whether its address is allowed, and not called."""

Outcome = Literal["ok", "rejected", "refused", "failed", "busy"]
"""`rejected`: the target answered with an error. `refused`: its address is not allowed. `failed`: no answer, or none
that counts; or whoever waited for it has left. `busy`: the tenant had as many under way as it may until time was up."""

KINDS: tuple[Kind, ...] = get_args(Kind)

AT_ONCE: dict[Kind, int] = {"webhook": 16, "hook": 64, "check": 16, "clone": 4, "download": 4}
"""Of one tenant at the same time, on one instance. Kinds are apart, so that slow webhooks keep no hook from deciding.
Lookups are bounded by the resolver."""


class Refused(Exception):
    """The target is not one that this server connects to. The message may be shown to tenants."""


class Failed(Exception):
    """No answer, or none that counts. The message may be shown to tenants."""


class Places:
    """So many for each of those who ask. Nothing is kept of who has and wants none."""

    def __init__(self) -> None:
        self._of: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, who: Hashable, most: int) -> asyncio.Semaphore:
        """Theirs: hold a reference to it for as long as you have or want one."""
        found = self._of.get(who)
        if found is None:
            found = self._of[who] = asyncio.Semaphore(most)
        return found


class Call:
    """One that is under way. `outcome`: as which it counts, if it raises nothing."""

    def __init__(self) -> None:
        self.outcome: Outcome = "ok"


class Calls:
    """Those of one instance.

    Attributes:
        observe: told of each that has ended.
        open: how many of a kind are under way.
    """

    def __init__(self) -> None:
        self.observe: Callable[[Kind, Outcome], None] = lambda kind, outcome: None
        self.open: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._places = Places()

    @asynccontextmanager
    async def one(self, kind: Kind, tenant_id: UUID | None, seconds: float) -> AsyncIterator[Call]:
        """Make a call in this block, once the tenant has a place for it.

        Raises:
            Failed: it has had none for so many seconds.
        """
        places = self._places.of((kind, tenant_id), AT_ONCE[kind])
        try:
            async with asyncio.timeout(seconds):
                await places.acquire()
        except TimeoutError as error:
            self.observe(kind, "busy")
            raise Failed(f"{AT_ONCE[kind]} others of its tenant were under way all the time") from error
        try:
            with self.counted(kind) as call:
                yield call
        finally:
            places.release()

    @contextmanager
    def counted(self, kind: Kind) -> Iterator[Call]:
        """Make one in this block that something else bounds."""
        self.open[kind] += 1
        call = Call()
        outcome: Outcome = "failed"
        try:
            yield call
            outcome = call.outcome
        except Refused:
            outcome = "refused"
            raise
        finally:
            self.open[kind] -= 1
            self.observe(kind, outcome)
