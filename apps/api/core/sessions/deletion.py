"""Deleting sessions."""

from __future__ import annotations

from uuid import UUID

from apps.api import audit
from apps.api.core.events.log import NEXT_GENERATION
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.sessions import BUSY
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound


async def delete(db: Database, tenant_id: UUID, session_id: UUID, *, unless_busy: bool = False) -> UUID | None:
    """Remove a session's content and leave a tombstone; its runs keep only what usage reports need.

    The new generation fences the owner, which kills its CLI as soon as it hears or notices.

    Returns the owner at that moment, if any.

    Raises:
        NotFound: no such session of this tenant.
        Conflict: `session_deleted`, deleted before; `session_busy` if `unless_busy` and something is queued or runs.
    """
    async with db.turns.removing(tenant_id), db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT owner_id, deleted_at FROM sessions WHERE id = $1 AND tenant_id = $2 FOR UPDATE",
            session_id,
            tenant_id,
        )
        if row is None:
            raise NotFound.of("session")
        if row["deleted_at"] is not None:
            raise Conflict("This session has been deleted.", code="session_deleted")
        if unless_busy and await connection.fetchval(BUSY, session_id):
            raise Conflict("A run of this session is queued or running.", code="session_busy")
        await connection.execute(
            f"UPDATE sessions SET deleted_at = now(), updated_at = now(), generation = {NEXT_GENERATION},"  # noqa: S608
            " owner_id = NULL, title = NULL, tags = '{}', metadata = '{}', config = '{}' WHERE id = $1",
            session_id,
        )
        await connection.execute(
            "UPDATE runs SET status = 'interrupted', finished_at = now(), error = $2"
            " WHERE session_id = $1 AND finished_at IS NULL",
            session_id,
            failure("session_deleted"),
        )
        await connection.execute(
            "UPDATE runs SET prompt = NULL, result = NULL, config = NULL WHERE session_id = $1", session_id
        )
        for table in ("events", "transcript_entries", "commands", "requests", "idempotency_keys"):
            await connection.execute(f"DELETE FROM {table} WHERE session_id = $1", session_id)  # noqa: S608
        await audit.note(connection, "session.deleted", tenant_id, session_id)
        owner: UUID | None = row["owner_id"]
        return owner


async def deleted_among(db: Database, session_ids: list[UUID]) -> list[UUID]:
    """Which of these are deleted or unknown."""
    rows = await db.pool.fetch(
        "SELECT given.id FROM unnest($1::uuid[]) AS given(id) LEFT JOIN sessions s ON s.id = given.id"
        " WHERE s.id IS NULL OR s.deleted_at IS NOT NULL",
        session_ids,
    )
    return [row["id"] for row in rows]
