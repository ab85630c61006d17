"""Surfaces: lists and clean-ups of the sessions that were made through one kind of interface."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from apps.api.core.events.log import Event
from apps.api.core.sessions import deletion, sessions, surfaces
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.errors import Conflict
from tests.world import World, core_of

MINE = "some_server"


async def finished(world: World, surface: str = MINE, *, hours_ago: float = 0) -> UUID:
    """A session whose only run ended that long ago."""
    submitted = await world.queue(surface=surface)
    lease = await world.instance()
    claim = await world.claim(lease)
    assert claim.session_id == submitted.session_id
    done = Event("done", {"status": "succeeded"}, claim.run_id)
    await finish(world.writer(lease, claim), claim.run_id, Outcome("succeeded", '{"result": "hi"}'), done)
    ago = timedelta(hours=hours_ago)
    await world.db.pool.execute(
        "UPDATE sessions SET created_at = created_at - $2::interval WHERE id = $1", claim.session_id, ago
    )
    await world.db.pool.execute(
        "UPDATE runs SET finished_at = finished_at - $2::interval WHERE id = $1", claim.run_id, ago
    )
    return submitted.session_id


async def ids(world: World, tenant_id: UUID | None = None) -> list[str]:
    return await surfaces.ids(world.db, tenant_id or world.tenant_id, MINE)


async def test_a_surface_lists_its_own_sessions_newest_first_and_nobody_elses(world: World) -> None:
    await world.session()
    first = (await world.queue(surface=MINE)).session_id
    second = (await world.queue(surface=MINE)).session_id
    await world.queue(surface="other_server")
    assert await ids(world) == [str(second), str(first)]
    assert await surfaces.count(world.db, world.tenant_id, MINE) == 2
    assert await ids(world, await world.other_tenant()) == []
    await deletion.delete(world.db, world.tenant_id, second)
    assert await ids(world) == [str(first)]
    state = await sessions.get(world.db, world.redis, world.tenant_id, first, "model")
    assert state["surface"] == MINE


async def test_an_overview_shows_the_first_prompt_and_the_newest_run(lone_world: World) -> None:
    session_id = await finished(lone_world)
    await lone_world.queue(session_id, "say bye")
    (row,) = await overview(lone_world)
    assert (row["session_id"], row["prompt"], row["status"]) == (str(session_id), "say hello", "queued")
    assert (row["started_at"], row["result"]) == (None, None)
    assert row["events"] == 0


async def overview(world: World) -> list[dict[str, Any]]:
    return await surfaces.overview(world.db, world.tenant_id, MINE, event_types=["message"])


async def test_a_clean_up_takes_what_ended_long_enough_ago(lone_world: World) -> None:
    old, young = await finished(lone_world, hours_ago=25), await finished(lone_world, hours_ago=23)
    other = await finished(lone_world, "native", hours_ago=25)
    waiting = (await lone_world.queue(await finished(lone_world, hours_ago=25), "say more")).session_id
    assert await surfaces.clean_up(core_of(lone_world), lone_world.tenant_id, MINE, 24) == 1
    assert await ids(lone_world) == [str(id_) for id_ in await newest_first(lone_world, young, waiting)]
    await sessions.require(lone_world.db, lone_world.tenant_id, other)
    assert str(old) not in await ids(lone_world)


async def newest_first(world: World, *session_ids: UUID) -> list[UUID]:
    rows = await world.db.pool.fetch(
        "SELECT id FROM sessions WHERE id = ANY($1::uuid[]) ORDER BY created_at DESC", list(session_ids)
    )
    return [row["id"] for row in rows]


async def test_a_session_that_got_a_prompt_meanwhile_is_not_cleaned_up(lone_world: World) -> None:
    session_id = await finished(lone_world, hours_ago=25)
    await lone_world.queue(session_id)
    with pytest.raises(Conflict) as caught:
        await deletion.delete(lone_world.db, lone_world.tenant_id, session_id, unless_busy=True)
    assert caught.value.code == "session_busy"
    assert await ids(lone_world) == [str(session_id)]
