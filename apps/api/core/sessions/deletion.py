"""Deleting sessions, in two steps.

First, in one short transaction, a session becomes a tombstone: its owner is fenced, its runs are over, nobody finds it
any more. Then what was said in it is removed, however much that is, in batches: by who deletes it, and where that one
dies or there is too much of it, by any instance (`purge_left`). Its stored files go by any instance, too
(`remove_stored`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from apps.api import audit, instruments
from apps.api.core.context import Core
from apps.api.core.events.log import NEXT_GENERATION
from apps.api.core.files import garbage, manifest
from apps.api.core.sessions import stored
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.sessions import BUSY, forget_cached
from apps.api.core.tasks import Loop
from apps.api.db import CONNECTION_ERRORS, Database
from apps.api.errors import Conflict, NotFound
from apps.api.instruments import Ended
from apps.api.redis import Redis

BATCH = 500
"""Rows that are removed in one transaction; each may have some megabytes."""

PATIENCE = 5.0
"""Seconds for which who deletes a session removes what it holds. What is left then is removed later."""

LEFT_AFTER = 60.0
"""Seconds after which what a deleted session still holds was left by somebody."""

CONTENT = {
    "events": ("session_id, seq", "octet_length(data)"),
    "transcript_entries": ("id", "octet_length(entry)"),
    "requests": ("id", "octet_length(data) + coalesce(octet_length(decision), 0)"),
    "commands": ("id", "NULL::int"),
    "idempotency_keys": ("tenant_id, key", "NULL::int"),
    "session_names": ("tenant_id, surface, name", "octet_length(name) + octet_length(data)"),
}
"""Tables that hold what belongs to one session: their keys, and how many bytes a row counts, where that is known."""


class Gone(NamedTuple):
    """So many rows were removed; `size`: bytes of what they held, where that is known."""

    rows: int
    size: int | None = None

    def plus(self, more: Gone) -> Gone:
        """Both."""
        size = None if self.size is None and more.size is None else (self.size or 0) + (more.size or 0)
        return Gone(self.rows + more.rows, size)


@dataclass(slots=True)
class Deleted:
    """What became of a session.

    Attributes:
        owner: who owned it, and ends its agent now.
        removed: by table; of runs what they were given and what came of them, since the rows stay.
        whole: whether nothing of it is left in the database.
        instances: those that live, each of which removes the session's files on its host, if there are any.
    """

    session_id: UUID
    owner: UUID | None
    removed: dict[str, Gone] = field(default_factory=dict)
    whole: bool = False
    instances: list[UUID] = field(default_factory=list)


async def delete(
    db: Database,
    tenant_id: UUID,
    session_id: UUID,
    *,
    unless_busy: bool = False,
    unless_active_since: datetime | None = None,
    **told: str,
) -> Deleted:
    """Remove a session's content and leave a tombstone; its runs keep only what usage reports need.

    The new generation fences the owner, which kills its CLI as soon as it hears or notices. The caller then tells it:
    see `Core.forget`. `told`: what the line of the audit log has besides.

    Raises:
        NotFound: no such session of this tenant.
        Conflict: `session_deleted`, deleted before; `session_busy` if `unless_busy` and something is queued or runs,
            or it is owned, or something has happened in it since `unless_active_since`.
    """
    async with db.turns.removing(tenant_id):
        async with db.transaction() as connection:
            if unless_active_since and await connection.fetchval(_ACTIVE_SINCE, session_id, unless_active_since):
                raise Conflict("This session is in use.", code="session_busy")
            deleted = await mark(connection, tenant_id, session_id, unless_busy=unless_busy)
            await audit.note(connection, "session.deleted", tenant_id, session_id, **told)
            deleted.instances = [
                row["id"] for row in await connection.fetch("SELECT id FROM instances WHERE lease_expires_at > now()")
            ]
        until = asyncio.get_running_loop().time() + PATIENCE
        with suppress(*CONNECTION_ERRORS):  # it is deleted, and what is left goes later: see `purge_left`
            async with aclosing(purge(db, session_id)) as purging:
                async for table, gone in purging:
                    deleted.removed[table] = deleted.removed.get(table, Gone(0)).plus(gone)
                    if asyncio.get_running_loop().time() > until:
                        return deleted
            deleted.whole = True
        return deleted


_ACTIVE_SINCE = """
SELECT owner_id IS NOT NULL OR last_active_at >= $2 FROM sessions WHERE id = $1 FOR UPDATE
"""

_RUNS = """
WITH held AS (
  SELECT id, coalesce(octet_length(prompt), 0) + coalesce(octet_length(result), 0) AS size FROM runs
  WHERE session_id = $1 AND (prompt IS NOT NULL OR result IS NOT NULL OR config IS NOT NULL)
), emptied AS (
  UPDATE runs SET prompt = NULL, result = NULL, config = NULL, parked = NULL, resources = NULL
  WHERE id IN (SELECT id FROM held)
)
SELECT count(*), coalesce(sum(size), 0)::bigint FROM held
"""


async def mark(
    connection: asyncpg.Connection, tenant_id: UUID, session_id: UUID, *, unless_busy: bool = False
) -> Deleted:
    """Make a session a tombstone; what it holds is still to be purged. Raises as `delete`."""
    row = await connection.fetchrow(
        "SELECT owner_id, deleted_at FROM sessions WHERE id = $1 AND tenant_id = $2 FOR UPDATE", session_id, tenant_id
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
    status = await connection.execute(
        "UPDATE runs SET status = 'interrupted', finished_at = now(), error = $2"
        " WHERE session_id = $1 AND finished_at IS NULL",
        session_id,
        failure("session_deleted"),
    )
    instruments.run_ended(Ended("interrupted", "session_deleted"), int(status.removeprefix("UPDATE ")))
    gone = Gone(*await connection.fetchrow(_RUNS, session_id))
    return Deleted(session_id, row["owner_id"], {"runs": gone} if gone.rows else {})


async def purge(db: Database, session_id: UUID) -> AsyncGenerator[tuple[str, Gone]]:
    """Remove what a deleted session holds, batch by batch, each a transaction; says of each what it was.

    Nobody adds to it meanwhile: whoever writes locks the session first, and finds that it is not the owner's any more.
    """
    while found := await remove_some(db.pool, session_id):
        yield found


async def remove_some(on: asyncpg.Connection | asyncpg.Pool, session_id: UUID) -> tuple[str, Gone] | None:
    """Remove a batch of what a deleted session holds; None when nothing was left, which is noted."""
    for table, (key, size) in CONTENT.items():
        found = await on.fetchrow(
            f"WITH gone AS (DELETE FROM {table} WHERE ({key}) IN"  # noqa: S608 - of names of ours
            f" (SELECT {key} FROM {table} WHERE session_id = $1 ORDER BY {key} LIMIT $2 FOR UPDATE)"
            f" RETURNING {size} AS size)"
            " SELECT count(*), sum(size)::bigint FROM gone",
            session_id,
            BATCH,
        )
        if found["count"]:
            return table, Gone(*found)
    await on.execute("UPDATE sessions SET purged_at = now() WHERE id = $1", session_id)
    return None


_LEFT = """
SELECT id FROM sessions WHERE deleted_at < now() - make_interval(secs => $1) AND purged_at IS NULL
  AND id <> ALL($2::uuid[]) ORDER BY deleted_at LIMIT 20
"""


async def purge_left(core: Core, loop: Loop) -> None:
    """Go on where somebody has left what a deleted session holds. Any number of instances may do this at once."""
    while rows := await core.db.pool.fetch(_LEFT, LEFT_AFTER, loop.spared):
        for row in rows:
            with loop.one(row["id"]):
                async with aclosing(purge(core.db, row["id"])) as purging:
                    async for _ in purging:
                        continue


_STORED = """
SELECT id, tenant_id FROM sessions WHERE deleted_at IS NOT NULL AND stored IS NOT NULL AND id <> ALL($1::uuid[])
  AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT 100
"""


async def remove_stored(core: Core, loop: Loop) -> None:
    """Remove the manifests of deleted sessions; what they name goes as garbage, unless other sessions have it. Any
    number of instances may do this at once. A session at which that fails is the loop's item."""
    after: UUID | None = None
    while rows := await core.db.pool.fetch(_STORED, loop.spared, after):
        after = rows[-1]["id"]
        for row in rows:
            with loop.one(row["id"]):
                await core.objects.remove_below(manifest.below_session(row["tenant_id"], row["id"]))
                await stored.drop(core.db.pool, row["id"])
                await garbage.hasten(core.db.pool, row["tenant_id"])


async def deleted_among(db: Database, session_ids: list[UUID]) -> list[UUID]:
    """Which of these are deleted or unknown."""
    rows = await db.pool.fetch(
        "SELECT given.id FROM unnest($1::uuid[]) AS given(id) LEFT JOIN sessions s ON s.id = given.id"
        " WHERE s.id IS NULL OR s.deleted_at IS NOT NULL",
        session_ids,
    )
    return [row["id"] for row in rows]


async def archive(db: Database, redis: Redis, tenant_id: UUID, session_id: UUID) -> None:
    """Let a session be read, and take no prompt any more. Once is enough.

    Raises:
        NotFound: no such session.
        Conflict: `session_busy`: a run of it is queued or active.
    """
    async with db.transaction() as connection:
        found = await connection.fetch(
            "SELECT archived_at FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL"
            " FOR NO KEY UPDATE",
            session_id,
            tenant_id,
        )
        if not found:
            raise NotFound.of("session")
        if found[0]["archived_at"] is not None:
            return
        if await connection.fetchval(BUSY, session_id):  # as of now: who queues a run waits for the lock
            raise Conflict("A run of this session is queued or active: interrupt it first.", code="session_busy")
        await connection.execute(
            "UPDATE sessions SET archived_at = now(), updated_at = now() WHERE id = $1", session_id
        )
        await audit.note(connection, "session.archived", tenant_id, session_id)
    await forget_cached(redis, tenant_id, session_id)
