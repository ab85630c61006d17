"""Processes of agents, as the gateway knows them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from apps.api.core.tenant.model_calls import Call
from apps.api.errors import ApiError, Unavailable

EXACT = 0.01
"""By how much the SDK's figure may differ from ours, as a part of the larger one."""

SETTLE_SECONDS = 10.0


@dataclass(slots=True)
class Spent:
    """What calls of a process cost that have ended since somebody last asked.

    Attributes:
        exact: each of them was told to its end, and has a price.
    """

    usd: float = 0.0
    exact: bool = True

    def add(self, call: Call) -> None:
        """One more has ended."""
        self.usd += call.cost_usd
        self.exact = self.exact and call.priced and (call.used.complete or not call.used.tokens)

    def compare(self, told: float) -> str | None:
        """How what the SDK has told for the same calls differs, if it does: it is `lower` or `higher`."""
        if not self.exact or abs(told - self.usd) <= max(EXACT * max(told, self.usd), 1e-6):
            return None
        return "lower" if told < self.usd else "higher"


@dataclass(eq=False)
class Holder:
    """A process of a session, as the gateway knows it.

    Attributes:
        token: what it shows.
        held: bytes of its requests that the model API has not answered yet.
        run_id: tells which run is being executed; `traceparent` of what trace it is.
        refused: is told the failure for which a call is not made at all.
        most: USD that the session may cost, as its profile has it today.
        model: the session's own; None where it is named by a short name of the CLI's.
        noting: what stores calls that have ended.
        spent: since `Gateway.settle`.
    """

    tenant_id: UUID
    session_id: UUID
    run_id: Callable[[], UUID | None]
    refused: Callable[[ApiError], None]
    most: float | None = None
    model: str | None = None
    traceparent: Callable[[], str | None] = lambda: None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    calls: set[object] = field(default_factory=set)
    noting: set[asyncio.Task[None]] = field(default_factory=set)
    held: int = 0
    spent: Spent = field(default_factory=Spent)

    async def settled(self) -> None:
        """Wait until the calls that have ended are stored: the next one is judged by what they cost.

        Raises Unavailable after SETTLE_SECONDS.
        """
        if self.noting and (await asyncio.wait(self.noting, timeout=SETTLE_SECONDS))[1]:
            raise Unavailable("What was used before could not be stored yet.")
