"""What sessions take of the disk, of tenants and keys that are limited (`workspace_bytes`).

The instance that has an agent at work measures what lies in its session's directories: see `runner.session.watch`. What
is stored here is what was measured last. Prompts are refused by it in the statement that stores them (`run_refused`).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from apps.api.db import Database

TOO_MANY = 1 << 50
"""Bytes that a tree counts with more files than anybody counts; of a real disk nobody has so many."""

_LIMITED = """
SELECT s.id FROM sessions s JOIN tenants t ON t.id = s.tenant_id LEFT JOIN api_keys k ON k.id = s.taken_by
WHERE s.id = ANY($1::uuid[]) AND (t.limits ? 'workspace_bytes' OR k.limits ? 'workspace_bytes')
"""

_NOTE = """
UPDATE sessions s SET workspace_bytes = $2 FROM (SELECT workspace_bytes FROM sessions WHERE id = $1) before
WHERE id = $1 AND s.workspace_bytes <> $2 RETURNING before.workspace_bytes < $2
"""

_ROOM = """
SELECT s.id, least(
  (t.limits ->> 'workspace_bytes')::bigint - (
    SELECT coalesce(sum(o.workspace_bytes), 0) FROM sessions o
    WHERE o.tenant_id = t.id AND o.workspace_bytes > 0 AND o.deleted_at IS NULL),
  (k.limits ->> 'workspace_bytes')::bigint - (
    SELECT coalesce(sum(o.workspace_bytes), 0) FROM sessions o
    WHERE o.tenant_id = t.id AND o.taken_by = k.id AND o.workspace_bytes > 0 AND o.deleted_at IS NULL)
)::bigint AS room
FROM sessions s JOIN tenants t ON t.id = s.tenant_id LEFT JOIN api_keys k ON k.id = s.taken_by
WHERE s.id = ANY($1::uuid[])
"""


async def limited(db: Database, session_ids: Sequence[UUID]) -> list[UUID]:
    """Which of these sessions are of a tenant, or were taken for a key, with a limit."""
    return [row["id"] for row in await db.pool.fetch(_LIMITED, session_ids)] if session_ids else []


async def note(db: Database, session_id: UUID, size: int) -> bool:
    """Store how many bytes a session takes. Returns whether it takes more than before."""
    return bool(await db.pool.fetchval(_NOTE, session_id, min(size, TOO_MANY)))


async def beyond(db: Database, session_ids: Sequence[UUID]) -> list[UUID]:
    """Which of these sessions are of a tenant or a key that has more than it may."""
    rows = await db.pool.fetch(_ROOM, session_ids) if session_ids else []
    return [row["id"] for row in rows if row["room"] is not None and row["room"] < 0]


async def room(db: Database, session_id: UUID) -> int | None:
    """Bytes that may be added to a session's files by the limits of its tenant, and of the key that its prompts came
    by;
    negative: there is too much already. None: any."""
    rows = await db.pool.fetch(_ROOM, [session_id])
    return rows[0]["room"] if rows else None
