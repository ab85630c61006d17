"""Connections of clients, as uvicorn's protocols: how many there may be, how long one may say nothing, how much a
stranger may say, and the end of those whose client does not read.

The limits are kept by one look at all connections a second (`Connections.look`), not by a timer for each.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

HEAD_SECONDS = 10.0
"""Seconds for the head of a request to be complete: from when the connection was made, or, of a later request on it,
from the first byte."""

HEAD_BYTES = 64 * 1024
"""Of a head. Proxies take 8 to 32 KB."""

UNREAD_SECONDS = 35.0
"""Seconds that a client may leave unread what was written to it, once the 64 KB that are held for it are full; then the
connection is reset. Streams and WebSockets give up a little before (web/sse.py, WRITE_TIMEOUT), and say why."""

CLOSE_SECONDS = 10.0
"""Seconds for a client to read the rest when its connection is being closed; then the connection is reset."""

LINGER = 0.5
"""Seconds for which an idle connection stays open when the server ends: a request that was sent before its client could
know is answered, as the last one of the connection."""

KNOWN = "claude_agent_api.known"
"""The ASGI extension by which the app says that a client has shown its key: `{"call": …}`, called with what takes bytes
of that key's share and returns what gives them back. See web/ws.py."""

Take = Callable[[int], Callable[[], None]]

GRACE = 1.0
"""For whoever has just connected: what they have sent may be on its way. Meanwhile one that has been idle for
HEAD_SECONDS gives way to the next."""

COUNTED_BYTES = 64 * 1024
"""A message that is coming in counts for its sender's share from this size on, and in steps of it."""

STRANGERS_BYTES = 4 * 1024
"""Size of a WebSocket message before the client has shown its key; the message with the key is small."""

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 20\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\ntoo many connections"
)
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once, and what the system still holds of it: its client has not read."""
    with suppress(OSError, ValueError):  # it has ended by itself; uvloop raises the latter
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Connections:
    """Those of one server.

    Attributes:
        ending: the server is about to end: each answer is the last of its connection, and says so. Proxies then have no
            connection to it left over which they might send a request just when it ends.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: how many there may be. Beyond it the one that has been silent for longest makes room."""
        self.limit = limit
        self.ending = False
        self.all: set[_Watched] = set()
        self.idle: dict[Http, float] = {}  # without a request, since when on the loop's clock; the longest first

    def look(self, now: float) -> None:
        """End what has taken too long; `now` is the loop's time."""
        for connection in tuple(self.all):
            if connection.is_awaited or connection.transport.is_closing():  # nearly none
                connection.look(now)

    def make_room(self, now: float) -> bool:
        """Close an idle connection, if there is one; of strangers rather than of those who have asked before."""
        stranger = next((connection for connection in self.idle if connection.head_since is not None), None)
        known = next((connection for connection in self.idle if connection.head_since is None), None)
        longest = stranger or known
        if stranger and known and now - self.idle[stranger] <= GRACE and now - self.idle[known] > HEAD_SECONDS:
            longest = known
        if longest is not None:
            self.idle.pop(longest)
            self.all.discard(longest)
            longest.transport.abort()
        return longest is not None


class _Watched(asyncio.Protocol):
    """A connection of either protocol: since when its client has not read, and since when it is being closed."""

    transport: asyncio.Transport
    watch: Connections
    _unread_since: float | None = None
    _closing_since: float | None = None

    def pause_writing(self) -> None:
        self._unread_since = asyncio.get_running_loop().time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    @property
    def is_awaited(self) -> bool:
        """Whether its client is to do something, within a time."""
        return self._unread_since is not None

    def look(self, now: float) -> None:
        """End it, if that takes too long."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
        for since, seconds in ((self._unread_since, UNREAD_SECONDS), (self._closing_since, CLOSE_SECONDS)):
            if since is not None and now - since > seconds:
                reset(self.transport)


class Http(_Watched, HttpToolsProtocol):
    """uvicorn's HTTP, with a bound on how many are silent and for how long.

    Attributes:
        head_since: since when the head of a request is awaited; None between two requests, where uvicorn's own timeout
            of kept connections holds.
    """

    def __init__(self, *, watch: Connections, **named: Any) -> None:
        super().__init__(**named)
        self.watch, self._head_bytes = watch, 0
        self.head_since: float | None = None

    @property
    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.head_since = self.loop.time()
        if len(self.watch.all) >= self.watch.limit and not self.watch.make_room(self.head_since):
            transport.write(_FULL)
            transport.close()
        else:
            self.watch.idle[self] = self.head_since
        self.watch.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        self.watch.all.discard(self)
        self.watch.idle.pop(self, None)

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self.head_since = self.head_since or self.loop.time()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._idle and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self.head_since, self._head_bytes = None, 0
        self.watch.idle.pop(self, None)
        super().on_headers_complete()
        if self.watch.ending and not self._idle:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._idle and not self.transport.is_closing():
            self.watch.idle[self] = self.loop.time()

    def shutdown(self) -> None:
        """End it with the request that is under way, or that comes in LINGER seconds."""
        if self._idle:
            self.loop.call_later(LINGER, self._end_if_idle)
        else:
            super().shutdown()

    def _end_if_idle(self) -> None:
        if self._idle:
            self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        self._forget()
        super().handle_websocket_upgrade()

    @property
    def is_awaited(self) -> bool:
        return self._unread_since is not None or self.head_since is not None

    def look(self, now: float) -> None:
        super().look(now)
        if self.head_since is not None and now - self.head_since > HEAD_SECONDS and not self.transport.is_closing():
            self.transport.close()


class WebSockets(_Watched, WebSocketsSansIOProtocol):
    """uvicorn's WebSockets, with a bound on what strangers send, and an end for connections whose client does not read.

    uvicorn writes nothing, not even the reason for the end, while a client does not take what was written before; and
    it then keeps the connection until the client does.
    """

    def __init__(self, *, watch: Connections, **named: Any) -> None:
        super().__init__(**named)
        self.watch = watch
        self._strange, self._strangers_bytes = True, 0
        self._take: Take | None = None
        self._coming = self._counted = 0  # bytes of a message that has not come whole
        self._seats = ExitStack()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.watch.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.all.discard(self)
        self._seats.close()
        super().connection_lost(exc)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            # Its task has not begun yet.
            self.scope["extensions"][KNOWN] = {"call": self._known}

    def _known(self, take: Take) -> None:
        """The app knows who the client is: it may send what any client may."""
        self._strange, self._take = False, take
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        connected = self.handshake_initiated
        self._coming += len(data)
        super().data_received(data)
        self._count()
        if connected and self._strange and not self.read_paused:
            self._strangers_bytes += len(data)
            if self._strangers_bytes > STRANGERS_BYTES:
                self._refuse()

    def _count(self) -> None:
        if self._take is None or self._coming - self._counted < COUNTED_BYTES or self.close_sent:
            return
        try:
            self._seats.callback(self._take(self._coming - self._counted))
        except Exception as error:  # the share, or that of all, is used up
            self.conn.fail(1013, str(error)[:120])
            self.handle_parser_exception()
        self._counted = self._coming

    def send_receive_event_to_app(self) -> None:
        super().send_receive_event_to_app()
        self._none_is_coming()

    def handle_ping(self) -> None:
        self._none_is_coming()
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        self._none_is_coming()
        super().handle_pong(event)

    def _none_is_coming(self) -> None:
        # Between the fragments of a message there may be pings; what has come of it counts on.
        if not self.frames:
            self._coming = self._counted = 0
            self._seats.close()

    def _refuse(self) -> None:
        if not self.handshake_complete or self.close_sent:
            self.transport.abort()
            return
        self.conn.fail(1009, "too large for a client that has shown no key")
        self.handle_parser_exception()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if self._strange and message["type"] == "websocket.receive" and not self.close_sent:
            # What comes behind the key is read once the key has been found good.
            self.read_paused = True
            self.transport.pause_reading()
        return message

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(CLOSE_SECONDS, reset, self.transport)

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()
