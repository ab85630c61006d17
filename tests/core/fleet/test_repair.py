"""Runs that are stuck: what repairing them does, and when it does nothing."""

from __future__ import annotations

import pytest

from apps.api.core.fleet import repair
from apps.api.errors import Conflict
from tests.world import World


@pytest.fixture
def world(lone_world: World) -> World:
    return lone_world


async def why_not(world: World, run_id: object) -> str:
    with pytest.raises(Conflict) as caught:
        await repair.repair(world.db, run_id)  # type: ignore[arg-type]
    assert caught.value.code == "nothing_to_repair"
    return caught.value.message


async def test_a_run_of_a_dead_owner_fails_and_its_session_is_free(world: World) -> None:
    lease, claim, _ = await world.owned()
    assert "lease is valid" in await why_not(world, claim.run_id)
    await world.expire(lease)
    done = await repair.repair(world.db, claim.run_id)
    assert [frame.type for frame in done.orphan.frames] == ["error", "done"]
    run = await world.run(claim.run_id)
    assert (run["status"], run["error"]["code"]) == ("failed", "owner_lost")
    assert await world.one("SELECT owner_id FROM sessions WHERE id = $1", claim.session_id) is None
    assert await world.one("SELECT generation FROM sessions WHERE id = $1", claim.session_id) > claim.generation
    assert "is over: failed" in await why_not(world, claim.run_id)


async def test_a_run_that_waits_behind_one_of_a_dead_owner_is_freed(world: World) -> None:
    lease, claim, _ = await world.owned()
    behind = await world.queue(claim.session_id)
    assert str(claim.run_id) in await why_not(world, behind.run_id)
    await world.expire(lease)
    await repair.repair(world.db, behind.run_id)
    assert (await world.run(claim.run_id))["status"] == "failed"
    assert (await world.run(behind.run_id))["status"] == "queued"
    other = await world.instance()
    assert (await world.claim(other)).run_id == behind.run_id


async def test_a_running_run_without_an_owner_is_ended(world: World) -> None:
    _, claim, _ = await world.owned()
    await world.db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE id = $1", claim.session_id)
    done = await repair.repair(world.db, claim.run_id)
    assert done.action == "the run had no owner"
    assert (await world.run(claim.run_id))["status"] == "failed"


async def test_a_queued_run_says_what_it_waits_for(world: World) -> None:
    first = await world.queue()
    second = await world.queue(first.session_id)
    assert "no living instance takes runs" in await why_not(world, first.run_id)
    assert "behind 1 other" in await why_not(world, second.run_id)
    await world.instance()
    assert "waits for a free slot" in await why_not(world, first.run_id)
