"""Checkpoints: moments to which a session's files can be rewound, one for each prompt."""

from __future__ import annotations

from uuid import UUID

from apps.api.core import pages
from apps.api.core.codec import decode
from apps.api.core.pages import Page
from apps.api.core.sessions import sessions
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound

# The prompt must be part of the session's present conversation: a hard reset begins another one.
_LIST = """
SELECT e.seq, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.type = 'checkpoint' AND e.seq > $3
  AND EXISTS (
    SELECT 1 FROM transcript_entries t
    WHERE t.session_id = s.id AND t.sdk_session_id = s.sdk_session_id::text AND t.subpath = ''
      AND t.uuid = e.subject)
ORDER BY e.seq LIMIT $4
"""


async def list_page(db: Database, tenant_id: UUID, session_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """Checkpoints of a session's conversation, oldest first. Raises NotFound, ValidationError."""
    await sessions.require(db, tenant_id, session_id)
    rows = await db.pool.fetch(_LIST, session_id, tenant_id, pages.number_of(cursor) or 0, limit + 1)
    return Page(
        [decode(row["data"]) for row in rows[:limit]], str(rows[limit - 1]["seq"]) if len(rows) > limit else None
    )


_FIND = """
SELECT
  EXISTS (SELECT 1 FROM events WHERE session_id = $1 AND type = 'checkpoint' AND subject = $3) AS kept,
  EXISTS (SELECT 1 FROM transcript_entries t WHERE t.session_id = s.id AND t.sdk_session_id = s.sdk_session_id::text
    AND t.subpath = '' AND t.uuid = $3) AS said
FROM sessions s WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL
"""


async def require(db: Database, tenant_id: UUID, session_id: UUID, message_id: UUID) -> None:
    """Raises NotFound (`session_not_found`, `checkpoint_not_found`) or Conflict `checkpointing_off`."""
    row = await db.pool.fetchrow(_FIND, session_id, tenant_id, str(message_id))
    if row is None:
        raise NotFound.of("session")
    if not row["said"]:
        raise NotFound.of("checkpoint")
    if not row["kept"]:
        raise Conflict("File checkpointing was off when this message was sent.", code="checkpointing_off")
