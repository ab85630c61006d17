"""Redis: the client, and every key and channel in one place.

Redis is hot, never true: whatever is lost here is read from PostgreSQL again. Keys hold the tenant wherever
they hold a tenant's data; `REDIS_KEY_PREFIX` separates deployments that share a server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from apps.api.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

REDIS_ERRORS: tuple[type[Exception], ...] = (RedisError, OSError, TimeoutError)
"""What a call to Redis may raise when the server is away or refuses."""

OPERATION_TIMEOUT = 1.0
"""Seconds for one call. A cache that takes longer than its database is no cache."""

PAUSE_AFTER_FAILURE = 2.0
"""Seconds for which Redis is not asked after a failure."""

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

    def active_session(self, session_id: UUID) -> str:
        return f"{self.prefix}active_session:{session_id}"

    def stream(self, tenant_id: UUID, session_id: UUID) -> str:
        return f"{self.prefix}events:{tenant_id}:{session_id}"

    def channel(self, tenant_id: UUID, session_id: UUID) -> str:
        return f"{self.prefix}live:{tenant_id}:{session_id}"

    def reply(self, command_id: UUID) -> str:
        return f"{self.prefix}reply:{command_id}"

    def instance(self, instance_id: UUID) -> str:
        return f"{self.prefix}instance:{instance_id}"

    @property
    def wake(self) -> str:
        return f"{self.prefix}wake"

    @property
    def deleted(self) -> str:
        return f"{self.prefix}deleted"


class Outage:
    """Leaves Redis alone for a while after it failed, so that a hanging one does not slow every request down."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        return time.monotonic() < self._until

    def begin(self, error: BaseException) -> None:
        self._until = time.monotonic() + PAUSE_AFTER_FAILURE
        log.warning("redis.unavailable", error=type(error).__name__, pause_seconds=PAUSE_AFTER_FAILURE)


@dataclass(frozen=True, slots=True)
class Redis:
    """The shared client and the key names."""

    client: redis.asyncio.Redis
    keys: Keys
    outage: Outage = field(default_factory=Outage)

    async def attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """What `call` answers, or None without Redis: for what PostgreSQL can answer as well."""
        if self.outage.lasts:
            return None
        try:
            return await call()
        except REDIS_ERRORS as error:
            self.outage.begin(error)
            return None

    async def cached(self, key: str, read: Callable[[bytes], T]) -> T | None:
        """What `read` makes of an entry; None without one, and for one that it cannot read, which is removed.

        An entry may be of another version or another program: PostgreSQL has the answer.
        """
        entry = await self.attempt(lambda: self.client.get(key))
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
        return connection


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client with bounded waits. It connects on first use, so a Redis that is down does not stop a start."""
    client = redis.asyncio.Redis.from_url(
        settings.redis_url.get_secret_value(),
        protocol=2,
        socket_timeout=OPERATION_TIMEOUT,
        socket_connect_timeout=OPERATION_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        max_connections=50,
    )
    try:
        yield Redis(client, Keys.below(settings.redis_key_prefix))
    finally:
        await client.aclose()
