"""Appending to the log: without a gap, by the owner only, and once, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any
from uuid import uuid4

import pytest

from apps.api.core.events import log
from apps.api.core.events.log import Event
from apps.api.core.pages import PAGE_BYTES
from apps.api.core.sessions import deletion, sessions
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.core.tenant.usage import ModelUsage
from apps.api.db import Database
from apps.api.errors import LeaseLost, Unavailable
from tests.proxy import postgres_proxy
from tests.world import PATIENCE, World, administrator, relaying, terminate_backends, until, waiting_for_locks


def numbered(count: int, first: int = 1, **fields: Any) -> list[Event]:
    return [Event("message", {"n": n, **fields}) for n in range(first, first + count)]


async def test_the_first_event_of_a_session_has_number_one(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(Event("init"))
    assert [(seq, type_) for seq, type_, _ in await world.events(claim.session_id)] == [(1, "init")]
    assert writer.last_seq == 1


async def test_batches_of_any_size_are_numbered_without_a_gap(world: World) -> None:
    _, claim, writer = await world.owned()
    for size in (1, 7, 300, 2):
        await writer.append(*numbered(size))
    stored = await world.events(claim.session_id)
    assert [seq for seq, _, _ in stored] == list(range(1, 311))
    assert [data["seq"] for _, _, data in stored] == list(range(1, 311))
    assert await world.one("SELECT last_seq FROM sessions WHERE id = $1", claim.session_id) == 310


async def test_concurrent_appends_of_one_writer_take_turns(world: World) -> None:
    _, claim, writer = await world.owned()
    await asyncio.gather(*(writer.append(*numbered(2, first=10 * n)) for n in range(50)))
    stored = await world.events(claim.session_id)
    assert [seq for seq, _, _ in stored] == list(range(1, 101))
    values = [data["n"] for _, _, data in stored]
    assert [b - a for a, b in itertools.pairwise(values)][::2] == [1] * 50  # no batch was torn apart


async def test_an_event_keeps_what_an_agent_printed(world: World) -> None:
    _, claim, writer = await world.owned()
    fields = {"text": "NUL \x00, half a pair \ud83d, 😀", "big": 2**70}
    await writer.append(Event("message", fields))
    assert (await world.events(claim.session_id))[0][2] | fields == (await world.events(claim.session_id))[0][2]


async def test_reading_goes_on_after_a_number_and_stops_at_the_limit(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(*numbered(5))
    page = await log.read(world.db, world.tenant_id, claim.session_id, 1, limit=3)
    assert ([frame.seq for frame in page.frames], page.more) == ([2, 3, 4], True)
    page = await log.read(world.db, world.tenant_id, claim.session_id, 1, limit=4)
    assert ([frame.seq for frame in page.frames], page.more) == ([2, 3, 4, 5], False)


@pytest.mark.parametrize("limit", [3, 500])
async def test_reading_stops_where_a_page_is_full_of_bytes(world: World, limit: int) -> None:
    _, claim, writer = await world.owned()
    await writer.append(*numbered(5, text="x" * (PAGE_BYTES // 3)), *numbered(1, text="x" * PAGE_BYTES), *numbered(1))
    read: list[int] = []
    pages: list[int] = []
    while True:
        page = await log.read(world.db, world.tenant_id, claim.session_id, len(read), limit=limit)
        read += [frame.seq for frame in page.frames]
        pages.append(len(page.frames))
        if not page.more:
            break
    assert (read, pages) == ([1, 2, 3, 4, 5, 6, 7], [2, 2, 1, 1, 1])


async def test_the_newest_events_are_bounded_in_bytes_too(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(*numbered(5, text="x" * (log.MAX_NEWEST_BYTES // 3)))
    frames = await log.newest(world.db, world.tenant_id, claim.session_id, ["message"], limit=5)
    assert [frame.seq for frame in frames] == [4, 5]


async def test_reading_gives_exactly_the_bytes_that_were_relayed(world: World) -> None:
    lease, claim, _ = await world.owned()
    async with world.db.transaction() as connection:
        relayed = await log.append(connection, claim.session_id, claim.generation, 0, numbered(3, text="\x00\ud83d"))
    assert (await log.read(world.db, world.tenant_id, claim.session_id, 0)).frames == relayed
    assert lease.remaining() > 0


async def test_reading_one_run_leaves_out_the_others(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(Event("init", {}, claim.run_id), Event("status"), Event("done", {}, claim.run_id))
    page = await log.read(world.db, world.tenant_id, claim.session_id, 0, run_id=claim.run_id)
    assert [frame.seq for frame in page.frames] == [1, 3]


async def test_another_tenant_reads_nothing(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(*numbered(3))
    assert await log.read(world.db, await world.other_tenant(), claim.session_id, 0) == log.Stored([], False)


@pytest.mark.breaks_logs
async def test_a_cached_session_is_forgotten_by_whoever_appends_to_its_log(world: World) -> None:
    async with relaying(world.db, world.redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)

        async def last_seq() -> int:
            found = await sessions.get(world.db, world.redis, world.tenant_id, claim.session_id, "a-model")
            return int(found["last_seq"])

        assert await last_seq() == 0
        await world.db.pool.execute("UPDATE sessions SET last_seq = 5 WHERE id = $1", claim.session_id)
        assert await last_seq() == 0  # as it is cached
        writer.last_seq = 5
        await writer.append(Event("init"))
        await relay.publisher.flushed(PATIENCE)
        assert await last_seq() == 6


# --- fencing -------------------------------------------------------------------------------------------------------


async def test_a_writer_of_an_older_generation_writes_nothing(world: World) -> None:
    _, claim, zombie = await world.owned()
    await zombie.append(*numbered(2))
    await world.db.pool.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", claim.session_id)
    with pytest.raises(LeaseLost):
        await zombie.append(*numbered(2, first=3))
    assert len(await world.events(claim.session_id)) == 2
    assert await world.one("SELECT last_seq FROM sessions WHERE id = $1", claim.session_id) == 2


async def test_a_writer_of_a_younger_generation_than_the_sessions_writes_nothing(world: World) -> None:
    _, claim, writer = await world.owned()
    writer.generation += 1
    with pytest.raises(LeaseLost):
        await writer.append(Event("init"))
    assert await world.events(claim.session_id) == []


@pytest.mark.parametrize("off_by", [-1, 1, 5])
async def test_a_writer_that_expects_another_position_writes_nothing(world: World, off_by: int) -> None:
    _, claim, writer = await world.owned()
    await writer.append(*numbered(2))
    writer.last_seq += off_by
    with pytest.raises(LeaseLost):
        await writer.append(Event("status"))
    assert len(await world.events(claim.session_id)) == 2


async def test_of_two_writers_with_the_same_generation_one_wins_and_the_log_stays_whole(world: World) -> None:
    lease, claim, one = await world.owned()
    other = world.writer(lease, claim)
    ended = await asyncio.gather(one.append(*numbered(3)), other.append(*numbered(3)), return_exceptions=True)
    assert sorted(type(e).__name__ for e in ended) == ["LeaseLost", "NoneType"]
    assert [seq for seq, _, _ in await world.events(claim.session_id)] == [1, 2, 3]


async def test_a_writer_whose_lease_ran_out_on_its_own_clock_does_not_even_try(world: World) -> None:
    lease, claim, writer = await world.owned()
    lease.give_up()
    with pytest.raises(LeaseLost):
        await writer.append(Event("init"))
    with pytest.raises(LeaseLost):
        writer.delta("partial", claim.run_id, {})
    assert await world.events(claim.session_id) == []


async def test_a_write_that_fails_when_nobody_waits_for_it_any_more_is_asked_for(world: World) -> None:
    """Else Python says, when it has gone, that an error was lost: see conftest.py."""
    lease, claim, writer = await world.owned()
    writing = asyncio.create_task(writer.append(Event("init")))
    await asyncio.sleep(0)
    lease.give_up()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    inner = [task for task in asyncio.all_tasks() if task.get_name() == f"write-{claim.session_id}"]
    if inner:
        await asyncio.wait(inner)
    del inner
    gc.collect()


async def test_a_deleted_session_takes_no_event(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(Event("init"))
    await deletion.delete(world.db, world.tenant_id, claim.session_id)
    with pytest.raises(LeaseLost):
        await writer.append(Event("status"))
    assert await world.events(claim.session_id) == []


async def test_a_zombie_cannot_end_a_run_that_was_taken_from_it(world: World) -> None:
    _, claim, zombie = await world.owned()
    await world.db.pool.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", claim.session_id)
    with pytest.raises(LeaseLost):
        await finish(zombie, claim.run_id, Outcome("succeeded", cost_usd=1.0, num_turns=1), Event("done"))
    run = await world.run(claim.run_id)
    assert (run["status"], run["last_seq"]) == ("running", None)
    assert await world.one("SELECT total_cost_usd FROM sessions WHERE id = $1", claim.session_id) == 0


# --- the end of a run ----------------------------------------------------------------------------------------------


async def test_finish_ends_the_run_with_its_last_event(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(Event("init", {}, claim.run_id))
    outcome = Outcome("succeeded", '{"result":"half a pair \\ud83d"}', None, 0.25, (), 2)
    await finish(writer, claim.run_id, outcome, Event("result", {}, claim.run_id), Event("done", {}, claim.run_id))
    run = await world.run(claim.run_id)
    assert (run["status"], run["first_seq"], run["last_seq"]) == ("succeeded", 1, 3)
    assert run["result"] == {"result": "half a pair \ud83d"}
    assert run["finished_at"] is not None


async def test_finish_adds_a_runs_share_to_the_sessions_totals_once(world: World) -> None:
    lease, claim, writer = await world.owned()
    first = Outcome("succeeded", cost_usd=0.25, usage=[ModelUsage("m", input_tokens=3, output_tokens=1)], num_turns=2)
    await finish(writer, claim.run_id, first, Event("done"))
    await world.queue(claim.session_id)
    again = await world.claim(lease)
    second = Outcome(
        "failed",
        error={"code": "x"},
        cost_usd=0.5,
        usage=[ModelUsage("m", input_tokens=4, cache_read_input_tokens=9)],
        num_turns=1,
    )
    await finish(writer, again.run_id, second, Event("done"))
    row = await world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", claim.session_id)
    assert (row["total_cost_usd"], row["num_turns"]) == (0.75, 3)
    assert row["usage"] == {
        "input_tokens": 7,
        "output_tokens": 1,
        "cache_read_input_tokens": 9,
        "cache_creation_input_tokens": 0,
    }


async def test_finish_that_cannot_append_leaves_run_and_totals_alone(world: World) -> None:
    _, claim, writer = await world.owned()
    writer.last_seq = 7
    with pytest.raises(LeaseLost):
        await finish(writer, claim.run_id, Outcome("succeeded", num_turns=5), Event("done"))
    assert (await world.run(claim.run_id))["status"] == "running"
    assert await world.one("SELECT num_turns FROM sessions WHERE id = $1", claim.session_id) == 0


# --- connections that break ----------------------------------------------------------------------------------------


async def test_appends_are_neither_lost_nor_repeated_when_their_backends_are_terminated(lone_world: World) -> None:
    _, claim, writer = await lone_world.owned()
    broken = 0
    async with administrator(lone_world.settings) as admin:
        for event in numbered(50):
            _, count = await asyncio.gather(writer.append(event), terminate_backends(admin))
            broken += count
    assert broken > 0
    await lone_world.db.pool.expire_connections()
    stored = await lone_world.events(claim.session_id)
    assert [(seq, data["n"]) for seq, _, data in stored] == [(n, n) for n in range(1, 51)]


async def test_totals_are_added_once_when_backends_are_terminated(lone_world: World) -> None:
    _, claim, writer = await lone_world.owned()
    async with administrator(lone_world.settings) as admin:
        for number in range(30):
            used = [ModelUsage(f"model-{number}", input_tokens=2)]
            share = Outcome("succeeded", cost_usd=0.5, usage=used, num_turns=1)
            await admin.execute("UPDATE runs SET status = 'running', finished_at = NULL")  # a run ends only once
            await asyncio.gather(finish(writer, claim.run_id, share, Event("done")), terminate_backends(admin))
    await lone_world.db.pool.expire_connections()
    row = await lone_world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", claim.session_id)
    assert (row["num_turns"], row["usage"]["input_tokens"], row["last_seq"]) == (30, 60, 30)
    assert await lone_world.one("SELECT sum(input_tokens) FROM usage WHERE run_id = $1", claim.run_id) == 60


@pytest.mark.parametrize("ends_run", [False, True], ids=["append", "finish"])
async def test_a_write_that_is_committed_after_its_connection_broke_is_recognised(
    lone_world: World, ends_run: bool
) -> None:
    """The client is cut off during COMMIT and tries again, while the server is still at it."""
    lease, claim, _ = await lone_world.owned()
    async with (
        administrator(lone_world.settings) as admin,
        postgres_proxy(lone_world.settings) as (proxy, through),
        Database.open(through) as db,
    ):
        writer = lone_world.writer(lease, claim, db=db)
        await admin.execute(SLOW_COMMIT)
        await admin.execute("SELECT pg_advisory_lock(1)")
        share = Outcome("succeeded", num_turns=1)
        work = finish(writer, claim.run_id, share, *numbered(2)) if ends_run else writer.append(*numbered(2))
        writing = asyncio.create_task(work)
        await until(lambda: waiting_for_locks(admin, 1))
        assert proxy.cut() > 0
        await until(lambda: waiting_for_locks(admin, 2))  # the abandoned COMMIT, and the repeat behind it
        await admin.execute("SELECT pg_advisory_unlock(1)")
        await asyncio.wait_for(writing, PATIENCE)
        await writer.append(Event("status"))
    stored = [(seq, type_) for seq, type_, _ in await lone_world.events(claim.session_id)]
    assert stored == [(1, "message"), (2, "message"), (3, "status")]
    assert await lone_world.one("SELECT num_turns FROM sessions WHERE id = $1", claim.session_id) == int(ends_run)
    assert (await lone_world.run(claim.run_id))["status"] == ("succeeded" if ends_run else "running")


SLOW_COMMIT = """
CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER pause AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION pause();
"""


async def test_a_vanished_client_does_not_hold_a_sessions_row_for_ever(world: World) -> None:
    assert await world.one("SHOW idle_in_transaction_session_timeout") == "10s"
    async with world.db.connect() as connection:
        shown = await connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout")
        assert shown.scalar_one() == "10s"


async def test_a_repeat_after_losing_the_session_is_fenced(world: World) -> None:
    """What a repeated append finds may be a successor's: that is not taken for its own."""
    lease, claim, _ = await world.owned()
    async with (
        administrator(world.settings) as admin,
        postgres_proxy(world.settings) as (proxy, through),
        Database.open(through) as db,
    ):
        writer = world.writer(lease, claim, db=db)
        await writer.append(Event("init"))
        await proxy.refuse()
        proxy.cut()
        writing = asyncio.create_task(writer.append(*numbered(1)))
        async with admin.transaction():
            await admin.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", claim.session_id)
            await log.append(admin, claim.session_id, claim.generation + 1, 1, [Event("error")])
        await proxy.start()
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(writing, PATIENCE)
    assert [type_ for _, type_, _ in await world.events(claim.session_id)] == ["init", "error"]


async def test_a_write_gives_up_when_the_lease_has_run_out_during_an_outage(world: World) -> None:
    lease, claim, _ = await world.owned(seconds=2)
    async with postgres_proxy(world.settings) as (proxy, through), Database.open(through) as db:
        writer = world.writer(lease, claim, db=db)
        await proxy.refuse()
        proxy.cut()
        with pytest.raises((LeaseLost, Unavailable)):
            await asyncio.wait_for(writer.append(Event("init")), PATIENCE)
        assert lease.is_over()
    assert await world.events(claim.session_id) == []


async def test_an_error_of_the_statement_itself_is_not_repeated(world: World) -> None:
    _, claim, writer = await world.owned()
    unknown_run = uuid4()
    with pytest.raises(Exception, match="events_run_id_fkey"):
        await asyncio.wait_for(writer.append(Event("init", {}, unknown_run)), PATIENCE)
    await writer.append(Event("init", {}, claim.run_id))
    assert [seq for seq, _, _ in await world.events(claim.session_id)] == [1]
