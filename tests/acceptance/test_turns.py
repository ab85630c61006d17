"""Turns of tenants, and how many runs one may have at a time, over three instances."""

from __future__ import annotations

import signal
from uuid import uuid4

import pytest

from apps.api import keys
from apps.api.db import Database
from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import Fleet, Instance
from tests.world import until

FLOOD = """
WITH made AS (
  INSERT INTO sessions (id, tenant_id, sdk_session_id)
  SELECT gen_random_uuid(), (SELECT id FROM tenants WHERE name = $1), gen_random_uuid() FROM generate_series(1, 10000)
  RETURNING id, tenant_id
)
INSERT INTO runs (id, tenant_id, session_id, prompt, timeout_seconds)
SELECT gen_random_uuid(), tenant_id, id, '"say hello"', 600 FROM made
"""

AWAY = "DELETE FROM sessions WHERE id IN (SELECT session_id FROM runs WHERE status = 'queued')"

BEFORE = """
SELECT count(*) FROM runs r, (SELECT * FROM runs WHERE id = $1) guest
WHERE r.tenant_id <> guest.tenant_id AND r.started_at > guest.created_at AND r.started_at < guest.started_at
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_ten_thousand_queued_runs_of_a_tenant_delay_another_by_one_claim_of_each_instance(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(3, RUNNER_SLOTS="1")
    async with database_of(fleet) as db:
        await keys.create_tenant(db, "flood")
        guest = await make_key(db, "guest")
        await db.pool.execute(FLOOD, "flood", timeout=100)
        running = "SELECT count(*) FROM runs WHERE status = 'running'"
        await until(lambda: _is(db, running, 3), seconds=60)
        session_id = (await fleet[0].post("/sessions", {}, headers=guest)).json()["session_id"]
        sent = await fleet[1].post(f"/sessions/{session_id}/query", {"prompt": "say hello"}, headers=guest)
        run_id = sent.json()["run_id"]
        waits = f"SELECT count(*) FROM runs WHERE id = '{run_id}' AND started_at IS NULL"
        await until(lambda: _is(db, waits, 0), seconds=300)
        assert await db.pool.fetchval(BEFORE, run_id) <= 3
        waiting = await db.pool.fetchval("SELECT count(*) FROM runs WHERE status = 'queued'")
        assert waiting > 9_000, "the flood was over"
        await db.pool.execute(AWAY, timeout=100)


async def _is(db: Database, query: str, count: int) -> bool:
    found: int = await db.pool.fetchval(query)
    return found == count


AT_ONCE = """
SELECT max(at_once) FROM (
  SELECT sum(change) OVER (ORDER BY at, change) AS at_once FROM (
    SELECT started_at AS at, 1 AS change FROM runs WHERE started_at IS NOT NULL
    UNION ALL SELECT finished_at, -1 FROM runs WHERE started_at IS NOT NULL AND finished_at IS NOT NULL
  ) changes
) counts
"""


@pytest.mark.slow
async def test_runs_at_a_time_of_a_tenant_are_held_over_instances_while_one_is_killed(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3)
    put = await fleet[0].client.put("/api/v1/admin/tenants/default/limits", json={"concurrent_runs": 2})
    assert put.status_code == 200
    for n in range(7):
        await fleet[n % 3].prompt(await fleet[n % 3].session(), "hang")
    async with database_of(fleet) as db:
        running = "SELECT id::text FROM runs WHERE status = 'running'"

        async def next_running(alive: Instance) -> str:
            """One of those that are running; once there are as many as may."""
            await until(lambda: _is(db, f"SELECT count(*) FROM ({running}) r", 2), seconds=60)
            shown = {state["name"]: state for state in (await alive.get("/limits")).json()["data"]}
            assert (shown["concurrent_runs"]["limit"], shown["concurrent_runs"]["used"]) == (2, 2)
            return str(await db.pool.fetchval(f"{running} ORDER BY started_at LIMIT 1"))

        first = await next_running(fleet[0])
        dead = await fleet.owner_of((await fleet[0].get(f"/runs/{first}")).json()["session_id"])
        dead.signal(signal.SIGKILL)
        alive = (await fleet.others(dead))[0]
        owned = f"SELECT count(*) FROM sessions WHERE owner_id = '{dead.id}'"
        await until(lambda: _is(db, owned, 0), seconds=60)
        for _ in range(4):
            run_id = await next_running(alive)
            await alive.post(f"/runs/{run_id}/cancel")
            await alive.follow(run_id)
        assert await db.pool.fetchval(AT_ONCE) == 2
        await db.pool.execute(AWAY, timeout=100)


async def test_an_idle_session_gives_its_place_to_one_of_its_tenant_on_another_instance(
    fleet: Fleet, fleet_db: Database
) -> None:
    name = f"t{uuid4().hex}"
    headers = await make_key(fleet_db, name)
    put = await fleet[0].client.put(f"/api/v1/admin/tenants/{name}/limits", json={"live_sessions": 1})
    assert put.status_code == 200
    whose = "(SELECT id FROM tenants WHERE name = $1)"
    live = f"SELECT count(*) FROM sessions WHERE owner_id IS NOT NULL AND tenant_id = {whose}"
    for instance in fleet.instances:
        answer = await instance.post("/query/single", {"prompt": "say hello"}, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        assert await fleet_db.pool.fetchval(live, name) == 1
        shown = {state["name"]: state for state in (await instance.get("/limits", headers=headers)).json()["data"]}
        assert (shown["live_sessions"]["limit"], shown["live_sessions"]["used"]) == (1, 1)
