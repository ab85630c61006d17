"""Agents that are started before anybody asks for them, since a start takes a core for a third of a second or more.

Each is for one kind of new session: of one tenant, with one configuration, under one profile. It waits in a workspace
and with an id of its own, of which nothing is stored until the session is made. So no agent knows anything of another
tenant or of another session. Nothing is started for a kind that nobody has asked for twice, or once where it is the
usual configuration: it would be ended unused.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import structlog

from apps.api import machine
from apps.api.core.codec import encode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import clamp
from apps.api.core.context import Core
from apps.api.core.fleet import claims
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import workspaces
from apps.api.core.tasks import Loop, jittered, nap
from apps.api.runner.session.execution import Execution
from apps.api.runner.session.launch import Means

log = structlog.get_logger(__name__)

MAX_AGE = 600.0
"""Seconds after which one that nobody has taken is ended, and another one started if it is still wanted."""

WANTED_SECONDS = 600.0
"""For which a kind of session counts as wanted after somebody has asked for it."""

RECENT_SECONDS = 60.0
"""As many of a kind are started ahead as were asked for in this time, at least one."""

TAKEN_SECONDS = 10.0
"""From when an id is taken until this instance must have claimed the session; else another one has."""

MAX_KINDS = 100
"""Kinds that are remembered, those that were asked for last."""

LOOK_SECONDS, CALM_SECONDS = 5.0, 0.3
"""Between two looks at what is wanted; and from when one was taken, so that its turn has the machine for itself."""

MIN_MEMORY_BYTES = 1 << 30
"""What the machine must have left for one more: an agent takes some 110 MB, and those at work come first."""


@dataclass(frozen=True, slots=True)
class _Kind:
    tenant_id: UUID
    profile: str | None
    config: bytes

    @classmethod
    def of(cls, tenant_id: UUID, config: AgentConfig, profile: str | None) -> _Kind:
        return cls(tenant_id, profile, encode(config.given()))


@dataclass(slots=True, eq=False)
class _Begun:
    claim: Claim
    execution: Execution
    since: float

    @property
    def age(self) -> float:
        return time.monotonic() - self.since


@dataclass(slots=True)
class _Wanted:
    config: AgentConfig
    least: int
    asked: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    ready: deque[_Begun] = field(default_factory=deque)
    failed: int = 0
    spared_until: float = 0.0

    def number(self, most: int) -> int:
        """How many are to be ready."""
        now = time.monotonic()
        if len(self.asked) < self.least or now - self.asked[-1] > WANTED_SECONDS or now < self.spared_until:
            return 0
        return min(most, max(1, sum(now - asked < RECENT_SECONDS for asked in self.asked)))


class Ahead:
    """Those of one instance.

    Attributes:
        hits, misses: new sessions that found an agent, and those of a kind for which there could have been one.
    """

    def __init__(self, core: Core, means: Means, make: Callable[[Claim], Execution]) -> None:
        self._core, self._means, self._make = core, means, make
        self._most = core.settings.prewarm
        self._kinds: OrderedDict[_Kind, _Wanted] = OrderedDict()
        self._taken: dict[UUID, _Begun] = {}
        self._wake, self._closed = asyncio.Event(), False
        self._ending: set[asyncio.Task[None]] = set()
        self.hits = self.misses = 0

    @property
    def count(self) -> int:
        """How many agents wait to be asked for."""
        return sum(len(wanted.ready) for wanted in self._kinds.values())

    @property
    def taken(self) -> list[UUID]:
        """Sessions that were made for an agent that is here, and not claimed yet."""
        return list(self._taken)

    def take(self, tenant_id: UUID, config: AgentConfig, profile: str | None) -> UUID | None:
        """See `Core.begun_ahead`."""
        if not self._most or self._closed or config.repository is not None or config.resources:
            return None
        kind = _Kind.of(tenant_id, config, profile)
        wanted = self._kinds.setdefault(kind, _Wanted(config, 2 if config.given() else 1))
        self._kinds.move_to_end(kind)
        wanted.asked.append(time.monotonic())
        self._wake.set()
        while wanted.ready:
            begun = wanted.ready.popleft()
            if begun.execution.launch.waits:
                begun.since = time.monotonic()
                self._taken[begun.claim.session_id] = begun
                self.hits += 1
                return begun.claim.session_id
            self._end(begun)
        self.misses += 1
        return None

    def claimed(self, claim: Claim) -> Execution | None:
        """The execution of a session that this instance has claimed, if its agent was started ahead."""
        begun = self._taken.pop(claim.session_id, None)
        if begun is None:
            return None
        begun.execution.adopt(claim)
        self._spawn(self._unmark(claim.session_id))
        return begun.execution

    def forget(self, tenants: Collection[UUID]) -> None:
        """End all of these tenants, which are suspended: what starts with an agent, such as MCP servers, is at work."""
        for kind in [kind for kind in self._kinds if kind.tenant_id in tenants]:
            for begun in self._kinds.pop(kind).ready:
                self._end(begun)

    async def until_next_look(self) -> None:
        """Wait until something has changed, or may have."""
        await nap(self._wake, LOOK_SECONDS)
        await asyncio.sleep(jittered(CALM_SECONDS))

    async def look(self, loop: Loop) -> None:
        """End what is too old or wanted no more, and start what is wanted, one after the other."""
        for session_id, begun in list(self._taken.items()):
            if begun.age > TAKEN_SECONDS:
                del self._taken[session_id]
                self._end(begun, own=False)
        for wanted in list(self._kinds.values()):
            for begun in list(wanted.ready):
                if begun.age > MAX_AGE or not begun.execution.launch.waits:
                    wanted.ready.remove(begun)
                    self._end(begun)
        while not self._closed and (missing := self._missing()) is not None:
            await self._begin(*missing)

    def _missing(self) -> tuple[_Kind, _Wanted] | None:
        """What is to be started next. Those that are wanted least, beyond what there may be in all, are ended."""
        while len(self._kinds) > MAX_KINDS:
            _, wanted = self._kinds.popitem(last=False)
            for begun in wanted.ready:
                self._end(begun)
        room = self._most
        missing = None
        for kind, wanted in reversed(self._kinds.items()):  # who was asked for last comes first
            number = wanted.number(room)
            room -= number
            while len(wanted.ready) > number:
                self._end(wanted.ready.pop())
            if missing is None and len(wanted.ready) < number:
                missing = kind, wanted
        return missing if self._has_room() else None

    def _has_room(self) -> bool:
        means = self._means
        calm = means.host.starts_agents and not means.host.lacking and not means.gate.waiting
        return calm and machine.free_memory() > MIN_MEMORY_BYTES

    async def _begin(self, kind: _Kind, wanted: _Wanted) -> None:
        claim = await self._claim(kind, wanted)
        if claim is None:
            wanted.spared_until = time.monotonic() + WANTED_SECONDS
            return
        settings, starts = self._core.settings, self._core.blocking.starts
        execution = self._make(claim)
        begun = _Begun(claim, execution, time.monotonic())
        try:
            await starts.run(workspaces.mark_ahead, settings, claim.session_id)
            await execution.launch.begin_ahead(claim)
        except BaseException as error:
            self._end(begun)
            if not isinstance(error, Exception):
                raise
            wanted.failed += 1
            wanted.spared_until = time.monotonic() + jittered(min(10.0 * 2**wanted.failed, WANTED_SECONDS))
            log.warning("ahead.not_started", error=error)
            return
        wanted.failed = 0
        if self._closed or self._kinds.get(kind) is not wanted:
            self._end(begun)
        else:
            wanted.ready.append(begun)

    async def _claim(self, kind: _Kind, wanted: _Wanted) -> Claim | None:
        """What the claim of such a session would be, but for its run and its generation. None: its profile is gone."""
        config, profile = AgentConfig.stored(wanted.config.given()), None
        if kind.profile is not None:
            profile = self._core.profiles.get(kind.profile)
            if profile is None:
                return None
            config = clamp(profile, config)
        session_id = uuid4()
        return Claim(
            run_id=uuid4(),
            kind="prompt",
            prompt=None,
            expand_prompt=False,
            timeout_seconds=0,
            config=config,
            session_id=session_id,
            tenant_id=kind.tenant_id,
            generation=0,
            last_seq=0,
            sdk_session_id=session_id,
            profile=profile,
            provisions=await claims.provisions(self._core.db, kind.tenant_id, config),
        )

    def _end(self, begun: _Begun, *, own: bool = True) -> None:
        """`own`: nobody else can have the session, so that its directories go as well."""
        self._spawn(self._given_up(begun, own))

    async def _given_up(self, begun: _Begun, own: bool) -> None:
        await begun.execution.launch.end_ahead()
        if own:
            await self._core.blocking.removal.run(workspaces.remove, self._core.settings, begun.claim.session_id)
        await self._unmark(begun.claim.session_id)

    async def _unmark(self, session_id: UUID) -> None:
        await self._core.blocking.removal.run(workspaces.unmark_ahead, self._core.settings, session_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception as error:
                log.warning("ahead.not_cleared", error=error)

        task = asyncio.create_task(logged(), name="ahead")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _all(self) -> Iterator[_Begun]:
        yield from self._taken.values()
        for wanted in self._kinds.values():
            yield from wanted.ready

    async def close(self) -> None:
        """End them all, and start no more."""
        self._closed = True
        for begun in list(self._all()):
            self._end(begun, own=begun.claim.session_id not in self._taken)
        self._kinds.clear()
        self._taken.clear()
        if self._ending:
            await asyncio.wait(self._ending)
