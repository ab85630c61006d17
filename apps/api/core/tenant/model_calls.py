"""Every call of agents to a model, as the gateway counted it: what was used does not rest on what an agent says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from apps.api.core.tenant.usage import TOKENS
from apps.api.db import Database


@dataclass(slots=True)
class Used:
    """Tokens of one call, as the model API counted them.

    Attributes:
        model: which one answered; None when no answer said so.
        cache_creation_1h_input_tokens: those of `cache_creation_input_tokens` that are kept for an hour.
        fast, in_the_us: how the answer was made, where that has a price of its own.
        complete: whether the last figures came. Without them the output is one token for each piece that came, which is
            less than what was made.
    """

    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    web_search_requests: int = 0
    fast: bool = False
    in_the_us: bool = False
    complete: bool = False

    @property
    def prompt_tokens(self) -> int:
        """All that was read."""
        return self.input_tokens + self.cache_read_input_tokens + self.cache_creation_input_tokens

    @property
    def tokens(self) -> int:
        """All that was read and written."""
        return self.prompt_tokens + self.output_tokens

    def take(self, usage: Any) -> None:
        """Take over the figures that are told: each is a total."""
        if not isinstance(usage, dict):
            return
        for name in TOKENS:
            setattr(self, name, max(getattr(self, name), _number(usage.get(name))))
        kept = usage.get("cache_creation")
        if isinstance(kept, dict):
            hour = _number(kept.get("ephemeral_1h_input_tokens"))
            self.cache_creation_1h_input_tokens = max(self.cache_creation_1h_input_tokens, hour)
        tools = usage.get("server_tool_use")
        if isinstance(tools, dict):
            self.web_search_requests = max(self.web_search_requests, _number(tools.get("web_search_requests")))
        self.fast = self.fast or usage.get("speed") == "fast"
        self.in_the_us = self.in_the_us or usage.get("inference_geo") == "us"


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        run_id: the run that was being executed; None for a turn of the agent's own that is none yet.
        kind: `messages` or `count_tokens`.
        status: of the answer; 0 when none came.
        first_byte_seconds: until the head of the answer; None when none came.
        cost_usd: by the table of prices.
        priced: whether the model is in it.
    """

    tenant_id: UUID
    session_id: UUID
    run_id: UUID | None
    kind: str
    began_at: datetime
    status: int
    first_byte_seconds: float | None
    seconds: float
    used: Used
    cost_usd: float
    priced: bool = True
    id: UUID = field(default_factory=uuid4)


# The key of a turn of the agent's own is that of the session's last prompt. Sums are locked in the order of their ids:
# calls that end at once do not wait for each other in a circle.
_RECORD = """
WITH call AS (
  INSERT INTO model_calls (tenant_id, session_id, run_id, api_key_id, kind, began_at, status, first_byte_seconds,
    seconds, model, input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens,
    cache_creation_1h_input_tokens, web_search_requests, complete, cost_usd, call_id)
  VALUES ($1, $2, $3, coalesce(
      (SELECT api_key_id FROM runs WHERE id = $3),
      (SELECT api_key_id FROM runs WHERE session_id = $2 ORDER BY position DESC LIMIT 1)),
    $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
  ON CONFLICT (call_id) DO NOTHING
  RETURNING tenant_id, session_id, api_key_id, cost_usd
)
INSERT INTO spent (subject, day, tenant_id, usd, tokens)
SELECT s.subject, (now() AT TIME ZONE 'UTC')::date, call.tenant_id, call.cost_usd, $19::bigint
FROM call CROSS JOIN LATERAL (VALUES (call.tenant_id), (call.session_id), (call.api_key_id)) s (subject)
WHERE s.subject IS NOT NULL AND (call.cost_usd > 0 OR $19::bigint > 0)
ORDER BY s.subject
ON CONFLICT (subject, day) DO UPDATE SET usd = spent.usd + excluded.usd, tokens = spent.tokens + excluded.tokens
"""


async def record(db: Database, call: Call) -> None:
    """Store a call, and add up what its session, key and tenant have spent. Twice is as good as once; nothing is stored
    once its tenant has been deleted."""
    used = call.used
    with suppress(asyncpg.ForeignKeyViolationError):
        await db.pool.execute(
            _RECORD,
            call.tenant_id,
            call.session_id,
            call.run_id,
            call.kind,
            call.began_at,
            call.status,
            call.first_byte_seconds,
            call.seconds,
            used.model,
            used.input_tokens,
            used.output_tokens,
            used.cache_read_input_tokens,
            used.cache_creation_input_tokens,
            used.cache_creation_1h_input_tokens,
            used.web_search_requests,
            used.complete,
            call.cost_usd,
            call.id,
            used.tokens,
        )
