"""uvicorn, with a drain in front of its shutdown."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
from fastapi import FastAPI

from apps.api.settings import Settings


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
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)  # type: ignore[arg-type]

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
            await self._app.state.drain()
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
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return DrainingServer(config, app)
