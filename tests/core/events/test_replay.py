"""Replaying a log: pages of bounded size, whatever its events hold, from the session's stream and from the database."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.log import Event, Writer
from apps.api.core.events.relay import MAX_STREAM_FRAME
from apps.api.core.events.replay import Followed, Replay
from apps.api.core.fleet.claims import Claim
from apps.api.core.pages import PAGE_BYTES
from tests.world import PATIENCE, Relay, World, relaying

START = Position(0)
LARGE = "x" * 100_000


async def pages_of(world: World, claim: Claim, after: Position = START) -> list[list[Frame]]:
    replay, followed = Replay(world.db, world.redis), Followed(claim.tenant_id, claim.session_id)
    head = await replay.head(followed, after.seq)
    assert head is not None
    async with aclosing(replay.pages(followed, after, head)) as pages:
        return [frames async for frames, _ in pages]


def size(page: list[Frame]) -> int:
    return sum(len(frame.raw) for frame in page)


def positions(pages: list[list[Frame]]) -> list[tuple[int, int]]:
    return [(frame.seq, frame.part) for page in pages for frame in page]


async def say(writer: Writer, relay: Relay, claim: Claim, texts: list[str], deltas: int = 2) -> None:
    """A message for each text, each after so many deltas, every one sent to Redis by itself."""
    for text in texts:
        for _ in range(deltas):
            writer.delta("partial", claim.run_id, {"text": "word "})
        await writer.append(Event("message", {"text": text}, claim.run_id))
        await relay.publisher.flushed(PATIENCE)


@pytest.mark.parametrize("in_redis", [True, False])
async def test_large_events_are_replayed_in_pages_of_bounded_size(world: World, in_redis: bool) -> None:
    async with relaying(world.db, world.redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        await say(writer, relay, claim, [LARGE] * 20 + [LARGE * 4] + ["small"] * 50)
        if not in_redis:
            await world.redis.client.delete(world.redis.keys.stream(claim.tenant_id, claim.session_id))
        pages = await pages_of(world, claim)
    assert [frame.seq for page in pages for frame in page if not frame.part] == list(range(1, 72))
    largest = len(LARGE) * 4 + 1000
    too_large = [len(page) for page in pages if size(page) > PAGE_BYTES + 1000 * len(page)]
    assert too_large == [1]  # that of the largest event
    assert max(map(size, pages)) < largest
    deltas = [frame for page in pages for frame in page if frame.part]
    assert len(deltas) == (2 * 71 if in_redis else 0)


async def test_a_stream_holds_of_large_events_only_where_they_are(world: World) -> None:
    async with relaying(world.db, world.redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        await say(writer, relay, claim, [LARGE, "small", LARGE], deltas=1)
        writer.delta("partial", claim.run_id, {"text": "y" * MAX_STREAM_FRAME})
        await relay.publisher.flushed(PATIENCE)
        stream = world.redis.keys.stream(claim.tenant_id, claim.session_id)
        entries: Any = await world.redis.client.xrange(stream)
        pages = await pages_of(world, claim)
    assert sum(len(value) for _, fields in entries for value in fields.values()) < MAX_STREAM_FRAME
    assert positions(pages) == [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    stored = await world.db.pool.fetch("SELECT data FROM events WHERE session_id = $1 ORDER BY seq", claim.session_id)
    read = [frame.data.decode() for page in pages for frame in page if not frame.part]
    assert read == [row["data"] for row in stored]


async def test_a_run_of_few_words_takes_the_least_that_a_stream_can(world: World) -> None:
    async with relaying(world.db, world.redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        await writer.append(Event("init", {"tools": "x" * 1_200}, claim.run_id))
        await say(writer, relay, claim, ["hello", "hello to you"], deltas=2)
        await writer.append(Event("result", {"usage": "x" * 1_100}, claim.run_id))
        await writer.append(Event("done", {}, claim.run_id))
        await relay.publisher.flushed(PATIENCE)
        stream = world.redis.keys.stream(claim.tenant_id, claim.session_id)
        pages = await pages_of(world, claim)
        assert (await world.redis.client.memory_usage(stream) or 0) < 5 * 1024
    assert positions(pages) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (4, 0), (5, 0)]


async def test_a_large_event_that_is_live_is_read_whole(world: World) -> None:
    async with relaying(world.db, world.redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        seen: list[Frame] = []
        followed = Followed(claim.tenant_id, claim.session_id)
        async with aclosing(relay.followers.follow(followed, START, tick=0.01)) as batches:
            seen += await anext(batches)
            await writer.append(Event("message", {"text": LARGE}, claim.run_id))
            while not seen:
                seen += await anext(batches)
    assert [len(frame.raw) > len(LARGE) for frame in seen] == [True]
