"""Who owns a session: giving it back, taking it from dead owners, and ending what they left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, Event, append
from apps.api.core.sessions import agent_tasks, requests
from apps.api.core.sessions.outcome import FINISH_RUN, failure
from apps.api.core.tasks import Loop
from apps.api.db import Database

log = structlog.get_logger(__name__)


async def release(db: Database, session_id: UUID, generation: int) -> bool | None:
    """Give a session back, unless a run of it was claimed meanwhile.

    Returns:
        None when it was not given back; else whether runs of it wait, so that others should be woken.
    """
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT tenant_id, last_seq FROM sessions WHERE id = $1 AND generation = $2 FOR NO KEY UPDATE",
            session_id,
            generation,
        )
        if row is None:
            return False
        # A second statement, because it must see a claim that committed while the first one waited for the row.
        origin = await connection.fetchval(
            "SELECT origin FROM runs WHERE session_id = $1 AND status IN ('running','requires_action')", session_id
        )
        if origin == "client":
            return None
        if origin == "background":
            # Its end could not be stored. Left as it is it would block the session, and no reaper looks at free ones.
            await abandon(connection, session_id, row["tenant_id"], row["last_seq"], _UNFINISHED)
        else:
            await connection.execute("UPDATE sessions SET owner_id = NULL, ports = '{}' WHERE id = $1", session_id)
            await _reject_commands(connection, session_id, "no_live_run")
        waiting: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT 1 FROM runs WHERE session_id = $1 AND status = 'queued')", session_id
        )
        return waiting


@dataclass(frozen=True, slots=True)
class Orphan:
    """A session that lost its owner, and the events that say so; they are to be relayed."""

    session_id: UUID
    tenant_id: UUID
    frames: list[Frame]


def announce(core: Core, orphan: Orphan) -> None:
    """Relay what ended an orphan's run, and wake who may run the session's next one."""
    core.relay(orphan.tenant_id, orphan.session_id, orphan.frames)
    core.publisher.command("DEL", core.redis.keys.active_session(orphan.session_id))
    core.wake(orphan.tenant_id, orphan.session_id)


_ORPHANED = """
SELECT s.id FROM sessions s JOIN instances i ON i.id = s.owner_id
WHERE i.lease_expires_at < now() AND s.id <> ALL($1::uuid[]) LIMIT 50
"""

_OF_THE_DEAD = """
SELECT s.tenant_id, s.last_seq FROM sessions s JOIN instances i ON i.id = s.owner_id
WHERE s.id = $1 AND i.lease_expires_at < now() FOR NO KEY UPDATE OF s SKIP LOCKED
"""

_FREE = f"""
WITH freed AS (
  UPDATE sessions s SET generation = {NEXT_GENERATION}, owner_id = NULL, ports = '{{}}' FROM instances i
  WHERE s.id = $1 AND i.id = s.owner_id AND i.lease_expires_at < now() RETURNING s.id
), ended AS (
  UPDATE runs SET status = 'failed', finished_at = now(), error = $2
  WHERE session_id IN (SELECT id FROM freed) AND status IN ('running','requires_action')
), closed AS (
  UPDATE requests SET status = 'closed', resolved_at = now()
  WHERE session_id IN (SELECT id FROM freed) AND status = 'open'
)
UPDATE commands SET status = 'rejected', applied_at = now()
WHERE session_id IN (SELECT id FROM freed) AND status = 'pending'
"""  # noqa: S608 - ours

FREE_AFTER = 3
"""Failures to take a session over, after which it is freed without a word in its log, which cannot be written."""


async def reap(core: Core, loop: Loop) -> list[Orphan]:
    """Take sessions from owners whose lease has run out, end the runs that they left behind, and say so.

    A run is not repeated: its tools may have had effects already. A session that cannot be taken over is the loop's
    item and holds up no other one. Returns those that were taken.
    """
    taken = []
    for row in await core.db.pool.fetch(_ORPHANED, loop.spared):
        with loop.one(row["id"]):
            if loop.failures_of(row["id"]) >= FREE_AFTER:
                log.error("ownership.freed_unwritten", session_id=str(row["id"]))
                await core.db.pool.execute(_FREE, row["id"], _UNFINISHED)
            elif orphan := await _take_from_dead(core.db, row["id"]):
                log.warning("ownership.reaped", session_id=str(row["id"]))
                announce(core, orphan)
                taken.append(orphan)
    return taken


async def _take_from_dead(db: Database, session_id: UUID) -> Orphan | None:
    async with db.transaction() as connection:
        row = await connection.fetchrow(_OF_THE_DEAD, session_id)
        if row is None:
            return None
        return await abandon(connection, session_id, row["tenant_id"], row["last_seq"], failure("owner_lost"))


_UNFINISHED = failure(
    "storage_failed", "The end of this run could not be stored. The conversation is kept; send the prompt again."
)


async def disown(
    db: Database, instance_id: UUID, session_id: UUID, generation: int, error: Mapping[str, Any] = _UNFINISHED
) -> Orphan | None:
    """Give back a session that this instance owns on paper only, and fail the run that it may have left."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT tenant_id, last_seq FROM sessions WHERE id = $1 AND owner_id = $2 AND generation = $3"
            " FOR NO KEY UPDATE",
            session_id,
            instance_id,
            generation,
        )
        if row is None:
            return None
        return await abandon(connection, session_id, row["tenant_id"], row["last_seq"], error)


async def abandon(
    connection: asyncpg.Connection, session_id: UUID, tenant_id: UUID, last_seq: int, error: Mapping[str, Any]
) -> Orphan:
    """End a session's ownership, with its row locked: fence the owner, fail its active run with `error`."""
    generation = await connection.fetchval(
        f"UPDATE sessions SET generation = {NEXT_GENERATION}, owner_id = NULL, ports = '{{}}' WHERE id = $1"  # noqa: S608
        " RETURNING generation",
        session_id,
    )
    run_id = await connection.fetchval(
        "SELECT id FROM runs WHERE session_id = $1 AND status IN ('running','requires_action') FOR NO KEY UPDATE",
        session_id,
    )
    events = await requests.abandon(connection, session_id, str(error["code"]))
    events += await agent_tasks.unfinished(connection, session_id, str(error["code"]))
    if run_id is not None:
        events += [Event("error", error, run_id), Event("done", {"status": "failed"}, run_id)]
    frames = await append(connection, session_id, generation, last_seq, events) if events else []
    if run_id is not None:
        await connection.execute(FINISH_RUN, run_id, "failed", dict(error), None, None, frames[-1].seq)
    await _reject_commands(connection, session_id, "owner_lost")
    return Orphan(session_id, tenant_id, frames)


async def _reject_commands(connection: asyncpg.Connection, session_id: UUID, code: str) -> None:
    await connection.execute(
        "UPDATE commands SET status = 'rejected', applied_at = now(), result = $2"
        " WHERE session_id = $1 AND status = 'pending'",
        session_id,
        {"code": code},
    )
