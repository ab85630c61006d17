"""What agents cost: one row for each run and model, in the SDK's own figures, and reports over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
from sqlalchemy import Select, distinct, func, select
from sqlalchemy.sql.elements import ColumnElement

from apps.api.core.pages import Page, number_of
from apps.api.db import Database
from apps.api.models import ApiKey, Run, Session, Usage

Group = Literal["day", "key", "model", "session"]


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What a run used of one model. Tokens; USD."""

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    web_search_requests: int = 0
    cost_usd: float = 0.0


TOKENS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
FIGURES = tuple(field.name for field in fields(ModelUsage) if field.name != "model")


def tokens(used: Sequence[ModelUsage]) -> dict[str, int]:
    """Sums over models, by kind of token."""
    return {name: sum(getattr(model, name) for model in used) for name in TOKENS}


_RECORD = """
INSERT INTO usage (run_id, tenant_id, session_id, api_key_id, day, model, input_tokens, output_tokens,
  cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd)
SELECT r.id, r.tenant_id, r.session_id, r.api_key_id, (now() AT TIME ZONE 'UTC')::date, u.*
FROM runs r, unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::float8[]) u
WHERE r.id = $1
"""


async def record(connection: asyncpg.Connection, run_id: UUID, used: Sequence[ModelUsage]) -> None:
    """Store what a run used, in the transaction that ends it. Its day is today, in UTC."""
    if used:
        await connection.execute(_RECORD, run_id, *map(list, zip(*map(astuple, used), strict=True)))


@dataclass(frozen=True, slots=True)
class Scope:
    """Which usage to report. Unset means any.

    Attributes:
        first, last: days in UTC, both included.
        profiles: only sessions that have one of these.
    """

    first: date | None = None
    last: date | None = None
    session_id: UUID | None = None
    key_id: UUID | None = None
    model: str | None = None
    profiles: tuple[str, ...] | None = None

    def sessions(self, tenant_id: UUID) -> Select[Any]:
        """The sessions that have one of the profiles, deleted ones included."""
        return select(Session.id).where(Session.tenant_id == tenant_id, Session.profile.in_(self.profiles or ()))

    def conditions(self, tenant_id: UUID) -> list[ColumnElement[bool]]:
        """What holds for a row of `usage`."""
        wanted = [Usage.tenant_id == tenant_id]
        if self.first is not None:
            wanted.append(Usage.day >= self.first)
        if self.last is not None:
            wanted.append(Usage.day <= self.last)
        for column, value in (
            (Usage.session_id, self.session_id),
            (Usage.api_key_id, self.key_id),
            (Usage.model, self.model),
        ):
            if value is not None:
                wanted.append(column == value)
        if self.profiles is not None:
            wanted.append(Usage.session_id.in_(self.sessions(tenant_id)))
        return wanted


_SUMS = [
    func.count(distinct(Usage.run_id)).label("runs"),
    *(func.coalesce(func.sum(getattr(Usage, name)), 0).label(name) for name in FIGURES),
]

GROUPS: dict[Group, list[Any]] = {
    "day": [Usage.day],
    "key": [Usage.api_key_id.label("key_id"), ApiKey.name.label("key_name")],
    "model": [Usage.model],
    "session": [Usage.session_id],
}


async def report(
    db: Database, tenant_id: UUID, scope: Scope, groups: Sequence[Group], *, limit: int, cursor: str | None
) -> Page:
    """Sums by every combination of `groups`, ordered by them. Raises ValidationError for a cursor of another list."""
    columns = [column for name in GROUPS if name in groups for column in GROUPS[name]]
    start = number_of(cursor) or 0
    query = select(*columns, *_SUMS).select_from(Usage).where(*scope.conditions(tenant_id))
    if "key" in groups:
        query = query.join(ApiKey, ApiKey.id == Usage.api_key_id, isouter=True)
    if columns:
        query = query.group_by(*columns).order_by(*columns)
    async with db.turns.reading(tenant_id), db.connect() as connection:
        rows = (await connection.execute(query.offset(start).limit(limit + 1))).mappings().all()
    data = [_row(dict(row)) for row in rows[:limit]]
    return Page(data, str(start + limit) if len(rows) > limit else None)


def _row(sums: dict[str, Any]) -> dict[str, Any]:
    # PostgreSQL sums bigint up as numeric.
    return {name: int(value) if name in _WHOLE else _shown(value) for name, value in sums.items()}


_WHOLE = frozenset(FIGURES) - {"cost_usd"}


def _shown(value: Any) -> Any:
    return str(value) if isinstance(value, UUID | date) else value


async def unmeasured(db: Database, tenant_id: UUID, scope: Scope) -> int:
    """How many runs began and ended without figures, because their agent was killed: no model is known of them."""
    query = select(func.count()).where(
        Run.tenant_id == tenant_id,
        Run.kind == "prompt",
        Run.started_at.is_not(None),
        Run.finished_at.is_not(None),
        Run.total_cost_usd.is_(None),
    )
    if scope.first is not None:
        query = query.where(Run.finished_at >= datetime.combine(scope.first, datetime.min.time(), UTC))
    if scope.last is not None:
        query = query.where(Run.finished_at <= datetime.combine(scope.last, datetime.max.time(), UTC))
    if scope.session_id is not None:
        query = query.where(Run.session_id == scope.session_id)
    if scope.key_id is not None:
        query = query.where(Run.api_key_id == scope.key_id)
    if scope.profiles is not None:
        query = query.where(Run.session_id.in_(scope.sessions(tenant_id)))
    async with db.turns.reading(tenant_id), db.connect() as connection:
        return int((await connection.execute(query)).scalar_one())
