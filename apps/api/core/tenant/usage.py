"""What agents cost: one row for each run and model, in the SDK's own figures, and reports over them.

Reports are made of sums by day, key and model, which triggers keep: with each row of `usage` that comes, changes or
goes, one that says so comes to `usage_sums`, in the same transaction. Now and then those of one kind are replaced by
their sum (`add_up`), so the sums are right at any moment, and nobody waits for anybody. Runs with an end user have
sums by that as well, of their own: there may be many end users, and other reports need not read them. All are numbers
without rounding, so that what was added can be taken away again. By session there is nothing to add up: its rows are
few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import asyncpg
from sqlalchemy import Select, func, select
from sqlalchemy.sql.elements import ColumnElement

from apps.api.core.pages import Page, number_of
from apps.api.db import Database
from apps.api.models import ApiKey, Run, Session, Usage, UsageSum, UserUsageSum

Group = Literal["day", "key", "model", "session", "end_user"]

Rows = type[Usage | UsageSum | UserUsageSum]
"""Tables that reports are made of."""


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
INSERT INTO usage (run_id, tenant_id, session_id, api_key_id, end_user, day, model, input_tokens, output_tokens,
  cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd)
SELECT r.id, r.tenant_id, r.session_id, r.api_key_id, r.end_user, (now() AT TIME ZONE 'UTC')::date, u.*
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
        of_end_users: only what has an end user, as where a report is grouped by that.
    """

    first: date | None = None
    last: date | None = None
    session_id: UUID | None = None
    key_id: UUID | None = None
    model: str | None = None
    profiles: tuple[str, ...] | None = None
    end_user: str | None = None
    of_end_users: bool = False

    def rows(self, groups: Sequence[Group]) -> Rows:
        """What the report is made of."""
        if self.by_session(groups):
            return Usage
        by_user = self.of_end_users or self.end_user is not None or "end_user" in groups
        return UserUsageSum if by_user else UsageSum

    def by_session(self, groups: Sequence[Group]) -> bool:
        """Whether it takes more than the sums by day, key and model."""
        return "session" in groups or self.session_id is not None or self.profiles is not None

    def sessions(self, tenant_id: UUID) -> Select[Any]:
        """The sessions that have one of the profiles, deleted ones included."""
        return select(Session.id).where(Session.tenant_id == tenant_id, Session.profile.in_(self.profiles or ()))

    def conditions(self, tenant_id: UUID, of: Rows) -> list[ColumnElement[bool]]:
        """What holds for a row of usage, or of its sums."""
        wanted = [of.tenant_id == tenant_id]
        if self.first is not None:
            wanted.append(of.day >= self.first)
        if self.last is not None:
            wanted.append(of.day <= self.last)
        for column, value in (
            (Usage.session_id, self.session_id),
            (of.api_key_id, self.key_id),
            (of.model, self.model),
            (_end_user(of), self.end_user),
        ):
            if value is not None:
                wanted.append(column == value)
        if of is Usage and self.of_end_users:
            wanted.append(Usage.end_user.is_not(None))
        if self.profiles is not None:
            wanted.append(Usage.session_id.in_(self.sessions(tenant_id)))
        return wanted


GROUPS: dict[Group, tuple[str, ...]] = {
    "day": ("day",),
    "key": ("key_id", "key_name"),
    "model": ("model",),
    "session": ("session_id",),
    "end_user": ("end_user",),
}
"""What a row says of its group."""


def _end_user(of: Any) -> Any:
    return (Usage if of is UsageSum else of).end_user


def _columns(of: Rows) -> dict[str, Any]:
    own = {"day": of.day, "key_id": of.api_key_id, "key_name": ApiKey.name, "model": of.model}
    own |= {"session_id": Usage.session_id, "end_user": _end_user(of)}
    return {name: column.label(name) for name, column in own.items()}


def _sums(of: Any, by_model: bool) -> list[Any]:
    """A run that used two models counts for each, and once in a sum over both."""
    if of is Usage:
        runs: Any = func.count() if by_model else func.count().filter(Usage.counts_run.is_(True))
    else:
        runs = func.sum(of.runs if by_model else of.first_runs)
    figures = {"runs": runs, **{name: func.sum(getattr(of, name)) for name in FIGURES}}
    return [func.coalesce(sum_, 0).label(name) for name, sum_ in figures.items()]


async def report(
    db: Database, tenant_id: UUID, scope: Scope, groups: Sequence[Group], *, limit: int, cursor: str | None
) -> Page:
    """Sums by every combination of `groups`, ordered by them. Raises ValidationError for a cursor of another list."""
    of: Any = scope.rows(groups)
    columns = [_columns(of)[name] for group, names in GROUPS.items() if group in groups for name in names]
    start = number_of(cursor) or 0
    sums = _sums(of, "model" in groups or scope.model is not None)
    query = select(*columns, *sums).select_from(of).where(*scope.conditions(tenant_id, of))
    if "key" in groups:
        query = query.join(ApiKey, ApiKey.id == of.api_key_id, isouter=True)
    if columns:
        query = query.group_by(*columns).order_by(*columns)
        if of is not Usage:  # what has gone is there as well until it is added up
            query = query.having(func.sum(of.runs) != 0)
    async with db.turns.reading(tenant_id), db.connect() as connection:
        rows = (await connection.execute(query.offset(start).limit(limit + 1))).mappings().all()
    data = [_row(dict(row)) for row in rows[:limit]]
    return Page(data, str(start + limit) if len(rows) > limit else None)


def _row(sums: dict[str, Any]) -> dict[str, Any]:
    # PostgreSQL sums bigint up as numeric.
    return {name: int(value) if name in _WHOLE else _shown(value) for name, value in sums.items()}


_WHOLE = {"runs", *FIGURES} - {"cost_usd"}


def _shown(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return str(value) if isinstance(value, UUID | date) else value


ADDED_UP = 500
"""Rows whose kinds are added up in one statement."""

OF_A_KIND = 5_000
"""Rows that are replaced by their sums in one statement, at most."""

_SUMMED = ("runs", "first_runs", *FIGURES)


# What goes comes back as its sum, whatever others do meanwhile, and what others hold is left to them. So it does not
# matter how many add up, or where one dies. Kinds of which nothing is left are not stored.
def _adding_up(table: str, kind: str, same: str) -> str:
    return f"""
WITH kinds AS (
  SELECT DISTINCT {kind} FROM (
    SELECT s.* FROM {table} s JOIN tenants t ON t.id = s.tenant_id AND t.deleting_at IS NULL
    WHERE s.fresh ORDER BY s.id LIMIT {ADDED_UP}
  ) found
), gone AS (
  DELETE FROM {table} WHERE id IN (
    SELECT s.id FROM kinds k JOIN {table} s ON {same}
      AND s.api_key_id IS NOT DISTINCT FROM k.api_key_id
    LIMIT {OF_A_KIND} FOR UPDATE OF s SKIP LOCKED
  ) RETURNING *
), added AS (
  INSERT INTO {table} ({kind}, {", ".join(_SUMMED)}, fresh)
  SELECT {kind}, {", ".join(f"sum({name})" for name in _SUMMED)}, false FROM gone GROUP BY {kind}
  HAVING {" OR ".join(f"sum({name}) <> 0" for name in _SUMMED)}
)
SELECT count(*) FILTER (WHERE fresh) FROM gone
"""  # noqa: S608 - ours


_SAME = "s.tenant_id = k.tenant_id AND s.day = k.day AND s.model = k.model"
_ADD_UP = (
    _adding_up("usage_sums", "tenant_id, day, model, api_key_id", _SAME),
    _adding_up(
        "usage_user_sums", "tenant_id, end_user, day, model, api_key_id", f"{_SAME} AND s.end_user = k.end_user"
    ),
)


async def add_up(db: Database) -> None:
    """Replace rows of both tables of sums by their sums, until no new one is left or others are at it."""
    for add in _ADD_UP:
        while await db.pool.fetchval(add) >= ADDED_UP:
            continue


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
    if scope.end_user is not None:
        query = query.where(Run.end_user == scope.end_user)
    elif scope.of_end_users:
        query = query.where(Run.end_user.is_not(None))
    if scope.profiles is not None:
        query = query.where(Run.session_id.in_(scope.sessions(tenant_id)))
    async with db.turns.reading(tenant_id), db.connect() as connection:
        return int((await connection.execute(query)).scalar_one())
