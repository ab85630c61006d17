"""Transcripts: what the SDK asks of a session store, and what a fleet asks besides: one owner, nothing lost."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from claude_agent_sdk import SessionKey
from claude_agent_sdk.testing import run_session_store_conformance

from apps.api.core.codec import decode
from apps.api.core.lease import Lease, now
from apps.api.core.pages import PAGE_BYTES
from apps.api.core.sessions import deletion
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.db import Database
from apps.api.errors import LeaseLost, Unavailable
from apps.api.redis import Redis
from apps.api.settings import Settings
from tests.world import World, administrator, terminate_backends, terminate_ours, until, waiting_for_locks

KEY: SessionKey = {"project_key": "-workspaces-example", "session_id": "fdcb1e7b-f3dd-41c9-91c7-8a8768ad2f07"}
SUBAGENT: SessionKey = {**KEY, "subpath": "subagents/agent-1"}


def entry(number: int, **more: Any) -> Any:
    return {"type": "user", "uuid": f"00000000-0000-0000-0000-{number:012}", "n": number, **more}


def entries(*numbers: int) -> list[Any]:
    return [entry(number) for number in numbers]


@pytest.fixture
async def world(settings: Settings, db: Database, redis: Redis) -> World:
    tenant_id: UUID = await db.pool.fetchval("INSERT INTO tenants (name) VALUES ('ours') RETURNING id")
    return World(settings, db, redis, tenant_id)


def valid_lease(seconds: float = 60) -> Lease:
    lease = Lease(uuid4(), seconds)
    lease.renewed(now())
    return lease


async def store_of(world: World, lease: Lease | None = None, session_id: UUID | None = None) -> Transcripts:
    """The owner's store: of a new session, unless one is given."""
    session_id = session_id or await world.session()
    generation = await world.one("SELECT generation FROM sessions WHERE id = $1", session_id)
    return Transcripts(world.db, lease or valid_lease(), session_id, generation, uuid4())


async def test_a_conversation_is_read_in_pages_of_bounded_size(world: World) -> None:
    store = await store_of(world)
    large = [entry(n, text="x" * (PAGE_BYTES // 3)) for n in range(5)]
    await store.append(KEY, [*large, entry(6, text="x" * PAGE_BYTES), *entries(7, 8)])
    pages = [page async for page in store.pages(UUID(KEY["session_id"]))]
    assert [len(page) for page in pages] == [2, 2, 1, 1, 2]
    assert [decode(e.text)["n"] for page in pages for e in page] == [0, 1, 2, 3, 4, 6, 7, 8]


async def count(world: World) -> int:
    stored: int = await world.one("SELECT count(*) FROM transcript_entries")
    return stored


async def change_owner(world: World, session_id: UUID) -> None:
    await world.db.pool.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", session_id)


# --- the SDK's contract --------------------------------------------------------------------------------------------


async def test_the_store_keeps_the_contract_of_the_sdk(world: World) -> None:
    for optional in ("delete", "list_subkeys"):
        assert callable(getattr(Transcripts, optional)), f"the suite would skip {optional} silently"
    missing = frozenset({"list_sessions", "list_session_summaries"})
    store: Any = partial(store_of, world)
    await run_session_store_conformance(store, skip_optional=missing)


async def test_two_sessions_with_the_same_keys_do_not_see_each_other(world: World) -> None:
    one, other = await store_of(world), await store_of(world)
    await one.append(KEY, entries(1))
    await one.append(SUBAGENT, entries(2))
    assert await other.load(KEY) is None
    assert await other.list_subkeys(KEY) == []
    await other.delete(KEY)
    assert await one.load(KEY) == entries(1)


async def test_another_owner_reads_what_the_one_before_has_stored(world: World) -> None:
    session_id = await world.session()
    await (await store_of(world, session_id=session_id)).append(KEY, entries(1, 2))
    await change_owner(world, session_id)
    heir = await store_of(world, session_id=session_id)
    await heir.append(KEY, entries(3))
    assert await heir.load(KEY) == entries(1, 2, 3)


async def test_only_a_main_transcript_can_be_resumed(world: World) -> None:
    store = await store_of(world)
    conversation = UUID(KEY["session_id"])
    assert not await store.exists(conversation)
    await store.append(SUBAGENT, entries(1))
    assert not await store.exists(conversation)
    await store.append(KEY, entries(1))
    assert await store.exists(conversation)
    assert not await store.exists(uuid4())
    assert not await (await store_of(world)).exists(conversation)


# --- once, in order, as given --------------------------------------------------------------------------------------


async def test_an_entry_that_is_appended_again_is_stored_once(world: World) -> None:
    store = await store_of(world)
    await store.append(KEY, entries(1, 2, 3))
    await store.append(KEY, entries(1, 2, 3))
    await store.append(KEY, entries(3, 4))
    await store.append(KEY, entries(5, 5))
    assert await store.load(KEY) == entries(1, 2, 3, 4, 5)


async def test_the_first_version_of_an_entry_stays(world: World) -> None:
    store = await store_of(world)
    await store.append(KEY, [entry(1, text="first")])
    await store.append(KEY, [entry(1, text="second")])
    assert await store.load(KEY) == [entry(1, text="first")]


async def test_the_same_uuid_in_another_transcript_is_another_entry(world: World) -> None:
    store = await store_of(world)
    other: SessionKey = {**KEY, "session_id": str(uuid4())}
    for key in (KEY, SUBAGENT, other):
        await store.append(key, entries(1))
    for key in (KEY, SUBAGENT, other):
        assert await store.load(key) == entries(1)


async def test_entries_without_a_uuid_are_all_kept(world: World) -> None:
    store = await store_of(world)
    summary: Any = {"type": "summary", "summary": "the same"}
    await store.append(KEY, [summary, summary])
    await store.append(KEY, [summary])
    assert await store.load(KEY) == [summary] * 3


async def test_many_batches_are_read_back_in_the_order_of_their_appends(world: World) -> None:
    store = await store_of(world)
    numbers = [(7919 * n) % 1000 for n in range(1000)]  # so that neither uuids nor numbers are sorted
    for start in range(0, 1000, 50):
        await store.append(KEY, entries(*numbers[start : start + 50]))
        await store.append(SUBAGENT, entries(start))
    loaded = await store.load(KEY)
    assert loaded is not None
    assert [found["n"] for found in loaded] == numbers


async def test_a_large_batch_is_stored_whole(world: World) -> None:
    store = await store_of(world)
    batch = [entry(n, text="x" * 1000) for n in range(3000)]
    await store.append(KEY, batch)
    assert await store.load(KEY) == batch


TEXTS = ["NUL \x00 in the middle", "\ud83d", "half \ude00 a pair", "😀 and ü", "\u2028\u2029\x1f\x7f", '"\\\n', ""]


async def test_text_is_read_back_as_it_was_given(world: World) -> None:
    store = await store_of(world)
    given = [
        entry(n, text=text, nested={"list": [text, None, 1.5, 2**70, True]}, **{f"key {text}": text})
        for n, text in enumerate(TEXTS)
    ]
    await store.append(KEY, given)
    assert await store.load(KEY) == given


KEYS = ["subagents/agent-\x00", "subagents/\ud83d", "a/" * 5000 + "😀".join(map(str, range(2000)))]


@pytest.mark.parametrize("text", KEYS, ids=["NUL", "half a pair", "long"])
async def test_a_key_that_an_agent_made_up_is_a_key_like_others(world: World, text: str) -> None:
    store = await store_of(world)
    keys: list[SessionKey] = [{**KEY, "subpath": text}, {**KEY, "project_key": text}, {**KEY, "session_id": text}]
    for key in keys:
        for _ in range(2):
            await store.append(key, [entry(1, uuid=text), entry(2)])
        assert await store.load(key) == [entry(1, uuid=text), entry(2)]
    assert await store.load({**KEY, "subpath": text + "x"}) is None
    [subpath] = await store.list_subkeys({"project_key": KEY["project_key"], "session_id": KEY["session_id"]})
    assert await store.load({**KEY, "subpath": subpath}) == [entry(1, uuid=text), entry(2)]
    await store.delete(keys[0])
    assert await store.load(keys[0]) is None


# --- the pen -------------------------------------------------------------------------------------------------------


async def test_the_store_of_an_old_generation_stores_nothing(world: World) -> None:
    session_id = await world.session()
    old = await store_of(world, session_id=session_id)
    await old.append(KEY, entries(1))
    await change_owner(world, session_id)
    with pytest.raises(LeaseLost):
        await old.append(KEY, entries(2))
    with pytest.raises(LeaseLost):
        await old.append(KEY, entries(1))  # a repeat is no proof of ownership either
    assert await old.load(KEY) == entries(1)
    assert await count(world) == 1


async def test_a_generation_that_does_not_exist_yet_stores_nothing(world: World) -> None:
    store = Transcripts(world.db, valid_lease(), await world.session(), 1, uuid4())
    with pytest.raises(LeaseLost):
        await store.append(KEY, entries(1))
    assert await count(world) == 0


async def test_a_deleted_session_takes_no_more_entries(world: World) -> None:
    session_id = await world.session()
    store = await store_of(world, session_id=session_id)
    await store.append(KEY, entries(1))
    await deletion.delete(world.db, world.tenant_id, session_id)
    with pytest.raises(LeaseLost):
        await store.append(KEY, entries(2))
    assert await count(world) == 0


async def test_a_store_whose_lease_is_over_does_not_try(world: World) -> None:
    lease = valid_lease()
    store = await store_of(world, lease)
    lease.give_up()
    with pytest.raises(LeaseLost):
        await store.append(KEY, entries(1))
    assert await count(world) == 0


async def test_an_append_that_meets_a_change_of_owner_waits_for_it_and_stores_nothing(world: World) -> None:
    session_id = await world.session()
    store = await store_of(world, session_id=session_id)
    async with administrator(world.settings) as admin:
        async with world.db.transaction() as reaper:
            await reaper.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", session_id)
            append = asyncio.create_task(store.append(KEY, entries(1)))
            await until(lambda: waiting_for_locks(admin, 1))
        with pytest.raises(LeaseLost):
            await append
    assert await count(world) == 0


async def test_an_append_holds_a_change_of_owner_back_until_it_is_stored(world: World) -> None:
    """Nothing may slip in behind the back of a reaper: what it sees is all there will ever be of this generation."""
    session_id = await world.session()
    store = await store_of(world, session_id=session_id)
    async with administrator(world.settings) as admin, administrator(world.settings) as blocker:
        await blocker.execute("BEGIN")
        await blocker.execute(
            "INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, uuid, entry)"
            " VALUES ($1, $2, $3, $4, 'not committed, so that the append has to wait in its middle')",
            session_id,
            KEY["project_key"],
            KEY["session_id"],
            entry(1)["uuid"],
        )
        append = asyncio.create_task(store.append(KEY, entries(1)))
        await until(lambda: waiting_for_locks(admin, 1))
        reaper = asyncio.create_task(change_owner(world, session_id))
        try:
            await until(lambda: waiting_for_locks(admin, 2))
        finally:
            await blocker.execute("ROLLBACK")
            await asyncio.gather(append, reaper)
    assert await store.load(KEY) == entries(1)


# --- connections that break ----------------------------------------------------------------------------------------


async def test_batches_are_neither_lost_nor_repeated_when_their_backends_are_terminated(world: World) -> None:
    store = await store_of(world)
    broken = 0
    async with administrator(world.settings) as admin:
        for number in range(0, 60, 2):
            batch = entries(number, number + 1)
            _, terminated = await asyncio.gather(store.append(KEY, batch), terminate_backends(admin))
            broken += terminated
    assert broken > 0
    await world.db.pool.expire_connections()
    assert await store.load(KEY) == entries(*range(60))


async def test_an_append_whose_backend_is_terminated_in_the_middle_is_repeated(world: World) -> None:
    session_id = await world.session()
    store = await store_of(world, session_id=session_id)
    async with administrator(world.settings) as admin:
        async with administrator(world.settings) as blocker:
            await blocker.execute("BEGIN")
            await blocker.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session_id)
            append = asyncio.create_task(store.append(KEY, entries(1, 2)))
            await until(lambda: waiting_for_locks(admin, 1))
            assert await terminate_ours(admin) >= 1
            assert not append.done()
        await append
    await world.db.pool.expire_connections()
    assert await store.load(KEY) == entries(1, 2)


async def test_an_append_gives_up_when_the_lease_ends_before_the_database_is_back(world: World) -> None:
    lease = valid_lease()
    session_id = await world.session()
    store = await store_of(world, lease, session_id)
    async with administrator(world.settings) as admin, administrator(world.settings) as blocker:
        await blocker.execute("BEGIN")
        await blocker.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session_id)
        append = asyncio.create_task(store.append(KEY, entries(1)))
        await until(lambda: waiting_for_locks(admin, 1))
        lease.give_up()
        assert await terminate_ours(admin) >= 1
        with pytest.raises((LeaseLost, Unavailable)):
            await append
    await world.db.pool.expire_connections()
    assert await count(world) == 0


# --- forks ---------------------------------------------------------------------------------------------------------


async def test_a_forks_entries_are_adopted_by_its_owner_and_by_nobody_else(world: World) -> None:
    session_id = await world.session()
    former = await store_of(world, session_id=session_id)
    await former.append({**KEY, "project_key": ""}, entries(1, 2))
    await change_owner(world, session_id)
    owner = await store_of(world, session_id=session_id)
    await former.adopt(UUID(KEY["session_id"]), KEY["project_key"])
    assert await owner.load(KEY) is None
    await owner.adopt(UUID(KEY["session_id"]), KEY["project_key"])
    assert await owner.load(KEY) == entries(1, 2)


async def test_only_what_is_said_of_copies_of_files_is_read_for_a_rewind(world: World) -> None:
    store = await store_of(world)
    said: Any = {"type": "file-history-snapshot", "messageId": "m", "snapshot": {}}
    await store.append(KEY, [*entries(1), said, entry(2, note='{"type":"file-history-delta"')])
    assert await store.file_history(UUID(KEY["session_id"])) == [said]
