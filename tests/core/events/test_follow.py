"""Following a session: everything that is stored arrives once and in order, whatever Redis does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.exceptions import RedisError

from apps.api.core import tasks
from apps.api.core.codec import decode
from apps.api.core.events import follow
from apps.api.core.events.follow import DELETED, MAILBOX_BYTES, Followers, Mailbox, SessionDeleted
from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.core.events.log import Event, Writer
from apps.api.core.events.place import Deltas, Place
from apps.api.core.events.relay import MAX_COMMAND_BYTES, MAX_PENDING_BYTES, Publisher
from apps.api.core.events.replay import Followed
from apps.api.core.fleet import ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import deletion
from apps.api.core.tasks import Loop
from apps.api.db import Database
from apps.api.dialects.compat.code_server.translate import Lines
from apps.api.redis import Redis, open_redis
from tests.proxy import changed, postgres_proxy, redis_proxy
from tests.world import PATIENCE, Relay, World, core_of, relaying, until


def followed(claim: Claim) -> Followed:
    return Followed(claim.tenant_id, claim.session_id)


START = Position(0)


async def read_to_done(
    relay: Relay, claim: Claim, after: Position = START, *, slowly: bool = False, into: list[Frame] | None = None
) -> list[Frame]:
    """All frames after a position, up to the first `done`."""
    seen = [] if into is None else into
    async with asyncio.timeout(2 * PATIENCE), aclosing(relay.followers.follow(followed(claim), after)) as batches:
        async for batch in batches:
            seen += batch
            if slowly:
                await asyncio.sleep(0.01)
            if any(f.type == "done" for f in batch):
                return seen
    raise AssertionError


def durable(frames: Iterable[Frame]) -> list[int]:
    return [frame.seq for frame in frames if frame.part == 0]


def in_order(frames: list[Frame]) -> bool:
    """Strictly ascending: nothing twice, nothing backwards."""
    positions = [frame.position for frame in frames]
    return positions == sorted(set(positions))


async def live_readers(relay: Relay, writer: Writer, claim: Claim, count: int) -> list[asyncio.Task[list[Frame]]]:
    """Readers that have begun to follow, and have each been told one message: what comes now is live for them."""
    seen: list[list[Frame]] = [[] for _ in range(count)]
    readers = [asyncio.create_task(read_to_done(relay, claim, into=frames)) for frames in seen]
    await until(lambda: relay.followers.count == count)
    await writer.append(Event("message", {}, claim.run_id))
    await until(lambda: all(seen))
    return readers


async def talk(writer: Writer, claim: Claim, count: int, text: str = "word ", deltas: int = 3) -> None:
    """A run of so many messages, each after some deltas, and its end."""
    for n in range(count):
        for _ in range(deltas):
            writer.delta("partial", claim.run_id, {"text": text})
        await writer.append(Event("message", {"n": n, "text": text * deltas}, claim.run_id))
    await writer.append(Event("done", {"status": "succeeded"}, claim.run_id))


# --- replay, then live ---------------------------------------------------------------------------------------------


async def test_readers_that_come_at_any_moment_see_all_events_once_and_in_order(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    talking = asyncio.create_task(talk(writer, claim, 200))
    readers = []
    for n in range(12):
        await until(lambda least=15 * n: writer.last_seq >= least)  # type: ignore[misc]
        after = Position(max(0, writer.last_seq - 7))
        readers.append((after, asyncio.create_task(read_to_done(relay, claim, after, slowly=n % 2 == 0))))
    await talking
    for after, reader in readers:
        frames = await reader
        assert durable(frames) == list(range(after.seq + 1, 202))
        assert in_order(frames)


async def test_a_reader_that_is_there_from_the_start_sees_every_delta(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    [reader] = await live_readers(relay, writer, claim, 1)
    await talk(writer, claim, 50, deltas=4)
    frames = await reader
    assert len([f for f in frames if f.part]) == 200
    assert [f.position for f in frames[1:7]] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1)]
    assert in_order(frames)


async def test_deltas_are_counted_on_over_what_is_stored_between_them(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    [reader] = await live_readers(relay, writer, claim, 1)
    for kind in ("task", "message", "done"):
        writer.delta("partial", claim.run_id, {"text": "word "})
        await writer.append(Event(kind, {}, claim.run_id))
    assert [f.position for f in await reader] == [(1, 0), (1, 1), (2, 0), (2, 2), (3, 0), (3, 1), (4, 0)]


@dataclass
class Counted:
    """A pool of connections, and how many statements went through it."""

    pool: Any
    statements: int = 0

    def __getattr__(self, name: str) -> Any:
        self.statements += 1
        return getattr(self.pool, name)


async def test_a_reader_at_the_end_of_a_log_asks_the_database_once_and_then_hears_all(
    world: World, relay: Relay
) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    await writer.append(*(Event("message", {}, claim.run_id) for _ in range(4)))
    await relay.publisher.flushed(PATIENCE)
    counted = Counted(world.db.pool)
    followers = Followers(replace(world.db, pool=counted), world.redis, relay.subscriptions)
    seen: list[Frame] = []
    reader = asyncio.create_task(read_to_done(replace(relay, followers=followers), claim, Position(4), into=seen))
    await until(lambda: counted.statements > 0)
    await _round_trip(world, relay)
    writer.delta("partial", claim.run_id, {"text": "word "})
    await until(lambda: len(seen) == 1)
    await talk(writer, claim, 20)
    await reader
    assert durable(seen) == list(range(5, 26))
    assert counted.statements == 1


async def test_a_reader_resumes_in_the_middle_of_deltas(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    await talk(writer, claim, 3, deltas=5)
    await relay.publisher.flushed()
    frames = await read_to_done(relay, claim, Position(1, 3))
    assert [f.position for f in frames][:4] == [(1, 4), (1, 5), (2, 0), (2, 1)]


async def test_what_is_read_live_is_byte_for_byte_what_is_replayed(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    live = asyncio.create_task(read_to_done(relay, claim))
    await until(lambda: relay.followers.count == 1)
    await talk(writer, claim, 5, text="NUL \x00, half a pair \ud83d\n\n", deltas=1)
    await live
    await world.redis.client.delete(world.redis.keys.stream(world.tenant_id, claim.session_id))
    replayed = await read_to_done(relay, claim)
    assert [f.raw for f in live.result() if f.part == 0] == [f.raw for f in replayed]


@pytest.mark.parametrize("only_deltas", [False, True])
@pytest.mark.parametrize("held", ["requests", "answers"])
async def test_what_arrives_during_a_replay_is_neither_lost_nor_repeated(
    world: World, held: str, only_deltas: bool
) -> None:
    """Either the replay holds it already, or only the mailbox does: the reader cannot know which."""
    async with (
        redis_proxy(world.settings) as (proxy, through),
        open_redis(through) as slow,
        relaying(world.db, world.redis) as relay,
    ):
        followers = Followers(world.db, slow, relay.subscriptions)
        _, claim, writer = await world.owned(relay.publisher)
        await writer.append(Event("init", {}, claim.run_id))
        await relay.publisher.flushed()
        await slow.client.ping()  # so that it is the replay itself which is held back
        getattr(proxy, held).clear()
        seen: list[Frame] = []
        reader = asyncio.create_task(read_to_done(replace(relay, followers=followers), claim, into=seen))
        await until(lambda: proxy.held > 0)
        for n in range(3):
            writer.delta("partial", claim.run_id, {"n": n})
        if not only_deltas:
            await writer.append(Event("message", {}, claim.run_id))
            writer.delta("partial", claim.run_id, {"n": 3})
        await relay.publisher.flushed()
        await _round_trip(world, relay)
        getattr(proxy, held).set()
        newest = (1, 3) if only_deltas else (2, 1)
        await until(lambda: newest in [frame.position for frame in seen])
        await writer.append(Event("done", {}, claim.run_id))
        await reader
    assert durable(seen) == ([1, 2] if only_deltas else [1, 2, 3])
    assert in_order(seen)


async def _round_trip(world: World, relay: Relay) -> None:
    """Whatever was published before has reached the subscriptions after this."""
    bell = asyncio.Event()

    class Ear:
        def deliver(self, payload: bytes) -> None:
            bell.set()

        def gap(self) -> None:
            pass

    await relay.subscriptions.subscribe("bell", Ear())
    relay.publisher.notify("bell", "rings")
    await asyncio.wait_for(bell.wait(), PATIENCE)


async def test_a_listener_that_cannot_read_a_message_is_told_of_a_gap_and_hears_the_next(relay: Relay) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    class Ear:
        def deliver(self, payload: bytes) -> None:
            told.put_nowait(f"heard {int(payload)}")

        def gap(self) -> None:
            told.put_nowait("gap")

    await relay.subscriptions.subscribe("numbers", Ear())
    async with asyncio.timeout(PATIENCE):
        assert await told.get() == "gap"  # it is heard from here on
        for message in ("1", "what is this", "2"):
            relay.publisher.notify("numbers", message)
        assert [await told.get() for _ in range(3)] == ["heard 1", "gap", "heard 2"]


async def test_readers_of_one_run_see_only_its_events(world: World, relay: Relay) -> None:
    lease, claim, writer = await world.owned(relay.publisher)
    await talk(writer, claim, 3)
    await world.db.pool.execute("UPDATE runs SET status = 'succeeded', finished_at = now() WHERE id = $1", claim.run_id)
    run = await world.queue(claim.session_id)
    second = await world.claim(lease)
    seen: list[Frame] = []
    follow = relay.followers.follow(followed(claim), START, run_id=run.run_id)
    async with asyncio.timeout(PATIENCE), aclosing(follow) as batches:
        talking = asyncio.create_task(talk(writer, second, 3))
        async for batch in batches:
            seen += batch
            if any(f.type == "done" for f in batch):
                break
        await talking
    assert {f.run_id for f in seen} == {str(run.run_id)}
    assert durable(seen) == [5, 6, 7, 8]


async def test_silence_is_told_so_that_a_stream_can_keep_its_client_alive(world: World, relay: Relay) -> None:
    _, claim, _ = await world.owned(relay.publisher)
    async with aclosing(relay.followers.follow(followed(claim), START, tick=0.01)) as batches:
        assert await asyncio.wait_for(anext(batches), PATIENCE) == []
        assert await asyncio.wait_for(anext(batches), PATIENCE) == []


async def test_a_run_that_waits_behind_a_talkative_one_is_silent_and_not_dead(world: World, relay: Relay) -> None:
    """Its client sees nothing of the other run's events, and needs to be kept alive all the same."""
    _, claim, writer = await world.owned(relay.publisher)
    waiting = await world.queue(claim.session_id)

    async def talk_without_end() -> None:
        while True:
            writer.delta("partial", claim.run_id, {"text": "word "})
            await asyncio.sleep(0.001)

    talking = asyncio.create_task(talk_without_end())
    follow = relay.followers.follow(followed(claim), START, run_id=waiting.run_id, tick=0.05)
    async with asyncio.timeout(PATIENCE), aclosing(follow) as batches:
        assert [await anext(batches) for _ in range(3)] == [[], [], []]
    await tasks.end(talking)


async def test_another_tenant_sees_nothing_of_a_session(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    stranger = Followed(await world.other_tenant(), claim.session_id)
    async with aclosing(relay.followers.follow(stranger, START, tick=0.05)) as batches:
        await talk(writer, claim, 3)
        await relay.publisher.flushed()
        assert [await asyncio.wait_for(anext(batches), PATIENCE) for _ in range(3)] == [[], [], []]


async def test_the_end_that_a_reaper_writes_reaches_who_follows_the_dead_owner(world: World, relay: Relay) -> None:
    lease, claim, writer = await world.owned(relay.publisher)
    reader = asyncio.create_task(read_to_done(relay, claim))
    await writer.append(Event("init", {}, claim.run_id))
    writer.delta("partial", claim.run_id, {"text": "half a wo"})
    await world.expire(lease)
    await ownership.reap(core_of(world, relay), Loop("reap"))
    frames = await reader
    assert [f.type for f in frames if f.part == 0] == ["init", "error", "done"]


# --- repair --------------------------------------------------------------------------------------------------------


async def test_events_that_were_never_published_come_before_the_next_that_is(world: World, relay: Relay) -> None:
    lease, claim, silent = await world.owned()
    reader = asyncio.create_task(read_to_done(relay, claim))
    await until(lambda: relay.followers.count == 1)
    await silent.append(*(Event("message", {"n": n}, claim.run_id) for n in range(5)))
    loud = world.writer(lease, claim, relay.publisher)
    loud.last_seq = silent.last_seq
    await talk(loud, claim, 2)
    frames = await reader
    assert durable(frames) == list(range(1, 9))
    assert in_order(frames)


async def test_a_last_event_whose_publication_was_lost_is_found_by_the_check(world: World) -> None:
    async with relaying(world.db, world.redis, check_interval=0.05) as relay:
        _, claim, silent = await world.owned()
        reader = asyncio.create_task(read_to_done(relay, claim))
        await until(lambda: relay.followers.count == 1)
        await talk(silent, claim, 3)
        assert durable(await reader) == [1, 2, 3, 4]


@pytest.mark.parametrize("lost", [["1-0"], ["2-0"], ["2-0", "3-0"], ["4-0"]], ids=",".join)
async def test_a_hole_in_the_stream_is_filled_from_the_database(world: World, relay: Relay, lost: list[str]) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    await talk(writer, claim, 4, deltas=2)
    await relay.publisher.flushed()
    stream = world.redis.keys.stream(world.tenant_id, claim.session_id)
    assert await world.redis.client.xdel(stream, *lost) == len(lost)
    frames = await read_to_done(relay, claim)
    assert durable(frames) == [1, 2, 3, 4, 5]
    assert in_order(frames)


async def test_a_trimmed_stream_is_continued_from_the_database(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    await talk(writer, claim, 30)
    await relay.publisher.flushed()
    stream = world.redis.keys.stream(world.tenant_id, claim.session_id)
    await world.redis.client.xtrim(stream, maxlen=10, approximate=False)
    frames = await read_to_done(relay, claim, Position(2))
    assert durable(frames) == list(range(3, 32))
    assert in_order(frames)


async def test_a_history_of_many_batches_is_replayed_whole(world: World, relay: Relay) -> None:
    _, claim, silent = await world.owned()
    await silent.append(*(Event("message", {"n": n}, claim.run_id) for n in range(1700)))
    await silent.append(Event("done", {}, claim.run_id))
    assert durable(await read_to_done(relay, claim)) == list(range(1, 1702))


async def test_a_reader_that_falls_behind_its_mailbox_misses_nothing(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    text = "x" * (MAILBOX_BYTES // 8)
    seen: list[Frame] = []
    async with asyncio.timeout(PATIENCE), aclosing(relay.followers.follow(followed(claim), START)) as batches:
        await writer.append(Event("init", {}, claim.run_id))
        seen += await anext(batches)
        talking = asyncio.create_task(talk(writer, claim, 20, text=text, deltas=1))
        await talking  # four times what a mailbox holds, while the reader looks elsewhere
        await relay.publisher.flushed(PATIENCE)
        while not any(f.type == "done" for f in seen):
            seen += await anext(batches)
    assert durable(seen) == list(range(1, 23))
    assert in_order(seen)


def test_a_mailbox_holds_a_bounded_number_of_bytes_and_then_asks_for_a_replay() -> None:
    mailbox = Mailbox()
    mailbox.catch_up()
    big = Frame.build(Position(1), "message", b"x" * (MAILBOX_BYTES // 4))
    for _ in range(3):
        mailbox.put([big])
    assert (len(mailbox.take()), mailbox.behind) == (3, False)
    for _ in range(4):
        mailbox.put([big])
    assert mailbox.behind
    mailbox.put([big])
    assert mailbox.take() == []


async def test_readers_survive_the_loss_of_the_subscribing_connection(world: World) -> None:
    named = changed(world.settings, redis_url=f"{world.settings.redis_url.get_secret_value()}&client_name=victim")
    async with open_redis(named) as redis, relaying(world.db, redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        reader = asyncio.create_task(read_to_done(relay, claim))
        await until(lambda: relay.followers.count == 1)
        killed = 0
        for _ in range(8):
            await until(lambda: relay.subscriptions.connected)
            for client in await world.redis.client.client_list():
                if client["name"] == "victim" and int(client["sub"]) > 0:
                    killed += await world.redis.client.client_kill_filter(_id=client["id"])
            await writer.append(*(Event("message", {"n": n}, claim.run_id) for n in range(3)))
        await writer.append(Event("done", {}, claim.run_id))
        frames = await reader
    assert killed >= 3
    assert durable(frames) == list(range(1, 26))
    assert in_order(frames)


async def test_readers_survive_the_loss_of_every_redis_connection(world: World) -> None:
    async with (
        redis_proxy(world.settings) as (proxy, through),
        open_redis(through) as redis,
        relaying(world.db, redis, check_interval=0.1) as relay,
    ):
        _, claim, writer = await world.owned(relay.publisher)
        reader = asyncio.create_task(read_to_done(relay, claim))
        await until(lambda: relay.subscriptions.connected)
        for n in range(10):
            await writer.append(Event("message", {"n": n}, claim.run_id))
            if n % 3 == 0:
                proxy.cut()
        await writer.append(Event("done", {}, claim.run_id))
        frames = await reader
    assert durable(frames) == list(range(1, 12))
    assert in_order(frames)


async def test_events_written_while_redis_is_away_arrive_and_live_ones_again_when_it_is_back(world: World) -> None:
    async with (
        redis_proxy(world.settings) as (proxy, through),
        open_redis(through) as redis,
        relaying(world.db, redis) as relay,
    ):
        _, claim, writer = await world.owned(relay.publisher)
        seen: list[Frame] = []
        reader = asyncio.create_task(read_to_done(relay, claim, into=seen))
        await until(lambda: relay.subscriptions.connected and relay.followers.count == 1)
        await proxy.refuse()
        proxy.cut()
        await until(lambda: not relay.subscriptions.connected)
        await writer.append(Event("message", {}, claim.run_id))
        await until(lambda: durable(seen) == [1])
        await proxy.start()
        await until(lambda: _a_delta_arrives(writer, claim, seen))
        await writer.append(Event("done", {}, claim.run_id))
        await reader
    assert durable(seen) == [1, 2]
    assert in_order(seen)


def _a_delta_arrives(writer: Writer, claim: Claim, seen: list[Frame]) -> bool:
    writer.delta("partial", claim.run_id, {"text": "x"})
    return any(frame.part for frame in seen)


async def test_without_any_redis_everything_durable_arrives(world: World) -> None:
    nowhere = changed(world.settings, redis_url="redis://127.0.0.1:1/0")
    async with open_redis(nowhere) as redis, relaying(world.db, redis) as relay:
        with pytest.raises(RedisError):
            await redis.client.ping()
        _, claim, writer = await world.owned(relay.publisher)
        reader = asyncio.create_task(read_to_done(relay, claim))
        await talk(writer, claim, 10)
        frames = await reader
    assert durable(frames) == list(range(1, 12))


async def test_readers_survive_an_outage_of_the_database(world: World) -> None:
    async with (
        postgres_proxy(world.settings) as (proxy, through),
        Database.open(through) as db,
        relaying(db, world.redis) as relay,
    ):
        _, claim, silent = await world.owned()
        await silent.append(Event("init", {}, claim.run_id))
        await proxy.refuse()
        proxy.cut()
        async with asyncio.timeout(PATIENCE), aclosing(relay.followers.follow(followed(claim), START)) as batches:
            assert await anext(batches) == []  # told as silence, not as an end
            await proxy.start()
            seen: list[Frame] = []
            while not seen:
                seen += await anext(batches)
    assert durable(seen) == [1]


# --- deletion ------------------------------------------------------------------------------------------------------


async def follow_until_deleted(relay: Relay, claim: Claim) -> None:
    async with asyncio.timeout(PATIENCE), aclosing(relay.followers.follow(followed(claim), START)) as batches:
        async for _ in batches:
            continue


async def test_a_deletion_that_is_published_ends_the_readers(world: World, relay: Relay) -> None:
    _, claim, _ = await world.owned(relay.publisher)
    reader = asyncio.create_task(follow_until_deleted(relay, claim))
    await until(lambda: relay.followers.count == 1)
    await deletion.delete(world.db, world.tenant_id, claim.session_id)
    relay.publisher.notify(world.redis.keys.channel(world.tenant_id, claim.session_id), DELETED)
    with pytest.raises(SessionDeleted):
        await reader
    assert relay.followers.count == 0


async def test_a_deletion_that_nobody_published_ends_the_readers_too(world: World) -> None:
    async with relaying(world.db, world.redis, check_interval=0.05) as relay:
        _, claim, _ = await world.owned(relay.publisher)
        reader = asyncio.create_task(follow_until_deleted(relay, claim))
        await until(lambda: relay.followers.count == 1)
        await deletion.delete(world.db, world.tenant_id, claim.session_id)
        with pytest.raises(SessionDeleted):
            await reader


# --- coming and going ----------------------------------------------------------------------------------------------


async def subscribers(world: World, claim: Claim) -> int:
    [(_, count)] = await world.redis.client.pubsub_numsub(world.redis.keys.channel(claim.tenant_id, claim.session_id))
    return int(count)


async def test_readers_share_one_subscription_and_the_last_one_ends_it(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    leaving, staying = await live_readers(relay, writer, claim, 2)
    assert await subscribers(world, claim) == 1
    await asyncio.wait_for(tasks.end(leaving), PATIENCE)
    assert relay.followers.count == 1
    await talk(writer, claim, 3)
    frames = await staying
    assert len(frames) == 14  # deltas too: the one that left did not take the subscription with it
    assert relay.followers.count == 0
    await until(lambda: nobody_subscribes(world, claim))


async def nobody_subscribes(world: World, claim: Claim) -> bool:
    return await subscribers(world, claim) == 0


async def test_readers_that_come_and_go_at_once_always_get_what_is_live(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    for n in range(30):
        stays = asyncio.create_task(_next_live(relay, claim, Position(n)))
        await asyncio.sleep(0)
        async with relay.followers.mailbox(followed(claim)):
            pass
        await writer.append(Event("message", {"n": n}, claim.run_id))
        assert [f.seq for f in await stays] == [n + 1]
    assert relay.followers.count == 0


async def _next_live(relay: Relay, claim: Claim, after: Position) -> list[Frame]:
    async with asyncio.timeout(PATIENCE), aclosing(relay.followers.follow(followed(claim), after)) as batches:
        async for batch in batches:
            if batch:
                return batch
    raise AssertionError


@pytest.mark.parametrize("steps", range(6))
async def test_a_reader_that_is_cancelled_just_when_something_arrives_still_leaves(steps: int) -> None:
    mailbox = Mailbox()
    mailbox.catch_up()
    waiting = asyncio.create_task(mailbox.wait(PATIENCE))
    for _ in range(5):
        await asyncio.sleep(0)
    mailbox.put([Frame.build(Position(1), "message", b"{}")])
    for _ in range(steps):
        await asyncio.sleep(0)
    if waiting.cancel():
        await asyncio.wait({waiting})
        assert waiting.cancelled()
    else:
        assert waiting.result() is True


async def test_a_reader_that_was_told_something_waits_its_whole_time_again() -> None:
    mailbox = Mailbox()
    mailbox.catch_up()
    async with asyncio.timeout(PATIENCE):
        waiting = asyncio.create_task(mailbox.wait(PATIENCE))
        await asyncio.sleep(0)
        mailbox._look()  # the timer of an earlier wait
        await asyncio.sleep(0)
        assert not waiting.done()
        mailbox.put([Frame.build(Position(1), "message", b"{}")])
        assert await waiting
        mailbox.close()
        assert [await mailbox.wait(0.01) for _ in range(3)] == [False] * 3
        waiting = asyncio.create_task(mailbox.wait(0.01))
        await asyncio.sleep(0)
        mailbox._until += 0.01  # as of a wait that began later
        assert not await waiting
    mailbox.close()


async def test_of_two_readers_of_a_session_the_one_that_has_missed_something_is_found(
    world: World, relay: Relay
) -> None:
    _, claim, silent = await world.owned()
    await silent.append(Event("message", {}, claim.run_id))
    await world.db.pool.execute("UPDATE sessions SET last_active_at = now() - interval '1 minute'")
    mailbox = partial(relay.followers.mailbox, followed(claim))
    async with mailbox() as first, mailbox() as second, mailbox() as third:
        for each, seq, generation in ((first, 1, 0), (second, 0, 0), (third, 1, -5)):
            each.catch_up()
            each.seq, each.generation = seq, silent.generation + generation
        await relay.followers.check(Loop("check"))
        assert [each.behind for each in (first, second, third)] == [False, True, True]


# --- publishing ----------------------------------------------------------------------------------------------------


async def test_the_stream_of_a_session_expires_by_itself(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned(relay.publisher)
    stream = world.redis.keys.stream(world.tenant_id, claim.session_id)
    await writer.append(Event("init", {}, claim.run_id))
    await relay.publisher.flushed()
    assert 60 < await world.redis.client.ttl(stream) <= 600
    await writer.append(Event("done", {}, claim.run_id))
    await relay.publisher.flushed()
    assert 0 < await world.redis.client.ttl(stream) <= 60


async def test_what_waits_for_redis_is_bounded_and_what_is_dropped_is_counted(world: World) -> None:
    publisher = Publisher(world.redis)  # not running: nothing is taken from it
    frame = Frame.build(Position(1), "message", b"x" * (MAX_PENDING_BYTES // 4))
    for n in range(4):
        publisher.send(world.redis.keys.feed(world.tenant_id, UUID(int=n)), [frame])
    assert publisher.dropped == 4
    publisher.send(world.redis.keys.feed(world.tenant_id, UUID(int=5)), [frame])
    assert publisher.dropped == 4


async def test_waiting_for_a_flush_ends_although_redis_is_away(world: World) -> None:
    nowhere = changed(world.settings, redis_url="redis://127.0.0.1:1/0")
    async with open_redis(nowhere) as redis, relaying(world.db, redis) as relay:
        relay.publisher.notify("channel", "hello")
        async with asyncio.timeout(PATIENCE):
            await relay.publisher.flushed(0.05)


async def test_the_relay_ends_when_told_to_whatever_it_is_doing(world: World) -> None:
    """redis-py swallows a cancellation that comes just as something was sent; a loop must not survive that."""

    async def started_and_ended(steps: int, redis: Redis) -> None:
        async with relaying(world.db, redis) as relay:
            await until(lambda: relay.subscriptions.connected)
            relay.publisher.notify("somewhere", "first")
            await relay.publisher.flushed()
            async with relay.followers.mailbox(Followed(world.tenant_id, world.tenant_id)):
                relay.publisher.notify("somewhere", "second")
            for _ in range(steps):
                await asyncio.sleep(0)

    named = changed(world.settings, redis_url=f"{world.settings.redis_url.get_secret_value()}&client_name=leaving")
    async with open_redis(named) as redis:
        await asyncio.gather(*(started_and_ended(steps, redis) for steps in range(8)))
        await until(lambda: _nobody_is_called(world, b"leaving"))


async def _nobody_is_called(world: World, name: bytes) -> bool:
    return all(client["name"] != name.decode() for client in await world.redis.client.client_list())


async def test_a_refused_entry_does_not_hold_up_what_follows(world: World, relay: Relay) -> None:
    """A zombie's entry is older than what its successor wrote: Redis refuses it, and goes on."""
    _, claim, writer = await world.owned(relay.publisher)
    stream = world.redis.keys.stream(world.tenant_id, claim.session_id)
    await world.redis.client.xadd(stream, {"f": b"x"}, id="5-0")
    await writer.append(Event("message", {}, claim.run_id))
    relay.publisher.command("SET", "after", "all")
    await relay.publisher.flushed()
    assert await world.redis.client.get("after") == b"all"
    await relay.publisher.flushed()
    assert not await world.redis.client.exists(stream)  # a copy of who knows what


async def test_a_command_whose_connection_breaks_is_sent_again(world: World) -> None:
    async with (
        redis_proxy(world.settings) as (proxy, through),
        open_redis(through) as redis,
        relaying(world.db, redis) as relay,
    ):
        relay.publisher.command("SET", "first", "1")
        await relay.publisher.flushed(PATIENCE)
        held = proxy.held
        proxy.requests.clear()
        relay.publisher.command("SET", "second", "2")
        await until(lambda: proxy.held > held)
        proxy.cut()  # what was written is lost on its way: what is held back there stays there
        proxy.requests = asyncio.Event()
        proxy.requests.set()
        await until(lambda: _holds(world, "second", b"2"))


async def _holds(world: World, key: str, value: bytes) -> bool:
    return bool(await world.redis.client.get(key) == value)


def test_commands_that_wait_for_redis_are_bounded_in_bytes_and_the_newest_are_kept(world: World) -> None:
    publisher = Publisher(world.redis)  # not running: nothing is taken from it
    for n in range(9):
        publisher.command("SET", f"key-{n}", b"x" * (MAX_COMMAND_BYTES // 4))
    waiting = publisher._commands
    assert sum(map(len, waiting)) <= MAX_COMMAND_BYTES
    assert b"key-8" in waiting[-1]


async def test_an_owner_that_is_cut_off_from_redis_is_followed_by_one_check(world: World, relay: Relay) -> None:
    """The readers' own instance has Redis, so nothing tells it that something is missing."""
    _, claim, silent = await world.owned()
    reader = asyncio.create_task(read_to_done(relay, claim))
    await until(lambda: relay.followers.count == 1)
    await until(lambda: relay.subscriptions.connected)
    await talk(silent, claim, 2)
    await world.db.pool.execute(
        "UPDATE sessions SET last_active_at = now() - make_interval(secs => $2) WHERE id = $1",
        claim.session_id,
        follow.ARRIVAL,
    )
    await relay.followers.check(Loop("check"))
    [topic] = relay.followers._topics.values()
    assert [mailbox.behind for mailbox in topic.mailboxes] == [True]  # it has not waited for a second one
    assert durable(await reader) == [1, 2, 3]
    assert follow.CHECK_INTERVAL + follow.ARRIVAL <= 2


async def test_what_was_stored_just_now_is_on_its_way_also_where_redis_has_only_just_come(
    world: World, relay: Relay
) -> None:
    """Replayed from the database it would come without the deltas before it."""
    _, claim, silent = await world.owned()
    await until(lambda: relay.subscriptions.hears)
    reader = asyncio.create_task(read_to_done(relay, claim))
    await until(lambda: relay.followers.count == 1)
    [topic] = relay.followers._topics.values()
    [mailbox] = topic.mailboxes
    await until(lambda: not mailbox.behind)
    await talk(silent, claim, 2)
    await relay.followers.check(Loop("check"))
    assert not mailbox.behind
    await relay.followers.check(Loop("check"))  # what was there at the last one
    assert mailbox.behind
    assert durable(await reader) == [1, 2, 3]


# --- deltas that are put together ----------------------------------------------------------------------------------


def piece(seq: int, part: int, text: str, parent: str | None = None) -> Frame:
    return _frame(Position(seq, part), "partial", text=text, parent_tool_use_id=parent)


def whole(seq: int, text: str, parent: str | None = None, role: str = "assistant") -> Frame:
    return _frame(Position(seq), "message", text=text, role=role, parent_tool_use_id=parent)


def task(seq: int) -> Frame:
    return _frame(Position(seq), "task", text="t")


def _frame(position: Position, type_: str, **fields: object) -> Frame:
    return Frame.build(position, type_, event_data(uuid4(), None, position.seq, datetime.now(UTC), fields))


GAPS: dict[str, tuple[list[Frame], list[str]]] = {
    # what comes, and what of it is told
    "none": ([piece(1, 1, "a"), piece(1, 2, "b"), whole(2, "ab"), piece(2, 1, "c")], ["a", "b", "ab", "c"]),
    "inside": (
        [piece(1, 1, "a"), piece(1, 3, "c"), piece(1, 4, "d"), whole(2, "abcd"), piece(2, 1, "e")],
        ["a", "abcd", "e"],
    ),
    "before the first": ([piece(1, 4, "d"), whole(2, "abcd"), piece(2, 1, "e")], ["abcd", "e"]),
    "after the message": ([piece(1, 1, "a"), whole(2, "a"), piece(2, 3, "d"), whole(3, "bcd")], ["a", "a", "bcd"]),
    "then another's message": (
        [
            piece(1, 1, "a"),
            piece(1, 3, "c"),
            whole(2, "x", "s"),
            piece(2, 1, "d"),
            piece(2, 2, "y", "s"),
            whole(3, "A"),
        ],
        ["a", "x", "y", "A"],
    ),
    "then something else": (
        [piece(1, 1, "a"), piece(1, 3, "c"), whole(2, "p", role="user"), task(3), piece(3, 1, "d")],
        ["a", "p", "t"],
    ),
    "before something else": (
        [piece(1, 1, "a"), task(2), piece(2, 3, "c"), piece(2, 4, "d"), whole(3, "abcd"), piece(3, 1, "e")],
        ["a", "t", "abcd", "e"],
    ),
    "none around something else": (
        [piece(1, 1, "a"), task(2), piece(2, 2, "b"), whole(3, "ab"), piece(3, 1, "c")],
        ["a", "t", "b", "ab", "c"],
    ),
    "then the end": ([piece(1, 2, "b"), _frame(Position(2), "done", text="!"), piece(2, 1, "a")], ["!", "a"]),
}


@pytest.mark.parametrize(("come", "told"), GAPS.values(), ids=GAPS)
def test_after_a_hole_no_delta_is_told_until_its_message_is(come: list[Frame], told: list[str]) -> None:
    place = Place(Position(1), Deltas())
    assert [decode(f.data)["text"] for f in place.move(come, lambda: None)] == told
    assert place.position == come[-1].position
    assert Place(Position(1)).move(come, lambda: None) == come


async def test_who_puts_deltas_together_has_the_text_once_after_redis_was_away(world: World) -> None:
    async with (
        redis_proxy(world.settings) as (proxy, through),
        open_redis(through) as redis,
        relaying(world.db, redis, check_interval=0.1) as relay,
    ):
        _, claim, writer = await world.owned(relay.publisher)
        lines, said = Lines(), [b""]

        async def read() -> None:
            batches = relay.followers.follow(followed(claim), START, gapless=True)
            async with aclosing(batches):
                async for batch in batches:
                    said[0] += b"".join(map(lines.of, batch))
                    if any(f.type == "done" for f in batch):
                        return

        def say(word: str) -> None:
            delta = {"index": 0, "delta": {"type": "text", "text": word}, "parent_tool_use_id": None}
            writer.delta("partial", claim.run_id, delta)

        reader = asyncio.create_task(read())
        await until(lambda: relay.subscriptions.connected and relay.followers.count == 1)
        say("one ")
        await until(lambda: b"one " in said[0])
        await proxy.refuse()
        proxy.cut()
        await until(lambda: not relay.subscriptions.connected)
        say("two ")
        await writer.append(Event("task", {}, claim.run_id))  # stored between two deltas of one message
        await proxy.start()
        await until(lambda: relay.subscriptions.connected)
        await relay.publisher.flushed(PATIENCE)
        words = ["one ", "two "]
        for n in range(20):
            words.append(f"{n} ")
            say(words[-1])
            await relay.publisher.flushed(PATIENCE)
        content = [{"type": "text", "text": "".join(words)}]
        message = {"role": "assistant", "content": content, "parent_tool_use_id": None}
        await writer.append(Event("message", message, claim.run_id), Event("done", {}, claim.run_id))
        async with asyncio.timeout(PATIENCE):
            await reader
    told = [json.loads(line.removeprefix("data: ")) for line in said[0].decode().split("\n\n") if line]
    assert "".join(line["content"] for line in told if line["type"] == "text") == "".join(words)
