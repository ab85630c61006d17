"""Deleting a tenant: all of it goes, in steps that anybody may take, and what went is counted once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api import audit, auth, keys
from apps.api.core.config.agent import AgentConfig
from apps.api.core.context import Core
from apps.api.core.events.log import Event
from apps.api.core.files import manifest
from apps.api.core.files.objects import LOCAL, Objects
from apps.api.core.files.snapshots import Content
from apps.api.core.fleet import erasure, suspension
from apps.api.core.sessions import deletion, names, workspaces
from apps.api.core.sessions.deletion import BATCH, Gone
from apps.api.core.sessions.names import Name
from apps.api.core.tasks import Loop
from apps.api.core.tenant import environments, model_credentials, presets, skills, uploads, vault, vaults, webhooks
from apps.api.core.tenant.model_calls import Call, Used, record
from apps.api.core.tenant.presets import Draft
from apps.api.core.tenant.skills import BODY, Skill
from apps.api.core.tenant.uploads import Given
from apps.api.core.tenant.webhooks import Changes
from apps.api.errors import Conflict, LeaseLost, NotFound, Unauthorized
from apps.api.models import Base
from tests.core.files.travel import keep, objects_in
from tests.world import World, until

_FILL = """
WITH made AS (
  INSERT INTO sessions (id, tenant_id, sdk_session_id, last_seq)
  SELECT gen_random_uuid(), $1, gen_random_uuid(), $3 FROM generate_series(1, $2) RETURNING id
), ran AS (
  INSERT INTO runs (id, tenant_id, session_id, status, prompt, timeout_seconds, finished_at)
  SELECT gen_random_uuid(), $1, id, 'succeeded', 'x', 60, now() FROM made RETURNING id, session_id
), used AS (
  INSERT INTO usage SELECT id, 'm', $1, session_id, NULL, current_date, 1, 1, 1, 1, 1, 1 FROM ran
), said AS (
  INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, entry)
  SELECT id, 'p', 's', '{}' FROM made
)
INSERT INTO events (session_id, seq, type, data)
SELECT id, seq, CASE seq WHEN $3 THEN 'done' ELSE 'status' END, '{}' FROM made, generate_series(1, $3) AS seq
"""


async def fill(world: World, sessions: int, events: int) -> None:
    """Sessions with a run each, so many events, and a line of a transcript."""
    await world.db.pool.execute(_FILL, world.tenant_id, sessions, events)


async def everywhere(world: World) -> None:
    """Something of the tenant in every table that holds what is a tenant's."""
    db, tenant_id, core = world.db, world.tenant_id, world.core()
    await fill(world, 3, 2)

    async def fine(_: Draft) -> None:
        return

    await presets.create(db, tenant_id, "p", Draft(None, None, AgentConfig()), fine)
    await environments.create(db, tenant_id, "e", None, {}, None)
    safe = UUID((await vaults.create(db, tenant_id, "v", {}))["id"])
    await vaults.add(db, core.settings, tenant_id, safe, vaults.Given("variable", "V", "x", None, {}))
    await vault.put(db, core.settings, tenant_id, "TOKEN", "x")
    await model_credentials.put(db, core.settings, await name_of(world), "api_key", "x")
    await skills.put(db, tenant_id, Skill("skill", "s", "d", {BODY: "x"}))
    await webhooks.create(db, core.settings, core.outbound, tenant_id, Changes("http://127.0.0.1:9/"), None)
    await uploads.add(core, tenant_id, None, Given("f", "text/plain", None), Content(0, "", ()), None)
    await db.pool.execute("INSERT INTO mcp_servers (tenant_id, name, spec) VALUES ($1, 'm', '{}')", tenant_id)
    await db.pool.execute("INSERT INTO idempotency_keys VALUES ($1, 'k', 'f')", tenant_id)
    await db.pool.execute("UPDATE usage SET end_user = 'u' WHERE tenant_id = $1", tenant_id)
    queued = await world.queue()
    await db.pool.execute(
        "INSERT INTO requests (id, tenant_id, session_id, kind, data, expires_at)"
        " VALUES (gen_random_uuid(), $1, $2, 'question', '{}', now())",
        tenant_id,
        queued.session_id,
    )
    await db.pool.execute(
        "INSERT INTO commands (id, session_id, type) VALUES (gen_random_uuid(), $1, 'answer')", queued.session_id
    )
    await names.give(db.pool, tenant_id, Name("chat", "n"), queued.session_id)
    schedule_id = await db.pool.fetchval(
        "INSERT INTO schedules (tenant_id, cron, time_zone, prompt, spec, session, overlap, jitter_seconds)"
        " VALUES ($1, '0 0 * * *', 'UTC', '\"x\"', '{}', 'new', 'skip', 0) RETURNING id",
        tenant_id,
    )
    await db.pool.execute(
        "INSERT INTO schedule_firings (schedule_id, fire_at, state) VALUES ($1, now(), 'missed')", schedule_id
    )
    await record(db, a_call(tenant_id, queued.session_id))


def a_call(tenant_id: UUID, session_id: UUID) -> Call:
    return Call(tenant_id, session_id, None, "messages", datetime.now(UTC), 200, 0.1, 0.1, Used("m"), 0.01)


async def name_of(world: World) -> str:
    return str(await world.one("SELECT name FROM tenants WHERE id = $1", world.tenant_id))


OURS = {table.name: erasure._of_tenant(table) for table in Base.metadata.sorted_tables if erasure._of_tenant(table)}


async def left(world: World) -> dict[str, int]:
    """Rows of the tenant, by table."""
    counted = {
        table: await world.one(f"SELECT count(*) FROM {table} WHERE {condition}", world.tenant_id)
        for table, condition in OURS.items()
    }
    return {table: count for table, count in counted.items() if count}


async def begin(world: World) -> None:
    await erasure.begin(world.core(), await name_of(world), uuid4())


async def line(world: World) -> dict[str, Any]:
    """What the audit log says that was removed."""
    lines = await audit.list_lines(world.db, audit.Filters(action="tenant.removed"), limit=9, before=None)
    [found] = [line for line in lines if line.tenant_id == world.tenant_id]
    removed: dict[str, Any] = found.details["removed"]
    return removed


async def test_every_table_of_a_tenant_is_emptied_and_no_other_tenants(world: World) -> None:
    await keys.create_key(world.db, tenant=await name_of(world), name="k", scopes=["read"])
    await everywhere(world)
    other = replace(world, tenant_id=await world.other_tenant())
    await everywhere(other)
    before, theirs = await left(world), await left(other)
    assert set(before) == set(OURS)
    assert set(OURS) >= {"events", "usage", "api_keys", "agent_versions", "commands"}
    await begin(world)
    gone = await erasure.erase(world.core(), world.tenant_id, 60)
    assert gone.whole
    assert await left(world) == {}
    assert await left(other) == theirs
    assert {table: rows for table, (rows, _) in gone.removed.items()} == before
    assert {table: row["rows"] for table, row in (await line(world)).items()} == before
    with pytest.raises(NotFound):
        await erasure.begin(world.core(), "gone", uuid4())
    assert await world.one("SELECT count(*) FROM tenants WHERE id = $1", world.tenant_id) == 0


async def test_however_many_take_the_steps_and_whoever_gives_up_it_is_counted_once(world: World) -> None:
    await fill(world, 150, BATCH // 50)
    before = await left(world)
    await begin(world)
    erasing = [asyncio.create_task(erasure.erase(world.core(), world.tenant_id, 60)) for _ in range(4)]
    marked = "SELECT count(*) > 50 FROM sessions WHERE tenant_id = $1 AND deleted_at IS NOT NULL"
    await until(partial(world.one, marked, world.tenant_id))
    for task in erasing[:2]:
        task.cancel()
    await begin(world)
    loop = Loop("erasure")
    while await erasure.go_on(world.core(), loop):
        continue
    assert all(erased.whole for erased in await asyncio.gather(*erasing[2:]))
    assert loop.sick == 0
    assert await left(world) == {}
    assert {table: row["rows"] for table, row in (await line(world)).items()} == before
    assert await erasure.go_on(world.core(), loop) is False


async def test_an_owner_that_does_not_know_yet_writes_nothing_any_more(world: World) -> None:
    lease, claim, writer = await world.owned()
    await writer.append(Event("status", {"status": "before"}))
    core = world.core()
    await begin(world)
    while await world.one("SELECT deleted_at IS NULL FROM sessions WHERE id = $1", claim.session_id):
        await erasure.go_on(core, Loop("erasure"))
    with pytest.raises(LeaseLost):
        await writer.append(Event("status", {"status": "after"}))
    assert (await erasure.erase(core, world.tenant_id, 60)).whole
    with pytest.raises(LeaseLost):
        await writer.append(Event("status", {"status": "long after"}))
    await record(world.db, a_call(world.tenant_id, claim.session_id))  # what the gateway counted last
    assert await left(world) == {}
    assert not lease.is_over()


async def test_nothing_is_done_for_a_tenant_that_is_being_deleted(world: World) -> None:
    tenant = await name_of(world)
    made = await keys.create_key(world.db, tenant=tenant, name="k", scopes=["read"])
    await auth.authenticate(world.db, world.redis, made.secret)
    await world.queue()
    lease = await world.instance()
    await begin(world)
    await begin(world)
    with pytest.raises(Unauthorized):
        await auth.authenticate(world.db, world.redis, made.secret)
    assert await auth.standing(world.db, [made.id]) == {}
    assert await world.claims_nothing(lease)
    for refused in (
        suspension.resume(world.core(), tenant),
        keys.create_key(world.db, tenant=tenant, name="k", scopes=["read"]),
    ):
        with pytest.raises(Conflict) as raised:
            await refused
        assert raised.value.code == "tenant_deleted"
    with pytest.raises(Conflict):
        await erasure.begin(world.core(), tenant, world.tenant_id)
    found = await keys.get_tenant(world.db, tenant)
    assert None not in (found.deleting_at, found.suspended_at)
    assert found.keys == 0


async def test_what_is_left_of_a_deleted_session_is_removed_by_whoever_looks(world: World) -> None:
    await fill(world, 1, 3 * BATCH)
    session_id = await world.one("SELECT id FROM sessions WHERE tenant_id = $1", world.tenant_id)
    async with world.db.transaction() as connection:
        await deletion.mark(connection, world.tenant_id, session_id)
    assert await deletion.remove_some(world.db.pool, session_id) == ("events", Gone(BATCH, 2 * BATCH))
    loop = Loop("erasure")
    await deletion.purge_left(world.core(), loop)
    assert (await left(world))["events"] == 2 * BATCH, "whoever deletes it is still at it"
    await world.db.pool.execute("UPDATE sessions SET deleted_at = now() - interval '2 min' WHERE id = $1", session_id)
    await asyncio.gather(*(deletion.purge_left(world.core(), loop) for _ in range(3)))
    assert await left(world) == {"runs": 1, "sessions": 1, "usage": 1, "usage_sums": 1}
    assert await world.one("SELECT purged_at IS NOT NULL FROM sessions WHERE id = $1", session_id)


async def test_who_deletes_a_large_session_does_not_wait_for_all_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world, 1, 3 * BATCH)
    session_id = await world.one("SELECT id FROM sessions WHERE tenant_id = $1", world.tenant_id)
    monkeypatch.setattr(deletion, "PATIENCE", 0.0)
    gone = await deletion.delete(world.db, world.tenant_id, session_id)
    assert (gone.whole, gone.removed["events"].rows) == (False, BATCH)
    assert gone.removed["runs"] == Gone(1, 1)


# --- stored files --------------------------------------------------------------------------------------------------


async def with_files(world: World) -> UUID:
    session_id = await world.session()
    root = workspaces.create(world.settings, session_id, None).root
    (root / "a").write_text(str(session_id))
    await keep(world, session_id)
    return session_id


def stored_of(world: World) -> set[str]:
    return objects_in(world.settings.workspaces_root / LOCAL / manifest.below_tenant(world.tenant_id))


def broken(world: World, tmp_path: Path) -> Core:
    """An instance whose store fails."""
    (tmp_path / "file").touch()
    return replace(world.core(), objects=Objects.in_directory(tmp_path / "file" / "store"))


async def test_the_manifests_of_a_deleted_session_go_and_no_others(world: World) -> None:
    gone, kept = await with_files(world), await with_files(world)
    await world.db.pool.execute("UPDATE tenants SET collected_at = now() WHERE id = $1", world.tenant_id)
    unnamed = manifest.name_of(world.tenant_id, gone, 7)
    await Objects.of(world.settings).put(unnamed, b"of an owner that was fenced")
    await deletion.delete(world.db, world.tenant_id, gone)
    loop = Loop("unstore")
    await asyncio.gather(*(deletion.remove_stored(world.core(), loop) for _ in range(3)))
    assert loop.sick == 0
    assert {name.split("/")[1] for name in stored_of(world) if name.startswith("sessions")} == {str(kept)}
    rows = await world.db.pool.fetch("SELECT id, stored FROM sessions WHERE tenant_id = $1", world.tenant_id)
    assert {row["id"]: row["stored"] is None for row in rows} == {gone: True, kept: False}
    assert await world.one("SELECT collected_at < now() - interval '4 h' FROM tenants WHERE id = $1", world.tenant_id)


async def test_a_store_that_fails_is_asked_again_for_a_deleted_session(world: World, tmp_path: Path) -> None:
    session_id = await with_files(world)
    await deletion.delete(world.db, world.tenant_id, session_id)
    loop = Loop("unstore")
    await deletion.remove_stored(broken(world, tmp_path), loop)
    assert loop.sick == 1
    assert await world.one("SELECT stored IS NOT NULL FROM sessions WHERE id = $1", session_id)
    await deletion.remove_stored(world.core(), Loop("unstore"))
    assert await world.one("SELECT stored IS NULL FROM sessions WHERE id = $1", session_id)


async def test_a_tenant_is_not_gone_before_its_files_are(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "OBJECTS_AT_ONCE", 2)
    other = replace(world, tenant_id=await world.other_tenant())
    await with_files(other)
    theirs = stored_of(other)
    for _ in range(3):
        await with_files(world)
    await begin(world)
    failing = broken(world, tmp_path)
    assert not (await erasure.erase(failing, world.tenant_id, 60)).whole
    loop = Loop("erasure")
    await erasure.go_on(failing, loop)
    assert (loop.sick, len(stored_of(world))) == (1, 6)
    assert await world.one("SELECT count(*) FROM tenants WHERE id = $1", world.tenant_id) == 1
    own = world.settings.workspaces_root / LOCAL / manifest.below_tenant(world.tenant_id)
    [pack, *_] = (own / "packs").rglob("*/*")
    pack.with_name(f"{pack.name}#1").write_bytes(b"of somebody who died over it")
    assert (await erasure.erase(world.core(), world.tenant_id, 60)).whole
    assert stored_of(world) == set()
    assert stored_of(other) == theirs
    assert await left(world) == {}
