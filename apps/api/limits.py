"""Rate limits: prompts and look-ups per key and tenant, counted by all instances in Redis; unauthenticated routes per
address, in memory.

Redis counts for key and tenant in one script, so that what one of them refuses is not counted for the other. While
Redis is away each instance counts by itself, so N instances let through up to N times the limit. That, and addresses,
is by `limits`, the library under slowapi.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from slowapi import Limiter
from starlette.requests import Request

from apps.api import addresses, clock
from apps.api.auth import Principal
from apps.api.core.codec import timestamp
from apps.api.core.config.limits import Scope, of_every_key
from apps.api.errors import RateLimited
from apps.api.redis import Redis
from apps.api.settings import Settings

DEFAULTS: dict[str, Any] = {name: field.default for name, field in Settings.model_fields.items()}
"""Of each setting, for documents that say a limit of the server."""

PUBLIC_LIMIT = "600/minute"
"""Requests per minute and address, of IPv6 and network, to routes that need no key."""


def _client(request: Request) -> str:
    return addresses.household(addresses.read(request.client.host if request.client else None))


public_limiter = Limiter(key_func=_client, storage_uri="memory://", headers_enabled=False)


Counted = Literal["prompt", "lookup"]
"""What is limited. `lookup`: a request that has names looked up that the client chose, and sends no prompt."""

_TOLD: dict[Counted, str] = {"prompt": "prompts", "lookup": "requests that look up names"}

WINDOW_MS = 60_000
"""Milliseconds in which so many may be sent, whenever they begin."""

# Each window is a list of moments, the newest first. Amount 0 only looks.
_HIT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local window, amount = tonumber(ARGV[1]), tonumber(ARGV[2])
local full, told = 0, {}
for i, key in ipairs(KEYS) do
  local limit, oldest = tonumber(ARGV[i + 2]), redis.call('LINDEX', key, -1)
  while oldest and tonumber(oldest) <= now - window do
    redis.call('RPOP', key)
    oldest = redis.call('LINDEX', key, -1)
  end
  local used = redis.call('LLEN', key)
  if used >= limit then
    full = 1
    oldest = redis.call('LINDEX', key, limit - 1)
  end
  told[i] = {used, oldest and oldest + window - now or window}
end
if full == 0 and amount > 0 then
  for i, key in ipairs(KEYS) do
    redis.call('LPUSH', key, string.format('%.0f', now))
    redis.call('PEXPIRE', key, window)
    told[i][1] = told[i][1] + 1
  end
end
return {full, told}
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many one may send within any minute."""

    scope: Scope
    id: UUID
    limit: int


@dataclass(frozen=True, slots=True)
class Window:
    """How many were sent within the last minute, and in how many seconds there is more room again."""

    rate: Rate
    used: int
    seconds: float

    @property
    def left(self) -> int:
        return max(self.rate.limit - self.used, 0)

    @property
    def resets_at(self) -> datetime | None:
        """None while nothing is used."""
        return clock.now() + timedelta(seconds=self.seconds) if self.used else None

    def told(self) -> dict[str, Any]:
        """What an error says of it."""
        resets_at = self.resets_at and timestamp(self.resets_at)
        return {"limit": self.rate.limit, "used": self.used, "resets_at": resets_at, "scope": self.rate.scope}


class PromptLimits:
    """How many prompts a key and a tenant may send per minute, in a moving window, and how many look-ups: as many,
    counted apart."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._defaults = of_every_key(settings)
        self._redis = redis
        self._script = redis.client.register_script(_HIT)
        self._local = MovingWindowRateLimiter(MemoryStorage())

    async def hit(self, caller: Principal, what: Counted = "prompt") -> dict[str, str]:
        """Count one prompt or look-up against the limits of the caller's key, or the server's, and tenant.

        Returns the RateLimit headers of the limit that has least left; none when unlimited.

        Raises:
            RateLimited: a limit is used up, and nothing was counted; carries the same headers and Retry-After.
        """
        rates = self._rates_of(caller)
        if not rates:
            return {}
        full, windows = await self._ask(rates, what, amount=1)
        # Of those that are used up the one that is so for longest.
        nearest = max(windows, key=lambda window: (-window.left, window.seconds))
        reset = max(math.ceil(nearest.seconds), 1)
        headers = {
            "RateLimit-Limit": str(nearest.rate.limit),
            "RateLimit-Remaining": str(nearest.left),
            "RateLimit-Reset": str(reset),
        }
        if full:
            raise RateLimited(
                f"This {nearest.rate.scope} may send {nearest.rate.limit} {_TOLD[what]} per minute.",
                details={**nearest.told(), "retry_after_seconds": reset},
                headers={**headers, "Retry-After": str(reset)},
            )
        return headers

    async def windows(self, caller: Principal) -> Sequence[Window]:
        """What of the caller's prompts is used, of key and tenant, as far as they are limited."""
        rates = self._rates_of(caller)
        return (await self._ask(rates, "prompt", amount=0))[1] if rates else []

    def _rates_of(self, caller: Principal) -> list[Rate]:
        of_key, of_tenant = caller.limits.over(self._defaults), caller.tenant_limits
        limits: tuple[tuple[Scope, UUID, int | None], ...] = (
            ("key", caller.key_id, of_key.runs_per_minute),
            ("tenant", caller.tenant_id, of_tenant.runs_per_minute),
        )
        return [Rate(scope, id_, limit) for scope, id_, limit in limits if limit is not None]

    async def _ask(self, rates: Sequence[Rate], what: Counted, *, amount: int) -> tuple[bool, Sequence[Window]]:
        """Whether one of them is full, and else count it; and what is used then."""
        names = [self._redis.keys.rate(what, rate.scope, rate.id) for rate in rates]
        arguments = [WINDOW_MS, amount, *(rate.limit for rate in rates)]
        told: Any = await self._redis.attempt(lambda: self._script(names, arguments))
        if told is None:
            return self._ask_here(rates, what, amount=amount)
        full, found = told
        return bool(full), [Window(r, used, ms / 1000) for r, (used, ms) in zip(rates, found, strict=True)]

    def _ask_here(self, rates: Sequence[Rate], what: Counted, *, amount: int) -> tuple[bool, Sequence[Window]]:
        named = [(rate, RateLimitItemPerMinute(rate.limit), (what, rate.scope, str(rate.id))) for rate in rates]
        full = not all(self._local.test(item, *name) for _, item, name in named)
        if amount and not full:
            for _, item, name in named:
                self._local.hit(item, *name)
        stats = [(rate, self._local.get_window_stats(item, *name)) for rate, item, name in named]
        return full, [Window(r, r.limit - found.remaining, found.reset_time - time.time()) for r, found in stats]
