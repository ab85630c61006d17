"""A database that goes back: a standby that lagged was promoted, or a backup restored. What it has is the truth.

Redis and readers still have what it has lost, under numbers that it gives out again.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from apps.api.core import tasks
from apps.api.core.events.follow import RunLost
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.log import Event, Writer
from apps.api.core.events.replay import Followed
from apps.api.core.fleet import ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import sessions
from apps.api.core.tasks import Loop
from apps.api.errors import LeaseLost
from tests.world import PATIENCE, Relay, World, until

START = Position(0)


def followed(claim: Claim) -> Followed:
    return Followed(claim.tenant_id, claim.session_id)


async def say(writer: Writer, claim: Claim, count: int) -> None:
    for n in range(count):
        writer.delta("partial", claim.run_id, {"text": "word "})
        await writer.append(Event("message", {"n": n}, claim.run_id))


async def told_eight(world: World, relay: Relay) -> tuple[Claim, Writer]:
    """A run of eight events, all of them in Redis."""
    _, claim, writer = await world.owned(relay.publisher)
    await say(writer, claim, 8)
    await relay.publisher.flushed(PATIENCE)
    return claim, writer


async def lose(world: World, claim: Claim, kept: int, generation: int | None = None) -> None:
    """The database forgets all but the first events; nobody owns the session, and its run is over."""
    pool = world.db.pool
    await pool.execute("DELETE FROM events WHERE session_id = $1 AND seq > $2", claim.session_id, kept)
    await pool.execute("UPDATE runs SET status = 'failed', finished_at = now() WHERE id = $1", claim.run_id)
    await pool.execute(
        "UPDATE sessions SET last_seq = $2, owner_id = NULL, generation = coalesce($3, generation) WHERE id = $1",
        claim.session_id,
        kept,
        generation,
    )


async def next_owner(world: World, relay: Relay, claim: Claim) -> tuple[Claim, Writer]:
    await world.queue(claim.session_id)
    lease = await world.instance()
    claim = await world.claim(lease)
    return claim, world.writer(lease, claim, relay.publisher)


class Reader:
    """Somebody who follows a session, and all that was told."""

    def __init__(self, relay: Relay, claim: Claim, after: Position = START) -> None:
        self.seen: list[Frame] = []
        self.has_looked = False
        self._batches = relay.followers.follow(followed(claim), after, tick=0.05)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._batches) as batches:
            async for batch in batches:
                self.seen += batch
                self.has_looked = self.has_looked or not batch
                if any(frame.type == "done" for frame in batch):
                    return

    @property
    def durable(self) -> list[tuple[str, int]]:
        return [(frame.type, frame.seq) for frame in self.seen if not frame.part]


async def stored(world: World, claim: Claim, after: int) -> list[bytes]:
    rows = await world.db.pool.fetch(
        "SELECT data FROM events WHERE session_id = $1 AND seq > $2 ORDER BY seq", claim.session_id, after
    )
    return [row["data"].encode() for row in rows]


@pytest.mark.parametrize("fewer", [True, False], ids=["fewer events", "more events"])
async def test_open_readers_are_told_and_then_exactly_what_is_stored(world: World, relay: Relay, fewer: bool) -> None:
    claim, _ = await told_eight(world, relay)
    reader = Reader(relay, claim)
    await until(lambda: len(reader.durable) == 8)
    await lose(world, claim, 5)
    second, writer = await next_owner(world, relay, claim)
    await say(writer, second, 1 if fewer else 7)
    await writer.append(Event("done", {}, second.run_id))
    async with asyncio.timeout(PATIENCE):
        await reader.task
    told = reader.durable[8:]
    assert told[0] == ("resync", 5)
    data = [frame.data for frame in reader.seen if not frame.part]
    assert data[9:] == await stored(world, claim, 5)


async def test_open_readers_are_told_by_the_check_where_nothing_new_is_written(world: World, relay: Relay) -> None:
    claim, _ = await told_eight(world, relay)
    reader = Reader(relay, claim)
    await until(lambda: len(reader.durable) == 8)
    await lose(world, claim, 5)
    await relay.followers.check(Loop("check"))
    await until(lambda: reader.durable[8:] == [("resync", 5)])
    await tasks.end(reader.task)


async def test_open_readers_are_told_by_the_check_where_the_same_numbers_came_again(world: World, relay: Relay) -> None:
    claim, _ = await told_eight(world, relay)
    reader = Reader(relay, claim)
    await until(lambda: len(reader.durable) == 8)
    await lose(world, claim, 5)
    await world.queue(claim.session_id)
    lease = await world.instance()
    second = await world.claim(lease)
    await say(world.writer(lease, second), second, 3)  # of which nothing is published
    await relay.followers.check(Loop("check"))
    await until(lambda: len(reader.durable) == 12)
    assert [frame.data for frame in reader.seen if not frame.part][9:] == await stored(world, claim, 5)
    await tasks.end(reader.task)


@pytest.mark.parametrize("moved", [0, 1], ids=["same generation", "another generation"])
@pytest.mark.parametrize("after", [0, 3, 5])
async def test_new_readers_see_what_is_stored_and_not_what_redis_still_has(
    world: World, relay: Relay, after: int, moved: int
) -> None:
    claim, _ = await told_eight(world, relay)
    await lose(world, claim, 5, claim.generation + moved)
    early = Reader(relay, claim, Position(after))
    await until(lambda: early.has_looked and len(early.durable) == 5 - after)
    second, writer = await next_owner(world, relay, claim)
    await say(writer, second, 6)
    late = Reader(relay, claim, Position(after))
    await until(lambda: len(early.durable) == len(late.durable) == 11 - after)
    await writer.append(Event("done", {}, second.run_id))
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(early.task, late.task)
    for reader in (early, late):
        assert [frame.data for frame in reader.seen if not frame.part] == await stored(world, claim, after)
    assert await relay.followers.start(followed(claim), Position(7), 12) == Position(5)


async def test_the_events_of_the_next_run_alone_are_its_own(world: World, relay: Relay) -> None:
    claim, _ = await told_eight(world, relay)
    await lose(world, claim, 0)
    second, writer = await next_owner(world, relay, claim)
    await say(writer, second, 2)
    await writer.append(Event("done", {}, second.run_id))
    frames: list[Frame] = []
    async with (
        asyncio.timeout(PATIENCE),
        aclosing(relay.followers.follow(followed(claim), START, run_id=second.run_id)) as batches,
    ):
        while not any(frame.type == "done" for frame in frames):
            frames += await anext(batches)
    assert [frame.data for frame in frames if not frame.part] == await stored(world, claim, 0)


async def test_who_follows_a_run_that_was_lost_is_told_so(world: World, relay: Relay) -> None:
    claim, _ = await told_eight(world, relay)
    seen: list[Frame] = []

    async def follow() -> None:
        async with aclosing(relay.followers.follow(followed(claim), START, run_id=claim.run_id)) as batches:
            async for batch in batches:
                seen.extend(batch)

    reader = asyncio.create_task(follow())
    await until(lambda: len(seen) > 0 and seen[-1].seq == 8)
    await lose(world, claim, 0)
    await world.db.pool.execute("DELETE FROM runs WHERE id = $1", claim.run_id)
    await relay.followers.check(Loop("check"))
    with pytest.raises(RunLost):
        await asyncio.wait_for(reader, PATIENCE)
    assert (seen[-1].type, seen[-1].seq) == ("resync", 0)


async def test_a_number_that_was_lost_is_not_believed_when_a_client_comes_back_with_it(
    world: World, relay: Relay
) -> None:
    claim, _ = await told_eight(world, relay)
    witness = Reader(relay, claim)
    await until(lambda: len(witness.durable) == 8)
    await lose(world, claim, 5)
    second, writer = await next_owner(world, relay, claim)
    await say(writer, second, 7)
    await until(lambda: ("message", 12) in witness.durable)
    start = relay.followers.start
    beyond = 12
    assert [await start(followed(claim), Position(n), beyond) for n in (0, 5)] == [Position(0), Position(5)]
    assert [await start(followed(claim), Position(*p), beyond) for p in ((6,), (7, 2), (8,))] == [Position(5)] * 3
    assert await start(followed(claim), Position(9), beyond) == Position(9)
    assert await start(followed(claim), Position(99), beyond) == Position(beyond)
    await tasks.end(witness.task)


async def test_an_owner_whose_events_were_lost_notes_it_and_writes_no_more(world: World, relay: Relay) -> None:
    claim, writer = await told_eight(world, relay)
    await lose(world, claim, 5)
    with pytest.raises(LeaseLost):
        await writer.append(Event("message", {}, claim.run_id))
    assert await relay.followers.start(followed(claim), Position(7), 20) == Position(5)


async def test_the_next_owner_finds_in_redis_what_nobody_else_had(world: World, relay: Relay) -> None:
    claim, _ = await told_eight(world, relay)
    await lose(world, claim, 5)
    second, writer = await next_owner(world, relay, claim)
    await relay.followers.look_back(claim.tenant_id, claim.session_id, writer.last_seq)
    await say(writer, second, 9)
    assert await relay.followers.start(followed(claim), Position(8), 14) == Position(5)
    assert await relay.followers.start(followed(claim), Position(9), 14) == Position(9)


async def test_a_claim_that_is_given_back_is_claimed_again_as_it_was(world: World) -> None:
    lease = await world.instance()
    run = await world.queue()
    await world.queue(run.session_id)
    first = await world.claim(lease)
    for _ in range(2):
        await ownership.give_back(world.db, lease.instance_id, first.session_id, first.generation, first.run_id)
    again = await world.claim(await world.instance())
    assert (again.run_id, again.last_seq) == (first.run_id, first.last_seq)
    assert again.generation > first.generation


async def test_an_owner_that_was_fenced_has_lost_nothing(world: World, relay: Relay) -> None:
    claim, writer = await told_eight(world, relay)
    await world.db.pool.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", claim.session_id)
    with pytest.raises(LeaseLost):
        await writer.append(Event("message", {}, claim.run_id))
    assert await relay.followers.start(followed(claim), Position(7), 20) == Position(7)


async def test_a_number_of_a_generation_that_was_lost_is_not_given_out_again(world: World, relay: Relay) -> None:
    """Else both owners would hold the same pen."""
    session_id = await world.session()
    before = await world.one("SELECT generation FROM sessions WHERE id = $1", session_id)
    await world.queue(session_id)
    lease = await world.instance()
    claim = await world.claim(lease)
    first = world.writer(lease, claim)
    await lose(world, claim, 0, generation=before)
    second, _ = await next_owner(world, relay, claim)
    assert second.generation > before
    with pytest.raises(LeaseLost):
        await first.append(Event("init"))


async def test_what_was_cached_of_a_session_is_forgotten_with_its_events(world: World, relay: Relay) -> None:
    claim, _ = await told_eight(world, relay)
    get = (world.db, world.redis, world.tenant_id, claim.session_id, "a-model")
    await world.redis.client.delete(world.redis.keys.session(world.tenant_id, claim.session_id))
    assert (await sessions.get(*get))["last_seq"] == 8
    reader = Reader(relay, claim)
    await until(lambda: len(reader.durable) == 8)
    await lose(world, claim, 5)
    await relay.followers.check(Loop("check"))
    await until(lambda: len(reader.durable) == 9)
    assert (await sessions.get(*get))["last_seq"] == 5
    await tasks.end(reader.task)
