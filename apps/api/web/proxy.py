"""A reverse proxy for one request or one WebSocket to a server that nobody vouches for: bounded, and with no headers of
the connection, of ours or of the browser's identity passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass

import httpcore2
import structlog
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from apps.api.codes import ErrorCode
from apps.api.errors import ApiError
from apps.api.web.opened import Held
from apps.api.web.ws import Closed, refusal

log = structlog.get_logger(__name__)

Headers = list[tuple[bytes, bytes]]

CONNECT_SECONDS, IDLE_SECONDS, WHOLE_SECONDS = 5.0, 120.0, 3600.0
MAX_ANSWER_BYTES = 1_000_000_000
MAX_MESSAGE_BYTES = 1_000_000

_BROKEN = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError, TimeoutError)
_OF_THE_CONNECTION = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade "
    b"transfer-encoding expect".split()
)
_UNASKED = _OF_THE_CONNECTION | frozenset(
    b"host cookie authorization x-api-key origin referer forwarded x-forwarded-for x-forwarded-host x-forwarded-proto "
    b"x-preview-ticket x-request-id sec-websocket-key sec-websocket-version sec-websocket-extensions "
    b"sec-websocket-protocol".split()
)
_UNTOLD = _OF_THE_CONNECTION | frozenset(
    b"set-cookie set-cookie2 clear-site-data strict-transport-security alt-svc service-worker-allowed nel report-to "
    b"public-key-pins access-control-allow-origin access-control-allow-credentials access-control-allow-methods "
    b"access-control-allow-headers access-control-expose-headers access-control-max-age x-request-id date".split()
)


class BadGateway(ApiError):
    status = 502
    code: ErrorCode = "preview_failed"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where to: `address` is a host's name or address, `target` the path and query, `more` headers on top."""

    scheme: str
    address: str
    port: int
    host: str
    target: str
    more: Headers

    @property
    def place(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def asked(connection: HTTPConnection) -> Headers:
    """The headers of a request that are passed on."""
    dropped = _UNASKED | _named_by(connection.headers.raw)
    return [(name, value) for name, value in connection.headers.raw if name.lower() not in dropped]


def _named_by(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that `Connection` says are of this connection alone."""
    named = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(part.strip().lower() for value in named for part in value.split(b","))


MAX_WHOLE = 1_000_000


async def relay(request: Request, upstream: Upstream, held: Held) -> Relayed:
    """Pass a request on; the answer is streamed, and `held` closed after its end. Raises BadGateway."""
    origin = httpcore2.Origin(upstream.scheme.encode(), upstream.address.encode(), upstream.port)
    connection = httpcore2.AsyncHTTPConnection(origin)
    headers = [(b"Host", upstream.host.encode()), (b"Connection", b"close"), *asked(request), *upstream.more]
    has_body = any(name in request.headers for name in ("content-length", "transfer-encoding"))
    if "transfer-encoding" in request.headers:
        headers.append((b"Transfer-Encoding", b"chunked"))
    url = httpcore2.URL(
        scheme=origin.scheme, host=origin.host, port=origin.port, target=upstream.target.encode("latin-1", "replace")
    )
    timeouts = {"connect": CONNECT_SECONDS, "read": IDLE_SECONDS, "write": IDLE_SECONDS}
    asking = httpcore2.Request(
        request.method,
        url,
        headers=headers,
        content=request.stream() if has_body else None,
        extensions={"timeout": timeouts},
    )
    try:
        response = await connection.handle_async_request(asking)
    except BaseException as error:
        await connection.aclose()
        if isinstance(error, _BROKEN):
            raise BadGateway("The agent's program gave no answer that is HTTP.") from error
        raise
    answer = Relayed(connection, response, held)
    dropped = _UNTOLD | _named_by(response.headers)
    answer.raw_headers = [(name.lower(), value) for name, value in response.headers if name.lower() not in dropped]
    return answer


class Relayed(StreamingResponse):
    """An answer that is passed on while it comes. One that breaks off breaks off for the client, too."""

    def __init__(self, connection: httpcore2.AsyncHTTPConnection, response: httpcore2.Response, held: Held) -> None:
        super().__init__(_body(response), response.status)
        self._connection, self._held = connection, held
        held.kept = True

    async def whole(self) -> bytes:
        """All of a short answer, which is not passed on. Raises BadGateway."""
        read = b""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                async for some in self.body_iterator:
                    read += some if isinstance(some, bytes) else b""
                    if len(read) > MAX_WHOLE:
                        raise BadGateway("The answer is too long.")
        except _BROKEN as error:
            raise BadGateway("The answer broke off.") from error
        finally:
            self._held.kept = False
            await self._connection.aclose()
        return read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                await self._held.during(super().__call__(scope, receive, send))
        except (*_BROKEN, ClientDisconnect, ApiError) as error:
            log.info("preview.cut", error=type(error).__name__)
        finally:
            self._held.close()
            await self._connection.aclose()


async def _body(response: httpcore2.Response) -> AsyncIterator[bytes]:
    seen = 0
    async for chunk in response.aiter_stream():
        seen += len(chunk)
        if seen > MAX_ANSWER_BYTES:
            raise TimeoutError
        yield chunk


async def relay_socket(websocket: WebSocket, upstream: Upstream, held: Held) -> None:
    """Pass a WebSocket on, until either side ends it. Raises BadGateway before it is accepted."""
    url = f"{'wss' if upstream.scheme == 'https' else 'ws'}://{upstream.place}{upstream.target}"
    wanted = websocket.headers.get("sec-websocket-protocol", "")
    more = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in upstream.more]
    try:
        other = await connect(
            url,
            subprotocols=[part.strip() for part in wanted.split(",") if part.strip()] or None,  # type: ignore[misc]
            additional_headers=more,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=CONNECT_SECONDS,
            proxy=None,
            compression=None,
        )
    except (OSError, TimeoutError, WebSocketException, ValueError) as error:
        raise BadGateway("The agent's program took no WebSocket here.") from error
    async with other:
        await websocket.accept(subprotocol=other.subprotocol)
        closed = None
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                await held.during(_pump(websocket, other))
        except TimeoutError:
            pass
        except ApiError as error:
            closed = refusal(error)
        with suppress(RuntimeError, WebSocketDisconnect):
            closed = closed or Closed(_code(other.close_code))
            await websocket.close(closed.code, closed.reason or None)


def _code(code: int | None) -> int:
    return code if code is not None and (code in (1000, 1001, 1003, 1007, 1008, 1009, 1011) or code >= 3000) else 1000


async def _pump(websocket: WebSocket, other: ClientConnection) -> None:
    ways = {
        asyncio.create_task(_up(websocket, other), name="preview-up"),
        asyncio.create_task(_down(websocket, other), name="preview-down"),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _up(websocket: WebSocket, other: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            await other.send(message["bytes"] if text is None else text)


async def _down(websocket: WebSocket, other: ClientConnection) -> None:
    with suppress(ConnectionClosed, RuntimeError, WebSocketDisconnect):
        async for message in other:
            await (websocket.send_text(message) if isinstance(message, str) else websocket.send_bytes(message))
