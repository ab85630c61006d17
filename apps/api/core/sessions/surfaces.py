"""Sessions by their surface: the kind of interface that they were made through, which `sessions.surface` names.

A session is one of its tenant's like any other; a surface only tells those apart that its own lists are about. Where
`profiles` are named, as those that a key is bound to, only sessions of these count.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from apps.api.core.codec import decode, timestamp
from apps.api.core.context import Core
from apps.api.core.sessions import deletion
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound

MAX_LISTED = 1_000
"""Sessions in a list, the newest ones."""

MAX_REMOVED = 1_000
"""Sessions that one clean-up removes."""


Profiles = Sequence[str] | None


async def ids(db: Database, tenant_id: UUID, surface: str, profiles: Profiles = None) -> list[str]:
    """The newest MAX_LISTED sessions of a surface, newest first."""
    rows = await db.pool.fetch(
        "SELECT id FROM sessions WHERE tenant_id = $1 AND surface = $2 AND deleted_at IS NULL"
        " AND ($4::text[] IS NULL OR profile = ANY($4)) ORDER BY created_at DESC, id LIMIT $3",
        tenant_id,
        surface,
        MAX_LISTED,
        profiles,
    )
    return [str(row["id"]) for row in rows]


async def count(db: Database, tenant_id: UUID, surface: str, profiles: Profiles = None) -> int:
    """How many sessions of a surface there are."""
    found: int = await db.pool.fetchval(
        "SELECT count(*) FROM sessions WHERE tenant_id = $1 AND surface = $2 AND deleted_at IS NULL"
        " AND ($3::text[] IS NULL OR profile = ANY($3))",
        tenant_id,
        surface,
        profiles,
    )
    return found


_OVERVIEW = """
SELECT s.id, s.created_at, first.prompt, latest.status, latest.started_at, latest.finished_at, latest.error,
  latest.result, (SELECT count(*) FROM events WHERE session_id = s.id AND type = ANY($3)) AS events
FROM sessions s
LEFT JOIN LATERAL (SELECT prompt FROM runs WHERE session_id = s.id AND kind = 'prompt' AND origin = 'client'
  ORDER BY position LIMIT 1) first ON true
LEFT JOIN LATERAL (SELECT * FROM runs WHERE session_id = s.id ORDER BY position DESC LIMIT 1) latest ON true
WHERE s.tenant_id = $1 AND s.surface = $2 AND s.deleted_at IS NULL AND ($5::text[] IS NULL OR s.profile = ANY($5))
ORDER BY s.created_at DESC, s.id LIMIT $4
"""


async def overview(
    db: Database, tenant_id: UUID, surface: str, profiles: Profiles = None, *, event_types: list[str]
) -> list[dict[str, Any]]:
    """The newest MAX_LISTED sessions of a surface, newest first, each with its first prompt and its newest run.

    Rows: `session_id`, `created_at`, `prompt` (as it was given), `status`, `started_at`, `finished_at`, `error` and
    `result` of the run, and `events`: how many there are of these types.
    """
    async with db.turns.reading(tenant_id):
        rows = await db.pool.fetch(_OVERVIEW, tenant_id, surface, event_types, MAX_LISTED, profiles)
    return [
        {
            "session_id": str(row["id"]),
            "created_at": timestamp(row["created_at"]),
            "prompt": decode(row["prompt"]) if row["prompt"] else None,
            "status": row["status"],
            "started_at": timestamp(row["started_at"]) if row["started_at"] else None,
            "finished_at": timestamp(row["finished_at"]) if row["finished_at"] else None,
            "error": row["error"],
            "result": decode(row["result"]) if row["result"] else None,
            "events": row["events"],
        }
        for row in rows
    ]


_FINISHED = """
SELECT s.id FROM sessions s
WHERE s.tenant_id = $1 AND s.surface = $2 AND s.deleted_at IS NULL AND s.created_at <= now() - $3 * interval '1 hour'
  AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.session_id = s.id
    AND (r.finished_at IS NULL OR r.finished_at > now() - $3 * interval '1 hour'))
  AND ($5::text[] IS NULL OR s.profile = ANY($5))
ORDER BY s.created_at LIMIT $4
"""


async def clean_up(core: Core, tenant_id: UUID, surface: str, max_age_hours: float, profiles: Profiles = None) -> int:
    """Delete sessions of a surface whose last run ended that long ago, MAX_REMOVED at most. Returns how many."""
    async with core.db.turns.reading(tenant_id):
        rows = await core.db.pool.fetch(_FINISHED, tenant_id, surface, max_age_hours, MAX_REMOVED, profiles)
    removed = 0
    for row in rows:
        with suppress(Conflict, NotFound):  # it was given a prompt or deleted meanwhile
            await deletion.delete(core.db, tenant_id, row["id"], unless_busy=True)
            core.forget(tenant_id, row["id"])
            removed += 1
    return removed
