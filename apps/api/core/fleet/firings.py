"""Firings: what came of the times of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import instruments
from apps.api.core.codec import timestamp
from apps.api.core.context import Core
from apps.api.core.pages import Page, as_told, read_cursor, write_cursor
from apps.api.db import Database

KEEP_DAYS = 30
"""Days that firings are kept."""

AT_ONCE = 50
"""Firings whose runs have ended that one transaction takes note of."""

COLUMNS = """
f.id, f.schedule_id, f.fire_at, f.origin, f.times, f.run_id, f.session_id, f.agent, f.created_at,
coalesce(f.ended_at, r.finished_at) AS ended_at,
CASE WHEN f.state <> 'sent' THEN f.state ELSE coalesce(r.status, 'interrupted') END AS state,
CASE WHEN f.state <> 'sent' THEN f.error
  WHEN r.error IS NOT NULL THEN jsonb_build_object('code', r.error ->> 'code', 'message', r.error ->> 'message')
END AS error
"""
"""Of firings `f` and their runs `r`."""

LAST = f"""
SELECT row_to_json(newest) FROM (
  SELECT {COLUMNS} FROM schedule_firings f LEFT JOIN runs r ON r.id = f.run_id
  WHERE f.schedule_id = s.id ORDER BY f.fire_at DESC LIMIT 1
) newest
"""  # noqa: S608 - ours
"""SQL of a value: the newest firing of a schedule `s`, as JSON."""


def moment(value: datetime | str | None) -> str | None:
    """As everywhere in the API."""
    if value is None:
        return None
    return timestamp(datetime.fromisoformat(value) if isinstance(value, str) else value)


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A firing as clients are told it: a row, or what `LAST` says."""
    return {
        "firing_id": str(row["id"]),
        "schedule_id": str(row["schedule_id"]),
        "fire_at": moment(row["fire_at"]),
        "origin": row["origin"],
        "state": row["state"],
        "times": row["times"],
        "run_id": row["run_id"] and str(row["run_id"]),
        "session_id": row["session_id"] and str(row["session_id"]),
        "agent": row["agent"],
        "error": row["error"],
        "created_at": moment(row["created_at"]),
        "ended_at": moment(row["ended_at"]),
    }


_OF_RUN = f"""
SELECT {COLUMNS} FROM schedule_firings f LEFT JOIN runs r ON r.id = f.run_id WHERE f.run_id = $1
"""  # noqa: S608 - ours

_PAGE = f"""
SELECT {COLUMNS} FROM schedule_firings f LEFT JOIN runs r ON r.id = f.run_id
WHERE f.schedule_id = $1 AND ($2::timestamptz IS NULL OR (f.fire_at, f.id) < ($2, $3::uuid))
ORDER BY f.fire_at DESC, f.id DESC LIMIT $4
"""  # noqa: S608 - ours


async def of_run(core: Core, run_id: UUID) -> dict[str, Any] | None:
    """The firing that queued a run."""
    row = await core.db.pool.fetchrow(_OF_RUN, run_id)
    return row and shown(row)


async def list_page(core: Core, schedule_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """Firings of a schedule that the caller may see, those of the newest times first. Raises ValidationError."""
    before = read_cursor(cursor) if cursor else (None, None)
    rows = await core.db.pool.fetch(_PAGE, schedule_id, *before, limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    return Page([shown(row) for row in rows[:limit]], write_cursor(last["fire_at"], last["id"]) if last else None)


@dataclass(frozen=True, slots=True)
class Sought:
    """Which firings of a tenant's schedules; None: any. Those that were skipped or missed are none of them.

    Attributes:
        surface: of the schedules.
        failed: whether nothing could be queued.
        origin: `schedule` or `request`.
        created: what `created_at`, as it is told, is compared with, by operator: `>`, `>=`, `<`, `<=`.
        profiles: of schedules of these only.
    """

    surface: str
    schedule_id: UUID | None = None
    firing_id: UUID | None = None
    failed: bool | None = None
    origin: str | None = None
    created: Mapping[str, datetime | None] | None = None
    profiles: Sequence[str] | None = None


async def search(core: Core, tenant_id: UUID, sought: Sought, *, limit: int, cursor: str | None) -> Page:
    """Firings of all the schedules that are sought, those of the newest times first. Raises ValidationError."""
    values: list[Any] = [tenant_id, sought.surface, sought.profiles and list(sought.profiles)]
    own = ["f.schedule_id = s.id AND (f.session_id IS NOT NULL OR f.state = 'failed')"]
    whose = "s.tenant_id = $1 AND s.spec ->> 'surface' = $2 AND ($3::text[] IS NULL OR s.profile = ANY($3))"

    def given(value: Any) -> str:
        values.append(value)
        return f"${len(values)}"

    if sought.schedule_id is not None:
        whose += f" AND s.id = {given(sought.schedule_id)}"
    if sought.firing_id is not None:
        own.append(f"f.id = {given(sought.firing_id)}")
    if sought.failed is not None:
        own.append(f"(f.session_id IS NULL) = {given(sought.failed)}")
    if sought.origin is not None:
        own.append(f"f.origin = {given(sought.origin)}")
    for operator, when in (sought.created or {}).items():
        if when is not None:
            compared, bound = as_told(operator, when)
            own.append(f"f.created_at {compared} {given(bound)}")
    if cursor is not None:
        time, id_ = read_cursor(cursor)
        own.append(f"(f.fire_at, f.id) < ({given(time)}, {given(id_)})")
    most = given(limit + 1)
    # Of each schedule no more than the page has, by its index, however many it has been fired.
    query = f"""
    SELECT {COLUMNS} FROM schedules s CROSS JOIN LATERAL (
      SELECT f.* FROM schedule_firings f WHERE {" AND ".join(own)} ORDER BY f.fire_at DESC, f.id DESC LIMIT {most}
    ) f LEFT JOIN runs r ON r.id = f.run_id WHERE {whose} ORDER BY f.fire_at DESC, f.id DESC LIMIT {most}
    """  # noqa: S608 - ours
    async with core.db.turns.reading(tenant_id):
        rows = await core.db.pool.fetch(query, *values)
    last = rows[limit - 1] if len(rows) > limit else None
    return Page([shown(row) for row in rows[:limit]], write_cursor(last["fire_at"], last["id"]) if last else None)


_ADD = """
INSERT INTO schedule_firings (schedule_id, fire_at, origin, state, run_id, session_id, times, error, agent, ended_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CASE WHEN $4 <> 'sent' THEN now() END)
"""


async def add(
    connection: asyncpg.Connection,
    schedule_id: UUID,
    fire_at: datetime,
    state: str,
    *,
    origin: str = "schedule",
    run_id: UUID | None = None,
    session_id: UUID | None = None,
    times: int = 1,
    error: Mapping[str, Any] | None = None,
    agent: str | None = None,
) -> None:
    """Store a firing, as part of a transaction. `agent`: the preset that the schedule named.

    Raises asyncpg.UniqueViolationError where there is one of this time."""
    about = (run_id, session_id, times, None if error is None else dict(error), agent)
    await connection.execute(_ADD, schedule_id, fire_at, origin, state, *about)


async def skip_missed(connection: asyncpg.Connection, schedule_id: UUID, first: datetime, times: int) -> None:
    """Note that so many times, from this one on, were missed."""
    error = {"code": "missed", "message": f"Nobody was there to fire {times} of its times: this one, and those after."}
    await add(connection, schedule_id, first, "missed", times=times, error=error)


async def forget_old(db: Database) -> None:
    """Remove firings whose time is over."""
    await db.sweep(
        "DELETE FROM schedule_firings WHERE id IN (SELECT id FROM schedule_firings WHERE state <> 'sent'"
        " AND created_at < now() - make_interval(days => $1) ORDER BY created_at LIMIT $2)",
        KEEP_DAYS,
    )


def count(state: str, times: int = 1) -> None:
    """Count firings of a kind."""
    instruments.FIRINGS.labels(state).inc(times)
