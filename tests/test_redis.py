"""Redis that hangs or is away: who waits for it, who is spared that, and what becomes of what it should forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest

from apps.api import auth, invalidations, keys
from apps.api.core.config.limits import NO_LIMITS, Limits
from apps.api.core.events.frames import Position
from apps.api.core.events.log import Event
from apps.api.core.events.replay import Followed
from apps.api.core.fleet import instances
from apps.api.core.sessions import sessions
from apps.api.core.sessions.sessions import Labels
from apps.api.errors import Unauthorized
from apps.api.limits import PromptLimits
from apps.api.redis import CONNECTIONS, MAX_TOMBSTONES, OPERATION_TIMEOUT, Redis, Tombstones, open_redis
from tests.proxy import Proxy, redis_proxy
from tests.test_limits import caller
from tests.world import PATIENCE, World, lone_world, relaying, until

__all__ = ["lone_world"]

MODEL = "some-model"
LATER = 600.0


class Silent:
    """A listener that hears nothing."""

    def deliver(self, payload: bytes) -> None:
        """Never called."""

    def gap(self) -> None:
        """Nothing was heard before either."""


@dataclass
class Cut:
    """An instance that reaches Redis through a proxy, and a limiter of its own."""

    proxy: Proxy
    redis: Redis
    limits: PromptLimits


@asynccontextmanager
async def behind_a_proxy(world: World) -> AsyncIterator[Cut]:
    async with redis_proxy(world.settings) as (proxy, through), open_redis(through) as redis:
        try:
            yield Cut(proxy, redis, PromptLimits(through, redis))
        finally:
            proxy.answers.set()


FIVE = Limits(runs_per_minute=5)
Use = Callable[[], Awaitable[object]]


async def uses_of(world: World, cut: Cut) -> dict[str, Use]:
    """What requests ask Redis for."""
    session_id, secret = await world.session(), await secret_of(world)
    of = (world.db, cut.redis, world.tenant_id, session_id)
    return {
        "cache of keys": lambda: auth.authenticate(world.db, cut.redis, secret),
        "cache of sessions": lambda: sessions.get(*of, MODEL),
        "limits": lambda: cut.limits.hit(caller(5)),
        "invalidations": lambda: sessions.patch(*of, Labels("New")),
    }


async def secret_of(world: World) -> str:
    """A new key."""
    return (await keys.create_key(world.db, tenant=f"t{uuid4().hex}", name="k", scopes=["read"])).secret


async def test_who_waits_for_a_redis_that_hangs_spares_everybody_else_that(lone_world: World) -> None:
    async def waits(first: str) -> None:
        async with behind_a_proxy(lone_world) as cut:
            uses = await uses_of(lone_world, cut)
            for use in uses.values():
                await use()
            cut.proxy.answers.clear()
            await uses[first]()
            assert cut.redis.outage.lasts, first
            asked = cut.proxy.asked
            for use in uses.values():
                for _ in range(10):
                    await use()
            assert cut.proxy.asked - asked < 10, first  # by nobody but the probe
            cut.proxy.answers.set()
            await until(lambda: not cut.redis.outage.lasts)
            asked = cut.proxy.asked
            await uses["limits"]()
            assert cut.proxy.asked > asked, first

    # Each by a connection of its own, side by side, for what they do is to wait.
    await asyncio.gather(*map(waits, ["cache of keys", "cache of sessions", "limits"]))


async def test_nobody_waits_for_a_subscription_or_a_message_while_redis_hangs(lone_world: World) -> None:
    """Its connections stay open, and nothing says that they are of no use."""
    world = lone_world
    async with behind_a_proxy(world) as cut, relaying(world.db, cut.redis, check_interval=10 * PATIENCE) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        await until(lambda: relay.subscriptions.connected)
        await relay.publisher.flushed()
        followed = Followed(claim.tenant_id, claim.session_id)
        async with aclosing(relay.followers.follow(followed, Position(0))) as batches:
            reading = asyncio.create_task(anext(batches))
            await until(lambda: relay.followers.count == 1)
            cut.proxy.answers.clear()
            await cut.redis.attempt(cut.redis.client.ping)  # somebody else's
            assert relay.subscriptions.connected
            await writer.append(Event("message", {}, claim.run_id))
            async with asyncio.timeout(PATIENCE):
                assert [frame.seq for frame in await reading] == [1]
                await relay.subscriptions.subscribe("another", Silent(), timeout=10 * PATIENCE)


async def test_no_request_ends_an_outage(lone_world: World) -> None:
    async with behind_a_proxy(lone_world) as cut:
        await cut.redis.client.ping()
        cut.proxy.answers.clear()
        assert await cut.redis.attempt(cut.redis.client.ping) is None
        cut.proxy.answers.set()
        assert cut.redis.outage.lasts  # although Redis would answer now
        asked = cut.proxy.asked
        assert await cut.redis.attempt(cut.redis.client.ping) is None
        assert cut.proxy.asked == asked
        await until(lambda: not cut.redis.outage.lasts)
        assert await cut.redis.attempt(cut.redis.client.ping) is True


async def test_more_calls_at_once_than_connections_are_no_outage(lone_world: World) -> None:
    async with behind_a_proxy(lone_world) as cut:
        answers = await asyncio.gather(*(cut.redis.attempt(cut.redis.client.ping) for _ in range(2 * CONNECTIONS)))
        await asyncio.gather(*(cut.limits.hit(caller(5)) for _ in range(2 * CONNECTIONS)))
        assert answers == [True] * 2 * CONNECTIONS
        assert not cut.redis.outage.lasts
        assert cut.proxy.accepted <= CONNECTIONS


async def test_a_process_that_is_late_itself_takes_that_for_no_outage(lone_world: World) -> None:
    async with behind_a_proxy(lone_world) as cut:

        async def hold_up() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
                time.sleep(1.2 * OPERATION_TIMEOUT)  # noqa: ASYNC251 - as a process does that gets no CPU

        await asyncio.gather(*(cut.limits.hit(caller(5)) for _ in range(2)))  # the connections that the two calls use
        answer, headers, _ = await asyncio.gather(
            cut.redis.attempt(cut.redis.client.ping), cut.limits.hit(caller(5)), hold_up()
        )
        assert answer is True
        assert headers["RateLimit-Remaining"] == "4"
        assert not cut.redis.outage.lasts


async def test_an_entry_of_another_type_is_no_outage(lone_world: World) -> None:
    world, client, keys_ = lone_world, lone_world.redis.client, lone_world.redis.keys
    _, claim, writer = await world.owned()
    await writer.append(Event("message", {}, claim.run_id))
    of = (claim.tenant_id, claim.session_id)
    limits = PromptLimits(world.settings, world.redis)
    secret, who = await secret_of(world), caller(5)
    async with relaying(world.db, world.redis) as relay:
        await limits.hit(who)
        [counted] = await client.keys(f"{keys_.prefix}limits*")
        for name in (counted, keys_.session(*of), keys_.api_key(auth.hash_of(secret)), keys_.stream(*of)):
            await client.delete(name)
            await client.hset(name, "a", "b")
        await limits.hit(who)
        assert (await sessions.get(world.db, world.redis, *of, MODEL))["last_seq"] == 1
        assert (await auth.authenticate(world.db, world.redis, secret)).scopes == ("read",)
        async with aclosing(relay.followers.follow(Followed(*of), Position(0))) as batches:
            assert [frame.seq for frame in await anext(batches)] == [1]
        await relay.followers.look_back(*of, 1)
    assert not world.redis.outage.lasts


@pytest.mark.parametrize(
    "entry", [{"x": "y"}, {"g": "no number", "f": "x"}, {"g": "1", "f": b"\xff"}, {"g": "1", "n": ""}]
)
async def test_what_strangers_put_into_a_stream_is_not_taken_for_events(
    lone_world: World, entry: dict[str, str | bytes]
) -> None:
    world = lone_world
    _, claim, writer = await world.owned()
    await writer.append(Event("message", {}, claim.run_id))
    of = (claim.tenant_id, claim.session_id)
    await world.redis.client.xadd(world.redis.keys.stream(*of), entry, id="1-0")  # type: ignore[arg-type]
    async with (
        relaying(world.db, world.redis) as relay,
        asyncio.timeout(PATIENCE),
        aclosing(relay.followers.follow(Followed(*of), Position(0))) as batches,
    ):
        assert [(frame.seq, frame.type) for frame in await anext(batches)] == [(1, "message")]


# --- what Redis should forget --------------------------------------------------------------------------------------


async def test_a_write_does_not_wait_for_a_redis_that_hangs_and_is_seen_once_that_goes_on(lone_world: World) -> None:
    world, elsewhere = lone_world, lone_world.redis
    session_id = await world.session(Labels("Old"))
    of = (world.tenant_id, session_id)
    async with behind_a_proxy(world) as cut:
        assert (await sessions.get(world.db, elsewhere, *of, MODEL))["title"] == "Old"
        cut.proxy.requests.clear()
        await sessions.patch(world.db, cut.redis, *of, Labels("New"))
        assert cut.redis.tombstones
        assert not cut.redis.outage.lasts  # not even for as long as a call may take
        assert (await sessions.get(world.db, cut.redis, *of, MODEL))["title"] == "New"  # its own writes are read
        assert (await sessions.get(world.db, elsewhere, *of, MODEL))["title"] == "Old"
        cut.proxy.requests.set()
        await until(lambda: not cut.redis.tombstones)
        assert (await sessions.get(world.db, elsewhere, *of, MODEL))["title"] == "New"


async def test_what_a_lost_connection_of_the_publisher_had_to_forget_is_written_by_the_next(lone_world: World) -> None:
    world = lone_world
    async with behind_a_proxy(world) as cut, relaying(world.db, cut.redis) as relay:
        _, claim, writer = await world.owned(relay.publisher)
        await relay.publisher.flushed()
        cached = world.redis.keys.session(claim.tenant_id, claim.session_id)
        await world.redis.client.set(cached, "outdated")
        cut.proxy.requests.clear()
        await writer.append(Event("message", {}, claim.run_id))
        await until(lambda: cut.proxy.held > 0)
        assert cached in cut.redis.tombstones  # until Redis has answered
        cut.proxy.cut()
        cut.proxy.requests.set()  # what was held goes nowhere
        await until(lambda: not cut.redis.tombstones)
        assert await world.redis.client.get(cached) in (b"", None)


async def test_a_key_that_is_revoked_without_redis_is_refused_by_others_after_their_next_renewal(
    lone_world: World,
) -> None:
    world, elsewhere = lone_world, lone_world.redis
    secret, lease = await secret_of(world), await world.instance()
    principal = await auth.authenticate(world.db, elsewhere, secret)
    await auth.authenticate(world.db, elsewhere, secret)
    async with behind_a_proxy(world) as cut:
        await cut.proxy.refuse()
        cut.proxy.cut()
        assert await keys.revoke_key(world.db, cut.redis, principal.key_id)
        assert await auth.authenticate(world.db, elsewhere, secret)  # it is in the cache
        told = (await instances.renew(world.db.pool, lease)).invalid
        invalidations.obey(elsewhere, told)
        with pytest.raises(Unauthorized):
            await auth.authenticate(world.db, elsewhere, secret)
        with pytest.raises(Unauthorized):
            await auth.authenticate(world.db, cut.redis, secret)


async def test_limits_that_are_set_without_redis_hold_elsewhere_after_the_next_renewal(lone_world: World) -> None:
    world, elsewhere = lone_world, lone_world.redis
    secret, lease = await secret_of(world), await world.instance()
    tenant = (await auth.authenticate(world.db, elsewhere, secret)).tenant
    async with behind_a_proxy(world) as cut:
        await cut.proxy.refuse()
        cut.proxy.cut()
        await keys.limit_tenant(world.db, cut.redis, tenant, FIVE)
        assert (await auth.authenticate(world.db, elsewhere, secret)).tenant_limits == NO_LIMITS  # it is in the cache
        invalidations.obey(elsewhere, (await instances.renew(world.db.pool, lease)).invalid)
        for redis in (elsewhere, cut.redis):
            assert (await auth.authenticate(world.db, redis, secret)).tenant_limits == FIVE


async def test_only_what_redis_was_not_told_is_told_by_the_database_and_once(lone_world: World) -> None:
    world, lease = lone_world, await lone_world.instance()
    await world.redis.forget("known", 1_000)
    await invalidations.tell(world.db, world.redis)
    assert (await instances.renew(world.db.pool, lease)).invalid == []
    async with behind_a_proxy(world) as cut:
        await cut.proxy.refuse()
        cut.proxy.cut()
        await cut.redis.forget("unknown", 1_000)
        await invalidations.tell(world.db, cut.redis, older_than=60)
        assert (await instances.renew(world.db.pool, lease)).invalid == []
        exchange, tombstone = invalidations.Exchange(world.db, cut.redis), cut.redis.tombstones.all()["unknown"]
        tombstone.since += LATER
        await exchange.exchange([])  # it is not long enough ago
        assert (await instances.renew(world.db.pool, lease)).invalid == []
        tombstone.since -= LATER + invalidations.UNSAID_AFTER
        for _ in range(2):
            await exchange.exchange([])
        [told] = (await instances.renew(world.db.pool, lease)).invalid
        assert (told.name, told.ttl_ms) == ("unknown", 1_000)
        invalidations.obey(cut.redis, [told])  # by who cannot write it either: it is not told again
        await invalidations.tell(world.db, cut.redis)
        assert (await instances.renew(world.db.pool, lease)).invalid == [told]


async def test_what_others_could_not_forget_is_bounded_and_costs_neither_a_renewal_nor_a_wait(
    lone_world: World,
) -> None:
    world, lease = lone_world, await lone_world.instance()
    await world.db.pool.execute(
        "INSERT INTO invalidations (name, ttl_ms, created_at)"
        " SELECT n::text, 1000, now() - make_interval(secs => n * 0.001) FROM generate_series(0, $1::int) AS n",
        MAX_TOMBSTONES,
    )
    told = (await instances.renew(world.db.pool, lease)).invalid
    assert {entry.name for entry in told} == {str(n) for n in range(MAX_TOMBSTONES)}  # the newest
    async with behind_a_proxy(world) as cut:
        await cut.redis.client.ping()
        asked = cut.proxy.asked
        cut.proxy.answers.clear()
        async with asyncio.timeout(PATIENCE):
            await invalidations.Exchange(world.db, cut.redis).exchange(told)
        assert (cut.proxy.asked, len(cut.redis.tombstones)) == (asked, MAX_TOMBSTONES)


def test_what_waits_to_be_forgotten_is_bounded_and_named_once() -> None:
    tombstones = Tombstones()
    for number in range(MAX_TOMBSTONES + 10):
        tombstones.add(str(number), 1_000)
        tombstones.add(str(number), 2_000)
    assert len(tombstones) == MAX_TOMBSTONES
    assert ("9" not in tombstones, "10" in tombstones) == (True, True)
    written = tombstones.all()
    tombstones.add("10", 1_000)
    tombstones.written(written)
    assert list(tombstones.all()) == ["10"]  # named again since
