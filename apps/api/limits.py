"""Rate limits: prompts and look-ups per key, counted by all instances in Redis; unauthenticated routes per address, in
memory.

Those per key use `limits.aio` (the library under slowapi), because slowapi's own Redis calls block the event loop.
While Redis is away each instance counts by itself, so N instances let through up to N times the limit.
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from slowapi import Limiter
from starlette.requests import Request

from apps.api import addresses, clock
from apps.api.core.config.limits import NO_LIMITS, Limits, of_every_key
from apps.api.errors import RateLimited
from apps.api.redis import LIMITS_CONNECTIONS, REDIS_ERRORS, Outage, pool_of
from apps.api.settings import Settings

DEFAULTS: dict[str, Any] = {name: field.default for name, field in Settings.model_fields.items()}
"""Of each setting, for documents that say a limit of the server."""

PUBLIC_LIMIT = "600/minute"
"""Requests per minute and address, of IPv6 and network, to routes that need no key."""


def _client(request: Request) -> str:
    return addresses.household(addresses.read(request.client.host if request.client else None))


public_limiter = Limiter(key_func=_client, storage_uri="memory://", headers_enabled=False)


Counted = Literal["prompt", "lookup"]
"""What a key is limited in. `lookup`: a request that has names looked up that the client chose, and sends no prompt."""

_TOLD: dict[Counted, str] = {"prompt": "prompts", "lookup": "requests that look up names"}


class PromptLimits:
    """How many prompts a key may send per minute, in a moving window, and how many look-ups: as many, counted apart."""

    def __init__(self, settings: Settings, outage: Outage) -> None:
        """`outage`: that of the instance."""
        self._defaults = of_every_key(settings)
        self._pool = pool_of(settings, LIMITS_CONNECTIONS)
        storage = RedisStorage(
            "async+redis://",  # the pool knows the address
            implementation="redispy",
            key_prefix=f"{settings.redis_key_prefix}limits",
            connection_pool=self._pool,  # type: ignore[arg-type] # its annotation knows plain values only
        )
        self._shared = MovingWindowRateLimiter(storage)
        self._local = MovingWindowRateLimiter(MemoryStorage())
        self._outage = outage

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._pool.aclose()

    async def hit(self, key_id: UUID, own: Limits = NO_LIMITS, what: Counted = "prompt") -> dict[str, str]:
        """Count one prompt or look-up against the key's own limit, else the server's.

        Returns the RateLimit headers; none when unlimited.

        Raises:
            RateLimited: the limit is used up; carries the same headers and Retry-After.
        """
        limit = own.over(self._defaults).runs_per_minute
        if limit is None:
            return {}
        if not self._outage.lasts:
            try:
                return await self._hit(self._shared, key_id, limit, what)
            except REDIS_ERRORS as error:
                self._outage.begin(error)
        return await self._hit(self._local, key_id, limit, what)

    async def used(self, key_id: UUID, limit: int) -> tuple[int, datetime]:
        """How many prompts the key has sent within the last minute, and when the first of them counts no more."""
        item, now = RateLimitItemPerMinute(limit), clock.now()
        limiter = self._local if self._outage.lasts else self._shared
        try:
            stats = await limiter.get_window_stats(item, "prompt", str(key_id))
        except REDIS_ERRORS as error:
            self._outage.begin(error)
            stats = await self._local.get_window_stats(item, "prompt", str(key_id))
        return limit - stats.remaining, now + timedelta(seconds=max(stats.reset_time - time.time(), 0))

    async def _hit(self, limiter: MovingWindowRateLimiter, key_id: UUID, limit: int, what: Counted) -> dict[str, str]:
        item = RateLimitItemPerMinute(limit)
        allowed = await limiter.hit(item, what, str(key_id))
        stats = await limiter.get_window_stats(item, what, str(key_id))
        reset = max(math.ceil(stats.reset_time - time.time()), 1)
        headers = {
            "RateLimit-Limit": str(limit),
            "RateLimit-Remaining": str(max(stats.remaining, 0)),
            "RateLimit-Reset": str(reset),
        }
        if not allowed:
            raise RateLimited(
                f"This key may send {limit} {_TOLD[what]} per minute.",
                details={"retry_after_seconds": reset},
                headers={**headers, "Retry-After": str(reset)},
            )
        return headers
