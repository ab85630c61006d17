"""What is removed for its age, tenant by tenant, by one instance at a time and in small transactions.

A session that runs or waits is left alone, and looked at again with the next pass. Whoever removes something of one
holds its row meanwhile, so that nobody claims it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import structlog

from apps.api import audit
from apps.api.core.config import retention
from apps.api.core.config.retention import Retention
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, Event, append
from apps.api.core.files import garbage
from apps.api.core.files.objects import StoreFailed
from apps.api.core.sessions import deletion, sessions, stored, workspaces
from apps.api.core.tasks import Loop
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound

log = structlog.get_logger(__name__)

EVERY_SECONDS = 3600.0
"""Between two passes over one tenant."""

PAGE = 500
"""Sessions that are looked at in one statement."""

BATCH = 1_000
"""Rows that are removed in one transaction."""

MOVING_SECONDS = 4.0
"""For moving a session's files out of the way while its row is held: a transaction may be idle for 10 s."""


async def put(db: Database, tenant: str, wanted: Retention) -> None:
    """Replace what a tenant has set. It holds with the next pass, which is soon. Raises NotFound `tenant_not_found`."""
    async with db.transaction() as connection:
        tenant_id = await connection.fetchval(
            "UPDATE tenants SET retention = $2, swept_at = NULL WHERE name = $1 RETURNING id", tenant, wanted.given()
        )
        if tenant_id is None:
            raise NotFound.of("tenant")
        await audit.note(connection, "tenant.retention", tenant_id, retention=wanted.given())


async def get(db: Database, tenant: str) -> Retention:
    """What a tenant has set. Raises NotFound `tenant_not_found`."""
    row = await db.pool.fetchrow("SELECT retention FROM tenants WHERE name = $1", tenant)
    if row is None:
        raise NotFound.of("tenant")
    return retention.read(row["retention"])


# --- one pass over a tenant ----------------------------------------------------------------------------------------

_TURN = """
UPDATE tenants SET swept_at = now() WHERE id = (
  SELECT id FROM tenants WHERE (swept_at IS NULL OR swept_at < now() - make_interval(secs => $1))
    AND deleting_at IS NULL AND ($2 OR retention <> '{}') AND id <> ALL($3::uuid[])
  ORDER BY swept_at NULLS FIRST LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
) RETURNING id, retention, now() AS now
"""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One tenant's turn: before which moments what is older goes."""

    tenant_id: UUID
    events: datetime | None
    transcripts: datetime | None
    idle: datetime | None
    usage: datetime | None
    workspaces: datetime | None

    @classmethod
    def of(cls, row: asyncpg.Record, kept: Retention) -> _Pass:
        def since(days: int | None) -> datetime | None:
            return None if days is None else row["now"] - timedelta(days=days)

        days = (kept.events_days, kept.transcripts_days, kept.idle_sessions_days, kept.usage_days, kept.workspaces_days)
        return cls(row["id"], *map(since, days))


async def sweep(core: Core, loop: Loop) -> None:
    """Remove what is too old, of every tenant whose turn it is and that no other instance takes. A tenant or session
    at which that fails is the loop's item."""
    defaults = retention.of_server(core.settings)
    any_of_server = any(defaults.given().values())
    while row := await core.db.pool.fetchrow(_TURN, EVERY_SECONDS, any_of_server, loop.spared):
        with loop.one(row["id"]):
            turn = _Pass.of(row, retention.read(row["retention"]).over(defaults))
            await _sessions(core, loop, turn)
            await _rows(core.db, turn)


# A session's last sign of life is not before its creation, so what was created later is not looked at. `quiet`: nothing
# runs, waits, or is owned.
_LOOK = """
SELECT id, created_at,
  deleted_at < $5 AND purged_at IS NOT NULL AND stored IS NULL AS forgotten,
  quiet AND last_active_at < $9 AND stored IS NOT NULL AS unused,
  quiet AND last_active_at < $4 AS idle,
  quiet AND last_active_at < $3 AND EXISTS (SELECT 1 FROM transcript_entries WHERE session_id = s.id) AS silent,
  deleted_at IS NULL AND NOT busy AND last_seq > expired_seq
    AND (SELECT created_at FROM events WHERE session_id = s.id AND seq = s.expired_seq + 1) < $2 AS old
FROM (
  SELECT *, deleted_at IS NULL AND owner_id IS NULL AND NOT busy AS quiet FROM (
    SELECT *, EXISTS (SELECT 1 FROM runs WHERE session_id = sessions.id AND status IN ('queued', 'running',
      'requires_action')) AS busy
    FROM sessions WHERE tenant_id = $1
      AND created_at < greatest($2::timestamptz, $3::timestamptz, $4::timestamptz, $5::timestamptz, $9::timestamptz)
      AND ($6::timestamptz IS NULL OR (created_at, id) > ($6, $7::uuid))
    ORDER BY created_at, id LIMIT $8
  ) AS page
) AS s ORDER BY created_at, id
"""


async def _sessions(core: Core, loop: Loop, turn: _Pass) -> None:
    cutoffs = (turn.events, turn.transcripts, turn.idle, turn.usage)
    after: tuple[datetime | None, UUID | None] = (None, None)
    while rows := await core.db.pool.fetch(_LOOK, turn.tenant_id, *cutoffs, *after, PAGE, turn.workspaces):
        for row in rows:
            for kind, do in _KINDS.items():
                if row[kind] and row["id"] not in loop.spared:
                    with loop.one(row["id"]):
                        await do(core, turn, row["id"])
        after = (rows[-1]["created_at"], rows[-1]["id"])


async def _delete(core: Core, turn: _Pass, session_id: UUID) -> None:
    try:
        await deletion.delete(
            core.db, turn.tenant_id, session_id, unless_busy=True, unless_active_since=turn.idle, reason="retention"
        )
    except (Conflict, NotFound):
        return  # somebody uses it again, or has deleted it
    core.forget(turn.tenant_id, session_id)


_QUIET = """
SELECT tenant_id, last_seq, expired_seq, last_active_at FROM sessions s
WHERE id = $1 AND deleted_at IS NULL AND ($2::timestamptz IS NULL OR (owner_id IS NULL AND last_active_at < $2))
  AND NOT EXISTS (SELECT 1 FROM runs WHERE session_id = s.id AND status IN ('queued','running','requires_action'))
FOR NO KEY UPDATE SKIP LOCKED
"""
"""A session that nothing happens in, locked for a transaction. With a time as $2: if nobody owns it, and nothing has
happened since then."""

# The log ends where an event is young enough, and not within a run that is.
_EXPIRED = """
WITH kept AS (
  SELECT coalesce((SELECT seq FROM events WHERE session_id = $1 AND seq > $3 AND created_at >= $2 ORDER BY seq LIMIT 1),
    $4 + 1) AS seq
)
SELECT least(kept.seq, (SELECT min(first_seq) FROM runs WHERE session_id = $1 AND last_seq >= kept.seq)) - 1 FROM kept
"""


async def _expire_events(core: Core, turn: _Pass, session_id: UUID) -> None:
    """Remove events from the beginning of a log, and what else tells what was said before then."""
    while True:
        async with core.db.transaction() as connection:
            row = await connection.fetchrow(_QUIET, session_id, None)
            if row is None:
                return
            begin: int = row["expired_seq"]
            wanted: int = await connection.fetchval(_EXPIRED, session_id, turn.events, begin, row["last_seq"])
            end = min(wanted, begin + BATCH)
            if end > begin:
                await connection.execute("DELETE FROM events WHERE session_id = $1 AND seq <= $2", session_id, end)
                await connection.execute("UPDATE sessions SET expired_seq = $2 WHERE id = $1", session_id, end)
            if end >= wanted:
                await connection.execute(_EMPTY_RUNS, session_id, turn.events)
                await connection.execute(_ANSWERED, session_id, turn.events)
                return


_EMPTY_RUNS = """
UPDATE runs SET prompt = NULL, result = NULL, resources = NULL
WHERE session_id = $1 AND finished_at < $2 AND (prompt IS NOT NULL OR result IS NOT NULL)
"""

_ANSWERED = "DELETE FROM requests WHERE session_id = $1 AND resolved_at < $2 AND NOT remember"


async def _forget_conversation(core: Core, turn: _Pass, session_id: UUID) -> None:
    """Remove what the agent remembers, and say so in the session's events."""
    frames: list[Frame] = []
    while True:
        async with core.db.transaction() as connection:
            row = await connection.fetchrow(_QUIET, session_id, turn.transcripts)
            if row is None:
                break
            if not frames:  # first, so that nobody goes on with a part of it
                await sessions.begin_anew(connection, session_id, uuid4())
                frames = await _tell(connection, session_id, row)
            gone = await connection.execute(
                "DELETE FROM transcript_entries WHERE id IN"
                " (SELECT id FROM transcript_entries WHERE session_id = $1 ORDER BY id LIMIT $2)",
                session_id,
                BATCH,
            )
            if gone == "DELETE 0":
                break
    core.relay(turn.tenant_id, session_id, frames)


async def _forget_files(core: Core, turn: _Pass, session_id: UUID) -> None:
    """Remove the stored files of a session. Copies on hosts go by `sweep_files`."""
    async with core.db.transaction() as connection:
        if await connection.fetchrow(_QUIET, session_id, turn.workspaces) is None:
            return
        names = await stored.drop(connection, session_id)
    await _unstore(core, turn.tenant_id, session_id, names)


async def _unstore(core: Core, tenant_id: UUID, session_id: UUID, names: list[str]) -> None:
    """Remove manifests that were a session's. What they name goes as garbage, and so does what resists."""
    if names:
        log.info("retention.stored_files_removed", session_id=str(session_id))
        await garbage.hasten(core.db.pool, tenant_id)
        with suppress(StoreFailed):  # which is logged
            await core.objects.remove(names)


async def _tell(connection: asyncpg.Connection, session_id: UUID, row: asyncpg.Record) -> list[Frame]:
    # Whoever owns a session for one transaction may write its events: see `fleet.places.announce_unowned`.
    generation = await connection.fetchval(
        f"UPDATE sessions SET generation = {NEXT_GENERATION} WHERE id = $1 RETURNING generation",  # noqa: S608
        session_id,
    )
    event = Event("status", {"status": "conversation_expired"})
    frames = await append(connection, session_id, generation, row["last_seq"], [event])
    # It is no sign of life.
    await connection.execute("UPDATE sessions SET last_active_at = $2 WHERE id = $1", session_id, row["last_active_at"])
    return frames


async def _remove_tombstone(core: Core, turn: _Pass, session_id: UUID) -> None:
    """Remove what was left of a deleted session for reports of usage: its runs, and once there are none, itself."""
    while True:
        gone = await core.db.pool.execute(
            "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE session_id = $1 AND finished_at < $2 LIMIT $3)",
            session_id,
            turn.usage,
            BATCH,
        )
        if gone == "DELETE 0":
            break
    await core.db.pool.execute(
        "DELETE FROM sessions s WHERE id = $1 AND deleted_at IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM runs WHERE session_id = s.id)",
        session_id,
    )


_KINDS: dict[str, Callable[[Core, _Pass, UUID], Awaitable[None]]] = {
    "idle": _delete,
    "silent": _forget_conversation,
    "unused": _forget_files,
    "old": _expire_events,
    "forgotten": _remove_tombstone,
}

_OLD_ROWS = {
    "usage": "DELETE FROM usage WHERE (run_id, model) IN (SELECT run_id, model FROM usage WHERE tenant_id = $1"
    " AND day < ($2::timestamptz AT TIME ZONE 'UTC')::date LIMIT $3)",
    "calls": "DELETE FROM model_calls WHERE id IN (SELECT id FROM model_calls WHERE tenant_id = $1 AND began_at < $2"
    " LIMIT $3)",
    # No budget asks for these any more: one of a session is of all its days, others begin a month ago at most.
    "spent": "DELETE FROM spent WHERE (subject, day) IN (SELECT subject, day FROM spent p WHERE tenant_id = $1"
    " AND day < least(($2::timestamptz AT TIME ZONE 'UTC')::date, date_trunc('month', now() AT TIME ZONE 'UTC')::date)"
    " AND NOT EXISTS (SELECT FROM sessions s WHERE s.id = p.subject AND s.deleted_at IS NULL) LIMIT $3)",
    "told": "DELETE FROM webhook_deliveries WHERE id IN (SELECT d.id FROM webhooks w JOIN webhook_deliveries d"
    " ON d.webhook_id = w.id WHERE w.tenant_id = $1 AND d.created_at < $2 LIMIT $3)",
}


async def _rows(db: Database, turn: _Pass) -> None:
    for what, before in (
        ("usage", turn.usage),
        ("calls", turn.usage),
        ("spent", turn.usage),
        ("told", turn.events),
    ):
        while before is not None:
            gone = await db.pool.execute(_OLD_ROWS[what], turn.tenant_id, before, BATCH)
            if int(gone.removeprefix("DELETE ")) < BATCH:
                break


# --- files, on each host -------------------------------------------------------------------------------------------

_UNUSED = """
SELECT s.id, s.tenant_id, s.last_active_at FROM sessions s JOIN tenants t ON t.id = s.tenant_id
WHERE s.id = ANY($1::uuid[]) AND s.deleted_at IS NULL AND s.owner_id IS NULL AND t.deleting_at IS NULL
  AND s.last_active_at < now() - make_interval(days => CASE WHEN t.retention ? 'workspaces_days'
    THEN (t.retention ->> 'workspaces_days')::int ELSE $2::int END)
"""


async def sweep_files(core: Core, loop: Loop, present: list[UUID]) -> None:
    """Remove files of sessions that nothing has happened in for too long, of those that have some on this host: here
    and in the store. Those of other sessions go from the store by `sweep`."""
    days = retention.of_server(core.settings).workspaces_days
    for row in await core.db.pool.fetch(_UNUSED, present, days):
        with loop.one(row["id"]):
            graves, names = await _move_files(core, row)
            await core.blocking.removal.run(workspaces.bury, graves)
            await _unstore(core, row["tenant_id"], row["id"], names)


async def _move_files(core: Core, session: asyncpg.Record) -> tuple[list[Path], list[str]]:
    """Move what is here out of the way, and say that nothing is stored. Returns where it is now, and the manifests."""
    async with core.db.transaction() as connection:
        before = session["last_active_at"] + timedelta(microseconds=1)
        if await connection.fetchrow(_QUIET, session["id"], before) is None:
            return [], []
        until = time.monotonic() + MOVING_SECONDS
        # Not in the threads for removals, which may all be at work: this takes a moment, and the row is held.
        moved: Any = await asyncio.to_thread(workspaces.move_away, core.settings, session["id"], until)
        await connection.execute("UPDATE sessions SET workspace_bytes = 0 WHERE id = $1", session["id"])
        names = await stored.drop(connection, session["id"])
    log.info("retention.files_removed", session_id=str(session["id"]))
    return list(moved), names
