"""Rate limits: one count for all instances, and a count of its own for each while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from apps.api.errors import RateLimited
from apps.api.limits import PromptLimits
from apps.api.redis import Outage, open_redis
from apps.api.settings import Settings
from tests.proxy import changed, redis_proxy

NO_REDIS = "redis://127.0.0.1:1/0"


Start = Callable[..., PromptLimits]


def probe_of(settings: Settings) -> Callable[[], Awaitable[object]]:
    """Asks the Redis of these settings for a sign of life."""

    async def ping() -> None:
        async with open_redis(settings) as redis:
            await redis.client.ping()

    return ping


@pytest.fixture
async def limited(settings: Settings) -> AsyncIterator[Start]:
    """Make the limits of one instance."""
    async with AsyncExitStack() as stack:

        def make(limit: int = 3, **more: object) -> PromptLimits:
            given = changed(settings, rate_limit_query_per_minute=limit, **more)
            outage = Outage(probe_of(given))
            stack.push_async_callback(outage.close)
            made = PromptLimits(given, outage)
            stack.push_async_callback(made.close)
            return made

        yield make


async def allowed(limits: PromptLimits, key_id: object, tries: int) -> int:
    """How many of so many prompts get through."""
    passed = 0
    for _ in range(tries):
        try:
            await limits.hit(key_id)  # type: ignore[arg-type]
            passed += 1
        except RateLimited:
            continue
    return passed


async def test_two_instances_count_together(limited: Start) -> None:
    one, other, key = limited(), limited(), uuid4()
    assert [await allowed(limits, key, 1) for limits in (one, other, one, other, one)] == [1, 1, 1, 0, 0]


async def test_prompts_at_the_same_moment_are_all_counted(limited: Start) -> None:
    instances, key = [limited(7) for _ in range(3)], uuid4()
    passed = await asyncio.gather(*(allowed(limits, key, 5) for limits in instances))
    assert sum(passed) == 7


async def test_every_key_has_a_count_of_its_own(limited: Start) -> None:
    limits = limited()
    assert await allowed(limits, uuid4(), 5) == 3
    assert await allowed(limits, uuid4(), 5) == 3


async def test_deployments_that_share_a_redis_do_not_share_counts(settings: Settings, limited: Start) -> None:
    key = uuid4()
    assert await allowed(limited(), key, 5) == 3
    assert await allowed(limited(redis_key_prefix=f"{settings.redis_key_prefix}other:"), key, 5) == 3


async def test_an_answer_tells_how_much_is_left(limited: Start) -> None:
    limits, key = limited(), uuid4()
    headers = [await limits.hit(key) for _ in range(3)]
    assert [h["RateLimit-Remaining"] for h in headers] == ["2", "1", "0"]
    for h in headers:
        assert set(h) == {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}
        assert h["RateLimit-Limit"] == "3"
        assert 1 <= int(h["RateLimit-Reset"]) <= 61


@pytest.mark.parametrize("redis_url", [None, NO_REDIS], ids=["in Redis", "in process"])
async def test_a_refusal_tells_when_to_come_again(limited: Start, redis_url: str | None) -> None:
    limits = limited(1, **({"redis_url": redis_url} if redis_url else {}))
    key = uuid4()
    await limits.hit(key)
    with pytest.raises(RateLimited) as caught:
        await limits.hit(key)
    refusal = caught.value
    assert (refusal.status, refusal.code) == (429, "rate_limited")
    assert refusal.headers["RateLimit-Remaining"] == "0"
    assert refusal.headers["RateLimit-Limit"] == "1"
    again = int(refusal.headers["Retry-After"])
    assert 1 <= again <= 61
    assert refusal.headers["RateLimit-Reset"] == str(again)
    assert refusal.details == {"retry_after_seconds": again}


async def test_zero_means_no_limit(limited: Start) -> None:
    limits, key = limited(0, redis_url=NO_REDIS), uuid4()
    assert [await limits.hit(key) for _ in range(100)] == [{}] * 100


async def test_without_redis_each_instance_counts_by_itself(limited: Start) -> None:
    one, other = (limited(redis_url=NO_REDIS) for _ in range(2))
    key = uuid4()
    assert await allowed(one, key, 5) == 3
    assert await allowed(other, key, 5) == 3
    assert await allowed(one, uuid4(), 5) == 3


async def test_an_instance_goes_on_counting_when_redis_goes_away(settings: Settings, limited: Start) -> None:
    async with redis_proxy(settings) as (proxy, through):
        limits, key = limited(2, redis_url=through.redis_url), uuid4()
        assert await allowed(limits, key, 1) == 1
        await proxy.refuse()
        proxy.cut()
        assert await allowed(limits, key, 5) == 2
        await proxy.start()
        assert await allowed(limits, key, 5) == 0  # it does not ask again at once
