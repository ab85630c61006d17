"""`/mcp`: the agents of a tenant as tools of other agents, by the Model Context Protocol. See docs/mcp-server.md.

The protocol is the official package's: its server, without sessions, so that any instance answers each message. Who
asks, what that key may do, how large a message is and what it costs is ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from fastapi import Request, Response
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from apps.api.auth import Principal
from apps.api.core import codec, tasks
from apps.api.core.context import Core
from apps.api.core.fleet import cancellation
from apps.api.core.tenant import idempotency, presets
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.mcp import calls
from apps.api.dialects.mcp.calls import Client
from apps.api.errors import Conflict, NotFound
from apps.api.web.callers import Reader
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.hosts import require_known_origin
from apps.api.web.opened import Held
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import WRITE_TIMEOUT

# It tells of each message, and of what was wrong with one, with the message.
logging.getLogger("mcp").setLevel(logging.ERROR)

PATH = "/mcp"
router = Router(route_class=ContentRoute, include_in_schema=False)

SESSION = "mcp-session-id"
"""Header by which the messages of one client are told from those of others. Nothing is kept of a session: it is a
number that the client is given and says again."""

VERSION = "mcp-protocol-version"


@router.post(PATH)
async def post_message(request: Request, core: CoreDep, caller: Reader) -> Response:
    """Answer one message of a client."""
    require_known_origin(request, core.settings.allowed_origins)
    body = await request.body()
    try:
        message = await codec.read(body)
    except codec.NotJson:
        return _refused(types.PARSE_ERROR, "The message is not JSON.")
    except codec.Unsuitable as error:
        return _refused(types.INVALID_REQUEST, f"{error.field or 'message'}: {error.reason}")
    try:
        types.jsonrpc_message_adapter.validate_python(message)
    except ValidationError:
        return _refused(types.INVALID_REQUEST, "This is no single message of JSON-RPC 2.0.")
    session, method = _session_of(request), message.get("method")
    if method == "notifications/cancelled" and session is not None:
        await _cancel(core, caller, session, message)
    if method != "tools/call":
        return _Answer(request, core, caller, body, begins=method == "initialize")
    with stream_of(request, caller, "read") as held:
        held.kept = True
        key = None if session is None else _key(caller, session, message.get("id"))
        repeat = Idempotency.given(key, PATH, message.get("params"))
        return _Answer(request, core, caller, body, held=held, repeat=repeat)


def _refused(code: int, text: str) -> Response:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": text}}
    return Response(json.dumps(error), 400, media_type="application/json")


def _session_of(request: Request) -> UUID | None:
    return presets.as_id(request.headers.get(SESSION))


def _key(caller: Principal, session: UUID, message_id: Any) -> str | None:
    """The idempotency key of a client's message: sent again it begins nothing again, and it can be cancelled by it. The
    caller's key is in it: what another one has begun is not its to stop."""
    if isinstance(message_id, bool) or not isinstance(message_id, str | int):
        return None
    named = json.dumps([str(caller.key_id), str(session), message_id])
    return f"mcp-{hashlib.sha256(named.encode()).hexdigest()}"


async def _cancel(core: Core, caller: Principal, session: UUID, message: Mapping[str, Any]) -> None:
    """Stop what an earlier message has begun, on whichever instance; nothing where that is over, or began nothing."""
    params = message.get("params")
    key = _key(caller, session, params.get("requestId") if isinstance(params, dict) else None)
    earlier = await idempotency.find(core.db, caller.tenant_id, key) if key else None
    if earlier is not None and earlier.run_id is not None:
        with suppress(Conflict, NotFound):  # of what is over; whoever began it had the scope to
            await cancellation.cancel(core, caller.tenant_id, earlier.run_id)


class _Answer(Response):
    """The package's server answers, once, and what it began ends with that; runs go on."""

    def __init__(
        self,
        request: Request,
        core: Core,
        caller: Principal,
        body: bytes,
        *,
        held: Held | None = None,
        repeat: Idempotency | None = None,
        begins: bool = False,
    ) -> None:
        super().__init__()
        # Who has shaken hands cancels by a message; who has not, by closing the stream.
        self._bound = request.headers.get(VERSION, HANDSHAKE_PROTOCOL_VERSIONS[0]) not in HANDSHAKE_PROTOCOL_VERSIONS
        self._client = Client(request, core, caller, held, repeat)
        self._body, self._held, self._begins = body, held, begins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._client
        server = Server[Any](
            "claude-agent-api",
            instructions="Each tool gives a task to an agent of this server, which works in a session of its own.",
            on_list_tools=partial(_list, client),
            on_call_tool=partial(calls.call_tool, client),
        )
        limit = max(len(self._body), 1)
        manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=limit)
        try:
            async with manager.run():
                await manager.handle_request(scope, _again(self._body, receive), self._sending(send))
        except* TimeoutError:  # a client that does not read
            pass
        finally:
            if self._held is not None:
                self._held.close()
            if self._bound and client.waits_for is not None:
                with suppress(Conflict, NotFound):
                    await cancellation.cancel(client.core, client.caller.tenant_id, client.waits_for)

    def _sending(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if self._begins and message["type"] == "http.response.start" and message["status"] == 200:
                message = {**message, "headers": [*message["headers"], (SESSION.encode(), str(uuid4()).encode())]}
            await tasks.within(WRITE_TIMEOUT, send(message))

        return sent


async def _list(client: Client, _context: Any, _params: Any) -> types.ListToolsResult:
    return await calls.list_tools(client)


def _again(body: bytes, receive: Receive) -> Receive:
    """What has been read, and then what comes."""
    left = [body]

    async def read() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return read
