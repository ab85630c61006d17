"""A tenant is deleted from a fleet, in the middle of its work, and the instance that does it is killed."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from apps.api.core.fleet import erasure
from apps.api.db import Database
from apps.api.models import Base
from apps.api.redis import open_redis
from apps.api.settings import Settings
from tests.acceptance.test_suspension import tenant_of
from tests.conftest import StartFleet, database_of
from tests.fleet import Fleet
from tests.world import until

SECONDS = 60.0

_OLD = """
WITH made AS (
  INSERT INTO sessions (id, tenant_id, sdk_session_id, last_seq)
  SELECT gen_random_uuid(), $1, gen_random_uuid(), 20 FROM generate_series(1, 3000) RETURNING id
)
INSERT INTO events (session_id, seq, type, data) SELECT id, seq, 'status', '{}' FROM made, generate_series(1, 20) AS seq
"""


def files_of(fleet: Fleet, session_ids: list[str]) -> list[Path]:
    """What the sessions have on the disks of those that live, but for what is being removed."""
    above = ("", ".homes", ".outputs", ".checkpoints", ".configs", ".stored")
    living = [instance for instance in fleet.instances if instance.process.poll() is None]
    paths = [instance.disk / place / id_ for instance in living for place in above for id_ in session_ids]
    return [path for path in paths if path.is_symlink() or path.exists()]


async def rows_of(db: Database, tenant_id: UUID) -> dict[str, int]:
    conditions = {table.name: erasure._of_tenant(table) for table in Base.metadata.sorted_tables}
    counted = {
        table: await db.pool.fetchval(f"SELECT count(*) FROM {table} WHERE {condition}", tenant_id)
        for table, condition in conditions.items()
        if condition
    }
    return {table: count for table, count in counted.items() if count}


async def keys_of(fleet: Fleet, tenant_id: UUID) -> list[bytes]:
    settings = Settings(
        _env_file=None, redis_url=fleet.env["REDIS_URL"], redis_key_prefix=fleet.env["REDIS_KEY_PREFIX"]
    )
    async with open_redis(settings) as redis:
        return [key async for key in redis.client.scan_iter(match=f"*{tenant_id}*", count=1000)]


@pytest.mark.slow
async def test_a_tenant_is_gone_whoever_is_killed_over_it(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3)
    tenant, headers = await tenant_of(fleet)
    kept = await fleet[0].session()
    await fleet[0].ask(kept, "write kept.txt: here", permission_mode="bypassPermissions")
    sessions = []
    for instance in fleet.instances:
        made = await instance.post("/sessions", {"permission_mode": "bypassPermissions"}, headers=headers)
        sessions.append(made.json()["session_id"])
        asked = {"session_id": sessions[-1], "prompt": "write mine.txt: of this tenant"}
        assert (await instance.post("/query/single", asked, headers=headers)).status_code == 200
    running = {"prompt": "stream 3000 words slowly"}
    begun = await fleet[1].post(f"/sessions/{sessions[0]}/query", running, headers=headers)
    async with fleet[2].stream(f"/runs/{begun.json()['run_id']}/events", headers=headers) as events:
        await anext(e async for e in events if e.event == "partial")
    assert len(files_of(fleet, sessions)) >= 12
    async with database_of(fleet) as db:
        tenant_id = await db.pool.fetchval("SELECT id FROM tenants WHERE name = $1", tenant)
        await db.pool.execute(_OLD, tenant_id)
        owner = await fleet.by_id((await fleet[0].get(f"/sessions/{sessions[0]}", headers=headers)).json()["owner"])
        killed, alive = next((i, [o for o in fleet.instances if o is not i]) for i in fleet.instances if i is not owner)
        agents = owner.agent_of(sessions[0])
        asking = asyncio.create_task(killed.client.delete(f"/api/v1/admin/tenants/{tenant}"))
        some = "SELECT count(*) BETWEEN 200 AND 2500 FROM sessions WHERE tenant_id = $1 AND purged_at IS NOT NULL"
        await until(partial(db.pool.fetchval, some, tenant_id), seconds=SECONDS)
        killed.signal(signal.SIGKILL)
        with suppress(httpx.TransportError):
            assert (await asking).status_code == 202  # where that took so long that it did not wait for the end
        assert await db.pool.fetchval("SELECT count(*) FROM tenants WHERE id = $1", tenant_id) == 1
        for instance in alive:
            assert (await instance.get("/whoami", headers=headers)).status_code == 401
        told = await alive[0].client.delete(f"/api/v1/admin/tenants/{tenant}")
        assert told.status_code in (200, 202), told.text
        gone = "SELECT NOT EXISTS (SELECT 1 FROM tenants WHERE id = $1)"
        await until(partial(db.pool.fetchval, gone, tenant_id), seconds=SECONDS)
        assert (await alive[1].client.delete(f"/api/v1/admin/tenants/{tenant}")).status_code == 404
        assert await rows_of(db, tenant_id) == {}
    await until(lambda: not files_of(fleet, sessions), seconds=SECONDS)
    await until(lambda: not any(process.is_running() for process in agents), seconds=SECONDS)

    async def forgotten() -> bool:
        return not await keys_of(fleet, tenant_id)

    await until(forgotten, every=0.1, seconds=SECONDS)  # what tells that an entry is wrong lives for two seconds
    await counted(fleet, alive[0].client, tenant)
    recalled = await alive[0].ask(kept, "run cat kept.txt")
    assert "here" in recalled["result"]


async def counted(fleet: Fleet, client: httpx.AsyncClient, tenant: str) -> None:
    """What was removed is in the audit log, each row once, whoever removed it."""
    lines = (await client.get("/api/v1/admin/audit", params={"tenant": tenant})).json()["data"]
    ends = [line for line in lines if line["action"] in ("tenant.deleted", "tenant.removed")]
    assert [line["action"] for line in ends] == ["tenant.removed", "tenant.deleted"]
    removed: dict[str, Any] = ends[0]["details"]["removed"]
    assert removed["sessions"]["rows"] == 3003
    assert removed["events"]["rows"] > 3000 * 20
    assert removed["transcript_entries"]["size"] > 0


async def test_a_small_tenant_is_gone_when_the_answer_comes(fleet: Fleet) -> None:
    tenant, headers = await tenant_of(fleet)
    session_id = (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]
    asked = {"session_id": session_id, "prompt": "say hello"}
    assert (await fleet[1].post("/query/single", asked, headers=headers)).status_code == 200
    own = (await fleet[0].get("/whoami")).json()["tenant"]
    refusal = await fleet[0].client.delete(f"/api/v1/admin/tenants/{own}")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (409, "own_tenant")
    answer = await fleet[2].client.delete(f"/api/v1/admin/tenants/{tenant}")
    assert (answer.status_code, answer.json()["status"]) == (200, "deleted"), answer.text
    rows = {row["what"]: row for row in answer.json()["removed"]}
    assert (rows["sessions"]["rows"], rows["runs"]["rows"], rows["api_keys"]["rows"]) == (1, 1, 1)
    assert rows["events"]["bytes"] > 0
    [files] = answer.json()["later"]
    assert files["what"] == "files"
    assert set(files["instances"]) >= {instance.id for instance in fleet.instances}
    await until(lambda: not files_of(fleet, [session_id]), seconds=SECONDS)
    assert (await fleet[1].get(f"/sessions/{session_id}", headers=headers)).status_code == 401
    assert (await fleet[1].post("/admin/tenants", {"name": tenant})).status_code == 201, "the name is free again"


async def test_the_deletion_of_a_session_says_what_went_and_what_goes_where(fleet: Fleet) -> None:
    session_id = await fleet[0].session()
    await fleet[0].ask(session_id, "say hello")
    owner = await fleet.owner_of(session_id)
    gone = (await fleet[1].client.delete(f"/api/v1/sessions/{session_id}")).json()
    rows = {row["what"]: (row["rows"], bool(row["bytes"])) for row in gone["removed"]}
    assert rows["runs"] == (1, True)
    assert rows["events"][0] >= 5
    assert rows["transcript_entries"][1]
    agent, files = gone["later"]
    assert agent == {"what": "agent", "instances": [owner.id]}
    assert (files["what"], set(files["instances"])) == ("files", {instance.id for instance in fleet.instances})
    await until(lambda: not files_of(fleet, [session_id]), seconds=SECONDS)


async def test_the_stored_files_of_a_deleted_session_go_whoever_deletes_it(fleet: Fleet) -> None:
    session_id = await fleet[0].session(permission_mode="bypassPermissions")
    await fleet[0].ask(session_id, "write a.txt: here")
    async with database_of(fleet) as db:
        stored = "SELECT stored IS NOT NULL FROM sessions WHERE id = $1"
        assert await db.pool.fetchval(stored, UUID(session_id))
        assert (await fleet[1].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200

        async def gone() -> bool:
            return not await db.pool.fetchval(stored, UUID(session_id))

        await until(gone, every=0.1, seconds=SECONDS)
