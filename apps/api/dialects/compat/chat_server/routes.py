"""The chat server: conversations as streams of `data:` lines. See docs/chat-server.md."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from apps.api.auth import Principal
from apps.api.core.config.parts import Repository
from apps.api.core.context import Core
from apps.api.core.sessions import ports as session_ports
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.tenant import mcp, repositories
from apps.api.dialects.compat.chat_server import schemas as wire
from apps.api.dialects.compat.chat_server import translate
from apps.api.dialects.compat.common import SessionId, described, documented, fastapi_shape, send, stream
from apps.api.web.callers import Prompter, policy_of
from apps.api.web.doors import GuestRoute, Router
from apps.api.web.opened import Held
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream

PREFIX = "/compat/chat-server"
TAG = "chat server"
DESCRIPTION = described(TAG, PREFIX, "chat-server.md")

error_shape = fastapi_shape
router = Router(route_class=GuestRoute)

_STREAM = 'data: {"type":"status","status":"initializing"}\n\ndata: {"type":"done"}\n\n'
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`data:` lines, each a JSON object with a `type`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
    }
}


async def _stream(request: Request, core: Core, caller: Principal, run: Submitted, held: Held) -> EventStream:
    preview = await session_ports.get(core.db, caller.tenant_id, run.session_id)
    base = str(request.base_url).rstrip("/")
    told = translate.Conversation(str(run.session_id), preview.ports, lambda ports: preview.urls(base, ports))
    return stream(request, core, caller, run, held, told.of, first=translate.BEGIN, farewell=translate.farewell)


@router.post("/chat", tags=[TAG], response_class=Response, responses={**_STREAMED, **documented(413, 422, 429)})
async def chat(request: Request, core: CoreDep, caller: Prompter, body: wire.Chat) -> EventStream:
    """Begin a conversation, and stream what the agent does.

    `complete` has the `session_id` to go on with. The run goes on when the client leaves.
    """
    if body.repo is not None:
        repositories.check(core.settings, Repository(url=body.repo), "repo")
    servers = await mcp.list_all(core.db, caller.tenant_id)
    begin = translate.options(body, policy_of(core, caller), servers)
    with stream_of(request, caller, "write") as held:
        run = await send(core, caller, body.prompt, begin=begin)
        return await _stream(request, core, caller, run, held)


@router.post(
    "/chat/{session_id}",
    tags=[TAG],
    response_class=Response,
    responses={**_STREAMED, **documented(404, 409, 413, 422, 429)},
)
async def chat_on(
    request: Request, core: CoreDep, caller: Prompter, session_id: SessionId, body: wire.NextChat
) -> EventStream:
    """Go on with a conversation. 409 while its agent is at work."""
    with stream_of(request, caller, "write") as held:
        run = await send(core, caller, body.prompt, session_id=session_id, on_busy="reject")
        return await _stream(request, core, caller, run, held)
