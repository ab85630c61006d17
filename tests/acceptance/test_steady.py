"""One bad row, one strange message: nobody but them is touched."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import pytest

from apps.api.auth import hash_of
from apps.api.db import Database
from apps.api.redis import open_redis
from apps.api.settings import Settings
from tests.conftest import StartFleet, database_of
from tests.fleet import API_KEY, Fleet
from tests.world import until

_DEAD = """
INSERT INTO instances (id, hostname, version, slots, lease_expires_at)
VALUES ($1, 'dead', '0', 4, now() - interval '1 second')
"""

_LEFT = """
WITH mine AS (UPDATE sessions SET owner_id = $2 WHERE id = $1 RETURNING id, tenant_id)
INSERT INTO runs (id, tenant_id, session_id, status, prompt, timeout_seconds, started_at)
SELECT gen_random_uuid(), tenant_id, id, 'running', '"hello"', 60, now() FROM mine RETURNING id
"""

_BEYOND_THE_END = """
INSERT INTO events (session_id, seq, type, data) SELECT id, last_seq + 1, 'message', '{}' FROM sessions WHERE id = $1
"""


async def metric(fleet: Fleet, name: str) -> float:
    """The sum of a metric of all instances."""
    texts = [(await instance.client.get("/metrics")).text for instance in fleet.instances]
    found = [re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) for text in texts]
    return sum(float(match[1]) for match in found if match)


async def assert_well(fleet: Fleet) -> None:
    for instance in fleet.instances:
        assert instance.process.poll() is None
        health = (await instance.client.get("/health")).json()
        assert (health["status"], health["failing_loops"]) == ("ok", [])


async def errors_of(db: Database, run_ids: list[UUID]) -> list[str | None]:
    rows = await db.pool.fetch("SELECT id, error ->> 'code' AS code FROM runs WHERE id = ANY($1::uuid[])", run_ids)
    codes = {row["id"]: row["code"] for row in rows}
    return [codes[run_id] for run_id in run_ids]


@pytest.mark.slow
@pytest.mark.breaks_logs
async def test_a_session_that_cannot_be_taken_over_holds_up_no_other_and_is_freed_in_the_end(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(2)
    sessions = [await fleet[0].session() for _ in range(5)]
    async with database_of(fleet) as db:
        await db.pool.execute(_BEYOND_THE_END, UUID(sessions[0]))  # no end of its run can be written
        await db.pool.execute(_DEAD, dead := uuid4())
        runs = [await db.pool.fetchval(_LEFT, UUID(session_id), dead) for session_id in sessions]

        async def ended(expected: list[str | None]) -> bool:
            return (await errors_of(db, runs))[-len(expected) :] == expected

        await until(lambda: ended(["owner_lost"] * 4))
        assert await metric(fleet, 'loop_item_failures_total{loop="runner-reap"}') > 0
        await until(lambda: ended(["storage_failed", *["owner_lost"] * 4]))
    await assert_well(fleet)
    assert (await fleet[1].ask(sessions[1], "say on we go"))["result"].endswith("on we go")


async def test_what_strangers_write_into_redis_is_not_believed(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id = await fleet[0].session()
    settings = Settings(
        _env_file=None, redis_url=fleet.env["REDIS_URL"], redis_key_prefix=fleet.env["REDIS_KEY_PREFIX"]
    )
    async with database_of(fleet) as db, open_redis(settings) as redis:
        tenant_id = await db.pool.fetchval("SELECT tenant_id FROM sessions WHERE id = $1", UUID(session_id))
        keys, client = redis.keys, redis.client
        channel = keys.channel(tenant_id, UUID(session_id))
        for garbage in (b"\xff\xfe", b"{", b"5", b"null", b"[]", b"id: x\nevent: \xff\n\n", b"\x00" * 100):
            for name in (keys.wake, keys.deleted, channel, *[keys.instance(UUID(i.id)) for i in fleet.instances]):
                await client.publish(name, garbage)
            for name in (keys.api_key(hash_of(API_KEY)), keys.session(tenant_id, UUID(session_id))):
                await client.set(name, garbage)
            for instance in fleet.instances:
                assert (await instance.get(f"/sessions/{session_id}")).json()["session_id"] == session_id
        stream = keys.stream(tenant_id, UUID(session_id))
        await client.xadd(stream, {"x": "y"}, id="1-1")
        await client.xadd(stream, {"f": b"\xff"}, id="2-1")
        run_id = await fleet[0].prompt(session_id, "say through it all")
        events = await fleet[1].follow(run_id)
    assert (events[-1].event, events[-1].data["status"]) == ("done", "succeeded")
    await assert_well(fleet)
