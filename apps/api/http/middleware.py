"""Plain ASGI middleware: request ids, bounded bodies, one log line a request. Nothing here buffers a stream."""

from __future__ import annotations

import re
import time
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.api.errors import TooLarge
from apps.api.http.errors import error_response
from apps.api.http.metrics import REQUESTS

log = structlog.get_logger("apps.api.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestContext:
    """Gives every request an id, echoes it, and logs method, path, status and duration; never headers or bodies.

    Of a WebSocket, status is 101, or that of its refusal, and `closed` the code with which it ended.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        ident = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = ident
        started, status, closed = time.perf_counter(), 500 if scope["type"] == "http" else 403, None

        async def tell(message: Message) -> None:
            nonlocal status, closed
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                MutableHeaders(scope=message)["X-Request-ID"] = ident
            elif message["type"] == "websocket.close":
                closed = message["code"]
            await send(message)

        async def hear() -> Message:
            nonlocal closed
            message = await receive()
            if message["type"] == "websocket.disconnect":
                closed = message["code"]
            return message

        try:
            await self._app(scope, hear if scope["type"] == "websocket" else receive, tell)
        finally:
            path = _template(scope)
            method = scope.get("method", "WEBSOCKET")
            REQUESTS.labels(method, path, status).inc()
            level = log.debug if path.startswith("/health") else log.info
            level(
                "request",
                method=method,
                path=path,
                status=status,
                **({} if closed is None else {"closed": closed}),
                ms=round((time.perf_counter() - started) * 1000, 1),
                request_id=ident,
            )


def _template(scope: Scope) -> str:
    """The path of the route that was taken, whole: an included router's route knows only its own part."""
    route: Any = scope.get("route")
    if route is None:
        return "unmatched"
    path, at = scope["path"], 0
    while at >= 0 and not route.path_regex.match(path[at:]):
        at = path.find("/", at + 1)
    return f"{path[: max(at, 0)]}{route.path}"


class BoundedBody:
    """Refuses bodies over `limit` bytes, announced or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        error = TooLarge(f"The body is larger than {self._limit} bytes.", details={"limit_bytes": self._limit})
        if announced.isdecimal() and int(announced) > self._limit:
            await error_response(scope, error)(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                # FastAPI turns whatever else is raised while it reads a body into its own 400.
                raise HTTPException(413, error.message)
            return message

        await self._app(scope, bounded, send)
