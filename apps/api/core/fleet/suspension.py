"""Suspended tenants: their keys are refused, what runs is ended, what waits never begins, and webhooks are silent.

Whose keys are refused is decided at the door (`apps.api.auth`), and what may start in the claim. The rest is enforced:
every instance looks which tenants are suspended, ends what it executes for them, and ends what they have queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from apps.api import audit, invalidations
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, append
from apps.api.core.fleet import cancellation, parked
from apps.api.core.sessions.outcome import failure
from apps.api.core.tasks import Loop
from apps.api.errors import Conflict, NotFound
from apps.api.invalidations import Invalid
from apps.api.redis import KEY_CACHE_TTL

BATCH = 50
"""Sessions with queued runs that are looked for at a time."""

NEVER_BEGAN = failure("tenant_suspended", "The tenant was suspended before the run began.")


async def suspend(core: Core, tenant: str, own: UUID) -> None:
    """Suspend a tenant, if it is not suspended. All instances refuse its keys within some seconds, with or without
    Redis.

    Args:
        own: the tenant of who asks, whose own keys are to go on being accepted.

    Raises:
        NotFound: `tenant_not_found`.
        Conflict: `own_tenant`.
    """
    async with core.db.transaction() as connection:
        row = await _locked(connection, tenant)
        if row["id"] == own:
            raise Conflict("This is the tenant of the key that you use: it would lock itself out.", code="own_tenant")
        if row["suspended_at"] is not None:
            return
        await connection.execute("UPDATE tenants SET suspended_at = now() WHERE id = $1", row["id"])
        await audit.note(connection, "tenant.suspended", row["id"])
        told = await forget_keys(core, connection, row["id"])
    invalidations.obey(core.redis, told)


async def resume(core: Core, tenant: str) -> None:
    """Let a tenant's keys be accepted again, at once; what was ended stays ended.

    Raises:
        NotFound: `tenant_not_found`.
        Conflict: `tenant_deleted`, being deleted.
    """
    async with core.db.transaction() as connection:
        row = await _locked(connection, tenant)
        if row["deleting_at"] is not None:
            raise Conflict("This tenant is being deleted.", code="tenant_deleted")
        if row["suspended_at"] is not None:
            await connection.execute("UPDATE tenants SET suspended_at = NULL WHERE id = $1", row["id"])
            await audit.note(connection, "tenant.resumed", row["id"])


async def _locked(connection: asyncpg.Connection, tenant: str) -> asyncpg.Record:
    row = await connection.fetchrow(
        "SELECT id, suspended_at, deleting_at FROM tenants WHERE name = $1 FOR NO KEY UPDATE", tenant
    )
    if row is None:
        raise NotFound.of("tenant")
    return row


async def forget_keys(core: Core, connection: asyncpg.Connection, tenant_id: UUID) -> list[Invalid]:
    """Have what is cached of a tenant's keys forgotten by all instances, as part of a transaction: also when this one
    dies as soon as that is stored. The caller then obeys it itself."""
    rows = await connection.fetch(
        "SELECT secret_hash, previous_hash FROM api_keys WHERE tenant_id = $1 AND revoked_at IS NULL", tenant_id
    )
    names = [core.redis.keys.api_key(secret_hash) for row in rows for secret_hash in row.values() if secret_hash]
    return await invalidations.store(connection, names, KEY_CACHE_TTL * 1000)


_SUSPENDED = "SELECT id FROM tenants WHERE suspended_at IS NOT NULL"


async def suspended(core: Core) -> set[UUID]:
    """The tenants that are suspended."""
    return {row["id"] for row in await core.db.pool.fetch(_SUSPENDED)}


_WAITING = """
SELECT s.id FROM sessions s
WHERE s.owner_id IS NULL AND s.deleted_at IS NULL AND s.id <> ALL($2::uuid[])
  AND s.id IN (
    SELECT session_id FROM runs WHERE tenant_id = ANY($1::uuid[]) AND status = 'queued'
    UNION ALL SELECT session_id FROM runs WHERE tenant_id = ANY($1::uuid[]) AND parked IS NOT NULL)
ORDER BY random() LIMIT $3
"""


async def end_queued(core: Core, loop: Loop, tenants: Sequence[UUID]) -> None:
    """End what these tenants have queued or parked in sessions that nobody owns. An owner gives its session back first.

    A session at which that fails is the loop's item. Any number of instances may do this at once.
    """
    while True:
        rows = await core.db.pool.fetch(_WAITING, list(tenants), loop.spared, BATCH)
        ended = 0
        for row in rows:
            with loop.one(row["id"]):
                ended += await _end_in(core, row["id"])
        if not ended:
            return


async def _end_in(core: Core, session_id: UUID) -> int:
    """End what waits in a session, unless somebody has taken it; returns how many events tell of that."""
    async with core.db.transaction() as connection:
        tenant_id = await connection.fetchval(
            "SELECT tenant_id FROM sessions WHERE id = $1 AND owner_id IS NULL AND deleted_at IS NULL"
            " FOR NO KEY UPDATE SKIP LOCKED",
            session_id,
        )
        if tenant_id is None:
            return 0
        frames = await parked.end(connection, session_id, code="tenant_suspended")
        queued = await connection.fetch(
            "SELECT id FROM runs WHERE session_id = $1 AND status = 'queued' ORDER BY position", session_id
        )
        if queued:
            frames += await _end_queued(connection, session_id, [run["id"] for run in queued])
    if frames:
        core.relay(tenant_id, session_id, frames)
    return len(frames)


async def _end_queued(connection: asyncpg.Connection, session_id: UUID, queued: Sequence[UUID]) -> list[Frame]:
    # Whoever owns a session for one transaction may write its events: see `places.announce_unowned`.
    pen = await connection.fetchrow(
        f"UPDATE sessions SET generation = {NEXT_GENERATION} WHERE id = $1 RETURNING generation, last_seq",  # noqa: S608
        session_id,
    )
    for seq, run_id in enumerate(queued, pen["last_seq"] + 1):
        await cancellation.end(connection, run_id, seq, NEVER_BEGAN)
    ends = [cancellation.done(run_id) for run_id in queued]
    return await append(connection, session_id, pen["generation"], pen["last_seq"], ends)
