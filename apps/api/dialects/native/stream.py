"""From events to the native API's streams. The wire frame is the stored frame, so there is little to translate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated
from uuid import UUID

from fastapi import Header, Query, Request

from apps.api import clock
from apps.api.core.context import Core
from apps.api.core.events.follow import KEEP_ALIVE_INTERVAL, SessionDeleted
from apps.api.core.events.frames import Frame, Position, event_data, join, resync
from apps.api.core.events.replay import Followed
from apps.api.core.sessions import runs
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.prompts import Submitted
from apps.api.errors import ApiError, ValidationError
from apps.api.web import figures
from apps.api.web.following import run_frames
from apps.api.web.opened import Held
from apps.api.web.sse import EventStream, Farewell, Leaving

OneRun = tuple[UUID, int | None]
"""A run, and the number of its `done` if it is over."""


async def position(
    last_event_id: Annotated[
        str | None, Header(description="Resume after this event id.", examples=["12"], max_length=40)
    ] = None,
    after: Annotated[
        str | None, Query(description="The same, for clients that cannot set headers.", examples=["12"], max_length=40)
    ] = None,
    cursor: Annotated[
        str | None, Query(description="The same: `next_cursor` of the page before.", examples=["12"], max_length=40)
    ] = None,
) -> Position | None:
    """Where a client wants to resume; None when it did not say. Raises ValidationError."""
    for field, text in (("Last-Event-ID", last_event_id), ("after", after), ("cursor", cursor)):
        if text is not None:
            try:
                return Position.parse(text)
            except ValueError as error:
                raise ValidationError.of(field, str(error)) from error
    return None


def _wanted(frames: Sequence[Frame], partials: bool) -> Sequence[Frame]:
    return frames if partials else [frame for frame in frames if frame.type != "partial"]


def farewell(session_id: UUID) -> Farewell:
    """How a stream tells why it ends before its time: an `error` event without an id, as for a deleted session."""

    def told(error: ApiError) -> bytes:
        why = {"code": error.code, "message": error.message, "retryable": False}
        return b"event: error\ndata: " + event_data(session_id, None, 0, clock.now(), why) + b"\n\n"

    return told


def _gone(session_id: UUID, seq: int, code: str) -> Frame:
    data = event_data(session_id, None, seq, clock.now(), failure(code))
    # Without an id: it is no event of the session, so nobody can resume after it.
    return Frame(seq, 0, "error", b"event: error\ndata: " + data + b"\n\n")


async def run_batches(core: Core, tenant_id: UUID, run: Submitted, partials: bool) -> AsyncGenerator[Sequence[Frame]]:
    """The events of one run up to its `done`, in batches; an empty one is a sign of life."""
    frames, told = run_frames(core, tenant_id, run), time.monotonic()
    try:
        async with aclosing(frames):
            async for batch in frames:
                wanted = figures.frames(_wanted(batch, partials))
                if wanted or not batch or time.monotonic() - told >= KEEP_ALIVE_INTERVAL:
                    yield wanted
                    told = time.monotonic()
    except SessionDeleted as gone:
        yield [_gone(run.session_id, run.after, gone.code)]


async def _chunks(batches: AsyncGenerator[Sequence[Frame]], first: bytes = b"") -> AsyncGenerator[bytes]:
    async with aclosing(batches):
        if first:
            yield first
        async for frames in batches:
            yield join(frames)


def run_stream(
    request: Request,
    core: Core,
    tenant_id: UUID,
    run: Submitted,
    held: Held,
    *,
    partials: bool = True,
    left: Leaving | None = None,
) -> EventStream:
    """The events of one run; ends with its `done`. `left` is called when the client leaves before that."""
    headers = {
        "X-Session-ID": str(run.session_id),
        "X-Run-ID": str(run.run_id),
        **getattr(request.state, "limit_headers", {}),
    }
    chunks = _chunks(run_batches(core, tenant_id, run, partials))
    return EventStream(chunks, held, farewell=farewell(run.session_id), headers=headers, left=left)


async def session_batches(
    core: Core,
    followed: Followed,
    after: Position,
    newest: int,
    *,
    until_idle: bool = False,
    run: OneRun | None = None,
) -> AsyncGenerator[Sequence[Frame]]:
    """The events of a session across its runs, or of one run, in batches; an empty one is a sign of life.

    Args:
        newest: the last number there is now.
        run: only the events of this one.
    """
    start = await core.followers.start(followed, after, newest)
    if start != after:
        yield [resync(followed.session_id, start.seq, expired=start.seq > after.seq)]
        after = start
    reached = after.seq
    if until_idle and await _all_seen(core, followed, reached):
        return
    run_id, end = run or (None, None)
    if end is not None and reached >= end:
        return  # its `done` was seen: nothing more will come
    batches = core.followers.follow(followed, after, run_id=run_id)
    try:
        async with aclosing(batches):
            async for frames in batches:
                yield figures.frames(frames)
                reached = frames[-1].seq if frames else reached
                done = any(frame.type == "done" for frame in frames)
                if run_id is not None and done:
                    return
                if until_idle and (done or not frames) and await _all_seen(core, followed, reached):
                    return
    except SessionDeleted as gone:
        yield [_gone(followed.session_id, reached, gone.code)]


async def nothing_left(
    core: Core, followed: Followed, after: Position, newest: int, *, until_idle: bool, run: OneRun | None
) -> bool:
    """Whether such a stream would end without an event. An EventSource would ask for it again and again, but for 204:
    https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model."""
    over = run is not None and run[1] is not None and after.seq >= run[1]
    if not over and not (until_idle and await _all_seen(core, followed, after.seq)):
        return False
    return await core.followers.start(followed, after, newest) == after  # else that is to be told


async def _all_seen(core: Core, followed: Followed, reached: int) -> bool:
    # Both facts in one look: a run that ended a moment ago has events that this reader has not seen yet.
    newest = await runs.idle_since(core.db, followed.session_id)
    return newest is not None and reached >= newest


def session_stream(
    core: Core,
    held: Held,
    followed: Followed,
    after: Position,
    newest: int,
    *,
    until_idle: bool = False,
    run: OneRun | None = None,
) -> EventStream:
    """The same as server-sent events, opened as `held`."""
    batches = session_batches(core, followed, after, newest, until_idle=until_idle, run=run)
    chunks = _chunks(batches, b": connected\n\n")
    held.endless = not until_idle and run is None
    headers = {"X-Session-ID": str(followed.session_id)}
    return EventStream(chunks, held, farewell=farewell(followed.session_id), headers=headers)
