"""A run as surfaces tell it whose answers end where somebody must act: a person, or the client's own program.

The run goes on waiting, and the client's next request, which brings what was decided, is told its rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from apps.api.core import tasks
from apps.api.core.codec import decode
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.events.frames import Frame
from apps.api.core.sessions import requests
from apps.api.core.sessions.prompts import Submitted
from apps.api.web.following import run_frames

SETTLE_SECONDS = 0.3
"""Of silence after which a run that asks counts as waiting: calls that ask at the same time are told together."""

OTHERS_SECONDS = 3.0
"""Of silence for which calls are waited for that were begun beside those that ask. No longer: an agent that carries
calls out one by one does not begin the next one before this one is answered."""

MAX_ASKED = 200
"""Requests of a session that are looked through for those that a client answers."""

_KINDS = {event: kind for kind, event in requests.EVENTS.items()}


@dataclass(frozen=True, slots=True)
class Request:
    """What a run waits for. `kind`: permission, question or client_tool; `data`: of its event."""

    id: UUID
    kind: str
    seq: int
    data: dict[str, Any]

    @property
    def tool_use_id(self) -> str | None:
        """The call that asks, as the model named it."""
        given = self.data.get("tool_use_id")
        return given if isinstance(given, str) else None


@dataclass(slots=True)
class Waiting:
    """What is open in a run, by its events up to some point, from its first one.

    Attributes:
        settled: requests that are decided, also where the events do not tell so yet.
        open: requests that nobody has answered, by id.
        calls: calls of tools that have no result yet, by the model's id, each with that of the call that its agent
            works for, if it is a subagent's.
        over: whether the run has ended.
    """

    open: dict[UUID, Request] = field(default_factory=dict)
    calls: dict[str, str | None] = field(default_factory=dict)
    over: bool = False
    settled: frozenset[UUID] = frozenset()

    def take(self, frame: Frame) -> None:
        """The next event of the run."""
        if frame.type in _KINDS:
            data = decode(frame.data)
            asked = Request(UUID(data["request_id"]), _KINDS[frame.type], frame.seq, data)
            if asked.id not in self.settled:
                self.open[asked.id] = asked
        elif frame.type == "action_resolved":
            self.open.pop(UUID(decode(frame.data)["request_id"]), None)
        elif frame.type == "message":
            self._hear(decode(frame.data))
        elif frame.type == "done":
            self.over = True

    def _hear(self, message: dict[str, Any]) -> None:
        for block in message["content"] if isinstance(message.get("content"), list) else ():
            if block.get("type") == "tool_use":
                self.calls[str(block.get("id"))] = message.get("parent_tool_use_id")
            elif block.get("type") == "tool_result":
                self.calls.pop(str(block.get("tool_use_id")), None)

    @property
    def patience(self) -> float | None:
        """Seconds of silence after which the run counts as waiting; None while it asks nothing."""
        if not self.open or self.over:
            return None
        asking = set[str]()
        for asked in self.open.values():
            call = asked.tool_use_id
            while call is not None and call not in asking:
                asking.add(call)
                call = self.calls.get(call)
        return OTHERS_SECONDS if self.calls.keys() - asking else SETTLE_SECONDS


async def asked_of(core: Core, tenant_id: UUID, session_id: UUID, run_id: UUID | None = None) -> list[Request]:
    """What a session, or one run of it, has asked so far: of the newest MAX_ASKED of the session, the oldest first."""
    frames = await log.newest(core.db, tenant_id, session_id, list(_KINDS), limit=MAX_ASKED)
    found = []
    for frame in frames:
        if frame.run_id is not None and (run_id is None or frame.run_id == str(run_id)):
            data = decode(frame.data)
            found.append(Request(UUID(data["request_id"]), _KINDS[frame.type], frame.seq, data))
    return found


async def until_asked(
    core: Core, tenant_id: UUID, run: Submitted, waiting: Waiting | None = None, *, gapless: bool = False
) -> AsyncGenerator[list[Frame]]:
    """Events of one run from its first one up to its `done`, or up to where it waits for its client; empty batches are
    ticks of silence. `waiting` tells then what it waits for. `gapless`: see `follow`.

    Raises:
        SessionDeleted: the session was deleted meanwhile.
    """
    waiting = Waiting() if waiting is None else waiting
    batches = run_frames(core, tenant_id, run, gapless=gapless)
    async with aclosing(batches):
        reading: asyncio.Task[list[Frame]] | None = None
        try:
            while not waiting.over:
                reading = reading or asyncio.create_task(_next(batches), name="until-asked")
                await asyncio.wait({reading}, timeout=waiting.patience)
                if not reading.done():
                    return
                batch, reading = reading.result(), None
                for frame in batch:
                    waiting.take(frame)
                yield batch
        except StopAsyncIteration:
            return
        finally:
            if reading is not None:
                await tasks.end(reading)


async def _next(batches: AsyncGenerator[list[Frame]]) -> list[Frame]:
    return await anext(batches)
