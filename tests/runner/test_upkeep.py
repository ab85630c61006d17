"""What instances do for the whole fleet, step by step."""

from __future__ import annotations

from uuid import uuid4

import pytest

from apps.api.core.tasks import Loop, Loops
from apps.api.runner import upkeep
from apps.api.runner.session.execution import Execution
from apps.api.runner.upkeep import Upkeep
from apps.api.runner.worker import Worker
from tests.world import World, lone_world, until

__all__ = ["lone_world"]

OLD = """
INSERT INTO commands (id, session_id, type, status, applied_at, created_at)
VALUES (gen_random_uuid(), '{session}', 'control', 'applied', now() - interval '{age}', now());
INSERT INTO idempotency_keys (tenant_id, key, fingerprint, created_at)
VALUES ('{tenant}', '{age}', '', now() - interval '{age}');
INSERT INTO instances (id, hostname, version, slots, lease_expires_at)
VALUES (gen_random_uuid(), 'dead', '0', 1, now() - interval '{age}');
INSERT INTO webhook_deliveries (webhook_id, type, payload, status, created_at)
VALUES ('{webhook}', 'run.queued', '{{}}', 'delivered', now() - interval '{age}');
"""
TABLES = ("commands", "idempotency_keys", "instances", "webhook_deliveries")


async def test_a_sweep_forgets_all_that_is_old_and_nothing_else(lone_world: World) -> None:
    world, webhook = lone_world, uuid4()
    await world.db.pool.execute(
        "INSERT INTO webhooks (id, tenant_id, url, events, secret) VALUES ($1, $2, 'http://127.0.0.1:9/', '{}', '')",
        webhook,
        world.tenant_id,
    )
    session_id = await world.session()
    for age in ("1 minute", "8 days"):
        statements = OLD.format(session=session_id, tenant=world.tenant_id, webhook=webhook, age=age)
        await world.db.pool.execute(statements)
    worker = Worker(world.core(), await world.instance())
    loop = Loop("sweep")
    try:
        await Upkeep(world.core(), worker)._sweep(loop)
    finally:
        worker.scratch.close()
    left = {table: await world.one(f"SELECT count(*) FROM {table}") for table in TABLES}
    assert left == {**dict.fromkeys(TABLES, 1), "instances": 2}  # with the one that sweeps
    assert loop.sick == 0


async def test_an_instance_that_does_not_live_for_long_removes_what_is_left_too(
    lone_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose restarts come sooner than the next look would have kept the files of deleted sessions for ever."""
    monkeypatch.setattr(upkeep, "FIRST_SWEEP", 0.01)
    world, loops = lone_world, Loops(60, lambda _loop: None)
    worker = Worker(world.core(), await world.instance())
    left = world.settings.workspaces_root / str(uuid4())
    left.mkdir(parents=True)
    try:
        Upkeep(world.core(), worker).run_in(loops)
        await until(lambda: not left.exists())
    finally:
        await loops.stop()
        worker.scratch.close()


async def test_one_place_is_made_at_a_time_however_long_its_session_takes_to_go(lone_world: World) -> None:
    """Or every look would take one more session away, for a single run that waits."""
    world, lease = lone_world, await lone_world.instance()
    worker = Worker(world.core(), lease)
    try:
        for _ in range(2):
            await world.queue()
            claim = await world.claim(lease)
            ended = "UPDATE runs SET status = 'succeeded', finished_at = now() WHERE id = $1"
            await world.db.pool.execute(ended, claim.run_id)
            worker.executions[claim.session_id] = Execution(world.core(), worker._means, claim, lambda: None)
        await world.db.pool.execute(
            "UPDATE tenants SET limits = '{\"live_sessions\": 2}' WHERE id = $1", world.tenant_id
        )
        await world.queue()
        work = Upkeep(world.core(), worker)
        for _ in range(3):
            await work._make_place()
        assert [e.closing for e in worker.executions.values()] == [True, False]
    finally:
        worker.scratch.close()
