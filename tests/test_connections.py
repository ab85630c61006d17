"""Connections of clients that are silent, many, or do not read, on a real server: bounded, and ended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from apps.api import connections
from apps.api.connections import (
    CLOSE_SECONDS,
    HEAD_BYTES,
    HEAD_SECONDS,
    UNREAD_SECONDS,
    Connections,
    Http,
    WebSockets,
    reset,
)
from apps.api.server import build_server
from apps.api.settings import Settings
from apps.api.shares import Share
from apps.api.web.middleware import BoundedBody
from apps.api.web.ws import known
from tests.world import until

PATIENCE = 30.0
LARGE = 30_000_000
BODIES = 300_000
ASK = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def small(_: Request) -> Response:
    return PlainTextResponse("hello")


async def large(_: Request) -> Response:
    return PlainTextResponse(b"x" * LARGE)


async def echo(websocket: WebSocket) -> None:
    known(websocket, None)
    await websocket.accept()
    while True:
        await websocket.send_text(str(len(await websocket.receive_text())))


class Serving:
    """A server that has `limit` descriptors, of which some are kept, and its port."""

    def __init__(self, connections: Connections, port: int) -> None:
        self.connections, self.port = connections, port
        self._opened: list[asyncio.StreamWriter] = []

    async def open(self, *, receive: int | None = None) -> Wire:
        """A connection; `receive`: bytes that its system may take for a client that does not read."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        wire = await asyncio.open_connection(sock=sock, limit=65_536)
        self._opened.append(wire[1])
        return wire

    async def close(self) -> None:
        """The connections that were opened here."""
        for writer in self._opened:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def look(self, later: float) -> None:
        """As the server will in so many seconds."""
        self.connections.look(asyncio.get_running_loop().time() + later)

    async def count(self, wanted: int) -> None:
        """Wait until it has this many connections."""
        await until(lambda: len(self.connections.all) == wanted)


@asynccontextmanager
async def serving(limit: int = 1024) -> AsyncIterator[Serving]:
    app = Starlette(routes=[Route("/small", small), Route("/large", large), WebSocketRoute("/ws", echo)])
    app.add_middleware(BoundedBody, limit=1000)
    bodies = Share("bytes", code="too_many_bytes", limits={"instance": BODIES})
    app.state.instance = SimpleNamespace(shares={"bodies": bodies})
    server = build_server(app, Settings(_env_file=None), host="127.0.0.1", port=0, limit=limit)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(PATIENCE):
            await until(lambda: server.started)
            found = Serving(server.connections, server.servers[0].sockets[0].getsockname()[1])
            try:
                yield found
            finally:
                await found.close()
    finally:
        server.should_exit = server.force_exit = True
        await task


async def asked(wire: Wire, path: bytes = b"small") -> bytes:
    """The head of the answer."""
    wire[1].write(ASK % path)
    return await wire[0].readuntil(b"\r\n\r\n")


async def ended(wire: Wire) -> None:
    """Wait until the server has ended it, in order or not."""
    with suppress(ConnectionError):
        while await wire[0].read(65_536):
            pass


async def test_who_says_nothing_is_not_waited_for() -> None:
    async with serving() as server:
        silent, slow, kept = [await server.open() for _ in range(3)]
        assert b" 200 " in await asked(kept)
        slow[1].write(b"GET /small HTTP/1.1\r\nHost")
        await server.count(3)
        server.look(HEAD_SECONDS - 5)
        assert len(server.connections.all) == 3
        slow[1].write(b": x")  # what comes of a head does not begin its time anew
        server.look(HEAD_SECONDS + 1)
        await ended(silent)
        await ended(slow)
        await kept[0].readexactly(5)
        assert b" 200 " in await asked(kept)


async def test_empty_lines_after_an_answer_are_no_request() -> None:
    async with serving() as server:
        wire = await server.open()
        await asked(wire)
        wire[1].write(b"\r\n")
        await until(lambda: all(c.head_since is not None for c in server.connections.idle))
        server.look(HEAD_SECONDS + 1)
        await ended(wire)


async def test_who_is_kept_after_an_answer_and_says_nothing_is_closed_later() -> None:
    """That is uvicorn's own timer; one whose body has not come whole, and is not read, has it too."""
    async with serving() as server:
        wire = await server.open()
        wire[1].write(b"GET /small HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12")
        assert b" 200 " in await wire[0].readuntil(b"\r\n\r\n")
        [connection] = server.connections.all
        assert isinstance(connection, Http)
        assert connection.timeout_keep_alive == 75
        assert connection.timeout_keep_alive_task is not None
        wire[1].write(b"3")  # whoever drips has the time of a head
        await until(lambda: connection.head_since is not None)
        server.look(HEAD_SECONDS + 1)
        await ended(wire)


async def test_a_head_has_an_end() -> None:
    async with serving() as server:
        wire = await server.open()
        wire[1].write(b"GET /small HTTP/1.1\r\n" + b"X: y\r\n" * (HEAD_BYTES // 6))
        assert b" 431 " in await wire[0].readuntil(b"\r\n\r\n")
        await ended(wire)


async def test_silent_connections_make_room_for_who_asks() -> None:
    async with serving(limit=80) as server:
        kept = await server.open()
        await asked(kept)
        crowd = [await server.open() for _ in range(60)]
        for _ in range(5):
            assert b" 200 " in await asked(await server.open())
        assert len(server.connections.all) <= server.connections.limit == 16
        await asked(crowd[-1])  # those that came last are still there
        await kept[0].readexactly(5)
        assert b" 200 " in await asked(kept)  # strangers go first


async def test_who_has_just_come_does_not_make_room_while_others_have_been_idle_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "GRACE", 2 * PATIENCE)  # however busy the machine is
    async with serving(limit=80) as server:
        kept = [await server.open() for _ in range(server.connections.limit)]
        for wire in kept:
            await asked(wire)
        for connection in server.connections.idle:
            server.connections.idle[connection] -= 10 * HEAD_SECONDS
        crowd = [await server.open() for _ in range(server.connections.limit)]
        for wire in kept:
            await ended(wire)
        for wire in crowd:
            assert b" 200 " in await asked(wire)


async def test_where_everybody_is_served_the_next_one_is_told_so() -> None:
    async with serving(limit=66) as server:
        busy = [await server.open(receive=4096) for _ in range(2)]
        for wire in busy:
            await asked(wire, b"large")
        wire = await server.open()
        assert b" 503 " in await wire[0].readuntil(b"\r\n\r\n")
        busy[0][1].close()
        await server.count(1)
        assert b" 200 " in await asked(await server.open())


async def not_read(server: Serving) -> Wire:
    wire = await server.open(receive=4096)
    await asked(wire, b"large")
    return wire


async def test_what_is_not_read_waits_outside_of_the_server() -> None:
    async with serving() as server:
        await not_read(server)
        connection = next(iter(server.connections.all))
        await until(lambda: connection.transport.get_write_buffer_size() > 65_536)
        assert connection.transport.get_write_buffer_size() < 300_000


@pytest.mark.parametrize("ending", ["unread", "closed"])
async def test_a_client_that_does_not_read_is_cut_off(ending: str) -> None:
    async with serving() as server:
        wire = await not_read(server)
        connection = next(iter(server.connections.all))
        if ending == "closed":
            connection.transport.close()
            server.look(0)
            server.look(CLOSE_SECONDS + 1)
        else:
            await until(lambda: connection.transport.get_write_buffer_size() > 65_536)
            server.look(UNREAD_SECONDS + 1)
        await server.count(0)
        with pytest.raises(ConnectionResetError):
            await wire[0].read()


def test_a_connection_that_has_ended_by_itself_can_be_cut_off() -> None:
    """As some are when their time is over; on the loop that servers have, which says it in its own way."""

    async def ended() -> None:
        async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.get_extra_info("socket")  # as uvicorn asks for it
            await reader.read()
            writer.close()
            await writer.wait_closed()
            reset(writer.transport)  # type: ignore[arg-type]

    uvloop.run(ended())


async def test_who_reads_slowly_gets_all_of_it() -> None:
    async with serving() as server:
        wire, seen = await not_read(server), 0
        while seen < LARGE:
            seen += len(await wire[0].read(1_000_000))
            server.look(UNREAD_SECONDS - 10)
        assert seen == LARGE


async def test_websockets_count_and_are_no_strangers() -> None:
    async with serving() as server, connect(f"ws://127.0.0.1:{server.port}/ws") as client:
        await server.count(1)
        server.look(HEAD_SECONDS + 1)
        await client.send("hello")
        assert await client.recv() == "5"
    assert not server.connections.all


async def test_messages_that_come_in_have_a_share_of_bytes() -> None:
    async with serving() as server:
        url, more = f"ws://127.0.0.1:{server.port}/ws", asyncio.Event()

        async def halves() -> AsyncIterator[str]:
            yield "x" * 200_000
            await more.wait()
            yield "x" * 10_000

        async with connect(url) as slow, connect(url) as other:
            sending = asyncio.create_task(slow.send(halves()))
            await until(lambda: any(isinstance(c, WebSockets) and c._counted for c in server.connections.all))
            with suppress(ConnectionClosed):
                await other.send("x" * 200_000)
                await other.recv()
            await other.wait_closed()
            assert other.close_code == 1013
            more.set()
            await sending
            assert await slow.recv() == "210000"
            async with connect(url) as again:
                for _ in range(3):  # each gives back what it took
                    await again.send("x" * 200_000)
                    assert await again.recv() == "200000"
