"""The relay's connections: every reply to who asked, and an end to those whose Redis does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from redis.asyncio import Connection
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from apps.api.core.events.wire import MAX_UNSENT, MISSED_PINGS, REPLY_ROUNDS, Asking, Listening, Wire, pack
from apps.api.redis import open_redis
from tests.proxy import Proxy, redis_proxy
from tests.world import PATIENCE, World, until

W = TypeVar("W", bound=Wire)


@asynccontextmanager
async def wired(world: World, make: Callable[[Connection], W]) -> AsyncIterator[tuple[W, Proxy]]:
    """A wire through a network that can fail."""
    async with (
        asyncio.timeout(PATIENCE),
        redis_proxy(world.settings) as (proxy, through),
        open_redis(through) as redis,
    ):
        connection = redis.connection()
        await connection.connect()  # type: ignore[no-untyped-call]
        wire = make(connection)
        try:
            yield wire, proxy
        finally:
            wire.end()
            await connection.disconnect(nowait=True)


async def test_each_batch_has_its_replies_in_order_and_a_refusal_is_one(world: World) -> None:
    async with wired(world, Asking) as (wire, _):
        replies = await wire.ask([pack("SET", "a", b"1"), pack("LPUSH", "a", b"2"), pack("GET", "a")])
        assert [replies[0], replies[2]] == [b"OK", b"1"]
        assert isinstance(replies[1], ResponseError)
        assert await wire.ask([pack("ECHO", b"x" * 1_000_000)]) == [b"x" * 1_000_000]


async def test_a_redis_that_does_not_answer_is_given_up_after_some_looks_and_not_by_a_late_process(
    world: World,
) -> None:
    async with wired(world, Asking) as (wire, proxy):
        for _ in range(2 * REPLY_ROUNDS):
            wire.look()  # nobody asks
        proxy.answers.clear()
        asking = asyncio.create_task(wire.ask([pack("PING")]))
        await until(lambda: proxy.held > 0)
        for _ in range(REPLY_ROUNDS):
            wire.look()
        assert not wire.over.done()
        wire.look()
        with pytest.raises(TimeoutError):
            await asking
        with pytest.raises(TimeoutError):
            await wire.ask([pack("PING")])


async def test_who_asks_hears_that_the_connection_was_lost(world: World) -> None:
    async with wired(world, Asking) as (wire, proxy):
        proxy.answers.clear()
        asking = asyncio.create_task(wire.ask([pack("PING")]))
        await until(lambda: proxy.held > 0)
        proxy.cut()
        with pytest.raises((RedisError, OSError)):
            await asking


async def test_who_listens_hears_and_gives_up_what_is_silent(world: World) -> None:
    heard: asyncio.Queue[list[bytes]] = asyncio.Queue()
    async with wired(world, lambda connection: Listening(connection, heard.put_nowait)) as (wire, proxy):
        wire.say("SUBSCRIBE", b"numbers")
        assert await heard.get() == [b"subscribe", b"numbers", 1]
        for _ in range(3 * MISSED_PINGS):
            wire.look()
            await heard.get()  # its answer, a sign of life
        proxy.answers.clear()
        for _ in range(MISSED_PINGS):
            wire.look()
        assert not wire.over.done()
        wire.look()
        with pytest.raises(TimeoutError):
            await wire.ended()


async def test_what_waits_for_a_redis_that_does_not_read_is_bounded(world: World) -> None:
    async with wired(world, lambda connection: Listening(connection, lambda _: None)) as (wire, proxy):
        proxy.requests.clear()
        said, channel = 0, b"x" * 64 * 1024
        while not wire.over.done() and said < 100 * MAX_UNSENT:
            wire.say("UNSUBSCRIBE", channel)
            said += len(channel)
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await wire.ended()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param(b"-LOADING Valkey is loading the dataset in memory\r\n", BusyLoadingError, id="being started"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", RedisError, id="no answer of Redis"),
    ],
)
async def test_what_is_no_reply_to_what_was_asked_ends_the_connection(
    world: World, said: bytes, error: type[Exception]
) -> None:
    async with wired(world, Asking) as (wire, _):
        asking = asyncio.create_task(wire.ask([pack("PING")]))
        await asyncio.sleep(0)
        wire.data_received(said)
        with pytest.raises(error):
            await asking


async def test_who_waits_for_the_end_may_be_cancelled_and_the_connection_still_ends(world: World) -> None:
    async with wired(world, lambda connection: Listening(connection, lambda _: None)) as (wire, _):
        waiting = asyncio.create_task(wire.ended())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not wire.over.done()
        wire.end()
        with pytest.raises(RedisConnectionError):
            await wire.ended()
