"""uvicorn, with a drain in front of its shutdown."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import FrameType

import structlog
import uvicorn
from starlette.applications import Starlette

from apps.api import shares
from apps.api.connections import Connections, Http, WebSockets
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

PING_INTERVAL = 15.0
"""Seconds between pings to a client of a WebSocket."""

PING_TIMEOUT = 45.0
"""Seconds for its pong. A slow reader is cut before (web/sse.py, WRITE_TIMEOUT), and told why."""


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT: stop claiming, be unready, let runs finish; then close the sockets, and let who
    waits for runs of other instances hear their ends.

    uvicorn itself would close its sockets first, so that a load balancer had no time to learn of it, and would run
    the lifespan's end only when every stream is closed. A second signal ends at once.
    """

    def __init__(self, config: uvicorn.Config, app: Starlette, connections: Connections) -> None:
        super().__init__(config)
        self._app, self.connections = app, connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._signalled = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Raises whatever made the application's start fail, of which uvicorn would only log the traceback."""
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            # What is there now stays as long as the process: a full collection that walks through it, too, stops
            # everything for 0.2 s.
            gc.collect()
            gc.freeze()
            await super().startup(sockets=sockets)  # type: ignore[arg-type]
            self._running = stack.pop_all()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self.connections.ending = True
        await self._stop_listening()
        await super().shutdown(sockets=sockets)  # type: ignore[arg-type]
        if not self.force_exit:
            await self._running.aclose()

    async def _stop_listening(self) -> None:
        """From now on nobody can connect. Who has done so already is served: their connections would be reset together
        with the socket that has not handed them out yet, and with them requests that were sent."""
        for server in self.servers:
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as last:
                    last.setblocking(False)
                    server.close()
                    with suppress(OSError):  # there are no more
                        while True:
                            await self._take(last.accept()[0])

    async def _take(self, connection: socket.socket) -> None:
        named = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        made = partial(self.config.http_protocol_class, **named)
        await asyncio.get_running_loop().connect_accepted_socket(made, connection)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self.connections.look(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled or self._loop is None or not self.started:
            super().handle_exit(sig, frame)
            return
        self._signalled = self.connections.ending = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._drain_then_exit(), name="drain")

    async def _drain_then_exit(self) -> None:
        try:
            await self._app.state.instance.drain()
            # Its agents' files and ports were asked for here until now. Who comes from now on goes to another instance.
            await self._stop_listening()
            await self._app.state.instance.leave()
        finally:
            self.should_exit = True


def build_server(
    app: Starlette, settings: Settings, *, host: str, port: int, limit: int | None = None
) -> DrainingServer:
    """A server for one process and one port. Run it with `.run()`.

    Args:
        limit: descriptors that it may have; None: as many as this process.
    """
    limit = limit or shares.descriptors()
    if limit < shares.ENOUGH_DESCRIPTORS:
        log.warning("descriptors.few", limit=limit, enough=shares.ENOUGH_DESCRIPTORS)
    watched = Connections(shares.connections(limit))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=partial(Http, watch=watched),  # type: ignore[arg-type] # what makes one is as good as its class
        lifespan="off",  # see DrainingServer.startup
        ws=partial(WebSockets, watch=watched),  # type: ignore[arg-type]
        ws_max_size=settings.max_body_bytes,
        ws_ping_interval=PING_INTERVAL,
        ws_ping_timeout=PING_TIMEOUT,
        ws_per_message_deflate=False,  # deltas are small and many: it would cost more than it saves
        # No more than this come in at once before any of them is looked at, which must not use up what is kept.
        backlog=min(2048, (limit - watched.limit) // 2),
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return DrainingServer(config, app, watched)
