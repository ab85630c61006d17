"""Budgets: what a session, a key and a tenant may spend, judged by what the gateway has counted; and which models.

They are judged twice: when a prompt is queued, and before each call to the model. A call that is under way is not cut
off, so one run goes beyond a budget by what its calls under way cost. Days and months are those of UTC.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from apps.api import clock
from apps.api.codes import RunCode
from apps.api.core.codec import usd
from apps.api.db import Database
from apps.api.errors import RateLimited

CODE: RunCode = "budget_reached"

KEEP_SECONDS = 10.0
"""For which an instance goes by what it knows of a run without a budget: as long as it takes for a change to hold."""

Models = list[list[str]]

MAX_KEPT = 10_000
"""Runs of which it remembers that."""

_TODAY = "(now() AT TIME ZONE 'UTC')::date"
_MONTH = f"date_trunc('month', {_TODAY}::timestamp)"
_FIELDS = f"""
  ('usd_per_day', true, {_TODAY}, ({_TODAY} + 1)::timestamp AT TIME ZONE 'UTC'),
  ('tokens_per_day', false, {_TODAY}, ({_TODAY} + 1)::timestamp AT TIME ZONE 'UTC'),
  ('usd_per_month', true, {_MONTH}::date, ({_MONTH} + interval '1 month') AT TIME ZONE 'UTC'),
  ('tokens_per_month', false, {_MONTH}::date, ({_MONTH} + interval '1 month') AT TIME ZONE 'UTC')
"""

FIELDS = ("usd_per_day", "tokens_per_day", "usd_per_month", "tokens_per_month")
"""Of the limits of a key or a tenant."""


def _all(tenant: str, key: str, session: str, most: str) -> str:
    return f"""
    SELECT 'session' AS scope, 'max_session_usd' AS name,
      least((s.config ->> 'max_session_usd')::float8, {most}) AS "limit",
      (SELECT coalesce(sum(usd), 0) FROM spent WHERE subject = s.id) AS used, NULL::timestamptz AS resets_at
    FROM sessions s WHERE s.id = {session} AND (s.config ? 'max_session_usd' OR {most} IS NOT NULL)
    UNION ALL
    SELECT l.scope, f.name, (l.limits ->> f.name)::float8,
      (SELECT coalesce(sum(CASE WHEN f.is_usd THEN usd ELSE tokens END), 0) FROM spent
        WHERE subject = l.id AND day >= f.since), f.until
    FROM (
      SELECT 'key' AS scope, id, limits FROM api_keys WHERE id = {key}
      UNION ALL SELECT 'tenant', id, limits FROM tenants WHERE id = {tenant}
    ) l CROSS JOIN (VALUES {_FIELDS}) f (name, is_usd, since, until)
    WHERE l.limits ? f.name
    """  # noqa: S608 - ours


def reached(tenant: str, key: str, session: str, most: str = "NULL::float8") -> str:
    """SQL of a value: the budget that is used up, of several the one that lasts longest (on the last day of a month,
    that of the month), as JSON; or NULL.

    Args:
        tenant, key, session: SQL of whose they are.
        most: SQL of what the session may cost, where that is less than its own configuration says.
    """
    whole = _all(tenant, key, session, most)
    last = "resets_at DESC NULLS FIRST, name LIKE '%_month' DESC"
    return f'(SELECT to_jsonb(b) FROM ({whole}) b WHERE b.used >= b."limit" ORDER BY {last} LIMIT 1)'  # noqa: S608


_OF = f"SELECT * FROM ({_all('$1', '$2', '$3', 'NULL::float8')}) b ORDER BY scope, name"  # noqa: S608


async def of(
    db: Database, tenant_id: UUID, key_id: UUID | None = None, session_id: UUID | None = None
) -> list[dict[str, Any]]:
    """The budgets of a tenant, and of a key and a session of it, see `told`, with what is `left` of each."""
    async with db.turns.reading(tenant_id):
        rows = await db.pool.fetch(_OF, tenant_id, key_id, session_id)
    return [told({**row, "left": max(row["limit"] - row["used"], 0)}) for row in rows]


def told(budget: Mapping[str, Any]) -> dict[str, Any]:
    """A budget as clients are told it: `scope`, `name`, `resets_at`, and `limit`, `used`, `left` of tokens, or the same
    of money, with `_usd` at their ends."""
    figures = {name: budget[name] for name in ("limit", "used", "left") if name in budget}
    if "usd" in budget["name"]:
        shown: dict[str, Any] = {f"{name}_usd": usd(value) for name, value in figures.items()}
    else:
        shown = {name: int(value) for name, value in figures.items()}
    return {"scope": budget["scope"], "name": budget["name"], **shown, "resets_at": budget["resets_at"]}


def refusal(budget: Mapping[str, Any]) -> RateLimited:
    """The error for a budget that is used up, as `reached` gives it."""
    scope, name, resets_at = budget["scope"], budget["name"], budget["resets_at"]
    message, headers = f"The {scope}'s {name} is used up: {budget['used']:.6g} of {budget['limit']:.6g}.", {}
    if resets_at is not None:
        seconds = (datetime.fromisoformat(resets_at) - clock.now()).total_seconds()
        headers = {"Retry-After": str(max(math.ceil(seconds), 1))}
    return RateLimited(message, code=CODE, details=told(budget), headers=headers)


_CHECK = f"""
WITH who AS (
  SELECT coalesce(
    (SELECT api_key_id FROM runs WHERE id = $3),
    (SELECT api_key_id FROM runs WHERE session_id = $2 ORDER BY position DESC LIMIT 1)) AS key
)
SELECT {reached("$1", "(SELECT key FROM who)", "$2", "$4::float8")} AS reached,
  $4::float8 IS NOT NULL OR EXISTS (SELECT 1 FROM sessions WHERE id = $2 AND config ? 'max_session_usd')
    OR EXISTS (SELECT 1 FROM tenants WHERE id = $1 AND limits ?| $5::text[])
    OR EXISTS (SELECT 1 FROM api_keys WHERE id = (SELECT key FROM who) AND limits ?| $5::text[]) AS limited,
  (SELECT limits -> 'models' FROM tenants WHERE id = $1) AS of_tenant,
  (SELECT limits -> 'models' FROM api_keys WHERE id = (SELECT key FROM who)) AS of_key
"""  # noqa: S608


class Gate:
    """Whether calls to the model may be made, as one instance knows it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._free: dict[tuple[UUID, UUID | None], tuple[float, Models]] = {}

    async def check(self, tenant_id: UUID, session_id: UUID, run_id: UUID | None, most: float | None) -> Models:
        """Before a call. `most`: USD that the session may cost, as its profile has it today.

        Returns lists of models, of the tenant and of the key as far as they have one: each must have the model.

        Raises:
            RateLimited: `budget_reached`.
            Exception: what a database that is away raises.
        """
        now = time.monotonic()
        until, lists = self._free.get((session_id, run_id), (0.0, []))
        if until > now:
            return lists
        row = await self._db.pool.fetchrow(_CHECK, tenant_id, session_id, run_id, most, list(FIELDS))
        if row["reached"] is not None:
            raise refusal(row["reached"])
        lists = [row[name] for name in ("of_tenant", "of_key") if row[name] is not None]
        if not row["limited"]:
            if len(self._free) >= MAX_KEPT:
                self._free.clear()
            self._free[session_id, run_id] = now + KEEP_SECONDS, lists
        return lists
