"""The demo model over HTTP: a scripted stand-in for the Anthropic Messages API. commands.py lists the words."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from apps.demo_model.script import Reply, decide
from apps.demo_model.wire import ApiError, Break, JsonObject, Page, Pause, body, frames, new_id

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_REMEMBERED_FAILURES = 1_024
MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")


def create_app() -> Starlette:
    """The ASGI app. Setting `app.state.closing` ends every wait, so that a server can stop at once."""
    app = Starlette(
        routes=[
            Route("/v1/messages", post_message, methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{model_id}", get_model),
            Route("/", health),
            Route("/health", health),
            Route("/api/hello", health),
        ],
        exception_handlers={ApiError: _refuse, Exception: _refuse},
    )
    app.state.closing = asyncio.Event()
    app.state.failed_once = OrderedDict()
    return app


async def post_message(request: Request) -> Response:
    """POST /v1/messages: a `message` object, or its SSE frames with `"stream": true`."""
    asked, input_tokens = await _read(request)
    reply = decide(asked)
    if reply.failure is not None and _fails_now(request, reply):
        said = reply.said or f"scripted failure {reply.failure} of the demo model"
        raise ApiError(reply.failure, said, reply.retry_after)
    return ScriptedResponse(reply, asked, input_tokens, request.app.state.closing)


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens: `{"input_tokens": N}`, estimated as a quarter of the characters."""
    _, input_tokens = await _read(request)
    return JSONResponse({"input_tokens": input_tokens})


async def list_models(request: Request) -> Response:
    """GET /v1/models: one page with every model."""
    data = [_model(name) for name in MODELS]
    return JSONResponse({"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})


async def get_model(request: Request) -> Response:
    """GET /v1/models/{id}: any name that POST /v1/messages accepts."""
    return JSONResponse(_model(_known(request.path_params["model_id"])))


async def health(request: Request) -> Response:
    """GET or HEAD /, /health, and /api/hello, where the CLI warms up its connection."""
    return JSONResponse({"status": "ok", "model": "demo, scripted"})


class ScriptedResponse(Response):
    """Sends a reply at its scripted pace and, where the script says so, never finishes it.

    Leaving without a last body chunk is how an ASGI app asks the server to drop the connection.
    """

    def __init__(self, reply: Reply, asked: JsonObject, input_tokens: int, closing: asyncio.Event) -> None:
        self.reply = reply
        self.model = str(asked["model"])
        self.streamed = asked.get("stream") is True
        self.input_tokens = input_tokens
        self.closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(_client_leaves(receive, self.closing))
        try:
            if not await self._send(send, watch):
                late = ApiError(503, "scripted silence of the demo model is over")
                await JSONResponse(late.body(new_id("req")), late.status)(scope, receive, send)
        finally:
            watch.cancel()

    async def _send(self, send: Send, watch: asyncio.Future[None]) -> bool:
        """Returns whether a response was begun."""
        render = frames if self.streamed else body
        begun = False
        for step in render(self.reply.parts, self.model, self.input_tokens):
            if isinstance(step, Pause):
                left, _ = await asyncio.wait({watch}, timeout=step.seconds)
                if left:
                    return begun
                continue
            if isinstance(step, Break):
                return begun
            if not begun:
                await send({"type": "http.response.start", "status": 200, "headers": self._head()})
                begun = True
            await send({"type": "http.response.body", "body": step, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return begun

    def _head(self) -> list[tuple[bytes, bytes]]:
        kind = b"text/event-stream; charset=utf-8" if self.streamed else b"application/json"
        kind = b"text/html" if isinstance(self.reply.parts[0], Page) else kind
        return [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"request-id", new_id("req").encode())]


async def _client_leaves(receive: Receive, closing: asyncio.Event) -> None:
    ends = {asyncio.ensure_future(receive()), asyncio.ensure_future(closing.wait())}
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()


async def _read(request: Request) -> tuple[JsonObject, int]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise ApiError(413, f"Request exceeds the maximum size of {MAX_BODY_BYTES} bytes")
    try:
        text = raw.decode()
        asked = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON") from None
    if not isinstance(asked, dict):
        raise ApiError(400, "The request body is not a JSON object")
    _known(asked.get("model"))
    if not isinstance(asked.get("messages"), list) or not asked["messages"]:
        raise ApiError(400, "messages: a list with at least one message is required")
    return asked, max(1, len(text) // 4)


def _known(model: object) -> str:
    if not isinstance(model, str):
        raise ApiError(400, "model: a string is required")
    if not model.startswith(("claude-", "demo-")) or "unknown" in model or "nonexistent" in model:
        raise ApiError(404, f"model: {model}")
    return model


def _model(name: str) -> JsonObject:
    shown = f"{name} (demo model, scripted)"
    return {"type": "model", "id": name, "display_name": shown, "created_at": "2026-01-01T00:00:00Z"}


def _fails_now(request: Request, reply: Reply) -> bool:
    if reply.once_key is None:
        return True
    failed: OrderedDict[str, None] = request.app.state.failed_once
    known = reply.once_key in failed
    failed[reply.once_key] = None
    failed.move_to_end(reply.once_key)
    if len(failed) > MAX_REMEMBERED_FAILURES:
        failed.popitem(last=False)
    return not known


async def _refuse(request: Request, error: Exception) -> Response:
    shown = error if isinstance(error, ApiError) else ApiError(500, str(error))
    request_id = new_id("req")
    return JSONResponse(shown.body(request_id), shown.status, {"request-id": request_id, **shown.headers})


app = create_app()
