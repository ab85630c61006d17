"""Clients hold on to what they have, a host's disk is full, or the database is changed under the fleet: nobody else is
touched, and all is well when it is over."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import psutil
import pytest

from apps.api import migrate
from apps.api.core import tasks
from apps.api.core.files import removal
from apps.api.dev.embedded import Servers
from apps.api.shares import connections
from tests.acceptance.storms.conftest import Host
from tests.acceptance.storms.storm import DEAD, PATIENCE, Storm, owned_by
from tests.acceptance.test_lost_events import durable, lose, read
from tests.conftest import make_key, settings_for
from tests.fleet import API_KEY, Instance, Sse
from tests.test_migrations import next_release
from tests.world import administrator, left_by, until, waiting_for_locks

__all__ = ["next_release"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DESCRIPTORS = 1_024
"""Of the last instance: what processes usually begin with."""

OURS = 4_096
"""Descriptors that this process needs for its clients."""

ROOM, FILES = 64 << 20, 2_000
"""Bytes and inodes of the last instance's disk. An agent takes some hundred KB and 50."""

READERS, EVENTS, EVENT_BYTES = 50, 300, 100_000
STREAMS, SILENT = 1_000, 1_200


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(before[0], OURS), before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def disk() -> Iterator[Path | None]:
    """A small one, if this user may mount it."""
    with tempfile.TemporaryDirectory(prefix="host-", dir="/tmp") as made:  # short, see agent/scratch.py
        options = f"size={ROOM},nr_inodes={FILES}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", made]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            yield None
            return
        try:
            yield Path(made)
        finally:
            subprocess.run(["umount", "--lazy", made], check=True)


@pytest.fixture(scope="module")
def hosts(disk: Path | None) -> list[Host]:
    """All have slots for whoever asks, and the usual lease. The last has few descriptors, and a disk of its own:
    WORKSPACES_DIR, TMPDIR."""
    slots = {"RUNNER_SLOTS": "16", "INSTANCE_LEASE_SECONDS": "10"}
    words = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"]
    if disk is not None:
        there = f'mkdir {disk}/w && mount --bind {disk}/w "$WORKSPACES_DIR"'
        words += ["env", f"TMPDIR={disk}", "unshare", "--mount", "sh", "-c", f'{there} && exec "$@"', "sh"]
    return [((), slots), ((), slots), (words, slots)]


# --- clients ---------------------------------------------------------------------------------------------------------


def held(instance: Instance, socks: Sequence[socket.socket]) -> int:
    """How many of these the server still has."""
    ports = {sock.getsockname()[1] for sock in socks}
    return sum(bool(c.raddr) and c.raddr.port in ports for c in psutil.Process(instance.process.pid).net_connections())


@asynccontextmanager
async def connected(instance: Instance, request: bytes = b"", *, buffer: int = 65_536) -> AsyncIterator[socket.socket]:
    """A client that has sent this, and for which its system takes so many bytes."""
    url, loop = httpx.URL(instance.url), asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setblocking(False)
        await loop.sock_connect(sock, (url.host, url.port))
        await loop.sock_sendall(sock, request)
        yield sock


def events_of(session: str, key: str) -> bytes:
    return f"GET /api/v1/sessions/{session}/events?after=0 HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n".encode()


def read_all(sock: socket.socket, count: int) -> int:
    """Read at most so many bytes, of what is there. Raises ConnectionResetError."""
    read = 0
    with suppress(BlockingIOError):
        while read < count and (data := sock.recv(min(count, 65_536))):
            read += len(data)
    return read


async def silent(instance: Instance) -> None:
    """More clients than the instance may have connect and say nothing, until it has closed the last of them."""
    async with AsyncExitStack() as stack:
        socks = [await stack.enter_async_context(connected(instance)) for _ in range(SILENT)]
        assert held(instance, socks) <= connections(DESCRIPTORS)
        await until(lambda: not held(instance, socks), every=0.5, seconds=PATIENCE)


async def test_fifty_readers_of_a_byte_a_second_and_many_who_say_nothing(storm: Storm) -> None:
    instance, db = storm.fleet[1], storm.place.db
    session = await instance.session()
    await db.pool.execute(
        "INSERT INTO events (session_id, seq, type, data)"
        " SELECT $1, n, 'message', jsonb_build_object('text', repeat('x', $3)) FROM generate_series(1, $2) n",
        UUID(session),
        EVENTS,
        EVENT_BYTES,
    )
    await db.pool.execute("UPDATE sessions SET last_seq = $2 WHERE id = $1", UUID(session), EVENTS)
    async with storm.cause(), asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as beside, AsyncExitStack() as stack:
        request = events_of(session, API_KEY)
        socks = [await stack.enter_async_context(connected(instance, request, buffer=4_096)) for _ in range(READERS)]
        beside.create_task(silent(storm.fleet[2]))
        await until(lambda: held(instance, socks) == READERS, every=0.1, seconds=PATIENCE)
        while held(instance, socks):
            for sock in socks:
                with suppress(ConnectionResetError):
                    read_all(sock, 1)
            await asyncio.sleep(1)
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                read_all(sock, EVENTS * EVENT_BYTES)


async def stream(instance: Instance, request: bytes, stack: AsyncExitStack) -> bytes:
    """Begin to follow a session; returns the status."""
    url = httpx.URL(instance.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    stack.callback(writer.close)
    writer.write(request)
    return (await reader.readuntil(b"\r\n\r\n")).split()[1]


async def test_a_thousand_streams(storm: Storm) -> None:
    """The first tenant to want them all has a half of them, which no other feels; a second one has what is left."""
    instance, most = storm.fleet[2], connections(DESCRIPTORS) * 3 // 4
    async with storm.cause(), asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        for _ in range(2):
            tenant, statuses = f"greedy-{uuid4()}", Counter[bytes]()
            for _ in range(5):
                key = await make_key(storm.place.db, tenant)
                session = (await instance.post("/sessions", {}, headers=key)).json()["session_id"]
                request = events_of(session, key["X-API-Key"])
                statuses.update([await stream(instance, request, stack) for _ in range(STREAMS // 10)])
            assert statuses.keys() <= {b"200", b"429", b"503"}
            assert 0 < statuses[b"200"] <= most // 2
            assert statuses[b"429"] > 0
            await storm.probes()
            assert storm.may_refuse or all(a.how == "succeeded" for all_ in storm.answers.values() for a in all_)
            storm.may_refuse = True
        assert (await instance.client.get("/health")).json()["status"] == "ok"


# --- a disk ----------------------------------------------------------------------------------------------------------


def fill_room(disk: Path) -> None:
    with suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass


def use_up_inodes(disk: Path) -> None:
    (disk / "full").mkdir()
    with suppress(OSError):
        for number in range(FILES + 1):
            (disk / "full" / str(number)).touch()


@pytest.mark.parametrize("use_up", [fill_room, use_up_inodes])
async def test_a_host_with_no_room_on_its_disk(storm: Storm, disk: Path | None, use_up: Callable[[Path], None]) -> None:
    if disk is None:
        pytest.skip("only root may mount a small disk, and only where containers let it")
    fleet = storm.fleet
    async with storm.cause(), asyncio.timeout(2 * PATIENCE), AsyncExitStack() as stack:
        # In threads: the servers' proxies are in this process, too.
        stack.push_async_callback(asyncio.to_thread, removal.remove, disk / "full")
        await asyncio.to_thread(use_up, disk)
        runs = [await fleet[n % 3].prompt(await fleet[n % 3].session(), "say hello") for n in range(12)]
        ends = [(await fleet[n % 3].follow(run))[-1].data["status"] for n, run in enumerate(runs)]
        assert ends == ["succeeded"] * 12
        await until(lambda: unready(fleet[2]), every=0.2, seconds=PATIENCE)
    await storm.settle()
    await owned_by(fleet[2], {})


async def unready(instance: Instance) -> bool:
    return (await instance.client.get("/health/ready")).status_code == 503


# --- a database ------------------------------------------------------------------------------------------------------


async def test_a_lock_that_is_held_during_a_migration(storm: Storm, servers: Servers, next_release: Path) -> None:
    """As by a report, or a dump, which reads for long."""
    name = urlsplit(storm.fleet.env["DATABASE_URL"]).path[1:]
    settings = settings_for(servers, name)
    async with storm.cause(), administrator(settings) as reader, administrator(settings) as watcher:
        await reader.execute("BEGIN; SELECT FROM runs LIMIT 1")
        migrating = asyncio.create_task(migrate.upgrade(settings, scripts=next_release))
        await until(lambda: waiting_for_locks(watcher, 1))
        await storm.probes()
        assert not migrating.done()
        await reader.execute("COMMIT")
        await asyncio.wait_for(migrating, PATIENCE)


def has_ended(seen: list[Sse], run: str) -> bool:
    return (seen[-1].event, seen[-1].data["run_id"]) == ("done", run)


async def test_a_database_that_has_lost_its_newest_commits(storm: Storm) -> None:
    """Half of the sessions are owned by nobody in it."""
    fleet, db = storm.fleet, storm.place.db
    async with storm.cause(), asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        sessions = [await fleet[n].session() for n in range(3)]
        await asyncio.gather(*(fleet[n].ask(session, "say one") for n, session in enumerate(sessions)))
        lost = [await fleet[0].prompt(session, "say this is lost") for session in sessions]
        lasts = [(await fleet[0].follow(run))[-1].id for run in lost]
        readings: list[list[Sse]] = [[] for _ in sessions]
        for n, (session, seen) in enumerate(zip(sessions, readings, strict=True)):
            reading = asyncio.create_task(read(fleet[n % 3], f"/sessions/{session}/events", seen))
            stack.push_async_callback(tasks.end, reading)
        await until(lambda: [seen[-1].id for seen in readings if seen] == lasts, seconds=PATIENCE)
        pairs = list(zip(sessions, lost, strict=True))
        kept = [await lose(db, *pair, owner=n % 2 == 0) for n, pair in enumerate(pairs)]
        for session, number, seen in zip(sessions, kept, readings, strict=True):
            run = await fleet[0].prompt(session, "say that we go on")
            assert (await fleet[1].follow(run))[-1].data["status"] == "succeeded"
            await until(partial(has_ended, seen, run), seconds=PATIENCE)
            [at] = [n for n, event in enumerate(seen) if event.event == "resync"]
            assert seen[at].data["seq"] == number
            stored = await fleet[2].get(f"/sessions/{session}/events", headers={"Accept": "application/json"})
            listed = [(event["id"], event["event"]) for event in stored.json()["data"]]
            assert durable(seen[at + 1 :]) == [entry for entry in listed if int(entry[0]) > number]


async def test_a_thousand_sessions_of_a_dead_owner(storm: Storm) -> None:
    db = storm.place.db
    tenant = await db.pool.fetchval("SELECT tenant_id FROM sessions WHERE id = $1", UUID(storm.place.busy[0]))
    async with storm.cause():
        async with db.transaction() as connection:
            dead: UUID = await connection.fetchval(DEAD)
            sessions = await left_by(connection, tenant, dead, 1_000)

        async def taken() -> bool:
            return not await db.pool.fetchval("SELECT count(*) FROM sessions WHERE owner_id = $1", dead)

        await until(taken, every=0.1, seconds=PATIENCE)
        await storm.probes(2)
    states = await db.pool.fetch(
        "SELECT status, error ->> 'code' AS code FROM runs WHERE session_id = ANY($1)", sessions
    )
    assert Counter(tuple(row) for row in states) == {("failed", "owner_lost"): 667}
    for session in sessions[:3]:
        assert (await storm.fleet[0].ask(str(session), "say we go on"))["status"] == "succeeded"
