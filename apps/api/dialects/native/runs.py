"""Runs, and the events of runs and sessions."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query, Request, Response

from apps.api.auth import Principal
from apps.api.codes import RunCode
from apps.api.core.codec import decode
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.events.frames import Position, resync
from apps.api.core.events.log import Stored
from apps.api.core.events.replay import Followed
from apps.api.core.pages import Page
from apps.api.core.sessions import runs, sessions
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import (
    PREFIX,
    After,
    Cursor,
    Limit,
    Moment,
    OfEndUser,
    RunId,
    SessionId,
    answer,
    errors,
    moment,
)
from apps.api.dialects.native.event_schemas import EventList
from apps.api.dialects.native.examples import FOLLOWED
from apps.api.dialects.native.stream import OneRun, nothing_left, session_stream
from apps.api.errors import NotFound
from apps.api.web import figures
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, SessionReader
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep, stream_of

router = Router(prefix=PREFIX)


@router.get(
    "/sessions/{session_id}/events",
    tags=["events"],
    response_model=EventList,
    responses={**FOLLOWED, **errors(404, 410, 429)},
)
async def get_session_events(
    request: Request,
    core: CoreDep,
    caller: SessionReader,
    session_id: SessionId,
    after: After,
    run_id: Annotated[UUID | None, Query(description="Only this run; the stream ends with its `done`.")] = None,
    until: Annotated[Literal["idle"] | None, Query(description="End when nothing is queued or running.")] = None,
    limit: Limit = 100,
) -> Response:
    """Stored events, then live ones, across runs: nothing lost, nothing repeated, on any instance.

    Without a position the stream starts at the session's first event. `Accept: application/json` pages through
    the stored events instead: `?after=` is the cursor.
    """
    newest = await sessions.require(core.db, caller.tenant_id, session_id)
    start = after or Position(0)
    run: OneRun | None = None
    if run_id is not None:
        lies = await runs.extent(core.db, caller.tenant_id, run_id)
        if lies.session_id != session_id:
            raise NotFound.of("run")
        lies.require_any(start.seq)
        newest, run = lies.newest, (run_id, lies.end)
    return await _events(request, core, caller, session_id, start, newest, run, until == "idle", limit)


async def _events(
    request: Request,
    core: Core,
    caller: Principal,
    session_id: UUID,
    start: Position,
    newest: int,
    run: OneRun | None,
    until_idle: bool,
    limit: int,
) -> Response:
    followed = Followed(caller.tenant_id, session_id)
    if "application/json" in request.headers.get("accept", "") and "event-stream" not in request.headers["accept"]:
        stored = await _page(core, followed, start, newest, run[0] if run else None, limit)
        data = [{"id": str(f.position), "event": f.type, "data": decode(f.data)} for f in figures.frames(stored.frames)]
        return Json({"data": data, "next_cursor": data[-1]["id"] if stored.more else None})
    if await nothing_left(core, followed, start, newest, until_idle=until_idle, run=run):
        return Response(status_code=204, headers={"X-Session-ID": str(session_id)})
    with stream_of(request, caller, "read") as held:
        return session_stream(core, held, followed, start, newest, until_idle=until_idle, run=run)


async def _page(
    core: Core, followed: Followed, after: Position, newest: int, run_id: UUID | None, limit: int
) -> Stored:
    """Stored events after `after`; or `resync` alone, where a stream would begin with it."""
    start = await core.followers.start(followed, after, newest)
    if start != after:
        return Stored([resync(followed.session_id, start.seq, expired=start.seq > after.seq)], more=True)
    return await log.read(core.db, followed.tenant_id, followed.session_id, after.seq, run_id=run_id, limit=limit)


@router.get(
    "/sessions/{session_id}/runs", tags=["runs"], response_model=wire.Page[wire.RunState], responses=errors(404)
)
async def list_session_runs(
    core: CoreDep, caller: SessionReader, session_id: SessionId, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Runs of a session, newest first, queued ones included."""
    page = await runs.list_page(core.db, caller.tenant_id, session_id, limit=limit, cursor=cursor)
    return _told(page)


@router.get("/runs", tags=["runs"], response_model=wire.Page[wire.RunState], responses=errors())
async def list_runs(
    core: CoreDep,
    caller: Reader,
    status: Annotated[wire.RunStatus | None, Query(description="What has become of it.")] = None,
    session_id: Annotated[UUID | None, Query(description="Of this session, deleted or not.")] = None,
    agent: Annotated[
        wire.AgentRef | None,
        Query(description="Of sessions that began with this preset: its name or id, or `name@version`."),
    ] = None,
    error_code: Annotated[RunCode | None, Query(description="Failed with this code.")] = None,
    end_user: OfEndUser = None,
    created_after: Moment = None,
    created_before: Moment = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Runs of all of the tenant's sessions, newest first, queued ones included."""
    filters = runs.Filters(
        status=status,
        session_id=session_id,
        agent=agent,
        created_after=moment("created_after", created_after),
        created_before=moment("created_before", created_before),
        error_code=error_code,
        profiles=caller.profiles,
        end_user=end_user,
    )
    return _told(await runs.list_of_tenant(core.db, caller.tenant_id, filters, limit=limit, cursor=cursor))


@router.get("/runs/{run_id}", tags=["runs"], response_model=wire.RunState, responses=errors(404))
async def get_run(core: CoreDep, caller: SessionReader, run_id: RunId) -> Response:
    """A run's state and, when it is over, its result or error."""
    return answer(wire.RunState, figures.run(await runs.get(core.db, caller.tenant_id, run_id)))


def _told(page: Page) -> Response:
    return answer(wire.Page[wire.RunState], Page([figures.run(run) for run in page.data], page.next_cursor))


@router.get(
    "/runs/{run_id}/events",
    tags=["events"],
    response_model=EventList,
    responses={**FOLLOWED, **errors(404, 410, 429)},
)
async def get_run_events(
    request: Request, core: CoreDep, caller: SessionReader, run_id: RunId, after: After, limit: Limit = 100
) -> Response:
    """The events of one run, from its first (or from `Last-Event-ID`) to its `done`."""
    lies = await runs.extent(core.db, caller.tenant_id, run_id)
    start = after or Position(lies.start)
    lies.require_any(start.seq)
    return await _events(request, core, caller, lies.session_id, start, lies.newest, (run_id, lies.end), False, limit)
