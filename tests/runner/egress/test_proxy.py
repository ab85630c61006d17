"""The proxy of agents: who may ask it for what, and what passes. Hosts are programs here, by names of ours."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest

from apps.api.core.config.reach import Reach
from apps.api.core.network.outbound import Outbound
from apps.api.runner.egress import proxy as module
from apps.api.runner.egress.proxy import MAX_OF_PROCESS, MAX_STRANGERS, Member, Proxy
from apps.api.runner.gateway.gateway import Gateway
from apps.api.settings import Settings
from tests import own_network
from tests.core.network.test_resolver import ADDRESSES, Nameserver, nameserver
from tests.world import until

__all__ = ["nameserver"]

TENANT = UUID(int=1)
HERE = "here.test"
"""A host on this machine that counts as allowed by its address."""

ADDRESSES |= {HERE: "127.0.0.1", "database.test": "93.184.216.36", "other.test": "93.184.216.36"}
LIMITED = Reach("limited", ((HERE, "*.corp.test"),))
Answers = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Place:
    """A proxy, and a process that it knows."""

    def __init__(self, proxy: Proxy, reach: Reach, own: dict[int, str | None]) -> None:
        self.proxy, self.denied, self.own = proxy, list[tuple[str, int, str]](), own
        self.member = Member(TENANT, reach, self._local, lambda *denied: self.denied.append(denied))
        self.url = proxy.admit(self.member)

    async def _local(self, port: int) -> tuple[str | None, bool]:
        return self.own.get(port), port in self.own

    async def connect(self, *lines: str, token: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request's head."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        known = b64encode(f"agent:{self.member.token if token is None else token}".encode()).decode()
        writer.write("\r\n".join([*lines, f"Proxy-Authorization: Basic {known}", "", ""]).encode())
        return reader, writer

    async def ask(self, *lines: str, token: str | None = None) -> str:
        """The whole answer."""
        reader, writer = await self.connect(*lines, token=token)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer.decode()

    async def tunnel(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect(f"CONNECT {host}:{port} HTTP/1.1")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\n\r\n"
        return reader, writer


Make = Callable[..., Awaitable[Place]]


@pytest.fixture
async def make(nameserver: Nameserver) -> AsyncIterator[Make]:
    made = list[Proxy]()

    async def make(reach: Reach = LIMITED, own: dict[int, str | None] | None = None, **settings: Any) -> Place:
        given = {"database_url": "postgresql://db.invalid/d", "redis_url": "redis://cache.invalid", **settings}
        proxy = Proxy(Settings(_env_file=None, **given), Outbound([HERE], [nameserver.address]))
        made.append(proxy)
        await proxy.start()
        return Place(proxy, reach, own or {})

    yield make
    for proxy in made:
        await proxy.close()


@asynccontextmanager
async def host(answers: Answers) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await answers(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def limited_to(port: int) -> Reach:
    return Reach("limited", ((f"{HERE}:{port}",),))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write(b"the end")


# --- what passes -----------------------------------------------------------------------------------------------------


async def test_a_request_in_the_clear_is_the_hosts_own(make: Make) -> None:
    heads = list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4))
        writer.write(OK)

    async with host(answer) as port:
        place = await make(limited_to(port))
        reader, writer = await place.connect(
            f"POST http://{HERE}:{port}/a?b=c#d HTTP/1.1",
            "Host: other.example",
            "Proxy-Connection: keep-alive",
            "Connection: keep-alive, X-Mine",
            "X-Mine: 1",
            "Content-Length: 4",
        )
        writer.write(b"body")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
    [head] = heads
    assert head.startswith(f"POST /a?b=c HTTP/1.1\r\nHost: {HERE}:{port}\r\n".encode())
    assert b"connection: close" in head.lower()
    assert not any(word in head.lower() for word in (b"proxy", b"other.example", b"x-mine", b"keep-alive"))
    assert head.endswith(b"\r\n\r\nbody")


async def test_a_tunnel_passes_both_ways_and_each_way_ends_by_itself(make: Make) -> None:
    async with host(echo) as port:
        place = await make(limited_to(port))
        reader, writer = await place.tunnel(HERE, port)
        sent = bytes(range(256)) * 40_000
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent + b"the end"
        writer.close()
        await until(lambda: place.proxy.open == 0)
    assert (place.proxy.sent, place.proxy.received) == (len(sent), len(sent) + 7)


async def test_a_host_that_speaks_first_is_heard(make: Make) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await reader.read()

    async with host(greet) as port:
        reader, writer = await (await make(limited_to(port))).tunnel(HERE, port)
        assert await reader.readline() == b"220 hello\r\n"
        writer.close()


async def test_who_does_not_read_holds_the_host_back(make: Make) -> None:
    sent = 0

    async def much(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 60_000_000:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with host(much) as port:
        reader, writer = await (await make(limited_to(port))).tunnel(HERE, port)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 30_000_000
        whole = 0
        while piece := await reader.read(1 << 20):
            whole += len(piece)
        assert whole == 60_000_000
        writer.close()


# --- who, and where to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "x", "a" * 43])
async def test_who_shows_no_token_of_a_process_gets_nothing(make: Make, token: str) -> None:
    async with host(echo) as port:
        place = await make(limited_to(port))
        answer = await place.ask(f"CONNECT {HERE}:{port} HTTP/1.1", token=token)
    assert answer.startswith("HTTP/1.1 407 ")
    assert "Proxy-Authenticate: Basic" in answer
    assert place.denied == []


async def test_a_token_ends_with_its_process_and_so_do_its_connections(make: Make) -> None:
    async with host(echo) as port:
        place = await make(limited_to(port))
        reader, writer = await place.tunnel(HERE, port)
        place.proxy.dismiss(place.member)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        assert (await place.ask(f"CONNECT {HERE}:{port} HTTP/1.1")).startswith("HTTP/1.1 407 ")
        writer.close()
        await until(lambda: place.proxy.open == 0)


NOT_NAMED, NOT_ITS_ADDRESS, SOMEBODYS = "host_not_allowed", "address_not_allowed", "not_of_this_session"


@pytest.mark.parametrize(
    ("reach", "where", "reason"),
    [
        (LIMITED, "one.test:443", NOT_NAMED),
        (LIMITED, "here.test:22", NOT_NAMED),
        (LIMITED, "xhere.test:443", NOT_NAMED),
        (LIMITED, "127.0.0.2:443", SOMEBODYS),
        (LIMITED, "2130706433:443", NOT_NAMED),
        (LIMITED, "inside.corp.test:443", NOT_ITS_ADDRESS),
        (LIMITED, "localhost:443", SOMEBODYS),
        (LIMITED, "[::1]:443", SOMEBODYS),
        (LIMITED, "0.0.0.0:443", SOMEBODYS),
        (Reach("open"), "127.0.0.1:443", SOMEBODYS),
        (Reach("open"), "2130706433:443", NOT_ITS_ADDRESS),
        (Reach("open"), "169.254.169.254:80", NOT_ITS_ADDRESS),
        (Reach("open"), "[fd00:ec2::254]:80", NOT_ITS_ADDRESS),
        (Reach("open"), "[::ffff:169.254.169.254]:80", NOT_ITS_ADDRESS),
        (Reach("open"), "[fe80::1]:80", NOT_ITS_ADDRESS),
        (Reach("open"), "168.63.129.16:80", NOT_ITS_ADDRESS),
        (Reach("open"), "one.test:5432", NOT_ITS_ADDRESS),
        (Reach("open"), "10.0.0.7:6379", NOT_ITS_ADDRESS),
        (Reach("model_only"), "one.test:443", NOT_NAMED),
    ],
)
async def test_what_may_not_be_reached_is_refused_with_a_reason(
    make: Make, nameserver: Nameserver, reach: Reach, where: str, reason: str
) -> None:
    place = await make(reach, {443: None})
    answer = await place.ask(f"CONNECT {where} HTTP/1.1")
    assert answer.startswith("HTTP/1.1 403 "), answer
    assert f"({reason})" in answer
    name, _, port = where.rpartition(":")
    assert place.denied == [(name.strip("[]"), int(port), reason)]
    assert place.proxy.refused == {reason: 1}
    if reason == NOT_NAMED:
        assert not nameserver.asked  # to look a name up is to tell it
    in_the_clear = await place.ask(f"GET http://{where}/ HTTP/1.1")
    assert in_the_clear.startswith("HTTP/1.1 403 ")


async def test_a_database_at_a_port_of_the_web_is_told_by_its_address(make: Make) -> None:
    place = await make(Reach("open"), redis_url="rediss://database.test:443")
    for name in ("database.test", "other.test", "93.184.216.36"):
        assert NOT_ITS_ADDRESS in await place.ask(f"CONNECT {name}:443 HTTP/1.1"), name


async def test_what_its_own_programs_serve_is_reached_and_what_nobody_serves_is_no_denial(make: Make) -> None:
    async with host(echo) as port:
        place = await make(LIMITED, {port: "127.0.0.1"})
        _, writer = await place.tunnel("localhost", port)
        writer.close()
        assert (await place.ask(f"CONNECT 127.0.0.1:{port + 1} HTTP/1.1")).startswith("HTTP/1.1 502 ")
    assert place.denied == []


async def test_a_name_that_is_not_there_is_no_denial(make: Make) -> None:
    place = await make(Reach("open"))
    assert (await place.ask("CONNECT nowhere.test:443 HTTP/1.1")).startswith("HTTP/1.1 502 ")
    assert place.denied == []


@pytest.mark.parametrize(
    "head",
    [
        "",
        "GET / HTTP/1.1",
        "GET https://here.test/ HTTP/1.1",
        "GET http://user@here.test/ HTTP/1.1",
        "GET http:///path HTTP/1.1",
        "GET http://here.test:0/ HTTP/1.1",
        "GET http://here.test:99999/ HTTP/1.1",
        "GET ftp://here.test/ HTTP/1.1",
        "GET http://here%2etest/ HTTP/1.1",
        "CONNECT here.test HTTP/1.1",
        "CONNECT here.test:443/path HTTP/1.1",
        "CONNECT http://here.test:443 HTTP/1.1",
        "CONNECT a:b:443 HTTP/1.1",
        "CONNECT here.test:443 HTTP/2",
        "CONNECT  here.test:443 HTTP/1.1",
        "GET http://here.test/ HTTP/1.1\r\nX\x00: y",
        "GET http://here.test/ HTTP/1.1\r\n folded",
        "GET http://here.test/ HTTP/1.1\r\nA: b\nInjected: c",
    ],
)
async def test_what_is_no_request_for_a_proxy_is_told_so(make: Make, head: str) -> None:
    assert (await (await make()).ask(head)).startswith("HTTP/1.1 400 ")


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_process_has_a_number_of_connections_and_a_head_a_size(make: Make) -> None:
    async with host(echo) as port:
        place = await make(limited_to(port))
        opened = [await place.tunnel(HERE, port) for _ in range(MAX_OF_PROCESS)]
        assert (await place.ask(f"CONNECT {HERE}:{port} HTTP/1.1")).startswith("HTTP/1.1 429 ")
        for _, writer in opened:
            writer.close()
        await until(lambda: place.proxy.open == 0)
        _, writer = await place.tunnel(HERE, port)
        writer.close()
        assert (await place.ask("GET http://here.test/ HTTP/1.1", "X: " + "y" * 70_000)).startswith("HTTP/1.1 431 ")


async def test_strangers_make_room_for_one_another(make: Make) -> None:
    async with host(echo) as port:
        place = await make(limited_to(port))
        first, writer = await asyncio.open_connection("127.0.0.1", place.proxy.port)
        others = [await asyncio.open_connection("127.0.0.1", place.proxy.port) for _ in range(MAX_STRANGERS)]
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                assert await first.read() == b""
        for _, other in [(first, writer), *others]:
            other.close()


async def test_what_is_silent_for_too_long_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host(echo) as port:
        place = await make(limited_to(port))
        reader, writer = await place.tunnel(HERE, port)
        stranger, other = await asyncio.open_connection("127.0.0.1", place.proxy.port)
        await until(lambda: place.proxy.open == 1)
        await place.proxy.look(Mock())
        assert place.proxy.open == 1
        for name in ("IDLE_SECONDS", "HEAD_SECONDS"):
            monkeypatch.setattr(module, name, -1.0)
        await place.proxy.look(Mock())
        for ended in (reader, stranger):
            async with asyncio.timeout(10):
                with suppress(ConnectionError):
                    assert await ended.read() == b""
        writer.close()
        other.close()


# --- behind another proxy --------------------------------------------------------------------------------------------


@asynccontextmanager
async def upstream(answer: bytes = b"HTTP/1.1 200 Fine\r\n\r\n") -> AsyncIterator[tuple[int, list[str]]]:
    """A proxy that the server must use, and the heads that it is sent."""
    heads = list[str]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)
        if heads[-1].startswith("CONNECT"):
            await echo(reader, writer)

    async with host(serve) as port:
        yield port, heads


@pytest.mark.parametrize("name", ["one.test", "elsewhere.test"], ids=["known here", "known there alone"])
async def test_the_servers_own_proxy_is_asked_for_what_may_be_reached(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with upstream() as (port, heads):
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://us:it%20is@127.0.0.1:{port}")
        place = await make(Reach("limited", ((name, "inside.corp.test"),)))
        reader, writer = await place.tunnel(name, 443)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        assert "200 Fine" in await place.ask(f"GET http://{name}/p HTTP/1.0")
        known = f"Proxy-Authorization: Basic {b64encode(b'us:it is').decode()}\r\n"
        assert heads[0].startswith(f"CONNECT {name}:443 HTTP/1.1\r\n")
        assert heads[1].startswith(f"GET http://{name}/p HTTP/1.1\r\n")
        assert all(known in head and place.member.token not in head for head in heads)
        for refused in ("inside.corp.test", "other.test"):
            assert (await place.ask(f"CONNECT {refused}:443 HTTP/1.1")).startswith("HTTP/1.1 403 ")
        assert len(heads) == 2


async def test_a_proxy_that_refuses_is_no_connection(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with upstream(b"HTTP/1.1 403 No\r\n\r\n") as (port, _):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        place = await make(Reach("open"))
        assert (await place.ask("CONNECT one.test:443 HTTP/1.1")).startswith("HTTP/1.1 502 ")


# --- in another network ----------------------------------------------------------------------------------------------


INSIDE = """
import socket, sys, urllib.error, urllib.request
from tests.own_network import up
up()
listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
server = socket.socket(fileno=int(sys.argv[1]))
socket.send_fds(server, [b"."], [made.fileno() for made in listening])
proxy, gateway = (made.getsockname()[1] for made in listening)
for made in listening:
    made.close()
token, url = server.recv(1000).decode().split()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://agent:{token}@127.0.0.1:{proxy}"}))
print(opener.open(url, timeout=20).read().decode())
try:
    urllib.request.urlopen(f"http://127.0.0.1:{gateway}/v1/messages", b"{}", timeout=20)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
async def test_gateway_and_proxy_serve_on_sockets_of_another_network(make: Make) -> None:
    """As a process in a network of its own would have them, which has no other way out."""
    if await asyncio.to_thread(subprocess.call, [*own_network.COMMAND, "true"]):
        pytest.skip("needs network namespaces")
    settings = Settings(_env_file=None, anthropic_api_key="k")
    gateway = Gateway(settings, Mock(), Mock(), Mock())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)

    ours, theirs = socket.socketpair()
    async with host(answer) as port:
        place = await make(limited_to(port))
        command = [*own_network.COMMAND, sys.executable, "-c", INSIDE, str(theirs.fileno())]
        inside = await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()], stdout=PIPE)
        theirs.close()
        _, sent, *_ = await asyncio.to_thread(socket.recv_fds, ours, 1, 2)
        listening = [socket.socket(fileno=descriptor) for descriptor in sent]
        servers = [await place.proxy.accept_on(listening[0]), await gateway.accept_on(listening[1])]
        ours.send(f"{place.member.token} http://{HERE}:{port}/".encode())
        said, _ = await inside.communicate()
        for server in servers:
            server.close()
    ours.close()
    assert said.split() == [b"ok", b"401"]
    await gateway.close()
