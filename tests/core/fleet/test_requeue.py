"""The one way back to the queue: for runs that no agent was given, whatever became of their owner."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from apps.api.core.codec import decode
from apps.api.core.fleet import claims, instances, ownership, places
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.sessions.outcome import MAX_REQUEUED, failure
from apps.api.errors import LeaseLost
from tests.world import World, administrator, until, waiting_for_locks


@pytest.fixture
def world(lone_world: World) -> World:
    return lone_world


async def told(world: World, session_id: UUID) -> list[str]:
    return [kind for _, kind, _ in await world.events(session_id)]


async def send(world: World, claim: Claim) -> None:
    await ownership.note_sent(world.db, claim.session_id, claim.generation, claim.run_id, True)


async def claimed(world: World) -> tuple[Lease, Claim]:
    lease = await world.instance()
    await world.queue()
    return lease, await world.claim(lease)


async def test_a_run_that_no_agent_was_given_outlives_its_owner(world: World) -> None:
    lease, first = await claimed(world)
    later = await world.queue(first.session_id)
    await world.expire(lease)
    [orphan] = await world.reap()
    assert orphan.frames == []
    state = await world.run(first.run_id)
    assert (state["status"], state["started_at"], state["first_seq"]) == ("queued", None, None)
    other = await world.instance()
    again = await world.claim(other)
    assert again.run_id == first.run_id  # in its old place
    assert await world.claims_nothing(other)
    assert (await world.run(later.run_id))["status"] == "queued"
    with pytest.raises(LeaseLost):
        await send(world, first)
    await send(world, again)


async def test_a_run_that_an_agent_was_given_is_not_repeated(world: World) -> None:
    lease, claim = await claimed(world)
    await send(world, claim)
    await world.expire(lease)
    await world.reap()
    assert await told(world, claim.session_id) == ["error", "done"]
    assert (await world.run(claim.run_id))["error"]["code"] == "owner_lost"


async def test_who_sends_while_the_session_is_taken_away_does_so_before_or_not_at_all(world: World) -> None:
    _, claim = await claimed(world)
    async with administrator(world.settings) as admin:
        async with world.db.transaction() as taking:
            await taking.execute("SELECT 1 FROM sessions WHERE id = $1 FOR NO KEY UPDATE", claim.session_id)
            sending = asyncio.create_task(send(world, claim))
            await until(lambda: waiting_for_locks(admin, 1))
            await ownership.abandon(taking, [claim.session_id], failure("owner_lost"))
        with pytest.raises(LeaseLost):
            await sending
        assert (await world.run(claim.run_id))["status"] == "queued"
        again = await world.claim(await world.instance())
        async with admin.transaction():
            await admin.execute("SELECT 1 FROM runs WHERE id = $1 FOR NO KEY UPDATE", claim.run_id)
            sending = asyncio.create_task(send(world, again))
            await until(lambda: waiting_for_locks(admin, 1))
            disowning = asyncio.create_task(
                ownership.disown(world.db, await owner_of(world, again.session_id), again.session_id, again.generation)
            )
            await until(lambda: waiting_for_locks(admin, 2))
        await sending
        await disowning
    assert (await world.run(claim.run_id))["status"] == "failed"


async def owner_of(world: World, session_id: UUID) -> UUID:
    owner: UUID = await world.one("SELECT owner_id FROM sessions WHERE id = $1", session_id)
    return owner


async def test_a_run_comes_back_twice_and_then_fails_for_the_reason_of_the_last(world: World) -> None:
    lease, claim = await claimed(world)
    for _ in range(MAX_REQUEUED):
        await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation)
        claim = await world.claim(lease)
    await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation)
    assert await told(world, claim.session_id) == ["error", "done"]
    state = await world.run(claim.run_id)
    assert (state["status"], state["error"]["code"], state["total_cost_usd"]) == ("failed", "storage_failed", 0.0)


async def test_a_run_that_came_back_and_waits_is_told_its_place_again(world: World) -> None:
    lease = await world.instance()
    run = await world.queue()
    await world.db.pool.execute("UPDATE runs SET created_at = now() - interval '1 second'")

    async def tell() -> list[int]:
        waiting = await places.waiting(world.db, lease.instance_id)
        frames = [frame for told in waiting for frame in await places.announce_unowned(world.db, told)]
        return [decode(frame.data)["position"] for frame in frames]

    assert (await tell(), await tell()) == ([1], [])
    claim = await world.claim(lease)
    assert await tell() == []
    await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation)
    assert (await tell(), await tell()) == ([1], [])
    assert await told(world, run.session_id) == ["queued", "queued"]


async def test_it_goes_to_another_instance_if_one_is_there(world: World) -> None:
    lease, claim = await claimed(world)
    other = await world.instance()
    await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation)
    assert await world.claims_nothing(lease)
    claim = await world.claim(other)
    await ownership.disown(world.db, other.instance_id, claim.session_id, claim.generation)
    await instances.set_draining(world.db, lease.instance_id)
    assert (await world.claim(other)).run_id == claim.run_id  # it is alone now


async def test_others_that_do_not_come_are_not_waited_for_longer_than_that(world: World) -> None:
    lease, claim = await claimed(world)
    await world.instance()
    await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation)
    assert await world.claims_nothing(lease)
    await world.db.pool.execute(
        "UPDATE runs SET requeued_at = now() - make_interval(secs => $1)", claims.OTHERS_FIRST + 1
    )
    assert (await world.claim(lease)).run_id == claim.run_id


async def test_a_claim_for_an_agent_that_lives_counts_as_sent_and_costs_nothing_more(world: World) -> None:
    lease, first = await claimed(world)
    claim = await claims.claim(world.db, lease, may_take_new=True, except_for=[])
    assert claim is None
    await world.db.pool.execute("UPDATE runs SET status = 'succeeded', finished_at = now() WHERE id = $1", first.run_id)
    await world.queue(first.session_id)
    warm = await claims.claim(world.db, lease, may_take_new=False, except_for=[], warm=[first.session_id])
    assert first.unsent
    assert warm is not None
    assert not warm.unsent
    # Who knows better says so: a claim whose answer was lost.
    assert await claims.unheard(world.db, lease.instance_id, []) == [(first.session_id, warm.generation, warm.run_id)]
    assert await claims.unheard(world.db, lease.instance_id, [warm.run_id]) == []
    orphan = await ownership.give_back(world.db, lease.instance_id, first.session_id, warm.generation, warm.run_id)
    assert orphan is not None
    assert (await world.run(warm.run_id))["status"] == "queued"


async def test_what_was_cancelled_meanwhile_does_not_begin_again(world: World) -> None:
    lease, claim = await claimed(world)
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, run_id, type) VALUES ($1, $2, $3, 'cancel')",
        uuid4(),
        claim.session_id,
        claim.run_id,
    )
    await world.expire(lease)
    await world.reap()
    assert (await world.run(claim.run_id))["status"] == "failed"
