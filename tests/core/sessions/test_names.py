"""Names that clients of a surface give to sessions and runs."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from apps.api.core.sessions import deletion, names
from apps.api.core.sessions.names import Name, Named, NameTaken
from tests.world import World

CHAT = Name("chat", "c-1", {"by": "a browser"})


async def test_a_session_and_its_run_are_found_by_the_names_they_were_made_with(world: World) -> None:
    made = await world.queue(session_names=[CHAT], run_names=[Name("chat", "m-1")])
    found = await names.find(world.db, world.tenant_id, "chat", "c-1", "m-1", "m-2")
    assert found == {
        "c-1": Named("c-1", made.session_id, None, {"by": "a browser"}),
        "m-1": Named("m-1", made.session_id, made.run_id, {}),
    }
    listed = await names.of_session(world.db, world.tenant_id, made.session_id, "chat")
    assert sorted(named.text for named in listed) == ["c-1", "m-1"]


async def test_a_name_is_of_its_tenant_and_surface(world: World) -> None:
    made = await world.queue(session_names=[CHAT])
    other = await world.other_tenant()
    assert await names.find(world.db, other, "chat", "c-1") == {}
    assert await names.find(world.db, world.tenant_id, "thread", "c-1") == {}
    assert list(await names.of_session(world.db, other, made.session_id, "chat")) == []
    assert not await names.take(world.db, other, "chat", "c-1")
    assert not await names.keep(world.db, other, CHAT)


async def test_a_name_that_is_taken_leaves_nothing_behind(world: World) -> None:
    await world.queue(session_names=[CHAT])
    with pytest.raises(NameTaken):
        await world.queue(session_names=[CHAT])
    assert await world.one("SELECT count(*) FROM sessions WHERE tenant_id = $1", world.tenant_id) == 1
    assert await world.one("SELECT count(*) FROM runs WHERE tenant_id = $1", world.tenant_id) == 1


async def test_of_many_who_give_one_name_at_once_one_makes_the_session(world: World) -> None:
    made = await asyncio.gather(*(world.queue(session_names=[CHAT]) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(each, NameTaken) for each in made) == 7
    assert await world.one("SELECT count(*) FROM sessions WHERE tenant_id = $1", world.tenant_id) == 1


async def test_a_run_of_a_session_that_is_there_is_given_its_names_too(world: World) -> None:
    session_id = await world.session()
    run = await world.queue(session_id, run_names=[Name("chat", "m-1")])
    assert (await names.find(world.db, world.tenant_id, "chat", "m-1"))["m-1"].run_id == run.run_id
    with pytest.raises(NameTaken):
        await world.queue(session_id, run_names=[Name("chat", "m-1")])
    assert await world.one("SELECT count(*) FROM runs WHERE session_id = $1", session_id) == 1


async def test_the_name_of_a_deleted_session_is_free(world: World) -> None:
    first = await world.queue(session_names=[CHAT])
    async with world.db.transaction() as connection:  # marked, and not purged yet
        await deletion.mark(connection, world.tenant_id, first.session_id)
    assert await names.find(world.db, world.tenant_id, "chat", "c-1") == {}
    second = await world.queue(session_names=[CHAT])
    assert (await names.find(world.db, world.tenant_id, "chat", "c-1"))["c-1"].session_id == second.session_id
    await deletion.delete(world.db, world.tenant_id, second.session_id)
    assert await world.one("SELECT count(*) FROM session_names WHERE tenant_id = $1", world.tenant_id) == 0


async def test_what_is_kept_with_a_name_is_replaced_and_a_name_is_taken_away(world: World) -> None:
    await world.queue(session_names=[CHAT])
    assert await names.keep(world.db, world.tenant_id, Name("chat", "c-1", {"n": 2}))
    assert (await names.find(world.db, world.tenant_id, "chat", "c-1"))["c-1"].data == {"n": 2}
    assert not await names.keep(world.db, world.tenant_id, Name("chat", "c-1", {"n": 4}), {"n": 1})
    assert await names.keep(world.db, world.tenant_id, Name("chat", "c-1", {"n": 3}), {"n": 2})
    assert (await names.find(world.db, world.tenant_id, "chat", "c-1"))["c-1"].data == {"n": 3}
    assert await names.take(world.db, world.tenant_id, "chat", "c-1")
    assert not await names.take(world.db, world.tenant_id, "chat", "c-1")
    assert await names.find(world.db, world.tenant_id, "chat", "c-1") == {}


async def test_a_name_moves_once_from_the_session_that_has_it(world: World) -> None:
    first, second, third = (await world.queue(session_names=[CHAT])), await world.session(), await world.session()

    async def move(session_id: UUID, before: UUID) -> bool:
        return await names.move(world.db.pool, world.tenant_id, CHAT, before, session_id)

    moved = await asyncio.gather(move(second, first.session_id), move(third, first.session_id))
    assert sorted(moved) == [False, True]
    found = (await names.find(world.db, world.tenant_id, "chat", "c-1"))["c-1"]
    assert found.session_id == (second if moved[0] else third)
    assert not await move(first.session_id, first.session_id)


async def test_a_name_that_nobody_has_is_given_by_a_move(world: World) -> None:
    session_id = await world.session()
    assert await names.move(world.db.pool, world.tenant_id, CHAT, await world.session(), session_id)
    assert (await names.find(world.db, world.tenant_id, "chat", "c-1"))["c-1"].session_id == session_id
