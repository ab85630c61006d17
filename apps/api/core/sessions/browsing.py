"""Lists of one surface's sessions that are turned over in both directions; and where in a log the turns are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from apps.api.core import pages
from apps.api.core.codec import decode
from apps.api.core.sessions import sessions
from apps.api.db import Database
from apps.api.errors import ValidationError

_WORKS = "EXISTS (SELECT 1 FROM runs r WHERE r.session_id = s.id AND r.status IN ('queued','running'))"


@dataclass(frozen=True, slots=True)
class Sought:
    """Which sessions; None: any.

    Attributes:
        works: whether a run of theirs is queued or running; one that waits for a person does not.
        created: what `created_at`, as it is told, is compared with, by operator: `>`, `>=`, `<`, `<=`.
        profiles: of sessions of these only.
        schedule_id: what has begun them.
    """

    surface: str
    archived: bool = False
    agent_id: UUID | None = None
    agent_version: int | None = None
    works: bool | None = None
    created: Mapping[str, datetime | None] | None = None
    profiles: Sequence[str] | None = None
    schedule_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """A page, and the cursors of those beside it."""

    data: list[dict[str, Any]]
    next_cursor: str | None
    previous_cursor: str | None


def _direction(cursor: str | None) -> tuple[bool, tuple[datetime, UUID] | None]:
    if cursor is None:
        return True, None
    kind, _, place = cursor.partition(".")
    if kind not in ("next", "prev"):
        raise ValidationError.of("page", "not a cursor that this list gave")
    return kind == "next", pages.read_cursor(place)


async def list_page(
    db: Database, tenant_id: UUID, sought: Sought, *, newest_first: bool, limit: int, cursor: str | None, model: str
) -> Spread:
    """Sessions by the time they were made. `model`: of those that name none. Raises ValidationError."""
    forward, place = _direction(cursor)
    descends = newest_first == forward
    where = ["s.tenant_id = $1 AND s.surface = $2 AND s.deleted_at IS NULL"]
    values: list[Any] = [tenant_id, sought.surface]

    def add(condition: str, *given: Any) -> None:
        where.append(condition.format(*(f"${len(values) + n}" for n in range(1, len(given) + 1))))
        values.extend(given)

    if not sought.archived:
        add("s.archived_at IS NULL")
    if sought.agent_id is not None:
        add("s.agent_id = {}", sought.agent_id)
    if sought.agent_version is not None:
        add("s.agent_version = {}", sought.agent_version)
    if sought.schedule_id is not None:
        add("s.schedule_id = {}", sought.schedule_id)
    if sought.works is not None:
        add(_WORKS if sought.works else f"NOT {_WORKS}")
    if sought.profiles is not None:
        add("s.profile = ANY({})", list(sought.profiles))
    for operator, moment in (sought.created or {}).items():
        if moment is not None:
            compared, bound = pages.as_told(operator, moment)
            add(f"s.created_at {compared} {{}}", bound)
    if place is not None:
        add(f"(s.created_at, s.id) {'<' if descends else '>'} ({{}}, {{}})", *place)
    way = "DESC" if descends else "ASC"
    add(f"true ORDER BY s.created_at {way}, s.id {way} LIMIT {{}}", limit + 1)
    async with db.turns.reading(tenant_id):
        rows = await db.pool.fetch(
            f"SELECT s.id, s.created_at FROM sessions s WHERE {' AND '.join(where)}",  # noqa: S608 - ours
            *values,
        )
        found, more = rows[:limit], len(rows) > limit
        states = await sessions.states(db, tenant_id, [row["id"] for row in found], model)
    if not forward:
        found.reverse()
    if not found:
        return Spread([], None, None)
    ends = [pages.write_cursor(row["created_at"], row["id"]) for row in (found[0], found[-1])]
    further, back = (more, place is not None) if forward else (True, more)
    data = [states[row["id"]] for row in found if row["id"] in states]  # the others were just deleted
    return Spread(data, f"next.{ends[1]}" if further else None, f"prev.{ends[0]}" if back else None)


_TURN = """
SELECT min(r.first_seq) - 1 FROM runs r
WHERE r.session_id = $1 AND r.first_seq <= $2 AND (r.last_seq > $2 OR r.finished_at IS NULL)
"""


async def turn_before(db: Database, session_id: UUID, seq: int) -> int:
    """The number after which the run begins in which an event `seq` lies; `seq` itself where that ends one, or there is
    none."""
    found: int | None = await db.pool.fetchval(_TURN, session_id, seq)
    return seq if found is None else found


async def waiting(db: Database, tenant_id: UUID, session_id: UUID) -> list[tuple[UUID, Any]]:
    """Prompts of a session that no agent has been given yet, in order, each with its run's id."""
    rows = await db.pool.fetch(
        "SELECT id, prompt FROM runs WHERE session_id = $1 AND tenant_id = $2 AND status = 'queued' AND kind = 'prompt'"
        " AND parked IS NULL ORDER BY position",
        session_id,
        tenant_id,
    )
    return [(row["id"], decode(row["prompt"])) for row in rows]


async def has_tasks(db: Database, session_id: UUID) -> bool:
    """Whether a session has called a subagent or begun something in the background."""
    return bool(
        await db.pool.fetchval(
            "SELECT EXISTS (SELECT 1 FROM events WHERE session_id = $1 AND type = 'task')", session_id
        )
    )
