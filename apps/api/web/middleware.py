"""Plain ASGI middleware: request ids, bounded bodies, one log line a request. Nothing here buffers a stream."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.api.errors import TooLarge
from apps.api.web.errors import Refused, error_response
from apps.api.web.metrics import REQUESTS

log = structlog.get_logger("apps.api.web")

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


LINGER_SECONDS, LINGER_BYTES = 5.0, 16 * 1024 * 1024
"""What a client that was answered before it had sent its body may still send. Were the connection closed at once, its
system would throw the answer away (RFC 9112, section 9.6)."""

SMALL = 64 * 1024
"""Bytes of a body that is rather read to its end, so that the connection can be used again."""


class BoundedBody:
    """Refuses bodies over `limit` bytes, announced or not, and ends connections whose body nobody has read."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, send, self._limit)
        if body.announced > self._limit:
            await error_response(scope, body.too_large)(scope, body.receive, body.send)
        else:
            await self._app(scope, body.receive, body.send)


class _Body:
    """The body of one request as it arrives."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        self.announced = int(announced) if announced.isdecimal() else 0
        self.too_large = TooLarge(f"The body is larger than {limit} bytes.", details={"limit_bytes": limit})
        self._receive, self._send, self._limit, self._seen = receive, send, limit, 0
        self._unread = self.announced > SMALL or "transfer-encoding" in headers
        self._asks_first = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        self._asks_first = False  # by now it has been told to go on
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._unread = self._unread and bool(message.get("more_body"))
        if self._seen > self._limit:
            self._unread = True
            raise Refused(self.too_large)
        return message

    async def send(self, message: Message) -> None:
        if self._unread and message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
        elif self._unread and not self._asks_first and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                seen, more = 0, True
                while more and seen <= LINGER_BYTES:
                    message = await self._receive()
                    seen, more = seen + len(message.get("body", b"")), bool(message.get("more_body"))
