"""What stays open for long: event streams, requests that wait for a run, WebSockets, previews.

A key is checked when such a thing is opened, and may be revoked while it is open. So each is registered here with its
key, and once a second the instance asks the database, in one statement and without Redis, which keys are still valid;
what a key that is not has opened ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar
from uuid import UUID

from apps.api import auth, clock
from apps.api.auth import Principal
from apps.api.core import tasks
from apps.api.core.tasks import Loop
from apps.api.db import PASSING, Database
from apps.api.errors import ApiError, Forbidden, Unauthorized, Unavailable
from apps.api.shares import NOTHING, Kind, Level, Share

T = TypeVar("T")

CHECK_INTERVAL = 1.0
"""Seconds between looks at the keys: what a key has opened ends within two after it has become invalid."""

LAST_EVENTS = 1.0
"""Seconds for clients to be told the ends of the runs that an instance has ended before it stops: a way through Redis,
or a look into the database."""


Seats = Sequence[Callable[[], None]]
"""What gives back what something has taken of shares."""


def give_back(seats: Seats) -> None:
    """All of it."""
    for each in seats:
        each()


class Held:
    """One thing that stays open.

    As a context manager it lasts as long as the block, unless something in it keeps it longer (`kept`).

    Attributes:
        draining: done when the instance has begun to stop.
        over: done when it has ended, or has to: because of its key (`why`), or because the instance stops.
        endless: it does not end with a run, as a stream of a whole session. When the instance stops, these end first.
        kept: it goes on after its block: whoever serves it calls `close`.
    """

    __slots__ = ("_close", "caller", "draining", "endless", "kept", "over", "scope")

    def __init__(self, caller: Principal | None, scope: str, close: Callable[[Held], None]) -> None:
        self.caller, self.scope, self._close = caller, scope, close
        self.endless = self.kept = False
        self.draining: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def why(self) -> ApiError | None:
        """What is wrong with its key, if it has to end for that."""
        found: ApiError | None = self.over.result() if self.over.done() else None
        return found

    def end(self, why: ApiError | None) -> None:
        """Have it end."""
        if not self.over.done():
            self.over.set_result(why)

    def drain(self, *, only_endless: bool) -> None:
        """The instance stops: end it, or with `only_endless` only what no run bounds."""
        if not self.draining.done():
            self.draining.set_result(None)
        if self.endless or not only_endless:
            self.end(None)

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this, and cancel it when it has to end.

        Raises:
            Unauthorized, Forbidden: the key may not go on.
            Unavailable: the instance stops.
        """
        task = asyncio.create_task(work, name="held")
        try:
            await asyncio.wait({task, self.over}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise self.why or Unavailable("This instance is stopping; ask again.", code="shutdown")
        finally:
            await tasks.end(task)

    def close(self) -> None:
        """It has ended: forget it, and give back what it has taken."""
        self.end(None)
        self._close(self)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self.kept:
            self.close()


class Opened:
    """Everything that stays open on this instance."""

    def __init__(self, db: Database, shares: Mapping[Kind, Share]) -> None:
        self._db, self._shares = db, shares
        self._open: dict[Held, tuple[Kind | None, Seats]] = {}
        self._ended = False

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._open))

    def count(self, kind: Kind) -> int:
        """How many there are of a kind."""
        return sum(1 for found, _ in self._open.values() if found == kind)

    def hold(
        self,
        kind: Kind | None,
        caller: Principal | None,
        scope: str = "read",
        *,
        tenant_id: UUID | None = None,
        session_id: UUID | None = None,
        descriptors: int = 1,
    ) -> Held:
        """Register something before it is opened, and take its share. The caller closes what this returns.

        Args:
            kind: what it is, as its share is counted; None for what is over soon, and not counted.
            scope: what the key must be allowed as long as it lasts.

        Raises:
            RateLimited: the key, the tenant or the session has its share.
            Unavailable: the instance is full.
        """
        seats = self._seats(kind, caller, {"tenant": tenant_id, "session": session_id}, descriptors)
        held = Held(caller, scope, self._close)
        self._open[held] = kind, seats
        if self._ended:
            held.drain(only_endless=False)
        return held

    def admit(self, held: Held, kind: Kind, caller: Principal) -> None:
        """Count it as `kind` and for this key: a WebSocket's client shows its key only after it has opened.

        Raises as `hold`, and then changes nothing.
        """
        seats = self._seats(kind, caller, {}, 1)
        give_back(self._open[held][1])
        held.caller = caller
        self._open[held] = kind, seats

    def _seats(
        self, kind: Kind | None, caller: Principal | None, of: Mapping[Level, UUID | None], descriptors: int
    ) -> Seats:
        if kind is None:
            return ()
        holders = dict(of)
        if caller is not None:
            holders |= {"key": caller.key_id, "tenant": caller.tenant_id}
            if caller.grant is not None:  # so that who has a token cannot take all that its key has
                holders["session"] = caller.grant.session_id
        seat = self._shares[kind].take(1, holders, _own(kind, caller))
        try:
            return seat, self._shares["open"].take(descriptors, holders)
        except ApiError:
            seat()
            raise

    def _close(self, held: Held) -> None:
        if found := self._open.pop(held, None):
            give_back(found[1])

    async def until_told(self, ends: float) -> None:
        """Wait until what ends with a run has ended, until `ends` (loop time), and for LAST_EVENTS at least."""
        now = asyncio.get_running_loop().time
        ends = max(ends, now() + LAST_EVENTS)
        while (left := [h.over for h in self if not (h.endless or h.over.done())]) and (seconds := ends - now()) > 0:
            await asyncio.wait(left, timeout=seconds)

    def drain(self, *, only_endless: bool) -> None:
        """See `Held.drain`; their clients connect again elsewhere. What comes later, over a connection that was open,
        ends as it begins, unless `only_endless`."""
        self._ended = not only_endless
        for held in self:
            held.drain(only_endless=only_endless)

    async def until_next_check(self) -> None:
        """Wait until it is time to look at the keys."""
        await tasks.pause(CHECK_INTERVAL)

    async def check(self, loop: Loop) -> None:
        """End what was opened with a key that may not go on."""
        # By caller and scope: one caller may have opened a lot, which is judged once.
        found: dict[tuple[int, str], tuple[Principal, list[Held]]] = {}
        for held in self._open:
            if (caller := held.caller) is not None:
                found.setdefault((id(caller), held.scope), (caller, []))[1].append(held)
        if not found:
            return
        try:
            standing = await auth.standing(self._db, {caller.key_id for caller, _ in found.values()})
        except PASSING:
            return  # asked again in a second, not after a pause that grows: what is open stays until the answer comes
        for caller, like in found.values():
            if why := refusal(caller, standing.get(caller.key_id), like[0].scope):
                for held in like:
                    held.end(why)


def _own(kind: Kind, caller: Principal | None) -> Mapping[Level, int | None]:
    if kind != "streams" or caller is None:
        return NOTHING
    return {"key": caller.limits.streams, "tenant": caller.tenant_limits.streams}


def refusal(opener: Principal, now: auth.Standing | None, scope: str) -> ApiError | None:
    """Why what a caller has opened may not go on, if that is so."""
    if now is None or (opener.secret_hash and opener.secret_hash not in now.secret_hashes):
        return Unauthorized("This API key is not valid any more.", code="invalid_api_key")
    if opener.grant is not None and opener.grant.expires_at <= clock.now():
        return Unauthorized("This client token has expired.", code="client_token_expired")
    if now.suspended:
        return auth.suspended()
    if not auth.covers(now.scopes, scope):
        return Forbidden(f"This key lacks the scope {scope!r} now.")
    if now.profiles != opener.profiles:
        return Forbidden("This key has been bound to other profiles. Ask again.", code="profile_not_permitted")
    if now.networks != opener.networks:
        return Forbidden("This key has been bound to other networks. Ask again.", code="address_not_permitted")
    return None
