"""Rate limits: one count for all instances, and a count of its own for each while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from apps.api.auth import Principal
from apps.api.core.config.limits import Limits
from apps.api.errors import RateLimited
from apps.api.limits import PromptLimits
from apps.api.redis import open_redis
from apps.api.settings import Settings
from tests.proxy import changed, redis_proxy

NO_REDIS = "redis://127.0.0.1:1/0"


Start = Callable[..., Awaitable[PromptLimits]]


def caller(
    own: int | None = None, tenants: int | None = None, *, tenant_id: UUID | None = None, key_id: UUID | None = None
) -> Principal:
    """One whose key and tenant have such limits."""
    return Principal(
        tenant_id=tenant_id or uuid4(),
        tenant="t",
        key_id=key_id or uuid4(),
        key_name="k",
        prefix="cak_",
        scopes=("write",),
        expires_at=None,
        networks=None,
        limits=Limits(runs_per_minute=own),
        tenant_limits=Limits(runs_per_minute=tenants),
    )


@pytest.fixture
async def limited(settings: Settings) -> AsyncIterator[Start]:
    """Make the limits of one instance."""
    async with AsyncExitStack() as stack:

        async def make(limit: int = 3, **more: object) -> PromptLimits:
            given = changed(settings, rate_limit_query_per_minute=limit, **more)
            return PromptLimits(given, await stack.enter_async_context(open_redis(given)))

        yield make


async def allowed(limits: PromptLimits, who: Principal, tries: int) -> int:
    """How many of so many prompts get through."""
    passed = 0
    for _ in range(tries):
        try:
            await limits.hit(who)
            passed += 1
        except RateLimited:
            continue
    return passed


async def test_two_instances_count_together(limited: Start) -> None:
    one, other, who = await limited(), await limited(), caller()
    assert [await allowed(limits, who, 1) for limits in (one, other, one, other, one)] == [1, 1, 1, 0, 0]


async def test_prompts_at_the_same_moment_are_all_counted(limited: Start) -> None:
    instances, who = [await limited(7) for _ in range(3)], caller()
    passed = await asyncio.gather(*(allowed(limits, who, 5) for limits in instances))
    assert sum(passed) == 7


@pytest.mark.parametrize("redis_url", [None, NO_REDIS], ids=["in Redis", "in process"])
async def test_keys_of_a_tenant_have_its_limit_together_and_their_own_beside(
    limited: Start, redis_url: str | None
) -> None:
    limits, tenant_id = await limited(0, **({"redis_url": redis_url} if redis_url else {})), uuid4()
    one, other = (caller(own, 8, tenant_id=tenant_id) for own in (5, None))
    assert await allowed(limits, one, 9) == 5
    # What the key was refused has not been counted for its tenant.
    assert await allowed(limits, other, 9) == 3
    with pytest.raises(RateLimited, match="This tenant may send 8 prompts per minute") as caught:
        await limits.hit(other)
    assert (caught.value.details["scope"], caught.value.details["limit"]) == ("tenant", 8)
    # Nor the other way round: another tenant limits the key less.
    assert await allowed(limits, caller(5, 2, key_id=one.key_id), 9) == 0
    other_key = uuid4()
    assert await allowed(limits, caller(5, 8, tenant_id=tenant_id, key_id=other_key), 9) == 0
    assert await allowed(limits, caller(5, None, key_id=other_key), 9) == 5


@pytest.mark.parametrize("redis_url", [None, NO_REDIS], ids=["in Redis", "in process"])
async def test_headers_are_of_the_limit_that_has_least_left(limited: Start, redis_url: str | None) -> None:
    limits, tenant_id = await limited(0, **({"redis_url": redis_url} if redis_url else {})), uuid4()
    assert await allowed(limits, caller(None, 9, tenant_id=tenant_id), 3) == 3
    found = [await limits.hit(caller(own, 9, tenant_id=tenant_id)) for own in (9, 3)]
    assert [(h["RateLimit-Limit"], h["RateLimit-Remaining"]) for h in found] == [("9", "5"), ("3", "2")]


async def test_a_limit_that_is_lowered_below_what_is_used_holds_until_there_is_room(limited: Start) -> None:
    limits, key_id = await limited(), uuid4()
    assert await allowed(limits, caller(5, key_id=key_id), 9) == 5
    with pytest.raises(RateLimited) as caught:
        await limits.hit(caller(2, key_id=key_id))
    assert (caught.value.details["used"], caught.value.details["limit"]) == (5, 2)
    assert caught.value.headers["RateLimit-Remaining"] == "0"


async def test_a_minute_moves(settings: Settings, limited: Start) -> None:
    limits, who = await limited(2), caller()
    async with open_redis(settings) as redis:
        name = redis.keys.rate("prompt", "key", who.key_id)
        [seconds, micros] = await redis.client.time()
        now = seconds * 1000 + micros // 1000
        await redis.client.rpush(name, now - 30_000, now - 61_000)
        assert await allowed(limits, who, 1) == 1
        with pytest.raises(RateLimited) as caught:
            await limits.hit(who)
        assert 25 <= int(caught.value.headers["Retry-After"]) <= 30
        assert await redis.client.llen(name) == 2
        assert 0 < await redis.client.pttl(name) <= 60_000


async def test_every_key_has_a_count_of_its_own(limited: Start) -> None:
    limits = await limited()
    assert await allowed(limits, caller(), 5) == 3
    assert await allowed(limits, caller(), 5) == 3


async def test_lookups_are_counted_apart(limited: Start) -> None:
    limits, who = await limited(1), caller()
    await limits.hit(who)
    await limits.hit(who, "lookup")
    with pytest.raises(RateLimited, match="requests that look up names"):
        await limits.hit(who, "lookup")


async def test_deployments_that_share_a_redis_do_not_share_counts(settings: Settings, limited: Start) -> None:
    who = caller()
    assert await allowed(await limited(), who, 5) == 3
    assert await allowed(await limited(redis_key_prefix=f"{settings.redis_key_prefix}other:"), who, 5) == 3


async def test_an_answer_tells_how_much_is_left(limited: Start) -> None:
    limits, who = await limited(), caller()
    headers = [await limits.hit(who) for _ in range(3)]
    assert [h["RateLimit-Remaining"] for h in headers] == ["2", "1", "0"]
    for h in headers:
        assert set(h) == {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}
        assert h["RateLimit-Limit"] == "3"
        assert 1 <= int(h["RateLimit-Reset"]) <= 61


@pytest.mark.parametrize("redis_url", [None, NO_REDIS], ids=["in Redis", "in process"])
async def test_a_refusal_tells_when_to_come_again(limited: Start, redis_url: str | None) -> None:
    limits = await limited(1, **({"redis_url": redis_url} if redis_url else {}))
    who = caller()
    await limits.hit(who)
    with pytest.raises(RateLimited) as caught:
        await limits.hit(who)
    refusal = caught.value
    assert (refusal.status, refusal.code) == (429, "rate_limited")
    assert refusal.headers["RateLimit-Remaining"] == "0"
    assert refusal.headers["RateLimit-Limit"] == "1"
    again = int(refusal.headers["Retry-After"])
    assert 1 <= again <= 61
    assert refusal.headers["RateLimit-Reset"] == str(again)
    resets_at = datetime.fromisoformat(refusal.details.pop("resets_at"))
    assert 0 < (resets_at - datetime.now(UTC)).total_seconds() <= 61
    assert refusal.details == {"limit": 1, "used": 1, "scope": "key", "retry_after_seconds": again}


@pytest.mark.parametrize("redis_url", [None, NO_REDIS], ids=["in Redis", "in process"])
async def test_to_look_counts_nothing(limited: Start, redis_url: str | None) -> None:
    limits = await limited(1, **({"redis_url": redis_url} if redis_url else {}))
    who = caller(None, 5)
    for used in (0, 1):
        for _ in range(2):
            windows = await limits.windows(who)
            assert [(w.rate.scope, w.used, w.resets_at is not None) for w in windows] == [
                ("key", used, used > 0),
                ("tenant", used, used > 0),
            ]
        await allowed(limits, who, 3)


async def test_zero_means_no_limit(limited: Start) -> None:
    limits, who = await limited(0, redis_url=NO_REDIS), caller()
    assert [await limits.hit(who) for _ in range(100)] == [{}] * 100


async def test_without_redis_each_instance_counts_by_itself(limited: Start) -> None:
    one, other = [await limited(redis_url=NO_REDIS) for _ in range(2)]
    who = caller()
    assert await allowed(one, who, 5) == 3
    assert await allowed(other, who, 5) == 3
    assert await allowed(one, caller(), 5) == 3


async def test_an_instance_goes_on_counting_when_redis_goes_away(settings: Settings, limited: Start) -> None:
    async with redis_proxy(settings) as (proxy, through):
        limits, who = await limited(2, redis_url=through.redis_url), caller()
        assert await allowed(limits, who, 1) == 1
        await proxy.refuse()
        proxy.cut()
        assert await allowed(limits, who, 5) == 2
        await proxy.start()
        assert await allowed(limits, who, 5) == 0  # it does not ask again at once
