"""The execute server: agents in the background, whose state is asked for. See docs/execute-server.md."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from apps.api import __version__
from apps.api.core.events import log
from apps.api.core.sessions import runs, surfaces
from apps.api.dialects.compat.common import (
    SessionId,
    described,
    documented,
    fastapi_shape,
    public,
    send,
    stop,
    unfinished,
)
from apps.api.dialects.compat.execute_server import schemas as wire
from apps.api.dialects.compat.execute_server import translate
from apps.api.errors import BadRequest
from apps.api.web.answer import Json
from apps.api.web.callers import Prompter, Reader, Writer
from apps.api.web.doors import GuestRoute, Router
from apps.api.web.route import CoreDep

PREFIX = "/compat/execute-server"
TAG = "execute server"
DESCRIPTION = described(TAG, PREFIX, "execute-server.md")
ENDPOINTS = {
    "/execute/": "POST: start a session",
    "/status/{session_id}": "GET: its status, messages and result",
    "/cancel/{session_id}": "POST: cancel it",
    "/sessions/": "GET: all sessions",
    "/sessions/cleanup": "DELETE: remove old sessions",
}

MAX_MESSAGES = 5_000
"""Messages in a status, the newest ones."""

error_shape = fastapi_shape
router = Router(route_class=GuestRoute)


@router.get("/", tags=["health"])
@public
async def info(request: Request) -> wire.ExecuteServerInfo:
    """What this is, and which paths it has."""
    return wire.ExecuteServerInfo(name="Claude Agent API", version=__version__, endpoints=ENDPOINTS)


@router.post("/execute/", tags=[TAG], responses=documented(413, 422, 429))
async def execute(core: CoreDep, caller: Prompter, body: wire.ExecuteBody) -> wire.Execution:
    """Start an agent in the background, and answer at once."""
    run = await send(core, caller, body.prompt, begin=translate.options(core, body))
    id_ = str(run.session_id)
    return wire.Execution(session_id=id_, status="pending", message=f"Session {id_} started successfully")


@router.get("/status/{session_id}", tags=[TAG], response_model=wire.ExecutionStatus, responses=documented(404))
async def status(core: CoreDep, caller: Reader, session_id: SessionId) -> Response:
    """What the agent is doing, all that was said, and the result once there is one."""
    page = await runs.list_page(core.db, caller.tenant_id, session_id, limit=1, cursor=None)
    frames = await log.newest(core.db, caller.tenant_id, session_id, translate.TOLD, limit=MAX_MESSAGES)
    return Json(translate.status(str(session_id), page.data[0] if page.data else None, frames))


@router.post("/cancel/{session_id}", tags=[TAG], responses=documented(400, 404))
async def cancel(request: Request, core: CoreDep, caller: Writer, session_id: SessionId) -> wire.Execution:
    """Cancel what the session is doing, and what waits in it. 400 when it is over."""
    waiting = await unfinished(core, caller.tenant_id, session_id)
    for run_id in waiting:
        await stop(request, core, caller, run_id)
    page = await runs.list_page(core.db, caller.tenant_id, session_id, limit=1, cursor=None)
    if not waiting or page.data[0]["status"] != "interrupted":
        state = translate.STATUS[page.data[0]["status"] if page.data else None]
        raise BadRequest(f"Session {session_id} is not running: {state}")
    text = f"Session {session_id} cancelled successfully"
    return wire.Execution(session_id=str(session_id), status="cancelled", message=text)


@router.get("/sessions/", tags=[TAG], response_model=list[wire.ListedExecution], responses=documented())
async def list_sessions(core: CoreDep, caller: Reader) -> Response:
    """Sessions that were started here and have not been cleaned up, newest first, at most 1,000."""
    rows = await surfaces.overview(
        core.db, caller.tenant_id, translate.SURFACE, caller.profiles, event_types=translate.TOLD
    )
    return Json([translate.listed(row) for row in rows])


@router.delete("/sessions/cleanup", tags=[TAG], responses=documented(422))
async def clean_up(
    core: CoreDep,
    caller: Writer,
    max_age_hours: Annotated[
        float, Query(ge=0, le=100_000, description="Hours since the end, from which on a session is removed.")
    ] = 24,
) -> wire.CleanedUp:
    """Remove finished sessions that were started here, at most 1,000 of them. There is no way back."""
    removed = await surfaces.clean_up(core, caller.tenant_id, translate.SURFACE, max_age_hours, caller.profiles)
    return wire.CleanedUp(removed=removed, message=f"Cleaned up {removed} old sessions")
