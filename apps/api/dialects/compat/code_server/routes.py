"""The code server: one-off queries, and conversations, answered whole or as `data:` lines. See docs/code-server.md."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response

from apps.api import __version__
from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.sessions import deletion, sessions, surfaces
from apps.api.core.sessions.prompts import Submitted
from apps.api.dialects.compat.code_server import schemas as wire
from apps.api.dialects.compat.code_server import translate
from apps.api.dialects.compat.common import (
    SessionId,
    described,
    documented,
    ended,
    public,
    send,
    stop,
    stream,
    unfinished,
)
from apps.api.errors import Unavailable
from apps.api.web.answer import Json
from apps.api.web.callers import Prompter, Reader, Writer, visitor
from apps.api.web.doors import GuestRoute, Router
from apps.api.web.health import examine
from apps.api.web.opened import Held
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream

PREFIX = "/compat/code-server"
TAG = "code server"
DESCRIPTION = described(TAG, PREFIX, "code-server.md")
ENDPOINTS = [
    "/health",
    "/query",
    "/session/start",
    "/session/{session_id}/query",
    "/session/{session_id}/interrupt",
    "/session/{session_id}",
    "/sessions",
]

error_shape = translate.error_shape
router = Router(route_class=GuestRoute)

_STREAM = 'data: {"type":"text","content":"Python "}\n\ndata: {"type":"done"}\n\n'
_STREAMED = {"content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}}}


@router.get("/", tags=["health"])
@public
async def info(request: Request) -> wire.CodeServerInfo:
    """What this is, and which paths it has."""
    return wire.CodeServerInfo(name="Claude Agent API", version=__version__, endpoints=ENDPOINTS)


@router.get("/health", tags=["health"])
async def health(
    request: Request, core: CoreDep, caller: Annotated[Principal | None, Depends(visitor)]
) -> wire.CodeServerHealth:
    """Whether the server works, whether it has a model, and how many sessions the caller has."""
    if (await examine(request)).status == "unhealthy":
        raise Unavailable("unhealthy")
    return wire.CodeServerHealth(
        status="healthy",
        authenticated=core.settings.model_is_configured,
        active_sessions=await _count(core, caller) if caller else 0,
        timestamp=translate.moment(),
    )


async def _count(core: Core, caller: Principal) -> int:
    return await surfaces.count(core.db, caller.tenant_id, translate.CONVERSATION, caller.profiles)


def _stream(request: Request, core: Core, caller: Principal, run: Submitted, held: Held) -> EventStream:
    return stream(request, core, caller, run, held, translate.Lines().of, farewell=translate.farewell)


@router.post(
    "/query",
    tags=[TAG],
    response_model=wire.QueryAnswer,
    responses={200: _STREAMED, **documented(400, 413, 429)},
)
async def query(request: Request, core: CoreDep, caller: Prompter, body: wire.QueryBody) -> Response:
    """Ask once, without a history: each query has a session of its own."""
    begin = translate.options(core, body, translate.ONE_OFF)
    with stream_of(request, caller, "write") as held:
        run = await send(core, caller, body.prompt, begin=begin)
        if body.stream:
            return _stream(request, core, caller, run, held)
        state = await ended(request, core, caller, run, held)
    return Json(translate.answer(state), headers=request.state.limit_headers)


@router.post("/session/start", tags=[TAG], response_model=wire.StartAnswer, responses=documented(400, 413, 429))
async def start(request: Request, core: CoreDep, caller: Prompter, body: wire.StartBody) -> Response:
    """Begin a conversation; answers once the agent has answered."""
    begin = translate.options(core, body, translate.CONVERSATION)
    with stream_of(request, caller, "write") as held:
        run = await send(core, caller, body.initial_prompt, begin=begin)
        state = await ended(request, core, caller, run, held)
    started = {
        "session_id": str(run.session_id),
        "status": "started",
        "initial_response": translate.answer(state)["response"],
        "created_at": translate.moment(state["created_at"]),
    }
    return Json(started, headers=request.state.limit_headers)


@router.post(
    "/session/{session_id}/query",
    tags=[TAG],
    response_model=wire.SessionAnswer,
    responses={200: _STREAMED, **documented(400, 404, 409, 413, 429)},
)
async def session_query(
    request: Request, core: CoreDep, caller: Prompter, session_id: SessionId, body: wire.NextBody
) -> Response:
    """Go on with a conversation. A prompt that comes while another one runs waits for it."""
    with stream_of(request, caller, "write") as held:
        run = await send(core, caller, body.prompt, session_id=session_id)
        if body.stream:
            return _stream(request, core, caller, run, held)
        found = translate.answer(await ended(request, core, caller, run, held))
    shown = {"session_id": str(session_id), "response": found["response"], "duration_ms": found["duration_ms"]}
    return Json(shown, headers=request.state.limit_headers)


@router.post("/session/{session_id}/interrupt", tags=[TAG], responses=documented(404))
async def interrupt(request: Request, core: CoreDep, caller: Writer, session_id: SessionId) -> wire.SessionChange:
    """Stop what the session is doing; it has stopped when this answers. Prompts that wait behind it go on."""
    waiting = await unfinished(core, caller.tenant_id, session_id)
    if waiting:
        await stop(request, core, caller, waiting[-1])
    return wire.SessionChange(status="interrupted", session_id=str(session_id))


@router.get("/session/{session_id}", tags=[TAG], responses=documented(404))
async def get_session(core: CoreDep, caller: Reader, session_id: SessionId) -> wire.OpenSession:
    """A session: when it began, and which model answers."""
    state = await sessions.get(core.db, core.redis, caller.tenant_id, session_id, core.settings.default_model)
    created_at = translate.moment(state["created_at"])
    return wire.OpenSession(session_id=str(session_id), created_at=created_at, active=True, model=state["model"])


@router.delete("/session/{session_id}", tags=[TAG], responses=documented(404))
async def close(core: CoreDep, caller: Writer, session_id: SessionId) -> wire.SessionChange:
    """Close a session and remove all that belongs to it. There is no way back."""
    await deletion.delete(core.db, caller.tenant_id, session_id)
    core.forget(caller.tenant_id, session_id)
    return wire.SessionChange(status="closed", session_id=str(session_id))


@router.get("/sessions", tags=[TAG], responses=documented())
async def list_sessions(core: CoreDep, caller: Reader) -> wire.OpenSessions:
    """Conversations that were started here and have not been closed."""
    found = await surfaces.ids(core.db, caller.tenant_id, translate.CONVERSATION, caller.profiles)
    return wire.OpenSessions(active_sessions=found, count=len(found))
