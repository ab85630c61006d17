"""What clients make an instance hold in memory: bounded in bytes for each of them, and given back."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack

import httpx
import orjson
import psutil
import pytest

from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import API_KEY, Fleet, Instance
from tests.world import until

pytestmark = pytest.mark.slow

MB = 1_000_000
EVENTS, EVENT_BYTES = 300, 100_000
READERS = 30
PATIENCE = 120.0

_FILL = """
INSERT INTO events (session_id, seq, type, data)
SELECT $1, n, 'message', ('{"text": "' || repeat('x', $3) || '"}') FROM generate_series(1, $2) n
"""


def memory(instance: Instance) -> float:
    """Megabytes of the server itself."""
    return float(psutil.Process(instance.process.pid).memory_info().rss) / MB


async def long_session(fleet: Fleet) -> str:
    """A session whose history is 30 MB."""
    session = await fleet[0].session()
    async with database_of(fleet) as db:
        await db.pool.execute(_FILL, session, EVENTS, EVENT_BYTES)
        await db.pool.execute("UPDATE sessions SET last_seq = $2 WHERE id = $1", session, EVENTS)
    return session


def read_all(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def silent(instance: Instance, request: str) -> socket.socket:
    """A client that asks, and reads nothing; its system takes next to nothing for it."""
    url = httpx.URL(instance.url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((url.host, url.port))
    sock.sendall(request.encode())
    return sock


def held(instance: Instance, socks: list[socket.socket]) -> int:
    """How many of these the server still has."""
    ports = {sock.getsockname()[1] for sock in socks}
    return sum(bool(c.raddr) and c.raddr.port in ports for c in psutil.Process(instance.process.pid).net_connections())


async def test_readers_that_do_not_read(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    instance, session = fleet[0], await long_session(fleet)
    key = f"X-API-Key: {API_KEY}"
    request = f"GET /api/v1/sessions/{session}/events?after=0 HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n"
    before, most = memory(instance), 0.0
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        socks = [stack.enter_context(silent(instance, request)) for _ in range(READERS)]
        await until(lambda: held(instance, socks) == READERS, every=0.1)
        while held(instance, socks):
            await asyncio.sleep(0.5)
            assert (await instance.client.get("/health/live")).status_code == 200
            most = max(most, memory(instance))

        assert most - before < READERS * 2 + 50
        for sock in socks:
            sock.settimeout(5)
            with pytest.raises(ConnectionResetError):
                read_all(sock)


async def test_bodies_that_are_refused(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    instance = fleet[0]
    async with database_of(fleet) as db:
        key = await make_key(db)
    run = await instance.prompt(await instance.session(), "stream 100 words slowly")
    bodies = [
        orjson.dumps({"tags": [{}] * 1_900_000}),
        orjson.dumps({"metadata": {str(n): n for n in range(450_000)}}),
        orjson.dumps({"prompt": [{"type": "text", "text": "x" * 70_000}] * 100, "nonsense": 1}),
    ]
    statuses: Counter[int] = Counter()
    before, most, slowest = memory(instance), 0.0, 0.0

    async def post(number: int) -> None:
        async with httpx.AsyncClient(base_url=instance.url, headers=key, timeout=60) as client:
            for turn in range(3):
                path = "/api/v1/query" if (number + turn) % 3 == 2 else "/api/v1/sessions"
                body = bodies[(number + turn) % 3]
                try:
                    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
                except httpx.TransportError:
                    statuses[0] += 1
                    continue
                statuses[answer.status_code] += 1

    async with asyncio.timeout(PATIENCE):
        posting = [asyncio.create_task(post(number)) for number in range(40)]
        while not all(task.done() for task in posting):
            begun = asyncio.get_running_loop().time()
            assert (await instance.client.get("/health/live")).status_code == 200
            slowest = max(slowest, asyncio.get_running_loop().time() - begun)
            most = max(most, memory(instance))
            await asyncio.sleep(0.05)

        assert most - before < 500
        assert (await instance.follow(run))[-1].data["status"] == "succeeded"
