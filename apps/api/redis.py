"""Redis: the client, and every key and channel in one place.

Redis is hot, never true: whatever is lost here is read from PostgreSQL again. Keys hold the tenant wherever
they hold a tenant's data; `REDIS_KEY_PREFIX` separates deployments that share a server.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from apps.api.reads import Reads
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

REDIS_ERRORS: tuple[type[Exception], ...] = (RedisError, OSError, TimeoutError)
"""What a call to Redis may raise when the server is away or refuses."""

OPERATION_TIMEOUT = 0.75
"""Seconds for one call, and so for a request that finds Redis hanging first. A call takes less than 1 ms where all is
well, and a cache that takes longer than its database is no cache."""

ROUNDS = 5
"""Of the event loop that a call has at least, however late this process is: an answer that has come is read in one, and
wakes who waits in the next."""

CONNECTIONS = 50
"""Of one instance, for caches and limits; publishing and subscribing have one each besides."""

MOST_SECONDS = 5.0
"""For one step of a call that nothing else bounds."""

PAUSE_AFTER_FAILURE = 2.0
"""Seconds for which Redis is not asked after a failure, and between two looks whether it is back."""

FORGET_TIMEOUT = 0.1
"""Seconds that a write waits for Redis to forget what it has cached. What takes longer is done by others: see
`Tombstones`."""

MAX_TOMBSTONES = 10_000
"""Entries that wait for Redis to forget them. Beyond it the oldest go; they live for KEY_CACHE_TTL at most."""

STREAM_MAX_LENGTH = 5_000
"""Entries that a session's stream keeps, approximately."""

STREAM_TTL = 600
"""Seconds that the stream of a running session outlives its newest event."""

STREAM_TTL_AFTER_RUN = 60
"""Seconds that it outlives the end of a run: long enough for a client to reconnect and see the last deltas."""

KEY_CACHE_TTL = 30
"""Seconds for which an API key's tenant is cached. Revoking deletes the entry at once."""

SESSION_CACHE_TTL = 30
"""Seconds for which a session as read is cached."""

TOMBSTONE_TTL_MS = 2_000
"""Milliseconds after a write in which nobody may fill the cache: longer than a read takes."""


FORMAT = "v1"
"""Part of every name. A release that writes something else under a name, or into a channel, counts it up."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of keys and channels. Instances with another FORMAT neither read nor hear each other."""

    prefix: str = ""

    @classmethod
    def below(cls, prefix: str) -> Keys:
        """Those of this version, of a deployment with that REDIS_KEY_PREFIX."""
        return cls(f"{prefix}{FORMAT}:")

    def api_key(self, secret_hash: str) -> str:
        return f"{self.prefix}key:{secret_hash}"

    def session(self, tenant_id: UUID, session_id: UUID) -> str:
        return f"{self.prefix}session:{tenant_id}:{session_id}"

    def rate(self, what: str, scope: str, id_: UUID) -> str:
        return f"{self.prefix}limits:{what}:{scope}:{id_}"

    def active_session(self, session_id: UUID) -> str:
        return f"{self.prefix}active_session:{session_id}"

    def stream(self, tenant_id: UUID, session_id: UUID) -> str:
        return f"{self.prefix}events:{tenant_id}:{session_id}"

    def channel(self, tenant_id: UUID, session_id: UUID) -> str:
        return f"{self.prefix}live:{tenant_id}:{session_id}"

    def feed(self, tenant_id: UUID, session_id: UUID) -> tuple[str, str]:
        """The stream and the channel of a session's events."""
        return self.stream(tenant_id, session_id), self.channel(tenant_id, session_id)

    def reply(self, command_id: UUID) -> str:
        return f"{self.prefix}reply:{command_id}"

    def instance(self, instance_id: UUID) -> str:
        return f"{self.prefix}instance:{instance_id}"

    @property
    def wake(self) -> str:
        return f"{self.prefix}wake"

    @property
    def taken(self) -> str:
        return f"{self.prefix}taken"

    @property
    def deleted(self) -> str:
        return f"{self.prefix}deleted"


@asynccontextmanager
async def patience(seconds: float = OPERATION_TIMEOUT) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but for ROUNDS of the event loop at least: a process that is late by itself must not take
    that for an outage, which would have each instance count limits from nothing. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wait(rounds: int) -> None:
        nonlocal timer
        timer = loop.call_later(seconds / ROUNDS, over, rounds - 1)

    def over(rounds: int) -> None:
        if rounds:
            wait(rounds)
        else:
            bound.reschedule(loop.time())

    async with asyncio.timeout(None) as bound:
        wait(ROUNDS)
        try:
            yield
        finally:
            timer.cancel()


class Outage:
    """Whether Redis is left alone, one for all of an instance: who waits for it in vain first spares the others that.

    It ends when a probe in the background has had an answer, never by a request.
    """

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe, self._begun = probe, asyncio.Event()
        self._probing: asyncio.Task[None] | None = None

    @property
    def lasts(self) -> bool:
        return self._begun.is_set()

    async def begins(self, seconds: float) -> None:
        """Wait until it does, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        except TimeoutError:
            return

    def begin(self, error: BaseException) -> None:
        """Leave Redis alone from now on; but not for an entry of another type than ours: the server is well then."""
        if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
            log.warning("redis.entry_not_read", error=error)
        elif not self.lasts:
            self._begun.set()
            log.warning("redis.unavailable", error=type(error).__name__, pause_seconds=PAUSE_AFTER_FAILURE)
            self._probing = asyncio.create_task(self._end_when_over(), name="redis-probe")

    async def _end_when_over(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_AFTER_FAILURE * random.uniform(1.0, 1.2))
            try:
                async with patience():
                    await self._probe()
            except REDIS_ERRORS:
                continue
            self._begun.clear()
            log.info("redis.available")
            return

    async def close(self) -> None:
        """End the probe, if one is under way."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])


@dataclass(slots=True)
class Tombstone:
    """An entry that must go from the cache, and for how long nobody may write it again.

    Attributes:
        ttl_ms: milliseconds.
        since: monotonic seconds.
        told: whether the other instances have been told by PostgreSQL, or have told this one.
    """

    ttl_ms: int
    since: float
    told: bool


class Tombstones:
    """What Redis has not forgotten yet. The publisher sends it, the probe too, as long as it takes."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        self._left: dict[str, Tombstone] = {}

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def add(self, name: str, ttl_ms: int, *, told: bool = False) -> None:
        """Name an entry. With one of the same name that waits it becomes one."""
        before = self._left.pop(name, None) or Tombstone(ttl_ms, time.monotonic(), told)
        if len(self._left) >= MAX_TOMBSTONES:
            del self._left[next(iter(self._left))]
        self._left[name] = Tombstone(max(ttl_ms, before.ttl_ms), before.since, told and before.told)
        self.wake()

    def all(self) -> dict[str, Tombstone]:
        """Those that wait now. Say `written` of them once Redis has answered."""
        return dict(self._left)

    def written(self, them: dict[str, Tombstone]) -> None:
        """Redis has them: strike those off that were not named again meanwhile."""
        for name, tombstone in them.items():
            if self._left.get(name) is tombstone:
                del self._left[name]


class UnfitRedis(Exception):
    """REDIS_URL leads to a server that this product cannot use."""


def unfit(facts: Mapping[str, object]) -> str | None:
    """Why what a server says of itself (INFO) keeps it from being used; None if nothing does.

    Sessions' streams, channels and what is cached of them belong to no one slot, so a cluster would refuse some of it
    now and then. A Sentinel keeps nothing.
    """
    mode = facts.get("redis_mode", facts.get("server_mode"))
    if mode == "cluster":
        return (
            "REDIS_URL leads to a member of a cluster: use a single server, perhaps with a replica that takes over, at"
            " an address that stays the same"
        )
    if mode == "sentinel":
        return "REDIS_URL leads to a Sentinel: give the server that it watches, or a proxy that follows it"
    return None


class Redis:
    """The shared client and the key names, and whether the server answers.

    Attributes:
        outage: asked and begun by everything of the instance that asks Redis.
        tombstones: what is to be forgotten and could not be.
    """

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.outage, self.tombstones = Outage(self._probe), Tombstones()
        self._reads = Reads(lambda names: self.attempt(lambda: self.client.mget(names)))

    async def close(self) -> None:
        """End what is under way. Whoever opened the client closes it."""
        await self._reads.close()
        await self.outage.close()

    async def _probe(self) -> None:
        await self.client.ping()
        left = self.tombstones.all()  # before anybody reads what should be gone
        await self._bury({name: tombstone.ttl_ms for name, tombstone in left.items()})
        self.tombstones.written(left)

    async def check_kind(self) -> None:
        """Raises UnfitRedis for a server that cannot be used. One that is away, or tells nothing, may be."""
        try:
            async with patience():
                facts = await self.client.info("server")
        except REDIS_ERRORS:
            return
        if (reason := unfit(facts)) is not None:
            raise UnfitRedis(reason)

    async def forget(self, name: str, ttl_ms: int) -> None:
        """As `forget_all`, of one."""
        await self.forget_all([name], ttl_ms)

    async def forget_all(self, names: Iterable[str], ttl_ms: int) -> None:
        """Drop cached entries, and let nobody write them again for that long: a reader may have looked before the
        change.

        Waits for FORGET_TIMEOUT at most; what was not done by then is among the `tombstones`.
        """
        entries = dict.fromkeys(names, ttl_ms)
        if not self.outage.lasts:
            try:
                async with asyncio.timeout(FORGET_TIMEOUT):
                    await self._bury(entries)
                    return
            except REDIS_ERRORS as error:
                if not isinstance(error, TimeoutError):  # so short a wait says little
                    self.outage.begin(error)
        for name in entries:
            self.tombstones.add(name, ttl_ms)

    async def _bury(self, entries: Mapping[str, int]) -> None:
        if not entries:
            return
        async with self.client.pipeline(transaction=False) as pipeline:
            for name, ttl_ms in entries.items():
                pipeline.set(name, b"", px=ttl_ms)
            await pipeline.execute()

    async def attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """What `call` answers, or None without Redis: for what PostgreSQL can answer as well."""
        if self.outage.lasts:
            return None
        try:
            async with patience():
                return await call()
        except REDIS_ERRORS as error:
            self.outage.begin(error)
            return None

    async def cached(self, key: str, read: Callable[[bytes], T]) -> T | None:
        """What `read` makes of an entry; None without one, and for one that it cannot read, which is removed.

        An entry may be of another version or another program: PostgreSQL has the answer.
        """
        if key in self.tombstones:
            return None
        entry = await self._reads.one(key)
        if not isinstance(entry, bytes) or not entry:
            return None
        try:
            return read(entry)
        except Exception as error:
            log.warning("redis.entry_not_read", error=error)
            await self.attempt(lambda: self.client.delete(key))
            return None

    def connection(self) -> redis.asyncio.Connection:
        """A new connection of its own, not connected yet, with the client's address and credentials."""
        connection: redis.asyncio.Connection = self.client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        connection.socket_timeout = connection.socket_connect_timeout = OPERATION_TIMEOUT
        return connection


def _pool(settings: Settings) -> redis.asyncio.BlockingConnectionPool:
    """CONNECTIONS, with bounded waits. Many calls at once wait for one: that is no outage. `patience` bounds each call;
    these bounds are for calls without it."""
    return redis.asyncio.BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        protocol=2,
        socket_timeout=MOST_SECONDS,
        socket_connect_timeout=MOST_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=CONNECTIONS,
        timeout=MOST_SECONDS,
    )


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client with bounded waits. It connects on first use, so a Redis that is down does not stop a start."""
    client = redis.asyncio.Redis.from_pool(_pool(settings))
    opened = Redis(client, Keys.below(settings.redis_key_prefix))
    try:
        yield opened
    finally:
        await opened.close()
        await client.aclose()
