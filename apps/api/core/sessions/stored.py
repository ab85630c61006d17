"""Where a session's files are stored, as the database says: the one truth that all instances share.

What an instance has of them on its disk is a copy. The owner of a session changes its copy, and stores it; whoever owns
the session next makes its own copy the same. See `core/files`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from apps.api.db import Database
from apps.api.errors import LeaseLost

MAX_TOLD = 20
"""Runs that are named whose changes were not stored."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A session's files.

    Attributes:
        name: of the manifest; None: nothing was stored yet.
        before: of the one that was it before.
        at: when they were stored.
        size: bytes of all files.
        unstored_since: since when an agent may have changed something that is not stored.
    """

    name: str | None
    before: str | None
    at: datetime | None
    size: int
    unstored_since: datetime | None


_FIND = "SELECT stored, stored_before, stored_at, stored_bytes, unstored_since FROM sessions WHERE id = $1"

_STILL = "SELECT 1 FROM sessions WHERE id = $1 AND (stored = $2 OR stored_before = $2) FOR SHARE"

_NOTE = """
WITH mine AS (
  SELECT id, stored, stored_before FROM sessions
  WHERE id = $1 AND generation = $2 AND deleted_at IS NULL FOR NO KEY UPDATE
)
UPDATE sessions s SET stored = $3, stored_before = $6, stored_at = now(), stored_bytes = $4, workspace_bytes = $4,
  unstored_since = CASE WHEN $5 THEN NULL ELSE unstored_since END
FROM mine WHERE s.id = mine.id
RETURNING array_remove(array_remove(array_remove(
  ARRAY[mine.stored, mine.stored_before], $6::text), $3::text), NULL) AS nobodys
"""

_BEGIN = "UPDATE sessions SET stored = $2, stored_at = now(), stored_bytes = $3 WHERE id = $1"

_DROP = """
WITH had AS (SELECT id, stored, stored_before FROM sessions WHERE id = $1 AND stored IS NOT NULL FOR NO KEY UPDATE)
UPDATE sessions s SET stored = NULL, stored_before = NULL, stored_at = NULL, stored_bytes = 0, unstored_since = NULL
FROM had WHERE s.id = had.id RETURNING had.stored, had.stored_before
"""

_TOUCH = """
UPDATE sessions SET unstored_since = CASE WHEN $3 THEN now() END
WHERE id = $1 AND generation = $2 AND (unstored_since IS NULL) = $3
"""

_LOST = """
SELECT id FROM runs WHERE session_id = $1 AND finished_at >= $2 AND started_at IS NOT NULL
ORDER BY finished_at LIMIT $3
"""


async def find(on: asyncpg.Connection | asyncpg.Pool, session_id: UUID) -> Stored:
    """Where they are. The caller has seen that it may know the session."""
    return Stored(*(await on.fetchrow(_FIND, session_id) or (None, None, None, 0, None)))


async def still(connection: asyncpg.Connection, session_id: UUID, name: str) -> bool:
    """Whether a manifest is the session's, or the one before. It stays so for the rest of the transaction, which is to
    be short: the owner stores nothing meanwhile."""
    return await connection.fetchval(_STILL, session_id, name) is not None


async def begin(connection: asyncpg.Connection, session_id: UUID, name: str, size: int) -> None:
    """This manifest is that of a session that begins with files."""
    await connection.execute(_BEGIN, session_id, name, size)


async def drop(connection: asyncpg.Connection | asyncpg.Pool, session_id: UUID) -> list[str]:
    """A session has no files any more. Returns the manifests that it had, for `garbage.hasten` and to be removed."""
    row = await connection.fetchrow(_DROP, session_id)
    return [name for name in row if name is not None] if row is not None else []


async def note(
    db: Database, session_id: UUID, generation: int, name: str, size: int, *, before: str | None, over: bool
) -> list[str]:
    """From now on this manifest is the session's, and `before` the one at the beginning of the run that is over, or
    goes on; `over`: it has all that agents have changed. Returns the names of those that were the session's, and are no
    more; a repeat whose first attempt was stored returns fewer.

    Raises LeaseLost: the session is somebody else's.
    """
    row = await db.pool.fetchrow(_NOTE, session_id, generation, name, size, over, before)
    if row is None:
        raise LeaseLost(f"session {session_id}: generation {generation} may not store files")
    nobodys: list[str] = row["nobodys"]
    return nobodys


async def note_touched(db: Database, session_id: UUID, generation: int, touched: bool) -> None:
    """Note that an agent begins to change files; or that what it had changed and was not stored is gone, and told."""
    await db.pool.execute(_TOUCH, session_id, generation, touched)


async def lost_runs(db: Database, session_id: UUID, since: datetime) -> list[str]:
    """Runs that ended after that, the first of them, as events name them."""
    return [str(row["id"]) for row in await db.pool.fetch(_LOST, session_id, since, MAX_TOLD)]
