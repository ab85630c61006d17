"""The queue: who may run what, and what becomes of the sessions of the dead."""

from __future__ import annotations

import asyncio
import math
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from apps.api.core.codec import decode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.events.log import Event
from apps.api.core.fleet import cancellation, claims, commands, instances, ownership, places, turns
from apps.api.core.fleet.claims import Claim, Unreadable
from apps.api.core.fleet.places import Turn
from apps.api.core.lease import Lease, now
from apps.api.core.sessions import deletion, outcome
from apps.api.core.sessions.outcome import Outcome
from apps.api.core.tasks import Loop
from apps.api.errors import LeaseLost
from tests.world import PATIENCE, World, administrator, left_by


@pytest.fixture
def world(lone_world: World) -> World:
    return lone_world


async def session_row(world: World, session_id: UUID) -> dict[str, Any]:
    return dict(await world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", session_id))


async def finish(world: World, lease: Lease, claim: Claim) -> None:
    done = Event("done", {"status": "succeeded"}, claim.run_id)
    await outcome.finish(world.writer(lease, claim), claim.run_id, Outcome("succeeded"), done)


# --- claiming ------------------------------------------------------------------------------------------------------


async def test_the_oldest_run_is_claimed_first_across_sessions_and_tenants(world: World) -> None:
    first = await world.queue(prompt="one")
    elsewhere = World(world.settings, world.db, world.redis, await world.other_tenant())
    second = await elsewhere.queue(prompt="two")
    third = await world.queue(prompt="three")
    lease = await world.instance()
    claimed = [await world.claim(lease) for _ in range(3)]
    assert [c.run_id for c in claimed] == [first.run_id, second.run_id, third.run_id]
    assert [c.tenant_id for c in claimed] == [world.tenant_id, elsewhere.tenant_id, world.tenant_id]
    assert await world.claims_nothing(lease)


async def test_a_claim_tells_what_the_run_needs_and_marks_it_running(world: World) -> None:
    session_id = await world.session(model="claude-x", env={"A": "1"})
    prompt = [{"type": "text", "text": "NUL \x00, half a pair \ud83d"}]
    run = await world.queue(session_id, prompt)
    claim = await world.claim(await world.instance())
    assert claim.prompt == prompt
    assert claim.config == AgentConfig(model="claude-x", env={"A": "1"})
    assert (claim.session_id, claim.sdk_session_id, claim.last_seq, claim.timeout_seconds) == (
        session_id,
        session_id,
        0,
        60,
    )
    state = await world.run(run.run_id)
    assert (state["status"], state["first_seq"]) == ("running", 1)
    assert state["started_at"] is not None


async def test_runs_of_one_session_are_claimed_one_after_the_other_in_order(world: World) -> None:
    session_id = await world.session()
    queued = [await world.queue(session_id, f"say {n}") for n in range(3)]
    lease, seen = await world.instance(), []
    for _ in queued:
        claim = await world.claim(lease)
        assert await world.claims_nothing(lease)
        seen.append(claim.run_id)
        await finish(world, lease, claim)
    assert seen == [run.run_id for run in queued]


async def test_of_twenty_instances_one_gets_the_session_and_its_first_run(world: World) -> None:
    session_id = await world.session()
    queued = [await world.queue(session_id) for _ in range(20)]
    leases = [await world.instance() for _ in range(20)]
    for _ in range(5):
        claimed = await asyncio.gather(
            *(claims.claim(world.db, lease, may_take_new=True, except_for=[]) for lease in leases)
        )
        winners = [(lease, claim) for lease, claim in zip(leases, claimed, strict=True) if claim]
        assert len(winners) == 1
        lease, claim = winners[0]
        assert claim.run_id == queued[0].run_id
        row = await session_row(world, session_id)
        assert (row["owner_id"], row["generation"]) == (lease.instance_id, claim.generation)
        active = "SELECT count(*) FROM runs WHERE session_id = $1 AND status = 'running'"
        assert await world.one(active, session_id) == 1
        await finish(world, lease, claim)
        await ownership.release(world.db, session_id, claim.generation)
        queued.pop(0)


async def test_twenty_instances_share_twenty_sessions_without_a_double(world: World) -> None:
    queued = [await world.queue() for _ in range(20)]
    leases = [await world.instance() for _ in range(20)]
    claimed = await asyncio.gather(*(world.claim(lease) for lease in leases))
    assert sorted(c.run_id for c in claimed) == sorted(run.run_id for run in queued)
    owners = await world.db.pool.fetch("SELECT owner_id FROM sessions")
    assert sorted(row["owner_id"] for row in owners) == sorted(lease.instance_id for lease in leases)


async def test_only_the_owner_claims_the_next_run_of_its_session(world: World) -> None:
    owner, other = await world.instance(), await world.instance()
    session_id = (await world.queue()).session_id
    first = await world.claim(owner)
    await finish(world, owner, first)
    await world.queue(session_id)
    assert await world.claims_nothing(other)
    second = await world.claim(owner)
    assert second.generation == first.generation  # a warm session: the writer goes on


async def test_an_instance_without_room_claims_runs_of_its_own_sessions_only(world: World) -> None:
    lease = await world.instance()
    mine = (await world.queue()).session_id
    await finish(world, lease, await world.claim(lease))
    await world.queue()
    assert await world.claims_nothing(lease, may_take_new=False)
    wanted = await world.queue(mine)
    assert (await world.claim(lease, may_take_new=False)).run_id == wanted.run_id


async def test_excepted_sessions_are_passed_over(world: World) -> None:
    lease = await world.instance()
    first, second = await world.queue(), await world.queue()
    assert (await world.claim(lease, except_for=(first.session_id,))).run_id == second.run_id
    assert await world.claims_nothing(lease, except_for=(first.session_id,))


async def test_a_session_that_changes_hands_gets_a_new_generation(world: World) -> None:
    one, two = await world.instance(), await world.instance()
    session_id = (await world.queue()).session_id
    first = await world.claim(one)
    await finish(world, one, first)
    assert await ownership.release(world.db, session_id, first.generation) is False
    await world.queue(session_id)
    second = await world.claim(two)
    assert second.generation > first.generation
    assert second.last_seq == 1
    with pytest.raises(LeaseLost):
        await world.writer(one, first).append(Event("status"))


async def test_instances_that_drain_are_dead_or_unknown_claim_nothing(world: World) -> None:
    await world.queue()
    draining, dead = await world.instance(), await world.instance()
    await instances.set_draining(world.db, draining.instance_id)
    await world.expire(dead)
    unknown = Lease(uuid4(), 60)
    unknown.renewed(now())
    for lease in (draining, dead, unknown):
        assert await world.claims_nothing(lease)
    fenced = await world.instance()
    fenced.give_up()
    with pytest.raises(LeaseLost):
        await world.claim(fenced)
    assert await world.claim(await world.instance())


async def test_runs_of_a_deleted_session_are_not_claimed(world: World) -> None:
    run = await world.queue()
    await deletion.delete(world.db, world.tenant_id, run.session_id)
    assert await world.claims_nothing(await world.instance())


async def test_a_session_that_somebody_refers_to_at_this_moment_is_claimed_all_the_same(world: World) -> None:
    """Storing a command or an event holds the session by its foreign key; a claim must not skip it for that."""
    run = await world.queue()
    async with administrator(world.settings) as other, other.transaction():
        await other.execute("SELECT 1 FROM sessions WHERE id = $1 FOR KEY SHARE", run.session_id)
        assert (await world.claim(await world.instance())).run_id == run.run_id


async def test_a_run_that_this_version_cannot_read_is_queued_again_and_its_session_is_free(world: World) -> None:
    run = await world.queue()
    future = {"model": "claude-x", "from_the_future": True}
    await world.db.pool.execute("UPDATE sessions SET config = $2 WHERE id = $1", run.session_id, future)
    lease = await world.instance()
    with pytest.raises(Unreadable) as caught:
        await world.claim(lease)
    orphan = await claims.refuse(world.db, lease.instance_id, caught.value)
    assert orphan is not None
    assert orphan.frames == []
    assert (await world.run(run.run_id))["status"] == "queued"
    assert (await session_row(world, run.session_id))["owner_id"] is None


async def startable(world: World) -> set[UUID]:
    return {row["id"] for row in await world.db.pool.fetch("SELECT id FROM runs WHERE startable AND status = 'queued'")}


async def test_what_may_start_is_the_first_queued_run_of_each_session_that_nobody_owns(world: World) -> None:
    lease = await world.instance()
    first, alone = await world.queue(), await world.queue()
    second, third = await world.queue(first.session_id), await world.queue(first.session_id)
    assert await startable(world) == {first.run_id, alone.run_id}
    claim = await world.claim(lease)
    assert await startable(world) == {alone.run_id}
    await finish(world, lease, claim)
    await ownership.release(world.db, claim.session_id, claim.generation)
    assert await startable(world) == {second.run_id, alone.run_id}
    await cancellation.cancel(world.core(), world.tenant_id, second.run_id)
    assert await startable(world) == {third.run_id, alone.run_id}
    await deletion.delete(world.db, world.tenant_id, alone.session_id)
    again = await world.claim(lease)
    later = await world.queue(first.session_id)
    assert (again.run_id, await startable(world)) == (third.run_id, set())
    await world.expire(lease)
    await world.reap()
    assert await startable(world) == {third.run_id}  # which no agent was given
    assert (await world.run(later.run_id))["status"] == "queued"


async def test_a_run_that_is_queued_while_its_session_is_given_back_may_start(world: World) -> None:
    """Neither sees what the other has not committed, and only one of them is there to say that the run may start."""
    lease, other = await world.instance(), await world.instance()
    session_id = (await world.queue()).session_id
    for _ in range(40):
        claim = await world.claim(lease)
        await finish(world, lease, claim)
        queued, _ = await asyncio.gather(
            world.queue(session_id), ownership.release(world.db, session_id, claim.generation)
        )
        assert queued.run_id in await startable(world)
        lease, other = other, lease


async def test_runs_of_one_session_start_in_order_whatever_says_that_a_later_one_may(world: World) -> None:
    first = await world.queue()
    second = await world.queue(first.session_id)
    await world.db.pool.execute("UPDATE runs SET startable = id = $1", second.run_id)
    assert (await world.claim(await world.instance())).run_id == first.run_id


# --- giving back ---------------------------------------------------------------------------------------------------


async def test_a_released_session_is_free_and_says_whether_runs_wait(world: World) -> None:
    one, two = await world.instance(), await world.instance()
    session_id = (await world.queue()).session_id
    claim = await world.claim(one)
    await finish(world, one, claim)
    waiting = await world.queue(session_id)
    assert await ownership.release(world.db, session_id, claim.generation) is True
    assert (await world.claim(two)).run_id == waiting.run_id


async def test_a_session_with_an_active_run_is_not_released(world: World) -> None:
    lease, claim, _ = await world.owned()
    assert await ownership.release(world.db, claim.session_id, claim.generation) is None
    assert (await session_row(world, claim.session_id))["owner_id"] == lease.instance_id


async def test_a_zombie_cannot_release_its_successors_session(world: World) -> None:
    lease, claim, _ = await world.owned()
    await finish(world, lease, claim)
    assert await ownership.release(world.db, claim.session_id, claim.generation - 1) is False
    assert (await session_row(world, claim.session_id))["owner_id"] == lease.instance_id


async def test_release_and_claim_at_the_same_moment_agree_on_who_owns_the_session(world: World) -> None:
    lease = await world.instance()
    session_id = await world.session()
    await world.queue(session_id)
    claim = await world.claim(lease)
    outcomes = set()
    for _ in range(60):
        await finish(world, lease, claim)
        await world.queue(session_id)
        released, won = await asyncio.gather(
            ownership.release(world.db, session_id, claim.generation),
            claims.claim(world.db, lease, may_take_new=True, except_for=[]),
        )
        row = await session_row(world, session_id)
        if won is None:  # the claim passed over the locked row
            assert (released, row["owner_id"]) == (True, None)
            won = await world.claim(lease)
        else:
            assert (row["owner_id"], row["generation"]) == (lease.instance_id, won.generation)
            # Given back: then the claim began a new ownership. Kept: then the old one goes on.
            assert (released is None) == (won.generation == claim.generation)
        outcomes.add(released)
        claim = won
    assert outcomes <= {None, True}


async def test_a_release_leaves_no_background_run_behind_as_running(world: World) -> None:
    lease, claim, _ = await world.owned()
    await finish(world, lease, claim)
    run_id = uuid4()
    assert await claims.begin_background(world.db, claim.session_id, world.tenant_id, claim.generation, run_id, 60)
    await ownership.release(world.db, claim.session_id, claim.generation)
    assert (await world.run(run_id))["status"] == "failed"
    assert [type_ for _, type_, data in await world.events(claim.session_id) if data["run_id"] == str(run_id)] == [
        "error",
        "done",
    ]
    wanted = await world.queue(claim.session_id)
    assert (await world.claim(lease)).run_id == wanted.run_id


async def test_tasks_that_an_owner_left_at_work_are_told_to_have_ended(lone_world: World) -> None:
    lease, claim, writer = await lone_world.owned()
    started, ended = (
        Event("task", {"task_id": name, "status": status, "description": f"work {name}"}, claim.run_id)
        for name, status in (("a", "started"), ("b", "started"))
    )
    await writer.append(started, ended, Event("task", {"task_id": "b", "status": "completed"}))
    await lone_world.expire(lease)
    await lone_world.reap()
    told = [data for _, kind, data in await lone_world.events(claim.session_id) if kind == "task"][3:]
    assert [(t["task_id"], t["status"], t["reason"], t["description"]) for t in told] == [
        ("a", "stopped", "owner_lost", "work a")
    ]


# --- background runs -----------------------------------------------------------------------------------------------


async def test_a_background_run_begins_only_when_nothing_of_the_session_is_active(world: World) -> None:
    lease, claim, _ = await world.owned()
    begin = (world.db, claim.session_id, world.tenant_id, claim.generation)
    assert not await claims.begin_background(*begin, uuid4(), 60)
    await finish(world, lease, claim)
    run_id = uuid4()
    assert await claims.begin_background(*begin, run_id, 60)
    assert await claims.begin_background(*begin, run_id, 60)  # repeated, since nobody heard of the first
    assert not await claims.begin_background(*begin, uuid4(), 60)
    state = await world.run(run_id)
    assert (state["status"], state["origin"], state["first_seq"]) == ("running", "background", 2)


async def test_a_zombie_cannot_begin_a_background_run(world: World) -> None:
    lease, claim, _ = await world.owned()
    await finish(world, lease, claim)
    before = claim.generation - 1
    assert not await claims.begin_background(world.db, claim.session_id, world.tenant_id, before, uuid4(), 60)


# --- dead owners ---------------------------------------------------------------------------------------------------


async def test_a_dead_owners_run_fails_in_the_log_and_its_session_is_free(world: World) -> None:
    lease, claim, writer = await world.owned()
    await writer.append(Event("init", {}, claim.run_id))
    await world.expire(lease)
    [orphan] = await world.reap()
    assert (orphan.session_id, orphan.tenant_id) == (claim.session_id, world.tenant_id)
    stored = await world.events(claim.session_id)
    assert [(seq, type_) for seq, type_, _ in stored] == [(1, "init"), (2, "error"), (3, "done")]
    assert stored[1][2]["code"] == "owner_lost"
    assert stored[1][2]["retryable"] is True
    assert stored[2][2]["status"] == "failed"
    assert [(frame.seq, frame.run_id) for frame in orphan.frames] == [(2, str(claim.run_id)), (3, str(claim.run_id))]
    state = await world.run(claim.run_id)
    assert (state["status"], state["error"]["code"], state["last_seq"]) == ("failed", "owner_lost", 3)
    row = await session_row(world, claim.session_id)
    assert (row["owner_id"], row["last_seq"]) == (None, 3)
    assert row["generation"] > claim.generation


async def test_a_reaped_owner_that_still_lives_can_write_nothing_more(world: World) -> None:
    lease, claim, zombie = await world.owned()
    await world.expire(lease)
    await world.reap()
    assert lease.remaining() > 0  # its own clock says that all is well
    with pytest.raises(LeaseLost):
        await zombie.append(Event("message"))
    with pytest.raises(LeaseLost):
        await outcome.finish(zombie, claim.run_id, Outcome("succeeded"), Event("done"))
    assert len(await world.events(claim.session_id)) == 2
    assert (await world.run(claim.run_id))["status"] == "failed"


async def test_commands_to_a_dead_owner_are_rejected(world: World) -> None:
    lease, claim, _ = await world.owned()
    command_id = uuid4()
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, run_id, type) VALUES ($1, $2, $3, 'interrupt')",
        command_id,
        claim.session_id,
        claim.run_id,
    )
    assert [c.id for c in await commands.pending(world.db, lease.instance_id)] == [command_id]
    await world.expire(lease)
    await world.reap()
    row = await world.db.pool.fetchrow("SELECT * FROM commands WHERE id = $1", command_id)
    assert (row["status"], row["result"]) == ("rejected", {"code": "owner_lost"})
    assert await commands.pending(world.db, lease.instance_id) == []


async def test_queued_runs_of_a_dead_owner_go_to_another_instance(world: World) -> None:
    lease, claim, _ = await world.owned()
    waiting = await world.queue(claim.session_id)
    other = await world.instance()
    assert await world.claims_nothing(other)
    await world.expire(lease)
    await world.reap()
    assert (await world.claim(other)).run_id == waiting.run_id


async def test_an_idle_session_of_a_dead_owner_is_freed_without_an_event(world: World) -> None:
    lease, claim, _ = await world.owned()
    await finish(world, lease, claim)
    await world.expire(lease)
    [orphan] = await world.reap()
    assert orphan.frames == []
    assert len(await world.events(claim.session_id)) == 1
    assert (await session_row(world, claim.session_id))["owner_id"] is None


async def test_sessions_of_the_living_are_left_alone(world: World) -> None:
    lease, claim, writer = await world.owned()
    assert await world.reap() == []
    await writer.append(Event("init"))
    assert (await session_row(world, claim.session_id))["owner_id"] == lease.instance_id


async def test_many_reapers_end_each_run_once(world: World) -> None:
    dead = await world.instance()
    owned = await fill(world, dead, 300)
    found = await asyncio.gather(*(world.reap() for _ in range(3)))
    assert sorted(orphan.session_id for orphans in found for orphan in orphans) == sorted(owned)
    assert await world.one("SELECT count(*) FROM events WHERE type = 'done'") == 200
    assert await world.one("SELECT count(*) FROM runs WHERE status <> 'failed'") == 0


async def fill(world: World, dead: Lease, count: int) -> list[UUID]:
    """See `left_by`."""
    left = await left_by(world.db.pool, world.tenant_id, dead.instance_id, count)
    await world.expire(dead)
    return left


async def test_all_sessions_of_a_dead_owner_are_taken_at_once_and_told_what_they_must_be(world: World) -> None:
    dead = await world.instance()
    owned = await fill(world, dead, 3 * ownership.BATCH)
    taken = await world.reap()
    assert {orphan.session_id for orphan in taken} == set(owned)
    told = sorted(tuple(frame.type for frame in orphan.frames) for orphan in taken)
    kinds = ((), ("action_resolved", "error", "done"), ("error", "done"))
    assert told == [kind for kind in kinds for _ in range(ownership.BATCH)]
    assert await world.one("SELECT count(*) FROM sessions WHERE owner_id IS NOT NULL OR generation < 2") == 0
    assert await world.one("SELECT count(*) FROM runs WHERE finished_at IS NULL") == 0


async def test_survivors_share_the_sessions_of_a_dead_owner(world: World) -> None:
    """What one of them is taking does not hold up another, which takes the rest."""
    dead = await world.instance()
    owned = await fill(world, dead, 2 * ownership.BATCH)
    async with administrator(world.settings) as other, other.transaction():
        locked = await other.fetch(ownership._ORPHANED, [], None, ownership.BATCH)
        taken = {orphan.session_id for orphan in await asyncio.wait_for(world.reap(), PATIENCE)}
        assert taken == set(owned) - {row["id"] for row in locked}


@pytest.mark.breaks_logs
async def test_one_session_that_cannot_be_taken_over_does_not_hold_up_its_batch(world: World) -> None:
    dead = await world.instance()
    owned = await fill(world, dead, 9)
    broken = await world.one("SELECT session_id FROM runs WHERE status = 'running' LIMIT 1")
    await world.db.pool.execute("INSERT INTO events (session_id, seq, type, data) VALUES ($1, 1, 'x', '{}')", broken)
    loop = Loop("reap")
    taken = {orphan.session_id for orphan in await ownership.reap(world.core(), loop)}
    assert taken == set(owned) - {broken}
    assert (loop.failures_of(broken), loop.sick) == (1, 1)
    for times in range(2, ownership.FREE_AFTER + 1):
        loop._failed[broken] = times - 1, 0.0  # it has been left alone for long enough
        await ownership.reap(world.core(), loop)
        assert (await session_row(world, broken))["owner_id"] == dead.instance_id
        assert loop.failures_of(broken) == times
    loop._failed[broken] = ownership.FREE_AFTER, 0.0
    await ownership.reap(world.core(), loop)
    assert (await session_row(world, broken))["owner_id"] is None
    assert await world.one("SELECT error ->> 'code' FROM runs WHERE session_id = $1", broken) == "storage_failed"


async def test_one_session_whose_end_takes_too_long_does_not_hold_up_its_batch(world: World) -> None:
    dead = await world.instance()
    owned = await fill(world, dead, 9)
    slow = await world.one("SELECT session_id FROM runs WHERE status = 'running' LIMIT 1")
    async with administrator(world.settings) as administering:
        await administering.execute(
            "CREATE FUNCTION take_too_long() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'query_canceled'; END $$;"
            "CREATE TRIGGER take_too_long BEFORE UPDATE ON runs FOR EACH ROW"
            f" WHEN (new.session_id = '{slow}') EXECUTE FUNCTION take_too_long()"
        )
    loop = Loop("reap")
    with pytest.raises(asyncpg.QueryCanceledError):
        await ownership.reap(world.core(), loop)
    assert loop._failed.keys() == {slow}
    loop._failed[slow] = 0, math.inf  # it is still left alone
    await ownership.reap(world.core(), loop)
    left = await world.db.pool.fetch("SELECT id FROM sessions WHERE id = ANY($1) AND owner_id IS NOT NULL", owned)
    assert [row["id"] for row in left] == [slow]


async def test_a_session_of_which_somebody_else_holds_a_run_does_not_hold_up_its_batch(world: World) -> None:
    dead = await world.instance()
    owned = await fill(world, dead, 9)
    held = await world.db.pool.fetchrow("SELECT id, session_id FROM runs WHERE status = 'running' LIMIT 1")
    loop = Loop("reap")
    async with administrator(world.settings) as other, other.transaction():
        await other.execute("SELECT 1 FROM runs WHERE id = $1 FOR UPDATE", held["id"])
        for times in (1, ownership.FREE_AFTER + 1):
            loop._failed[held["session_id"]] = times - 1, 0.0  # it has been left alone for long enough
            taken = {orphan.session_id for orphan in await ownership.reap(world.core(), loop)}
            assert taken == (set(owned) - {held["session_id"]} if times == 1 else set())
            assert loop.failures_of(held["session_id"]) == times
        loop._failed[held["session_id"]] = times, 0.0
    [orphan] = await ownership.reap(world.core(), loop)
    assert (orphan.session_id, [frame.type for frame in orphan.frames][-1:]) == (held["session_id"], ["done"])


async def test_a_reaper_neither_skips_nor_deadlocks_with_a_command_that_is_being_stored(world: World) -> None:
    """Its foreign keys lock the run first and the session second, against the reaper's order."""
    lease, claim, _ = await world.owned()
    await world.expire(lease)
    async with administrator(world.settings) as other, other.transaction():
        await other.execute("SELECT 1 FROM runs WHERE id = $1 FOR KEY SHARE", claim.run_id)
        await other.execute("SELECT 1 FROM sessions WHERE id = $1 FOR KEY SHARE", claim.session_id)
        [orphan] = await asyncio.wait_for(world.reap(), PATIENCE)
    assert orphan.session_id == claim.session_id


async def test_a_lease_that_ran_out_cannot_be_renewed(world: World) -> None:
    lease, claim, _ = await world.owned()
    assert [o.generation for o in (await instances.renew(world.db.pool, lease)).owned] == [claim.generation]
    await world.expire(lease)
    with pytest.raises(LeaseLost):
        await instances.renew(world.db.pool, lease)
    assert lease.is_over()
    assert len(await world.reap()) == 1


async def test_an_instance_comes_back_only_when_nothing_of_its_old_lease_is_left(world: World) -> None:
    lease, claim, _ = await world.owned()
    await world.expire(lease)
    with pytest.raises(LeaseLost):
        await instances.renew(world.db.pool, lease)
    await instances.register(world.db, lease, hostname="test", version="0", slots=4)
    assert lease.is_over()
    await world.reap()
    await instances.register(world.db, lease, hostname="test", version="0", slots=4)
    assert not lease.is_over()
    waiting = await world.queue(claim.session_id)
    again = await world.claim(lease)
    assert again.run_id == waiting.run_id
    assert again.generation > claim.generation


async def test_an_instance_that_leaves_in_order_leaves_nothing_for_others_to_wait_for(world: World) -> None:
    lease, claim, _ = await world.owned()
    await instances.unregister(world.db, lease.instance_id)
    [orphan] = await world.reap()
    assert orphan.session_id == claim.session_id
    await instances.unregister(world.db, lease.instance_id)
    assert await world.one("SELECT count(*) FROM instances") == 0


async def test_disown_gives_back_what_is_owned_on_paper_only(world: World) -> None:
    lease, claim, _ = await world.owned()
    other = await world.instance()
    assert await ownership.disown(world.db, other.instance_id, claim.session_id, claim.generation) is None
    assert await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation + 1) is None
    assert (await world.run(claim.run_id))["status"] == "running"
    orphan = await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation)
    assert orphan is not None
    assert [frame.type for frame in orphan.frames] == ["error", "done"]
    assert (await world.run(claim.run_id))["error"]["code"] == "storage_failed"
    assert (await session_row(world, claim.session_id))["owner_id"] is None
    assert await ownership.disown(world.db, lease.instance_id, claim.session_id, claim.generation) is None


# --- places in the queue -------------------------------------------------------------------------------------------


async def age(world: World) -> None:
    """Runs that wait longer than the moment in which most of them start."""
    await world.db.pool.execute("UPDATE runs SET created_at = created_at - interval '1 second'")


async def test_places_count_all_queued_runs_from_one(world: World) -> None:
    lease, claim, _ = await world.owned()
    behind_mine = await world.queue(claim.session_id)
    unowned = await world.queue()
    theirs_lease = await world.instance()
    theirs = await world.claim(theirs_lease)
    assert theirs.run_id == unowned.run_id
    behind_theirs = await world.queue(theirs.session_id)
    new = await world.queue()
    await age(world)
    seen = [(w.run_id, w.position, w.owner_id) for w in await places.waiting(world.db, lease.instance_id)]
    assert seen == [(behind_mine.run_id, 1, lease.instance_id), (new.run_id, 3, None)]
    # Of sessions that nobody owns the eldest instance tells.
    others = [(w.run_id, w.position) for w in await places.waiting(world.db, theirs_lease.instance_id)]
    assert others == [(behind_theirs.run_id, 2)]
    await world.expire(lease)
    others = [(w.run_id, w.position) for w in await places.waiting(world.db, theirs_lease.instance_id)]
    assert others == [(behind_theirs.run_id, 2), (new.run_id, 3)]


async def test_a_run_that_was_queued_this_moment_is_not_announced_yet(world: World) -> None:
    lease = await world.instance()
    await world.queue()
    await world.db.pool.execute("UPDATE runs SET created_at = now() + interval '1 minute'")
    assert await places.waiting(world.db, lease.instance_id) == []


async def test_a_place_is_told_once_by_one_instance_and_again_when_it_changes(world: World) -> None:
    lease = await world.instance()
    first, second = await world.queue(), await world.queue()
    await age(world)
    told = await places.waiting(world.db, lease.instance_id)
    frames = await asyncio.gather(*(places.announce_unowned(world.db, run) for run in (*told, *told, *told)))
    assert sorted(f.type for batch in frames for f in batch) == ["queued", "queued"]
    assert [(t, d["position"]) for _, t, d in await world.events(second.session_id)] == [("queued", 2)]
    assert await places.waiting(world.db, lease.instance_id) == []
    for run in told:
        assert await places.announce_unowned(world.db, run) == []
    assert (await world.claim(lease)).run_id == first.run_id
    [moved] = await places.waiting(world.db, lease.instance_id)
    assert (moved.run_id, moved.position) == (second.run_id, 1)
    await places.announce_unowned(world.db, moved)
    assert [(n, d["position"]) for n, _, d in await world.events(second.session_id)] == [(1, 2), (2, 1)]


async def test_telling_places_in_a_long_queue_costs_little_for_each_run_that_starts(world: World) -> None:
    await world.db.pool.execute(
        "WITH made AS (INSERT INTO sessions (id, tenant_id, sdk_session_id)"
        " SELECT gen_random_uuid(), $1, gen_random_uuid() FROM generate_series(1, 1000) RETURNING id)"
        " INSERT INTO runs (id, tenant_id, session_id, prompt, timeout_seconds, created_at)"
        " SELECT gen_random_uuid(), $1, id, '\"x\"', 60, now() - interval '1 second' FROM made",
        world.tenant_id,
    )
    lease, other = await world.instance(slots=100), await world.instance()
    new = list[int]()
    while told := await places.waiting(world.db, lease.instance_id):
        new += [run.position for run in told]
        for run in told:
            await places.mark_announced(world.db.pool, run)
    assert new == list(range(1, 1001))
    starts = 25
    for _ in range(starts):
        await world.claim(lease)
        for instance_id in (other.instance_id, lease.instance_id):
            for run in await places.waiting(world.db, instance_id):
                assert await places.announce_unowned(world.db, run)
    events = await world.db.pool.fetch("SELECT data FROM events WHERE type = 'queued'")
    assert {decode(row["data"])["position"] for row in events} == {1, 10, 100}
    assert len(events) < 5 * starts


async def test_a_look_at_a_long_queue_goes_on_where_the_last_one_ended(world: World) -> None:
    """It numbers a thousand runs, from the first of each tenant: all have their turn, however long one's queue is."""
    lease = await world.instance()
    tenants = sorted([world.tenant_id, *[await world.other_tenant() for _ in range(4)]])
    for tenant_id, runs in zip(tenants, (300, 1_200, 1, 700, 100), strict=True):
        await world.db.pool.execute(
            "WITH made AS (INSERT INTO sessions (id, tenant_id, sdk_session_id)"
            " SELECT gen_random_uuid(), $1, gen_random_uuid() FROM generate_series(1, $2) RETURNING id)"
            " INSERT INTO runs (id, tenant_id, session_id, prompt, timeout_seconds, created_at, announced_position)"
            " SELECT gen_random_uuid(), $1, id, '\"x\"', 60, now() - interval '1 second', 5000 FROM made",
            tenant_id,
            runs,
        )
    turn, looks = Turn(), list[set[int]]()
    for _ in range(6):
        told = await places.waiting(world.db, lease.instance_id, turn)
        looks.append({tenants.index(run.tenant_id) for run in told})
        assert min(run.position for run in told) == 1
        assert (turn.after == places.BEGINNING) == (len(looks) % 3 == 0)
    assert looks == [{0, 1}, {1}, {2, 3, 4}] * 2


async def test_a_new_run_in_a_long_queue_is_told_its_place_at_once(world: World) -> None:
    lease = await world.instance()
    await world.db.pool.execute(
        "WITH made AS (INSERT INTO sessions (id, tenant_id, sdk_session_id)"
        " SELECT gen_random_uuid(), $1, gen_random_uuid() FROM generate_series(1, 1500) RETURNING id)"
        " INSERT INTO runs (id, tenant_id, session_id, prompt, timeout_seconds, created_at, announced_position)"
        " SELECT gen_random_uuid(), $1, id, '\"x\"', 60, now(), 1 FROM made",
        world.tenant_id,
    )
    new = [await world.queue() for _ in range(3)]
    await age(world)
    told = await places.waiting(world.db, lease.instance_id)
    assert [(run.run_id, run.position) for run in told] == [(run.run_id, 1_501 + n) for n, run in enumerate(new)]


async def test_a_place_is_not_told_to_a_session_that_was_claimed_or_deleted_meanwhile(world: World) -> None:
    lease = await world.instance()
    claimed, deleted = await world.queue(), await world.queue()
    await age(world)
    told = await places.waiting(world.db, lease.instance_id)
    assert len(told) == 2
    await world.claim(lease)
    await deletion.delete(world.db, world.tenant_id, deleted.session_id)
    for run in told:
        assert await places.announce_unowned(world.db, run) == []
    assert await world.events(claimed.session_id) == []


async def test_a_claim_after_an_announcement_numbers_on_from_it(world: World) -> None:
    run = await world.queue()
    await age(world)
    lease = await world.instance()
    [waiting] = await places.waiting(world.db, lease.instance_id)
    await places.announce_unowned(world.db, waiting)
    claim = await world.claim(lease)
    await world.writer(lease, claim).append(Event("init"))
    assert [(n, t) for n, t, _ in await world.events(run.session_id)] == [(1, "queued"), (2, "init")]
    assert (await world.run(run.run_id))["first_seq"] == 2


async def test_free_slots_are_those_of_other_living_instances(world: World) -> None:
    me, other = await world.instance(slots=9), await world.instance(slots=1)
    assert await turns.free_slot_elsewhere(world.db, me.instance_id)
    await world.queue()
    claim = await world.claim(other)
    assert not await turns.free_slot_elsewhere(world.db, me.instance_id)
    await finish(world, other, claim)
    assert await turns.free_slot_elsewhere(world.db, me.instance_id)
    await instances.set_draining(world.db, other.instance_id)
    assert not await turns.free_slot_elsewhere(world.db, me.instance_id)
