"""The files of a session that its owner stores, and what is left of them here and there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from apps.api.core.files import manifest, record
from apps.api.core.files.objects import LOCAL
from apps.api.core.sessions import stored, workspaces
from apps.api.runner.session.storing import Storing
from tests.core.conftest import neighbourhood, world
from tests.core.files.travel import objects_in
from tests.world import World, administrator, terminate_ours, until, waiting_for_locks

__all__ = ["neighbourhood", "world"]


async def storing(world: World) -> tuple[Storing, UUID, UUID, Path]:
    """The owner of a new session, whose agent has not begun."""
    _, claim, writer = await world.owned()
    own = Storing(world.core(), writer)
    assert not await own.bring(claim.run_id)
    root = workspaces.create(world.settings, claim.session_id, None).root
    return own, claim.session_id, claim.run_id, root


def manifests(world: World, session_id: UUID) -> set[str]:
    below = manifest.below_session(world.tenant_id, session_id)
    return {f"{below}/{name}" for name in objects_in(world.settings.workspaces_root / LOCAL / below)}


async def test_a_session_with_many_runs_leaves_two_manifests(world: World) -> None:
    own, session_id, run_id, root = await storing(world)
    for number in range(5):
        (root / "a").write_text(f"content {number}")
        assert [event.type for event in await own.keep(run_id, always=True)] == ["files"]
        if own._removing is not None:
            await own._removing
    found = await stored.find(world.db.pool, session_id)
    assert manifests(world, session_id) == {found.name, found.before}


async def test_what_was_removed_for_its_age_does_not_come_back_from_a_copy(world: World) -> None:
    own, session_id, run_id, root = await storing(world)
    (root / "a").write_text("content")
    await own.keep(run_id, always=True)
    assert await stored.drop(world.db.pool, session_id)
    again = Storing(own._core, own._writer)
    assert not await again.bring(run_id)
    assert not root.exists()
    assert record.read(world.settings, session_id) is None


@pytest.mark.parametrize("recorded", [False, True])
async def test_what_could_never_be_stored_stays_here(world: World, *, recorded: bool) -> None:
    own, session_id, run_id, root = await storing(world)
    (root / "a").write_text("content")
    if recorded:
        await own.keep(run_id, always=True)
    again = Storing(own._core, own._writer)
    assert await again.bring(run_id) is recorded
    assert (root / "a").read_text() == "content"
    assert session_id


async def test_what_nothing_can_have_changed_is_not_looked_at_when_a_session_is_given_back(world: World) -> None:
    own, session_id, run_id, root = await storing(world)
    (root / "a").write_text("content")
    await own.keep(run_id, always=True)
    again = Storing(own._core, own._writer)
    assert await again.bring(run_id)
    before = await stored.find(world.db.pool, session_id)
    (root / "a").write_text("other")
    await again.give_back()
    assert (await stored.find(world.db.pool, session_id)).name == before.name
    again.may_change()
    await again.give_back()
    assert (await stored.find(world.db.pool, session_id)).name != before.name
    told = await world.db.pool.fetchval("SELECT data FROM events WHERE session_id = $1 AND type = 'files'", session_id)
    assert '"changed":["a"]' in told


async def test_files_are_stored_and_stay_when_the_connection_breaks_that_notes_them(world: World) -> None:
    own, session_id, run_id, root = await storing(world)
    (root / "a").write_text("content")
    async with administrator(world.settings) as admin:
        async with administrator(world.settings) as blocker:
            await blocker.execute("BEGIN")
            await blocker.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session_id)
            keeping = asyncio.create_task(own.keep(run_id, always=True))
            await until(lambda: waiting_for_locks(admin, 1))
            assert await terminate_ours(admin) >= 1
        assert [event.type for event in await keeping] == ["files"]
    assert (await stored.find(world.db.pool, session_id)).name in manifests(world, session_id)


async def test_a_name_that_is_noted_twice_is_nobodys_rubbish(world: World) -> None:
    own, session_id, run_id, root = await storing(world)
    (root / "a").write_text("content")
    await own.keep(run_id, always=True)
    of = (world.db, session_id, own._writer.generation)
    first = (await stored.find(world.db.pool, session_id)).name
    assert await stored.note(*of, "new", 1, before=first, over=True) == []
    assert await stored.note(*of, "new", 1, before=first, over=True) == []
    assert await stored.note(*of, "newer", 1, before="new", over=True) == [first]
