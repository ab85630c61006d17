"""Shares: how much one session, key or tenant may hold of what an instance has little of, and all of them together.

Whoever asks for more than their own share is told 429, and 503 who comes when all is taken: another instance may have
room. What is counted is this instance's alone, and given back by whoever took it.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from apps.api.codes import ErrorCode
from apps.api.errors import ApiError, RateLimited, Unavailable
from apps.api.settings import Settings

Kind = Literal["open", "streams", "sockets", "strangers", "previews", "bodies"]
"""`open`: descriptors of whatever stays open. `streams`: event streams, and requests that wait for a run. `sockets`:
WebSockets, of `strangers` until they have shown a key. `bodies`: bytes of requests that are being read and checked."""

Level = Literal["session", "key", "tenant", "instance"]

DESCRIPTORS = 65_536
"""As many as are asked of the system: more than one event loop can serve, and few enough for programs that look at
each of theirs."""

ENOUGH_DESCRIPTORS = 4_096
"""Below it an operator is warned."""

KEPT_DESCRIPTORS = 64
"""At least as many are kept for agents and databases, and a quarter of all where that is more."""

BODIES_BYTES = 64 * 1024 * 1024
"""Of bodies in flight. What is made of them until they have been checked takes several times as much."""


OF_TOKENS = 32
"""Event streams, and WebSockets, that client tokens of one session may hold, so that they leave room for others."""


def descriptors() -> int:
    """How many files and connections this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def most_descriptors() -> int:
    """How many it may have if it asks for them, up to DESCRIPTORS."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)


def raise_descriptors() -> None:
    """Ask for them, instead of what a process begins with."""
    if descriptors() < most_descriptors():
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_descriptors(), hard))


def connections(limit: int) -> int:
    """How many connections of clients there may be where this many descriptors are allowed."""
    return max(limit - max(limit // 4, KEPT_DESCRIPTORS), 1)


NOTHING: Mapping[Level, int | None] = {}


@dataclass(slots=True)
class Share:
    """What there is of one kind, and who has how much of it.

    Attributes:
        what: for people, in the plural.
        code: of the error when somebody's own share is used up.
        limits: for each one of a level; a level that is missing has no bound of its own.
    """

    what: str
    code: ErrorCode
    limits: Mapping[Level, int]
    taken: Counter[object] = field(default_factory=Counter)

    def take(
        self, amount: int, holders: Mapping[Level, UUID | None], own: Mapping[Level, int | None] = NOTHING
    ) -> Callable[[], None]:
        """Take an amount; returns what gives it back, once.

        Args:
            own: limits of these holders, in place of those that hold for everybody.

        Raises:
            RateLimited: the share of a holder is used up.
            Unavailable: `instance_full`.
        """
        of: dict[Level, object] = {level: (level, id_) for level, id_ in holders.items() if id_ is not None}
        of["instance"] = "instance"
        limits = {**self.limits, **{level: limit for level, limit in own.items() if limit is not None}}
        for level, limit in limits.items():
            if level in of and self.taken[of[level]] + amount > limit:
                raise self._refusal(level, limit, self.taken[of[level]])
        counted = list(of.values())
        for holder in counted:
            self.taken[holder] += amount
        left = [amount]

        def give_back() -> None:
            for holder in counted if left else ():
                self.taken[holder] -= amount
                if not self.taken[holder]:
                    del self.taken[holder]
            left.clear()

        return give_back

    @property
    def total(self) -> int:
        return self.taken["instance"]

    def _refusal(self, level: Level, limit: int, used: int) -> ApiError:
        soon = {"Retry-After": "1"}
        if level == "instance":
            text = f"This instance has as many {self.what} as it may. Try again; another instance may have room."
            return Unavailable(text, code="instance_full", headers=soon)
        text = f"This {level} has {limit} {self.what} on this instance already."
        told = {"scope": level, "limit": limit, "used": used}
        return RateLimited(text, code=self.code, details=told, headers=soon)


def table(settings: Settings, limit: int) -> dict[Kind, Share]:
    """All shares of an instance which may have `limit` descriptors."""
    stay = connections(limit) * 3 // 4  # what stays leaves room for what comes and goes
    bodies = max(BODIES_BYTES, 4 * settings.max_body_bytes)
    of_all: dict[Level, int] = {"key": max(stay // 4, 1), "tenant": max(stay // 2, 1), "instance": max(stay, 1)}
    strangers = min(200, max(stay // 4, 1))
    return {
        "open": Share("connections that stay open", code="too_many_streams", limits=of_all),
        "streams": Share(
            "event streams and waiting requests",
            code="too_many_streams",
            limits={"key": settings.max_streams_per_key, "session": OF_TOKENS},
        ),
        "sockets": Share("WebSockets", code="too_many_connections", limits={"key": 200, "session": OF_TOKENS}),
        "strangers": Share("WebSockets without a key", code="too_many_connections", limits={"instance": strangers}),
        "previews": Share("connections to previews", code="rate_limited", limits={"session": 50, "instance": 500}),
        "bodies": Share("bytes of requests", code="too_many_bytes", limits={"key": bodies // 2, "instance": bodies}),
    }
