"""Quotas: what keys and tenants may have at a time, also of what comes at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api import keys
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.limits import Limits
from apps.api.core.sessions import forks, prompts
from apps.api.core.sessions.prompts import Submission, Submitted
from apps.api.core.tenant import disk, quotas
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.errors import RateLimited
from tests.world import World


async def limit(world: World, **limits: int) -> None:
    """What the tenant may have from now on."""
    name = await world.db.pool.fetchval("SELECT name FROM tenants WHERE id = $1", world.tenant_id)
    await keys.limit_tenant(world.db, world.redis, name, Limits(**limits))


async def a_key(world: World, **limits: int) -> UUID:
    """A key of the tenant that may have so much."""
    name = await world.db.pool.fetchval("SELECT name FROM tenants WHERE id = $1", world.tenant_id)
    return (await keys.create_key(world.db, tenant=name, name="k", scopes=["write"], limits=Limits(**limits))).id


async def send(world: World, key_id: UUID | None, session_id: UUID | None = None, **more: Any) -> Submitted:
    return await prompts.submit(world.core(), world.tenant_id, key_id, Submission("say one", 60, session_id, **more))


async def refused(
    world: World, key_id: UUID | None, session_id: UUID | None = None, *, room: bool = False, **more: Any
) -> dict[str, Any]:
    with pytest.raises(RateLimited) as caught:
        await send(world, key_id, session_id, **more)
    assert (caught.value.status, caught.value.code) == (429, "quota_exceeded")
    assert ("Retry-After" in caught.value.headers) is not room
    return caught.value.details


def queued(scope: str, number: int) -> dict[str, Any]:
    return {"name": "queued_runs", "scope": scope, "limit": number, "used": number}


async def test_runs_that_wait_are_bounded_for_key_and_tenant(lone_world: World) -> None:
    world, lease = lone_world, await lone_world.instance()
    one, other = await a_key(world, queued_runs=2), await a_key(world)
    await limit(world, queued_runs=3)
    for _ in range(2):
        await send(world, one)
    assert await refused(world, one) == queued("key", 2)
    await send(world, other)
    assert await refused(world, other) == queued("tenant", 3)
    assert await refused(world, None) == queued("tenant", 3)
    told = await quotas.used(world.db, world.tenant_id, one)
    assert (told["queued_runs", "key"], told["queued_runs", "tenant"]) == (2, 3)
    await world.claim(lease)  # what is executed does not wait
    await send(world, other)
    stranger = replace(world, tenant_id=await world.other_tenant())
    for _ in range(5):
        await send(stranger, None)


async def test_a_refused_prompt_leaves_nothing_behind(lone_world: World) -> None:
    world = lone_world
    session_id = await world.session(model="before")
    await limit(world, queued_runs=1)
    await send(world, None, session_id)
    before = await everything(world)
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"config": AgentConfig(model="after")},
        {"idempotency": Idempotency("k", "f")},
    )
    for more in ways:
        await refused(world, None, session_id, **more)
        await refused(world, None, **more)
    asked = forks.Fork(Submission("say one", 60, session_id), begins=True)
    with pytest.raises(RateLimited):
        await forks.fork(world.core(), world.tenant_id, None, asked)
    assert await everything(world) == before


async def everything(world: World) -> tuple[Any, ...]:
    return tuple(
        [
            await world.db.pool.fetchval(f"SELECT json_agg(t ORDER BY t::text)::text FROM {table} t")
            for table in ("sessions", "runs", "idempotency_keys")
        ]
    )


async def test_who_repeats_a_request_is_answered_as_before(lone_world: World) -> None:
    world, once = lone_world, Idempotency("k", "f")
    await limit(world, queued_runs=1)
    first = await send(world, None, idempotency=once)
    again = await send(world, None, idempotency=once)
    assert (again.run_id, again.repeated) == (first.run_id, True)


@pytest.mark.parametrize("of", ["key", "tenant"])
async def test_prompts_at_the_same_moment_do_not_pass_the_limit_together(lone_world: World, of: str) -> None:
    """In sessions of their own, in one, and with what needs a transaction of several statements."""
    world = lone_world
    key_id = await a_key(world, **({"queued_runs": 10} if of == "key" else {}))
    if of == "tenant":
        await limit(world, queued_runs=10)
    session_id = await world.session()
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"session_id": session_id},
        {"session_id": session_id, "config": AgentConfig(model="m")},
    )
    ended = await asyncio.gather(*(send(world, key_id, **ways[n % 3]) for n in range(60)), return_exceptions=True)
    others = [e for e in ended if not isinstance(e, Submitted)]
    assert [type(e) for e in others] == [RateLimited] * 50, others[0]
    assert await world.db.pool.fetchval("SELECT count(*) FROM runs") == 10


async def test_bytes_of_files_are_bounded_for_key_and_tenant(lone_world: World) -> None:
    world, lease = lone_world, await lone_world.instance()
    one = await a_key(world, workspace_bytes=1000)
    session_id = await world.session()
    await send(world, one, session_id)
    await world.claim(lease)
    assert await disk.limited(world.db, [session_id, uuid4()]) == [session_id]
    assert await disk.note(world.db, session_id, 999)
    assert not await disk.note(world.db, session_id, 999)
    assert await disk.beyond(world.db, [session_id]) == []
    await send(world, one, session_id)
    assert await disk.note(world.db, session_id, 1001)
    assert await disk.beyond(world.db, [session_id]) == [session_id]
    told = await refused(world, one, room=True)
    assert told == {"name": "workspace_bytes", "scope": "key", "limit": 1000, "used": 1001}
    await send(world, await a_key(world))
    await limit(world, workspace_bytes=1001)
    assert (await refused(world, None, room=True))["scope"] == "tenant"
    used = await quotas.used(world.db, world.tenant_id, one)
    assert (used["workspace_bytes", "key"], used["workspace_bytes", "tenant"]) == (1001, 1001)
    await world.db.pool.execute("UPDATE sessions SET deleted_at = now() WHERE id = $1", session_id)
    await send(world, one)


async def test_who_has_no_limit_of_bytes_is_not_measured(lone_world: World) -> None:
    session_id = await lone_world.session()
    assert await disk.limited(lone_world.db, [session_id]) == []
    assert await disk.limited(lone_world.db, []) == []
    assert await disk.note(lone_world.db, session_id, 1 << 60)
    assert await lone_world.db.pool.fetchval("SELECT workspace_bytes FROM sessions") == disk.TOO_MANY
