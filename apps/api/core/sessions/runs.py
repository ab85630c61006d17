"""Runs: reading what became of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core import pages
from apps.api.core.codec import decode, timestamp
from apps.api.core.pages import Page
from apps.api.core.sessions import sessions
from apps.api.core.tenant.presets import parse_reference
from apps.api.db import Database
from apps.api.errors import Gone, NotFound

_COLUMNS = """
SELECT id, session_id, kind, status, origin, end_user, position, first_seq, last_seq, error, result, total_cost_usd,
  timeout_seconds, created_at, started_at, finished_at, (
    SELECT json_agg(u ORDER BY u.model) FROM (
      SELECT model, input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens,
        web_search_requests, cost_usd
      FROM usage WHERE run_id = runs.id
    ) u) AS usage
FROM runs
"""


_PAGE = pages.bounded(
    _COLUMNS + "WHERE session_id = $1 AND tenant_id = $2 AND ($3::bigint IS NULL OR position < $3)"
    " ORDER BY position DESC LIMIT $4",
    "result",
    "position DESC",
)


def _optional_time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _run(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "run_id": str(row["id"]),
        "session_id": str(row["session_id"]),
        "kind": row["kind"],
        "status": row["status"],
        "origin": row["origin"],
        "end_user": row["end_user"],
        "error": row["error"],
        "result": decode(row["result"]) if row["result"] else None,
        "total_cost_usd": row["total_cost_usd"],
        "usage": decode(row["usage"]) if row["usage"] else [],
        "timeout_seconds": row["timeout_seconds"],
        "first_seq": row["first_seq"],
        "last_seq": row["last_seq"],
        "created_at": timestamp(row["created_at"]),
        "started_at": _optional_time(row["started_at"]),
        "finished_at": _optional_time(row["finished_at"]),
    }


async def get(db: Database, tenant_id: UUID, run_id: UUID) -> dict[str, Any]:
    """A run's state and, when it is over, its result or error. Raises NotFound."""
    row = await db.pool.fetchrow(_COLUMNS + "WHERE id = $1 AND tenant_id = $2", run_id, tenant_id)
    if row is None:
        raise NotFound.of("run")
    return _run(row)


async def list_page(db: Database, tenant_id: UUID, session_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """Runs of a session, newest first. Raises NotFound, ValidationError."""
    await sessions.require(db, tenant_id, session_id)
    rows = await db.pool.fetch(_PAGE, session_id, tenant_id, pages.number_of(cursor), limit + 1)
    page, more = pages.cut(rows, limit)
    return Page([_run(row) for row in page], str(page[-1]["position"]) if more else None)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which runs of a tenant; None: any. `profiles`: of sessions of these only."""

    status: str | None = None
    session_id: UUID | None = None
    agent: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    error_code: str | None = None
    profiles: Sequence[str] | None = None
    end_user: str | None = None


async def list_of_tenant(db: Database, tenant_id: UUID, filters: Filters, *, limit: int, cursor: str | None) -> Page:
    """Runs of all sessions, newest first, those of deleted sessions included. Raises ValidationError."""
    where, values = ["tenant_id = $1"], list[Any]([tenant_id])

    def add(condition: str, *given: Any) -> None:
        where.append(condition.format(*(f"${len(values) + n}" for n in range(1, len(given) + 1))))
        values.extend(given)

    if filters.status is not None:
        where.append(f"status = '{filters.status}'")  # written out: there are indexes of those with one
    if filters.error_code is not None:
        add("error IS NOT NULL AND error ->> 'code' = {}", filters.error_code)
    if filters.end_user is not None:
        add("end_user = {}", filters.end_user)
    if filters.session_id is not None:
        add("session_id = {}", filters.session_id)
    if filters.created_after is not None:
        add("created_at > {}", filters.created_after)
    if filters.created_before is not None:
        add("created_at < {}", filters.created_before)
    if filters.agent is not None:
        add(*_of_agent(filters.agent))
    if filters.profiles is not None:
        add(
            "session_id IN (SELECT id FROM sessions WHERE tenant_id = $1 AND profile = ANY({}))", list(filters.profiles)
        )
    if cursor is not None:
        add("(created_at, id) < ({}, {})", *pages.read_cursor(cursor))
    add("true ORDER BY created_at DESC, id DESC LIMIT {}", limit + 1)
    query = pages.bounded(f"{_COLUMNS} WHERE {' AND '.join(where)}", "result", "created_at DESC, id DESC")
    async with db.turns.reading(tenant_id):
        rows = await db.pool.fetch(query, *values)
    page, more = pages.cut(rows, limit)
    last = page[-1] if more else None
    return Page([_run(row) for row in page], pages.write_cursor(last["created_at"], last["id"]) if last else None)


def _of_agent(reference: str) -> tuple[Any, ...]:
    id_, name, version = parse_reference(reference)
    found = "SELECT s.id FROM sessions s JOIN agents a ON a.id = s.agent_id WHERE a.tenant_id = $1 AND a."
    condition = "id = {}" if id_ else "name = {}"
    given: list[Any] = [id_ or name]
    if version is not None:
        condition += " AND s.agent_version = {}"
        given.append(version)
    return f"session_id IN ({found}{condition})", *given


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the events of a run lie in its session's log, at one moment.

    Attributes:
        start: they come after this number.
        end: the number of its `done`, once the run is over.
        newest: the session's newest number.
        expired: whether all of them were removed for their age.
    """

    session_id: UUID
    start: int
    end: int | None
    newest: int
    expired: bool

    def require_any(self, after: int) -> None:
        """Raises Gone `events_expired` where nothing is left of what a reader wants after number `after`."""
        if self.expired and self.end is not None and after < self.end:
            raise Gone("The events of this run have been removed for their age.", code="events_expired")


BEFORE_RUN = """
coalesce((SELECT min(e.seq) FROM events e WHERE e.run_id = r.id) - 1, r.first_seq - 1, s.last_seq)
"""
"""SQL: the number after which the events of run `r` of session `s` come. Those that told its place in the queue come
before `first_seq`, which is where it began."""


_START = f"CASE WHEN r.first_seq <= s.expired_seq THEN r.first_seq - 1 ELSE {BEFORE_RUN} END"


async def extent(db: Database, tenant_id: UUID, run_id: UUID) -> Extent:
    """Where to read a run's events. Raises NotFound when the run is unknown, or its session was deleted."""
    row = await db.pool.fetchrow(
        f"SELECT s.id, {_START} AS start, s.last_seq AS newest, s.deleted_at,"  # noqa: S608 - ours
        " CASE WHEN r.finished_at IS NOT NULL THEN r.last_seq END AS end,"
        " coalesce(r.last_seq <= s.expired_seq, false) AS expired"
        " FROM runs r JOIN sessions s ON s.id = r.session_id WHERE r.id = $1 AND r.tenant_id = $2",
        run_id,
        tenant_id,
    )
    if row is None:
        raise NotFound.of("run")
    if row["deleted_at"] is not None:
        raise NotFound.of("session")
    return Extent(row["id"], row["start"], row["end"], row["newest"], row["expired"])


async def idle_since(db: Database, session_id: UUID) -> int | None:
    """The session's newest number when no run of it is queued or active, else None."""
    newest: int | None = await db.pool.fetchval(
        "SELECT last_seq FROM sessions s WHERE id = $1"
        " AND NOT EXISTS (SELECT 1 FROM runs WHERE session_id = s.id AND finished_at IS NULL)",
        session_id,
    )
    return newest
