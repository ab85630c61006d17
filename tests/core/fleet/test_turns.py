"""Turns of tenants: a long queue of one delays another's first prompt by one claim, and limits hold over instances."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from apps.api import keys
from apps.api.core.config.limits import Limits
from apps.api.core.fleet import claims, ownership, places, turns
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.sessions import prompts
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.tenant import quotas
from tests.core.fleet.test_claims import age, finish
from tests.world import World, until, waiting_for_locks


@pytest.fixture
def world(lone_world: World) -> World:
    return lone_world


async def another(world: World) -> World:
    """Another tenant of the same fleet."""
    return replace(world, tenant_id=await world.other_tenant())


async def flood(world: World, runs: int) -> None:
    """So many runs, each first of a session of its own."""
    await world.db.pool.execute(
        "WITH made AS (INSERT INTO sessions (id, tenant_id, sdk_session_id)"
        " SELECT gen_random_uuid(), $1, gen_random_uuid() FROM generate_series(1, $2::int) RETURNING id)"
        " INSERT INTO runs (id, tenant_id, session_id, prompt, timeout_seconds)"
        " SELECT gen_random_uuid(), $1, id, '\"x\"', 60 FROM made",
        world.tenant_id,
        runs,
    )


async def limit(world: World, **limits: int) -> None:
    await world.db.pool.execute("UPDATE tenants SET limits = $2 WHERE id = $1", world.tenant_id, limits)


async def a_key(world: World, **limits: int) -> UUID:
    name = await world.one("SELECT name FROM tenants WHERE id = $1", world.tenant_id)
    made = await keys.create_key(world.db, tenant=name, name="k", scopes=["write"], limits=Limits(**limits))
    return made.id


async def queue_by(world: World, key_id: UUID) -> Submitted:
    return await prompts.submit(world.core(), world.tenant_id, key_id, prompts.Submission("say hello", 60))


async def order_of(world: World, lease: Lease, count: int) -> list[UUID]:
    """Whose runs are claimed one after the other, while none ends."""
    return [(await world.claim(lease)).tenant_id for _ in range(count)]


async def test_first_comes_the_tenant_of_which_least_is_running(world: World) -> None:
    one, two, three = world, await another(world), await another(world)
    await flood(one, 10)
    lease, other = await world.instance(), await world.instance()
    assert await order_of(world, other, 3) == [one.tenant_id] * 3
    await flood(two, 5)
    await flood(three, 1)
    a, b, c = (tenant.tenant_id for tenant in (one, two, three))
    assert await order_of(world, lease, 4) == [b, c, b, b], "the first had three, before the others came"
    # Three each: now they take turns.
    assert sorted(await order_of(world, lease, 2)) == sorted([a, b])
    assert sorted(await order_of(world, lease, 2)) == sorted([a, b])


async def test_a_long_queue_of_one_tenant_delays_another_by_one_claim_at_most(world: World) -> None:
    """On one slot nothing is running when a run is claimed, so that all are alike in that."""
    lease, guest = await world.instance(slots=1), await another(world)
    await flood(world, 10_000)

    async def turn() -> UUID:
        claim = await world.claim(lease)
        await finish(world, lease, claim)
        await ownership.release(world.db, claim.session_id, claim.generation)
        return claim.tenant_id

    assert [await turn() for _ in range(3)] == [world.tenant_id] * 3
    for _ in range(3):
        await guest.queue()
        seen = [await turn(), await turn()]
        assert guest.tenant_id in seen


async def test_tenants_that_all_have_long_queues_take_turns(world: World) -> None:
    lease = await world.instance(slots=1)
    tenants = [world, *[await another(world) for _ in range(4)]]
    for tenant in tenants:
        await flood(tenant, 20)
    seen = []
    for _ in range(4 * len(tenants)):
        claim = await world.claim(lease)
        await finish(world, lease, claim)
        await ownership.release(world.db, claim.session_id, claim.generation)
        seen.append(claim.tenant_id)
    rounds = [set(seen[at : at + len(tenants)]) for at in range(0, len(seen), len(tenants))]
    assert rounds == [{tenant.tenant_id for tenant in tenants}] * 4


async def test_a_session_that_is_warm_waits_for_its_tenants_turn(world: World) -> None:
    lease, guest = await world.instance(), await another(world)
    warm = await world.queue()
    await finish(world, lease, await world.claim(lease))
    await flood(world, 1)
    assert await order_of(world, await world.instance(), 1) == [world.tenant_id]
    again = await world.queue(warm.session_id)
    theirs = await guest.queue()
    assert [(await world.claim(lease)).run_id for _ in range(2)] == [theirs.run_id, again.run_id]


async def test_turns_are_written_down_only_while_others_wait(world: World) -> None:
    """A row that every claim wrote would be what claims of one tenant wait for."""
    lease, guest = await world.instance(), await another(world)
    await flood(world, 3)
    await world.claim(lease)
    stamped = "SELECT count(*) FROM tenants WHERE claimed_at IS NOT NULL"
    assert await world.one(stamped) == 0
    await guest.queue()
    await world.claim(lease)
    assert await world.one(stamped) == 1


async def test_places_are_told_among_the_runs_of_a_tenant(world: World) -> None:
    lease, guest = await world.instance(), await another(world)
    await flood(world, 20)
    theirs = [await guest.queue() for _ in range(2)]
    await age(world)
    found = {w.run_id: w.position for w in await places.waiting(world.db, lease.instance_id)}
    assert [found[run.run_id] for run in theirs] == [1, 2]


# --- limits --------------------------------------------------------------------------------------------------------


async def test_a_tenant_has_no_more_runs_than_its_limit_whoever_claims_them(world: World) -> None:
    guest = await another(world)
    await limit(world, concurrent_runs=3)
    await flood(world, 50)
    leases = [await world.instance() for _ in range(20)]
    claimed = await asyncio.gather(
        *(claims.claim(world.db, lease, may_take_new=True, except_for=[]) for lease in leases)
    )
    assert sum(claim is not None for claim in claimed) == 3
    assert await world.claims_nothing(leases[0])
    await guest.queue()
    assert (await world.claim(leases[0])).tenant_id == guest.tenant_id
    lease, ended = next((lease, claim) for lease, claim in zip(leases, claimed, strict=True) if claim)
    await finish(world, lease, ended)
    assert (await world.claim(leases[1])).tenant_id == world.tenant_id
    assert await world.claims_nothing(leases[2])


async def test_two_that_count_at_the_same_moment_do_not_pass_a_limit_together(world: World) -> None:
    """A claim that has counted before another is stored, and starts its run after."""
    await limit(world, concurrent_runs=1)
    await flood(world, 2)
    one, other = await world.instance(), await world.instance()
    async with world.db.transaction() as connection:
        held = await connection.fetchval("SELECT session_id FROM runs ORDER BY position LIMIT 1 FOR NO KEY UPDATE")
        # This one has counted, and waits for the row of its run; what it has counted is not so when it goes on.
        late = asyncio.create_task(claims.claim(world.db, one, may_take_new=True, except_for=[]))
        await until(lambda: waiting_for_locks(connection, 1))
        first = await claims.claim(world.db, other, may_take_new=True, except_for=[held])
        assert first is not None
    assert await late is None
    assert await world.one("SELECT count(*) FROM runs WHERE status = 'running'") == 1
    assert await world.one("SELECT count(*) FROM sessions WHERE owner_id IS NOT NULL") == 1, "a session without its run"


async def test_a_key_that_has_reached_its_limit_is_passed_over_and_others_of_its_tenant_go_on(world: World) -> None:
    small, large = await a_key(world, concurrent_runs=1), await a_key(world)
    lease = await world.instance()
    first, second = [await queue_by(world, small) for _ in range(2)]
    for _ in range(100):
        await queue_by(world, small)
    third = await queue_by(world, large)
    keyless = await world.queue()
    claimed = [await world.claim(lease) for _ in range(3)]
    assert [claim.run_id for claim in claimed] == [first.run_id, third.run_id, keyless.run_id]
    assert await world.claims_nothing(lease)
    await finish(world, lease, claimed[0])
    assert (await world.claim(lease)).run_id == second.run_id


async def test_the_smaller_of_the_limits_of_key_and_tenant_holds(world: World) -> None:
    key_id = await a_key(world, concurrent_runs=3)
    await limit(world, concurrent_runs=2)
    for _ in range(5):
        await queue_by(world, key_id)
    lease = await world.instance()
    await order_of(world, lease, 2)
    assert await world.claims_nothing(lease)
    await limit(world, concurrent_runs=5)
    await order_of(world, lease, 1)
    assert await world.claims_nothing(lease)


async def test_what_waits_for_a_person_and_what_an_agent_does_by_itself_does_not_count(world: World) -> None:
    await limit(world, concurrent_runs=1)
    lease = await world.instance()
    await flood(world, 3)
    waits = await world.claim(lease)
    await world.db.pool.execute("UPDATE runs SET status = 'requires_action' WHERE id = $1", waits.run_id)
    second = await world.claim(lease)
    await finish(world, lease, second)
    assert await claims.begin_background(
        world.db, second.session_id, world.tenant_id, second.generation, UUID(int=7), 60
    )
    assert isinstance(await world.claim(lease), Claim)
    assert await world.claims_nothing(lease)
    await world.db.pool.execute("DELETE FROM runs WHERE status <> 'succeeded'")


async def test_runs_of_a_dead_owner_count_until_they_are_ended(world: World) -> None:
    await limit(world, concurrent_runs=1)
    await flood(world, 2)
    dead, alive = await world.instance(), await world.instance()
    claim = await world.claim(dead)
    await ownership.note_sent(world.db, claim.session_id, claim.generation, claim.run_id, True)
    await world.expire(dead)
    assert await world.claims_nothing(alive)
    await world.reap()
    assert (await world.claim(alive)).tenant_id == world.tenant_id


# --- sessions that have a process ----------------------------------------------------------------------------------


async def give_back(world: World, lease: Lease, claim: Claim) -> None:
    await finish(world, lease, claim)
    await ownership.release(world.db, claim.session_id, claim.generation)


async def test_a_tenant_has_no_more_live_sessions_than_its_limit_whoever_takes_them(world: World) -> None:
    guest = await another(world)
    await limit(world, live_sessions=3)
    await flood(world, 50)
    leases = [await world.instance() for _ in range(20)]
    claimed = await asyncio.gather(
        *(claims.claim(world.db, lease, may_take_new=True, except_for=[]) for lease in leases)
    )
    held = [(lease, claim) for lease, claim in zip(leases, claimed, strict=True) if claim]
    assert len(held) == 3
    lease, first = held[0]
    await finish(world, lease, first)
    assert await world.claims_nothing(leases[0]), "it is idle, and has its process"
    await guest.queue()
    assert (await world.claim(leases[0])).tenant_id == guest.tenant_id
    await ownership.release(world.db, first.session_id, first.generation)
    assert (await world.claim(leases[1])).tenant_id == world.tenant_id
    assert await world.claims_nothing(leases[2])


async def test_a_session_that_has_its_process_goes_on_at_the_limit(world: World) -> None:
    await limit(world, live_sessions=1)
    lease = await world.instance()
    warm = await world.queue()
    await finish(world, lease, await world.claim(lease))
    new, again = await world.queue(), await world.queue(warm.session_id)
    claim = await world.claim(lease)
    assert claim.run_id == again.run_id
    assert await world.claims_nothing(lease)
    await give_back(world, lease, claim)
    assert (await world.claim(lease)).run_id == new.run_id


async def test_live_sessions_of_a_key_are_those_that_began_for_its_prompts(world: World) -> None:
    small, large = await a_key(world, live_sessions=1), await a_key(world)
    lease = await world.instance()
    first, second = [await queue_by(world, small) for _ in range(2)]
    third = await queue_by(world, large)
    claimed = [await world.claim(lease) for _ in range(2)]
    assert [claim.run_id for claim in claimed] == [first.run_id, third.run_id]
    assert await world.claims_nothing(lease)
    held = await quotas.used(world.db, world.tenant_id, small)
    assert (held["live_sessions", "key"], held["live_sessions", "tenant"]) == (1, 2)
    await give_back(world, lease, claimed[0])
    assert (await world.claim(lease)).run_id == second.run_id


async def test_two_that_take_sessions_at_the_same_moment_do_not_pass_a_limit_together(world: World) -> None:
    await limit(world, live_sessions=1)
    await flood(world, 2)
    one, other = await world.instance(), await world.instance()
    async with world.db.transaction() as connection:
        # Another claim has its turn, and this one has counted before that is stored.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext('live_sessions'), hashtext($1))", str(world.tenant_id)
        )
        late = asyncio.create_task(claims.claim(world.db, one, may_take_new=True, except_for=[]))
        await until(lambda: waiting_for_locks(connection, 1))
        taken = (
            "UPDATE sessions SET owner_id = $1 WHERE id = (SELECT session_id FROM runs ORDER BY position DESC LIMIT 1)"
        )
        await connection.execute(taken, other.instance_id)
    assert await late is None
    assert await world.one("SELECT count(*) FROM sessions WHERE owner_id IS NOT NULL") == 1
    assert await world.one("SELECT count(*) FROM runs WHERE status = 'running'") == 0


async def test_an_idle_session_is_in_the_way_when_its_tenant_has_as_many_as_it_may_and_one_waits(world: World) -> None:
    lease, guest = await world.instance(), await another(world)
    idle = []
    for tenant in (guest, world, world):
        await tenant.queue()
        claim = await world.claim(lease)
        await finish(world, lease, claim)
        idle.append(claim.session_id)
    assert await turns.in_the_way(world.db, idle) == []
    await limit(world, live_sessions=2)
    assert await turns.in_the_way(world.db, idle) == [], "nobody waits"
    await guest.queue()
    assert await turns.in_the_way(world.db, idle) == [], "nobody of theirs waits"
    await world.queue()
    assert await turns.in_the_way(world.db, idle) == [idle[1]], "the one that was used longest ago"
    await limit(world, live_sessions=3)
    assert await turns.in_the_way(world.db, idle) == []


async def test_of_a_key_that_has_as_many_as_it_may_its_own_are_in_the_way(world: World) -> None:
    small, large = await a_key(world, live_sessions=1), await a_key(world)
    lease, idle = await world.instance(), []
    for key_id in (large, small):
        await queue_by(world, key_id)
        claim = await world.claim(lease)
        await finish(world, lease, claim)
        idle.append(claim.session_id)
    await queue_by(world, large)
    assert await turns.in_the_way(world.db, idle) == []
    await queue_by(world, small)
    assert await turns.in_the_way(world.db, idle) == [idle[1]]
