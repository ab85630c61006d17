"""Events of a session: sent, listed, streamed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.codec import encode, timestamp
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.events.follow import KEEP_ALIVE_INTERVAL, SessionDeleted
from apps.api.core.events.frames import Position
from apps.api.core.events.replay import Followed
from apps.api.core.sessions import browsing, prompts, sessions
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.managed import examples, ids, toolsets
from apps.api.dialects.managed.blocks import prompt_blocks
from apps.api.dialects.managed.common import (
    IdempotencyKey,
    ManagedPage,
    PageOf,
    answer,
    error_shape,
    errors,
    listed,
    moment,
    page,
    router,
)
from apps.api.dialects.managed.ids import EVENT
from apps.api.dialects.managed.messages import SendEvents
from apps.api.dialects.managed.sending import Sender
from apps.api.dialects.managed.sessions import SessionId, state_of
from apps.api.dialects.managed.translate import Event, Fold
from apps.api.errors import ApiError, ValidationError
from apps.api.web.callers import Reader, Writer
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream

routes = router()

MAX_EVENTS = 1000
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, each with its type as `event` and as JSON. It stays open between turns.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": examples.STREAM}},
    }
}


class SentEvents(BaseModel):
    """What was sent, with ids."""

    data: list[dict[str, Any]]


@routes.post(
    "/sessions/{session_id}/events", response_model=SentEvents, responses=errors(404, 409, 413, shows=examples.SENT)
)
async def send_managed_events(
    request: Request,
    core: CoreDep,
    caller: Writer,
    session_id: SessionId,
    body: SendEvents,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send events. A message to a session that is at work waits: its `processed_at` is null until it is taken."""
    state = await state_of(core, caller, session_id)
    if state["archived_at"] is not None:
        raise prompts.archived()
    repeat = Idempotency.given(idempotency_key, request.scope["path"], body.model_dump(mode="json"))
    told = await Sender(request, core, caller, session_id, repeat).all(body.events)
    return answer({"data": told})


# --- lists -----------------------------------------------------------------------------------------------------------

Place = tuple[int, int]
"""Number of a stored event, and which of what it tells."""


@dataclass(frozen=True, slots=True)
class Sought:
    """Which events. `moments`: what `processed_at` is compared with, by operator."""

    types: frozenset[str] = frozenset()
    moments: Mapping[str, datetime | None] = field(default_factory=dict)

    def has(self, event: Event) -> bool:
        """Whether it is one of these."""
        if self.types and event["type"] not in self.types:
            return False
        if not any(self.moments.values()):
            return True
        at = event["processed_at"] and datetime.fromisoformat(event["processed_at"])
        return bool(at) and all(
            limit is None or {"gt": at > limit, "gte": at >= limit, "lt": at < limit, "lte": at <= limit}[name]
            for name, limit in self.moments.items()
        )


@dataclass(frozen=True, slots=True)
class Log:
    """A session's log as it is told here. `thread`: the call of a subagent, of whose events it is."""

    core: Core
    tenant_id: UUID
    session_id: UUID
    config: Mapping[str, Any]
    thread: str | None = None

    def fold(self) -> Fold:
        return Fold(self.session_id, lambda tool: toolsets.asks(self.config, tool), self.thread)

    async def told(self, after: int, up_to: int) -> AsyncGenerator[tuple[Place, Event]]:
        """What events after a number tell, which begins a run or lies between two, up to another."""
        fold = self.fold()
        while after < up_to:
            stored = await log.read(self.core.db, self.tenant_id, self.session_id, after)
            for frame in stored.frames:
                if frame.seq > up_to:
                    return
                for nth, event in enumerate(fold.feed(frame)):
                    yield (frame.seq, nth), event
                after = frame.seq
            if not stored.more:
                return

    async def forward(self, place: Place, newest: int, sought: Sought, count: int) -> list[tuple[Place, Event]]:
        """The first of what comes after a place."""
        found: list[tuple[Place, Event]] = []
        # What the place's own event tells beside may not have been on the page before.
        start = await browsing.turn_before(self.core.db, self.session_id, max(place[0] - 1, 0))
        async with aclosing(self.told(start, newest)) as told:
            async for at, event in told:
                if at > place and sought.has(event):
                    found.append((at, event))
                    if len(found) == count:
                        break
        return found

    async def backward(self, place: Place, sought: Sought, count: int) -> list[tuple[Place, Event]]:
        """The last of what comes before a place, the last one first."""
        found: list[tuple[Place, Event]] = []
        end = place[0]
        while end > 0 and len(found) < count:
            start = await browsing.turn_before(self.core.db, self.session_id, end - 1)
            kept: deque[tuple[Place, Event]] = deque(maxlen=count - len(found))
            async with aclosing(self.told(start, end)) as told:
                async for at, event in told:
                    if at < place and sought.has(event) and (not found or at < found[-1][0]):
                        kept.append((at, event))
            found += reversed(kept)
            end = start
        return found

    async def queued(self, sought: Sought) -> list[Event]:
        """Messages that wait."""
        if self.thread is not None:
            return []
        found = await browsing.waiting(self.core.db, self.tenant_id, self.session_id)
        events = [
            {
                "id": ids.of_client("m", run_id),
                "type": "user.message",
                "processed_at": None,
                "content": prompt_blocks(prompt),
            }
            for run_id, prompt in found
        ]
        return [event for event in events if sought.has(event)]


_WAITING = 2**62
"""Instead of a number, in places: among what waits."""


def _place(cursor: str | None, default: Place) -> Place:
    if cursor is None:
        return default
    seq, _, nth = cursor.partition(".")
    if not (seq.isascii() and seq.isdigit() and nth.isascii() and nth.isdigit() and len(cursor) < 40):
        raise ValidationError.of("page", "not a cursor that this list gave")
    return min(int(seq), _WAITING), int(nth)


async def listed_page(of: Log, newest: int, sought: Sought, order: str, limit: int, cursor: str | None) -> Response:
    """A page of a log. What waits comes last, or first where the newest is wanted first."""
    waits = await of.queued(sought)  # before the log: what is taken meanwhile is in both, and not in neither
    if order == "asc":
        place = _place(cursor, (0, -1))
        found = await of.forward(place, newest, sought, limit + 1) if place[0] < _WAITING else []
        known = {event["id"] for _, event in found}
        rest = [((_WAITING, nth), event) for nth, event in enumerate(waits) if event["id"] not in known]
        found += [each for each in rest if each[0] > place]
    else:
        place = _place(cursor, (_WAITING, _WAITING))
        rest = [((_WAITING, nth), event) for nth, event in enumerate(waits)][::-1]
        found = [each for each in rest if each[0] < place]
        below = place if place[0] < _WAITING else (newest, _WAITING)
        found += await of.backward(below, sought, limit + 1 - len(found)) if len(found) <= limit else []
    data, more = found[:limit], len(found) > limit
    last = f"{data[-1][0][0]}.{data[-1][0][1]}" if more else None
    return page([event for _, event in data], last)


async def sought_by(
    types: Annotated[list[str], Depends(listed("types", str))],
    gt: Annotated[datetime | None, Query(alias="created_at[gt]", description="Processed later.")] = None,
    gte: Annotated[datetime | None, Query(alias="created_at[gte]", description="Processed then or later.")] = None,
    lt: Annotated[datetime | None, Query(alias="created_at[lt]", description="Processed earlier.")] = None,
    lte: Annotated[datetime | None, Query(alias="created_at[lte]", description="Processed then or earlier.")] = None,
) -> Sought:
    """What a query asks for. Raises ValidationError."""
    given = {"gt": gt, "gte": gte, "lt": lt, "lte": lte}
    moments = {name: moment(f"created_at[{name}]", value) for name, value in given.items()}
    return Sought(frozenset(types), moments)


Many = Annotated[int, Query(ge=1, le=MAX_EVENTS, description="Events on a page.")]


@routes.get(
    "/sessions/{session_id}/events",
    response_model=ManagedPage,
    responses=errors(404, shows=examples.page_of(examples.EVENT)),
)
async def list_managed_events(
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    sought: Annotated[Sought, Depends(sought_by)],
    order: Annotated[Literal["asc", "desc"], Query(description="By the time they were processed.")] = "asc",
    limit: Many = 100,
    page_of: PageOf = None,
) -> Response:
    """What has happened in a session, and then what waits."""
    state = await state_of(core, caller, session_id)
    newest = await sessions.require(core.db, caller.tenant_id, session_id)
    of = Log(core, caller.tenant_id, session_id, state["config"])
    return await listed_page(of, newest, sought, order, limit, page_of)


# --- streams ---------------------------------------------------------------------------------------------------------


def _frame(event: Event, seq: int | None = None) -> bytes:
    ident = b"" if seq is None else b"id: %d\n" % seq
    return ident + b"event: %s\ndata: %s\n\n" % (event["type"].encode(), encode(event))


def farewell(error: ApiError) -> bytes:
    """How a stream tells why it ends before its time."""
    _, body = error_shape(error, "")
    return b"event: error\ndata: " + encode(body) + b"\n\n"


async def _chunks(of: Log, after: Position, wanted: frozenset[str]) -> AsyncGenerator[bytes]:
    yield b": connected\n\n"
    followed = Followed(of.tenant_id, of.session_id)
    fold = await _primed(of, after.seq)
    told = time.monotonic()
    try:
        async with aclosing(of.core.followers.follow(followed, after, gapless=True)) as batches:
            async for batch in batches:
                text = b""
                for frame in batch:
                    if frame.type == "resync":  # the log is not what this was told, or begins later
                        fold = await _primed(of, frame.seq)
                    elif frame.part:
                        text += b"".join(map(_frame, fold.preview(frame, wanted))) if wanted else b""
                    else:
                        events = fold.feed(frame)
                        last = len(events) - 1
                        text += b"".join(_frame(e, frame.seq if n == last else None) for n, e in enumerate(events))
                if text or not batch or time.monotonic() - told >= KEEP_ALIVE_INTERVAL:
                    yield text
                    told = time.monotonic()
    except SessionDeleted:
        id_ = ids.of_part(EVENT, of.session_id, 0)
        yield _frame({"id": id_, "type": "session.deleted", "processed_at": timestamp(clock.now())})


async def _primed(of: Log, seq: int) -> Fold:
    """What is known of a run by who has read its log up to a number."""
    fold = of.fold()
    after = await browsing.turn_before(of.core.db, of.session_id, seq)
    while after < seq:
        stored = await log.read(of.core.db, of.tenant_id, of.session_id, after)
        for frame in stored.frames:
            if frame.seq <= seq:
                fold.feed(frame)
            after = frame.seq
        if not stored.more:
            break
    return fold


async def position_of(
    last_event_id: Annotated[str | None, Header(description="Resume after this id.", max_length=40)] = None,
) -> Position | None:
    """Where a client wants to resume. The official ones do not say; they list what they have missed."""
    if last_event_id is None:
        return None
    try:
        return Position.parse(last_event_id)
    except ValueError as error:
        raise ValidationError.of("Last-Event-ID", str(error)) from error


async def streamed(
    request: Request, of: Log, caller: Principal, after: Position | None, deltas: frozenset[str] = frozenset()
) -> EventStream:
    """A session's events from now on, or after a place. What happens once this has been called is in the stream."""
    newest = await sessions.require(of.core.db, of.tenant_id, of.session_id)
    start = Position(newest)
    if after is not None:
        start = await of.core.followers.start(Followed(of.tenant_id, of.session_id), after, newest)
    with stream_of(request, caller, "read") as held:
        held.endless = True
        return EventStream(_chunks(of, start, deltas), held, farewell=farewell)


Deltas = Literal["agent.message", "agent.thinking"]


@routes.get("/sessions/{session_id}/events/stream", response_class=Response, responses={**STREAMED, **errors(404, 429)})
async def stream_managed_events(
    request: Request,
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    deltas: Annotated[list[Deltas], Depends(listed("event_deltas", Deltas))],
    after: Annotated[Position | None, Depends(position_of)],
) -> EventStream:
    """What happens in a session from now on. `event_deltas[]=agent.message` also tells messages while they are made."""
    state = await state_of(core, caller, session_id)
    of = Log(core, caller.tenant_id, session_id, state["config"])
    return await streamed(request, of, caller, after, frozenset(deltas))
