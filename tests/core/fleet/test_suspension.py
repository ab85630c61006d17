"""What a suspended tenant has left: nothing of it starts, what waits ends, its webhooks are silent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from apps.api import auth, invalidations, keys
from apps.api.auth import Principal
from apps.api.core.fleet import suspension
from apps.api.core.network.outbound import Outbound
from apps.api.core.tasks import Loop
from apps.api.core.tenant import webhooks
from apps.api.core.tenant.deliveries import Deliveries
from apps.api.core.tenant.webhooks import Changes
from apps.api.errors import Conflict, Forbidden, NotFound
from tests.receiver import receiving
from tests.world import World


async def name_of(world: World) -> str:
    return str(await world.one("SELECT name FROM tenants WHERE id = $1", world.tenant_id))


async def suspend(world: World) -> None:
    await suspension.suspend(world.core(), await name_of(world), uuid4())


async def end_queued(world: World) -> None:
    core, loop = world.core(), Loop("suspension")
    await suspension.end_queued(core, loop, sorted(await suspension.suspended(core)))
    assert loop.sick == 0


async def test_nothing_starts_of_a_suspended_tenant_and_others_go_on(lone_world: World) -> None:
    world = lone_world
    lease = await world.instance()
    owned = (await world.queue()).session_id
    await world.claim(lease)
    await world.db.pool.execute("UPDATE runs SET status = 'failed', finished_at = now() WHERE session_id = $1", owned)
    await world.queue(owned)
    await world.queue()
    other = replace(world, tenant_id=await world.other_tenant())
    theirs = await other.queue()
    await suspend(world)
    assert (await world.claim(lease)).run_id == theirs.run_id
    assert await world.claims_nothing(lease)
    await suspension.resume(world.core(), "ours")
    assert {(await world.claim(lease)).tenant_id for _ in range(2)} == {world.tenant_id}


async def test_what_waits_ends_once_however_many_look_and_says_why(lone_world: World) -> None:
    world = lone_world
    sessions = [(await world.queue()).session_id for _ in range(7)]
    for session_id in sessions:
        await world.queue(session_id)
    lease = await world.instance()
    owned = await world.claim(lease)
    await suspend(world)
    await asyncio.gather(*(end_queued(world) for _ in range(4)))
    for session_id in sessions:
        told = [(type_, data.get("status")) for _, type_, data in await world.events(session_id)]
        assert told == ([] if session_id == owned.session_id else [("done", "interrupted")] * 2)
    ended = await world.db.pool.fetch(
        "SELECT status, error->>'code' AS code, count(*) FROM runs GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert [tuple(row) for row in ended] == [
        ("interrupted", "tenant_suspended", 12), ("queued", None, 1), ("running", None, 1),
    ]  # fmt: skip
    await world.expire(lease)
    await world.reap()
    await end_queued(world)
    assert await world.one("SELECT count(*) FROM runs WHERE finished_at IS NULL") == 0


async def test_webhooks_are_silent_until_the_tenant_is_resumed(lone_world: World) -> None:
    world = lone_world
    async with receiving() as receiver:
        outbound = Outbound(["127.0.0.0/8"])
        wanted = Changes(receiver.url(), None, ["run.queued"])
        await webhooks.create(world.db, world.settings, outbound, world.tenant_id, wanted, None)
        await world.queue()
        await suspend(world)
        sender = Deliveries(world.db, world.settings, outbound)
        await sender.send_due()
        assert sender.sent == 0
        await suspension.resume(world.core(), "ours")
        await sender.send_due()
        assert sender.sent == 1
        await outbound.close()


async def test_a_suspended_tenants_keys_are_refused_and_what_they_have_opened_is_told_why(world: World) -> None:
    tenant = await name_of(world)
    made = await keys.create_key(world.db, tenant=tenant, name="k", scopes=["read"])

    async def asks() -> Principal:
        return await auth.authenticate(world.db, world.redis, made.secret)

    caller = await asks()
    await suspend(world)
    for _ in range(2):
        with pytest.raises(Forbidden) as refused:
            await asks()
        assert refused.value.code == "tenant_suspended"
    standing = await auth.standing(world.db, [caller.key_id])
    assert standing[caller.key_id].suspended
    await suspend(world)
    await suspension.resume(world.core(), tenant)
    await suspension.resume(world.core(), tenant)
    assert (await asks()).key_id == caller.key_id
    lines = await world.db.pool.fetch("SELECT action FROM audit_log WHERE tenant_id = $1", world.tenant_id)
    assert sorted(row["action"] for row in lines if row["action"] != "key.created") == [
        "tenant.resumed", "tenant.suspended",
    ]  # fmt: skip


async def test_what_is_cached_of_keys_is_told_in_the_same_transaction(world: World) -> None:
    """An instance that dies right after it need not have told Redis."""
    tenant = await name_of(world)
    made = await keys.create_key(world.db, tenant=tenant, name="k", scopes=["read"])
    await keys.rotate_key(world.db, world.redis, made.id, 60)
    gone = await keys.create_key(world.db, tenant=tenant, name="k", scopes=["read"])
    await keys.revoke_key(world.db, world.redis, gone.id)
    await world.db.pool.execute("DELETE FROM invalidations")
    await suspend(world)
    rows = await world.db.pool.fetch("SELECT name, ttl_ms FROM invalidations")
    hashes = await world.db.pool.fetchrow("SELECT secret_hash, previous_hash FROM api_keys WHERE id = $1", made.id)
    assert {row["name"] for row in rows} == {world.redis.keys.api_key(secret_hash) for secret_hash in hashes.values()}
    assert {row["ttl_ms"] for row in rows} == {30_000}
    assert invalidations.TOLD_FOR > 30


async def test_nobody_suspends_the_own_tenant_or_one_that_there_is_not(world: World) -> None:
    tenant = await name_of(world)
    with pytest.raises(Conflict) as refused:
        await suspension.suspend(world.core(), tenant, world.tenant_id)
    assert refused.value.code == "own_tenant"
    assert world.tenant_id not in await suspension.suspended(world.core())
    for act in (suspension.suspend(world.core(), "nobody", uuid4()), suspension.resume(world.core(), "nobody")):
        with pytest.raises(NotFound):
            await act
