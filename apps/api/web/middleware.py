"""Plain ASGI middleware: request ids, bounded bodies, one log line a request. Nothing here buffers a stream."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.api import instruments, tracing
from apps.api.auth import Principal
from apps.api.codes import ErrorCode
from apps.api.errors import ApiError, TooLarge, Unavailable
from apps.api.shares import Kind, Level, Share
from apps.api.web.errors import Refused, error_response
from apps.api.web.sse import LATER, PIECE

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
        headers, http = Headers(scope=scope), scope["type"] == "http"
        given = headers.get("x-request-id", "")
        ident = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = ident
        method = scope.get("method", "WEBSOCKET")
        span = _begin(scope, method, tracing.parse(headers.get("traceparent", "")))
        work = tracing.Work(span.traceparent, ident)
        started, status, closed = time.perf_counter(), 500 if http else 403, None
        answered: float | None = None

        async def tell(message: Message) -> None:
            nonlocal status, closed, answered
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status, answered = message.get("status", 101), time.perf_counter()
                told = MutableHeaders(scope=message)
                told["X-Request-ID"] = ident
                if work.traceparent is not None:
                    told["traceparent"] = work.traceparent
            elif message["type"] == "websocket.close":
                closed = message["code"]
            await send(message)

        async def hear() -> Message:
            nonlocal closed
            message = await receive()
            if message["type"] == "websocket.disconnect":
                closed = message["code"]
            return message

        tracing.work_on(work)
        try:
            await self._app(scope, receive if http else hear, tell)
        except asyncio.CancelledError:
            if answered or not http:
                raise
            # The server ends, and waits no longer for this one. Its own answer would be a 500, which nobody repeats.
            await error_response(scope, _cut())(scope, receive, tell)
        finally:
            path, ended = _template(scope), time.perf_counter()
            counted = instruments.request(method, path, status)
            counted.counter.inc()
            counted.seconds.observe((answered or ended) - started)
            _note_ids(work, scope.get("path_params", {}))
            _log(method, path, status, closed, ended - started, ident)
            if tracing.on():
                span.rename(f"{method} {path}")
                span.set({"http.route": path, "http.response.status_code": status, **tracing.attributes(work.told())})
                span.end(str(status) if status >= 500 else None)
            tracing.work_on(None)


def _log(method: str, path: str, status: int, closed: int | None, seconds: float, ident: str) -> None:
    level = log.debug if path.startswith("/health") else log.info
    level(
        "request",
        method=method,
        path=path,
        status=status,
        **({} if closed is None else {"closed": closed}),
        ms=round(seconds * 1000, 1),
        request_id=ident,
    )


def _cut() -> ApiError:
    text = "The instance ended before it had an answer. Ask again."
    return Unavailable(text, headers={"Retry-After": "1", "Connection": "close"})


_UNTRACED = ("/health", "/api/v1/health", "/metrics")
"""What machines ask for again and again."""


def _begin(scope: Scope, method: str, parent: str | None) -> tracing.Span:
    if scope["path"].startswith(_UNTRACED):
        return tracing.Span(parent)
    return tracing.begin(method, parent, {"http.request.method": method}, "server")


def _note_ids(work: tracing.Work, given: Mapping[str, Any]) -> None:
    """Of the path, where they are ids: what is none is what a client wrote."""
    for name in ("session_id", "run_id"):
        with suppress(ValueError, KeyError):
            if getattr(work, name) is None:
                setattr(work, name, str(UUID(str(given[name]))))


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


BODY_SECONDS = 60.0
"""For the whole body of a request, from when it is wanted."""

FILE_SECONDS = 900.0
"""For the whole body of a request that brings a file."""

_BODY = "claude_agent_api.body"


def body_of(scope: Scope) -> Body:
    """The body of a request, to which its route says what it takes."""
    body: Body = scope[_BODY]
    return body


class _TooSlow(ApiError):
    status = 408
    code: ErrorCode = "body_too_slow"


class BoundedBody:
    """Refuses bodies over `limit` bytes, or over what their route takes, announced or not, and beyond the shares of who
    sends them; ends connections whose body nobody has read. Answers go out in pieces that wait for their client. It is
    here that streams are served."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float = BODY_SECONDS, file_limit: int | None = None) -> None:
        """`file_limit`: of a file, if it is another one. `seconds`: for the whole of a body that is none."""
        self._app, self._limit, self._file_limit, self._seconds = app, limit, file_limit or limit, seconds
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = scope[_BODY] = Body(scope, receive, send, self._limit, self._file_limit, self._seconds, self._turn)
        most, later = max(self._limit, self._file_limit), scope.setdefault(LATER, [])
        try:
            if body.announced > most:
                await error_response(scope, _too_large(most))(scope, body.receive, body.send)
            else:
                await self._answer(scope, body)
            for serve in later:
                await serve(body.receive, body.send)
        finally:
            body.leave()

    async def _answer(self, scope: Scope, body: Body) -> None:
        inner = dict(scope)  # what is kept there for the answer goes with it
        try:
            await self._app(inner, body.receive, body.send)
        finally:
            scope["route"], scope["path_params"] = inner.get("route"), inner.get("path_params", {})


def _too_large(limit: int) -> ApiError:
    return TooLarge(f"The body is larger than {limit} bytes.", details={"limit_bytes": limit})


class Body:
    """The body of one request as it arrives.

    Attributes:
        announced: bytes that it is said to have; 0 where nothing is said.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        limit: int,
        file_limit: int,
        seconds: float,
        turn: asyncio.Lock,
    ) -> None:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        self.announced = int(announced) if announced.isdecimal() else 0
        self._seats: list[Callable[[], None]] = []  # what gives back what it holds of its sender's shares
        self._scope, self._receive, self._send = scope, receive, send
        self._limit, self._file_limit, self._seconds, self._turn = limit, file_limit, seconds, turn
        self._held = self._streams = False
        self._seen = self._counted = 0
        self._begun, self._more, self._slow = False, True, False
        self._unread = self.announced > SMALL or "transfer-encoding" in headers
        self._asks_first = headers.get("expect", "").lower() == "100-continue"

    def leave(self) -> None:
        """Give back what it holds of its sender's shares."""
        while self._seats:
            self._seats.pop()()

    def is_held(self, most: int) -> None:
        """Its route reads it whole: at most this many bytes, which are of its sender's share."""
        self._held, self._limit = True, min(self._limit, most)

    def streams(self) -> None:
        """Its route takes it piece by piece, and holds nothing of it: it is a file."""
        self._streams, self._limit, self._seconds = True, self._file_limit, FILE_SECONDS

    def check_announced(self) -> None:
        """Raises Refused when it says that it is larger than its route takes, whether anybody would read it or not."""
        if self.announced > self._limit:
            raise Refused(_too_large(self._limit))

    async def receive(self) -> Message:
        if not self._more:
            return await self._receive()
        if not self._begun:
            self._begun, self._until = True, asyncio.get_running_loop().time() + self._seconds
            self._check(self.announced)
        self._asks_first = False  # by now it has been told to go on
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            self._unread = True
            raise Refused(_TooSlow("The body has not come in time.")) from error
        self._seen += len(message.get("body", b""))
        self._more = bool(message.get("more_body"))
        self._unread = self._unread and self._more
        self._check(self._seen)
        if not self._more and self._seen > SMALL and not self._streams:
            # It is parsed now, which takes some 10 ms. Between two of them the loop turns to everybody else.
            await self._turn.acquire()
            asyncio.get_running_loop().call_soon(self._turn.release)
        return message

    def _check(self, size: int) -> None:
        """Raises Refused when the body is, or will be, this large and may not."""
        try:
            if size > self._limit:
                raise _too_large(self._limit)
            if self._held:
                self._count(size)
        except ApiError as error:
            self._unread = self._unread or self._more
            raise Refused(error) from error

    def _count(self, size: int) -> None:
        caller: Principal | None = self._scope["state"].get("caller")
        holders: dict[Level, UUID | None] = {"key": caller.key_id} if caller else {}
        shares: Mapping[Kind, Share] = self._scope["app"].state.instance.shares
        if size > self._counted:
            self._seats.append(shares["bodies"].take(size - self._counted, holders))
            self._counted = size
        if self._seen and self._more and not self._slow:  # not all of it came at once
            self._seats.append(shares["open"].take(1, holders))
            self._slow = True

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.leave()  # what was made of the body is all that is left of it
            if self._unread:
                MutableHeaders(scope=message)["Connection"] = "close"
        elif self._unread and not self._asks_first and not message.get("more_body"):
            await self._send_body({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send_body(message)

    async def _send_body(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        for end in range(PIECE, len(body), PIECE):
            piece = body[end - PIECE : end]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if len(body) > PIECE:
            message = {**message, "body": body[(len(body) - 1) // PIECE * PIECE :]}
        await self._send(message)

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                seen, more = 0, True
                while more and seen <= LINGER_BYTES:
                    message = await self._receive()
                    seen, more = seen + len(message.get("body", b"")), bool(message.get("more_body"))
