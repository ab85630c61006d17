"""uvicorn, with a drain in front of its shutdown."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from apps.api.settings import Settings

PING_INTERVAL = 15.0
"""Seconds between pings to a client of a WebSocket."""

PING_TIMEOUT = 45.0
"""Seconds for its pong. A slow reader is cut before (web/sse.py, WRITE_TIMEOUT), and told why."""

CLOSE_SECONDS = 10.0
"""For a client to take what is left, and to say goodbye, when its WebSocket is closed."""


KNOWN = "claude_agent_api.known"
"""The ASGI extension by which the app says that a client has shown its key: `{"call": …}`. See web/ws.py."""

STRANGERS_BYTES = 4 * 1024
"""For what a client sends over a WebSocket before it is known who it is: the message with its key."""


class WebSockets(WebSocketsSansIOProtocol):
    """uvicorn's WebSockets, with a bound on what strangers send, and an end for connections whose client does not read.

    uvicorn writes nothing, not even the reason for the end, while a client does not take what was written before; and
    it then keeps the connection until the client does.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._strange, self._strangers_bytes = True, 0

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            # Its task has not begun yet.
            self.scope["extensions"][KNOWN] = {"call": self._known}

    def _known(self) -> None:
        """The app knows who the client is: it may send what any client may."""
        self._strange = False
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        connected = self.handshake_initiated
        super().data_received(data)
        if connected and self._strange and not self.read_paused:
            self._strangers_bytes += len(data)
            if self._strangers_bytes > STRANGERS_BYTES:
                self._refuse()

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
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT: stop claiming, be unready, let runs finish; only then close the sockets.

    uvicorn itself would close its sockets first, so that a load balancer had no time to learn of it, and would run
    the lifespan's end only when every stream is closed. A second signal ends at once.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._signalled = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Raises whatever made the application's start fail, of which uvicorn would only log the traceback."""
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            await super().startup(sockets=sockets)  # type: ignore[arg-type]
            self._running = stack.pop_all()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().shutdown(sockets=sockets)  # type: ignore[arg-type]
        if not self.force_exit:
            await self._running.aclose()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled or self._loop is None or not self.started:
            super().handle_exit(sig, frame)
            return
        self._signalled = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._drain_then_exit(), name="drain")

    async def _drain_then_exit(self) -> None:
        try:
            await self._app.state.instance.drain()
        finally:
            self.should_exit = True


def build_server(app: FastAPI, settings: Settings, *, host: str, port: int) -> DrainingServer:
    """A server for one process and one port. Run it with `.run()`."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",  # see DrainingServer.startup
        ws=WebSockets,
        ws_max_size=settings.max_body_bytes,
        ws_ping_interval=PING_INTERVAL,
        ws_ping_timeout=PING_TIMEOUT,
        ws_per_message_deflate=False,  # deltas are small and many: it would cost more than it saves
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return DrainingServer(config, app)
