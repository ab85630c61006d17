"""The server around the application: what begins with it ends with it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from apps.api.server import DrainingServer, build_server
from apps.api.settings import Settings
from apps.api.web.middleware import RequestContext
from tests.world import until

ASK = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
PATIENCE = 30.0


async def test_what_made_the_start_fail_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("the database is away")
        yield

    server = build_server(FastAPI(lifespan=lifespan), Settings(_env_file=None), host="127.0.0.1", port=0)
    with pytest.raises(RuntimeError, match="the database is away"):
        await server.serve()
    assert "Traceback" not in caplog.text


async def test_a_port_that_is_taken_ends_what_had_begun() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        told.append("begun")
        try:
            yield
        finally:
            told.append("ended")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = build_server(FastAPI(lifespan=lifespan), Settings(_env_file=None), host="127.0.0.1", port=port)
        with pytest.raises(SystemExit):
            await server.serve()
    assert told == ["begun", "ended"]


class Draining:
    """A server with a drain that lasts until `over`, and what happens just before its socket is closed."""

    def __init__(self) -> None:
        app = self.app = FastAPI()
        app.add_api_route("/", lambda: "hello", methods=["POST"])
        app.state.instance = SimpleNamespace(drain=self._drain, leave=self._leave, error_shapes={})
        self.server: DrainingServer = build_server(app, Settings(_env_file=None), host="127.0.0.1", port=0)
        self.over, self.left = asyncio.Event(), asyncio.Event()
        self.late: socket.socket | None = None
        self._opened = ExitStack()
        self.address: tuple[str, int] | None = None

    async def _drain(self) -> None:
        await self.over.wait()
        self.late = self.connected()
        self.late.sendall(ASK)

    async def _leave(self) -> None:
        self.left.set()

    def connected(self) -> socket.socket:
        """A connection that the system has made: the server has not been told yet."""
        self.address = self.address or self.server.servers[0].sockets[0].getsockname()
        made = self._opened.enter_context(socket.create_connection(self.address))
        made.setblocking(False)
        return made

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.server.serve())
        async with asyncio.timeout(PATIENCE):
            try:
                with self._opened:
                    await until(lambda: self.server.started)
                    yield
            finally:
                self.server.should_exit = True
                await task


async def answer(connection: socket.socket) -> bytes:
    """Ask, and read what comes: to the end of the connection, if the answer is its last."""
    loop, told = asyncio.get_running_loop(), b""
    while (more := await loop.sock_recv(connection, 65_536)) or not told:
        told += more
        if not more or (told.endswith(b'"hello"') and b"connection: close" not in told):
            break
    return told


async def asked(connection: socket.socket) -> bytes:
    await asyncio.get_running_loop().sock_sendall(connection, ASK)
    return await answer(connection)


async def test_no_request_is_lost_when_a_server_ends() -> None:
    made = Draining()
    async with made.serving():
        kept, idle = made.connected(), made.connected()
        for connection in (kept, idle):
            assert b"connection: close" not in await asked(connection)
        made.server.handle_exit(signal.SIGTERM, None)
        told = await asked(kept)
        assert b" 200 " in told
        assert b"connection: close" in told, "the last one of a connection, as the server ends"
        made.over.set()
        await made.left.wait()
        assert made.late is not None
        assert b" 200 " in await answer(made.late), "it was sent before the socket was closed"
        with pytest.raises(ConnectionRefusedError):
            made.connected()
        for protocol in list(made.server.server_state.connections):
            protocol.shutdown()  # as uvicorn does at the end
        assert b" 200 " in await asked(idle), "it was on its way when the server ended"
        assert await asyncio.get_running_loop().sock_recv(idle, 1) == b""


async def test_a_request_for_which_an_ending_server_waits_no_longer_may_be_asked_again() -> None:
    made, asked_for = Draining(), asyncio.Event()

    async def never() -> None:
        asked_for.set()
        await asyncio.Event().wait()

    made.app.add_api_route("/never", never, methods=["POST"])
    made.app.add_middleware(RequestContext)
    made.server.config.timeout_graceful_shutdown = 1
    async with made.serving():
        waiting = made.connected()
        await asyncio.get_running_loop().sock_sendall(waiting, ASK.replace(b" / ", b" /never "))
        await asked_for.wait()
        made.server.should_exit = True
        told = (await answer(waiting)).lower()
    assert b" 503 " in told
    assert b"dependency_unavailable" in told
    assert b"retry-after: 1" in told
    assert b"x-request-id" in told
    assert b"connection: close" in told
