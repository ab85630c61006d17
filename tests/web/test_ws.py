"""Connections whose client does not read, on a real server: bounded, told why, and ended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from apps.api.server import build_server
from apps.api.settings import Settings
from apps.api.web.ws import SLOW_READER, Closed, Socket
from tests.world import until

TEXT = "x" * 10_000


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[int]:
    """The app behind the server's own protocols; yields the port."""
    server = build_server(app, Settings(_env_file=None), host="127.0.0.1", port=0)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


class Flood:
    """Writes to a client until the connection ends, and remembers how."""

    def __init__(self) -> None:
        self.sent = 0
        self.over: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        self.app = Starlette(routes=[WebSocketRoute("/", self._serve)])

    async def _serve(self, websocket: WebSocket) -> None:
        await websocket.accept()
        connection = Socket(websocket, write_timeout=0.2)
        try:
            while True:
                await connection.send([TEXT])
                self.sent += 1
        except Closed as closed:
            await connection.close(closed)
            self.over.set_result(closed)


async def all_of(client: ClientConnection) -> AsyncIterator[str | bytes]:
    """What a client can read, whichever way the connection ends."""
    with suppress(ConnectionClosed):
        while True:
            yield await client.recv()


async def test_a_slow_reader_is_cut_and_finds_out_why_when_it_reads_on() -> None:
    flood = Flood()
    async with serving(flood.app) as port:
        slow = socket.create_connection(("127.0.0.1", port))
        async with connect(f"ws://127.0.0.1:{port}/", sock=slow, max_queue=1, compression=None) as client:
            assert (await flood.over).code == SLOW_READER
            received = [text async for text in all_of(client)]
            assert received == [TEXT] * flood.sent
            assert client.close_code == SLOW_READER


async def test_a_client_that_has_left_ends_the_writing() -> None:
    flood = Flood()
    async with serving(flood.app) as port:
        async with connect(f"ws://127.0.0.1:{port}/", compression=None) as client:
            await client.recv()
            client.transport.abort()
        assert (await flood.over).code != SLOW_READER
