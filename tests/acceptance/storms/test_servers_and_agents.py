"""What instances depend on, or have started, is slow, hangs or holds nonsense: nobody but its users is touched."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections import Counter
from contextlib import AsyncExitStack, suppress
from email.message import Message
from email.parser import BytesHeaderParser
from uuid import UUID, uuid4

import httpx
import orjson
import psutil
import pytest
from redis.exceptions import ResponseError

from apps.api import keys
from apps.api.auth import hash_of
from apps.api.redis import open_redis
from apps.api.settings import Settings
from tests.acceptance.storms.storm import DEAD, PATIENCE, Storm, owned_by
from tests.fleet import API_KEY, Fleet, Instance
from tests.sockets import open_socket
from tests.world import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_LEFT = """
WITH mine AS (UPDATE sessions SET owner_id = $2 WHERE id = $1 RETURNING id, tenant_id)
INSERT INTO runs (id, tenant_id, session_id, status, prompt, timeout_seconds, started_at)
SELECT gen_random_uuid(), tenant_id, id, 'running', '"hello"', 60, now() FROM mine RETURNING id
"""

_BEYOND_THE_END = """
INSERT INTO events (session_id, seq, type, data) SELECT id, last_seq + 1, 'message', '{}' FROM sessions WHERE id = $1
"""

LARGE = "x" * 390_000
"""A prompt that is larger than the pipe to an agent."""


async def metric(fleet: Fleet, name: str) -> float:
    """The sum of a metric of all instances."""
    texts = [(await instance.client.get("/metrics")).text for instance in fleet.instances]
    found = [re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) for text in texts]
    return sum(float(match[1]) for match in found if match)


async def end_of(instance: Instance, run_id: str) -> str:
    """How a run has ended, once it has: the code of its error, or its status."""
    async with asyncio.timeout(PATIENCE):
        await instance.follow(run_id)
    run = (await instance.get(f"/runs/{run_id}")).json()
    return str(run["error"]["code"] if run["error"] else run["status"])


def cli_of(owner: Instance, session_id: str) -> list[psutil.Process]:
    return [process for process in owner.agent_of(session_id) if process.name() == "claude"]


def head_of(answer: bytes) -> tuple[int, Message]:
    """The status and the headers of a response's head."""
    status, _, headers = answer.partition(b"\r\n")
    return int(status.split()[1]), BytesHeaderParser().parsebytes(headers)


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # whose parent is stopped, and cannot take note of it
    return False


async def test_a_row_that_cannot_be_taken_over(storm: Storm) -> None:
    fleet, db = storm.fleet, storm.place.db
    sessions = [await fleet[0].session() for _ in range(5)]
    async with storm.cause():
        await db.pool.execute(_BEYOND_THE_END, UUID(sessions[0]))  # no end of its run can be written
        dead = await db.pool.fetchval(DEAD)
        runs = [str(await db.pool.fetchval(_LEFT, UUID(session_id), dead)) for session_id in sessions]
        assert [await end_of(fleet[1], run_id) for run_id in runs[1:]] == ["owner_lost"] * 4
        await storm.probes()
        assert await metric(fleet, 'claude_agent_api_loop_item_failures_total{loop="runner-reap"}') > 0

        async def freed() -> bool:
            return bool((await fleet[1].get(f"/runs/{runs[0]}")).json()["error"])

        await until(freed, seconds=PATIENCE)
        assert (await fleet[1].get(f"/runs/{runs[0]}")).json()["error"]["code"] == "storage_failed"
        await db.pool.execute("DELETE FROM events WHERE session_id = $1", UUID(sessions[0]))
    for session_id in sessions[:2]:
        assert (await fleet[1].ask(session_id, "say on we go"))["result"].endswith("on we go")
    await fleet[1].client.delete(f"/api/v1/sessions/{sessions[0]}")  # its first run has no end in its log


async def test_what_strangers_write_into_redis(storm: Storm) -> None:
    fleet, db = storm.fleet, storm.place.db
    settings = Settings(
        _env_file=None, redis_url=fleet.env["REDIS_URL"], redis_key_prefix=fleet.env["REDIS_KEY_PREFIX"]
    )
    tenants = await db.pool.fetch("SELECT id, tenant_id FROM sessions WHERE id = ANY($1)", storm.sessions)
    async with open_redis(settings) as redis, storm.cause():
        keys, client = redis.keys, redis.client
        channels = [keys.channel(row["tenant_id"], row["id"]) for row in tenants]
        channels += [keys.wake, keys.deleted, *(keys.instance(UUID(i.id)) for i in fleet.instances)]
        cached = [keys.session(row["tenant_id"], row["id"]) for row in tenants]
        cached += [keys.api_key(hash_of(key)) for key in (API_KEY, storm.place.headers["X-API-Key"])]
        for garbage in (b"\xff\xfe", b"{", b"5", b"null", b"[]", b"id: x\nevent: \xff\n\n", b"\x00" * 100):
            for name in channels:
                await client.publish(name, garbage)
            for name in cached:
                await client.set(name, garbage)
            for row in tenants:
                stream = keys.stream(row["tenant_id"], row["id"])
                await client.delete(stream)
                with suppress(ResponseError):  # the owner has written its next event in between
                    await client.xadd(stream, {"x": "y"}, id="1-1")
                    await client.xadd(stream, {"f": garbage}, id="2-1")
            for instance in fleet.instances:
                for session_id in storm.place.busy:
                    assert (await instance.get(f"/sessions/{session_id}")).json()["session_id"] == session_id
            await storm.probes(1)


async def test_an_owner_that_is_frozen_for_longer_than_its_lease(storm: Storm) -> None:
    spared = await storm.owner(storm.place.probed)
    owners = {session_id: await storm.owner(session_id) for session_id in storm.place.busy}
    victim = next(owner for owner in owners.values() if owner is not spared)
    storm.may_lose = {session_id for session_id, owner in owners.items() if owner is victim}
    session_id = await owned_by(victim, {}, permission_mode="bypassPermissions")
    run_id = await victim.prompt(session_id, "run while :; do date >> effects; sleep 0.05; done")
    await until(lambda: len(victim.agent_of(session_id)) > 2)  # the guard, the CLI, and its tool
    await storm.leave(victim)
    mine, left = victim.agent_of(session_id), [True]
    async with storm.cause():
        victim.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE), storm.through[0].stream(f"/runs/{run_id}/events") as events:
                async for event in events:
                    if event.event == "error":
                        assert event.data["code"] == "owner_lost"
                        left = [lives(process) for process in mine]  # they have ended before it is given away
            assert not any(left)
            assert (await storm.through[0].ask(session_id, "say mine now"))["result"].endswith("mine now")
            await storm.probes()
            await storm.answered([*storm.may_lose], 1)
        finally:
            victim.signal(signal.SIGCONT)
    other = await victim.session()
    assert (await victim.ask(other, "say here again"))["result"].endswith("here again")


async def test_agents_that_are_frozen_while_they_are_given_more_than_a_pipe_holds(storm: Storm) -> None:
    fleet, owner = storm.fleet, storm.fleet[0]
    late, patient = [await owned_by(owner, {}) for _ in range(2)]
    clis = [cli for session_id in (late, patient) for cli in cli_of(owner, session_id)]
    assert len(clis) == 2
    async with storm.cause():
        for cli in clis:
            cli.suspend()
        try:
            runs = [await fleet[n % 3].prompt(patient, LARGE) for n in range(4)]
            assert await end_of(fleet[1], await owner.prompt(late, LARGE, timeout_seconds=2)) == "timeout"
            assert (await fleet[1].ask(late, "say still here"))["result"].endswith("still here")
            await storm.probes()
        finally:
            for cli in clis:
                with suppress(psutil.NoSuchProcess):
                    cli.resume()
    assert [await end_of(fleet[2], run_id) for run_id in runs] == ["succeeded"] * 4


async def test_starts_that_hang(storm: Storm) -> None:
    """The starts of twice as many agents as each instance starts at a time."""
    fleet, stopped = storm.fleet, dict[str, psutil.Process]()
    sessions = [await fleet[n % 3].session() for n in range(6)]

    def freeze() -> bool:
        for session_id in sessions:
            for instance in fleet.instances if session_id not in stopped else ():
                for cli in cli_of(instance, session_id):
                    cli.suspend()
                    stopped[session_id] = cli
        return len(stopped) == len(sessions)

    async def frozen() -> bool:
        return await asyncio.to_thread(freeze)  # it reads much of /proc, and the servers' proxies are here, too

    async with storm.cause():
        try:
            runs = [await fleet[n % 3].prompt(session_id, "say at last") for n, session_id in enumerate(sessions)]
            await until(frozen, seconds=PATIENCE)
            await storm.probes()
            cold = await fleet[0].session()
            assert (await fleet[0].ask(cold, "say past them"))["result"].endswith("past them")
        finally:
            for cli in stopped.values():
                cli.resume()
    assert [await end_of(fleet[1], run_id) for run_id in runs] == ["succeeded"] * 6


async def test_a_database_that_answers_late_and_is_asked_much(storm: Storm) -> None:
    fleet, told = storm.fleet, Counter[int]()
    storm.may_refuse = True
    session_id = await owned_by(fleet[0], {})
    fenced = [instance.log.read_text().count("worker.fenced") for instance in fleet.instances]
    run_id = await fleet[0].prompt(session_id, "stream 300 words every 30 ms")
    over = asyncio.Event()

    async def over_in_database() -> bool:
        ended = await storm.place.db.pool.fetchval("SELECT finished_at FROM runs WHERE id = $1", UUID(run_id))
        return ended is not None

    paths = ("/sessions", "/usage", f"/sessions/{session_id}")

    async def ask(number: int) -> None:
        """Request after request. Written by hand: a client's pool of 500 would take more of a core than the servers."""
        url = httpx.URL(fleet[number % 3].url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for turn in itertools.count(number):
            if over.is_set():
                break
            head = f"GET /api/v1{paths[turn % 3]} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\n\r\n"
            writer.write(head.encode())
            status, headers = head_of(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(int(headers["content-length"]))
            told[status] += 1
            await asyncio.sleep(float(headers.get("retry-after", 0)))
        writer.close()

    async with storm.cause():
        storm.place.postgres.delay = 0.3
        asking = [asyncio.create_task(ask(number)) for number in range(500)]
        try:
            await storm.probes(1)
            await until(over_in_database, every=0.1, seconds=PATIENCE)
            for instance in fleet.instances:
                assert (await instance.client.get("/health/live")).status_code == 200
        finally:
            storm.place.postgres.delay = 0.0
            over.set()
            await asyncio.gather(*asking)
    assert told.keys() == {200, 503}, told
    assert await end_of(fleet[0], run_id) == "succeeded"
    assert [instance.log.read_text().count("worker.fenced") for instance in fleet.instances] == fenced


async def test_redis_that_hangs(storm: Storm) -> None:
    async with storm.cause():
        storm.place.redis.answers.clear()
        try:
            await storm.probes(10)
        finally:
            storm.place.redis.answers.set()


async def test_a_key_that_is_revoked(storm: Storm) -> None:
    fleet, tenant = storm.fleet, f"t{uuid4().hex}"
    made = [await keys.create_key(storm.place.db, tenant=tenant, name="k", scopes=keys.USUAL_SCOPES) for _ in range(2)]
    mine, others = [{"X-API-Key": key.secret} for key in made]
    session_id = (await fleet[0].post("/sessions", {}, headers=mine)).json()["session_id"]
    path, talk = f"/sessions/{session_id}/events", {"prompt": "hang after 3 words"}
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(i.stream(path, headers=mine)) for i in fleet.instances]
        spared = [await stack.enter_async_context(i.stream(path, headers=others)) for i in fleet.instances]
        sockets = [await stack.enter_async_context(open_socket(i, mine)) for i in fleet.instances]
        for socket in sockets:
            await socket.ask("follow", session_id=session_id)
        talks = [
            await stack.enter_async_context(
                i.client.stream("POST", "/compat/chat-server/chat", json=talk, headers=mine)
            )
            for i in fleet.instances
        ]
        lines = [response.aiter_lines() for response in talks]
        for of_one in lines:
            while not (await anext(of_one)).startswith("data: "):
                continue
        async with storm.cause():
            assert (await fleet[1].post(f"/admin/keys/{made[0].id}/revoke")).status_code == 200
            for events in streams:
                last = [event async for event in events][-1]
                assert (last.event, last.data["code"]) == ("error", "invalid_api_key")
            assert [await socket.closed() for socket in sockets] == [4401] * 3
            for of_one in lines:
                told = [orjson.loads(line.removeprefix("data: ")) async for line in of_one if line]
                assert [line["type"] for line in told[-2:]] == ["error", "done"]
            for instance in fleet.instances:
                assert (await instance.get("/sessions", headers=mine)).status_code == 401
            await storm.probes()
        listed = (await fleet[0].get("/sessions", headers=others)).json()["data"]
        assert len(listed) == 4
        for session in listed:
            await fleet[2].client.delete(f"/api/v1/sessions/{session['session_id']}", headers=others)
        for events in spared:
            assert [event async for event in events][-1].data["code"] == "session_deleted"
