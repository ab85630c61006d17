"""Who owns a session: giving it back, taking it from dead owners, and ending what they left behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api import instruments
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, Event, append
from apps.api.core.sessions import agent_tasks, requests, steering
from apps.api.core.sessions.outcome import Outcome, failure, requeue, store
from apps.api.core.sessions.parking import Parked
from apps.api.core.tasks import Loop
from apps.api.db import PASSING, Database
from apps.api.errors import LeaseLost
from apps.api.instruments import Ended

log = structlog.get_logger(__name__)


async def release(db: Database, session_id: UUID, generation: int) -> bool | None:
    """Give a session back, unless a run of it was claimed meanwhile.

    Returns:
        None when it was not given back; else whether runs of it wait, so that others should be woken.
    """
    unfinished: list[Orphan] = []
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT 1 FROM sessions WHERE id = $1 AND generation = $2 FOR NO KEY UPDATE", session_id, generation
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
            unfinished = await abandon(connection, [session_id], _UNFINISHED)
        else:
            await connection.execute("UPDATE sessions SET owner_id = NULL, ports = '{}' WHERE id = $1", session_id)
            await _reject_commands(connection, [session_id], "no_live_run")
        waiting: bool = await connection.fetchval(
            "SELECT min(position) IS NOT NULL FROM runs WHERE session_id = $1 AND status = 'queued'", session_id
        )
    for orphan in unfinished:
        orphan.count()
    return waiting


@dataclass(frozen=True, slots=True)
class Orphan:
    """A session that lost its owner, and the events that say so; they are to be relayed. `ended`: its run, if it had
    one that has ended with that."""

    session_id: UUID
    tenant_id: UUID
    frames: list[Frame]
    ended: Ended | None = None

    def count(self) -> None:
        """Count its run: what has ended it is committed."""
        if self.ended is not None:
            instruments.run_ended(self.ended)


def announce(core: Core, orphan: Orphan) -> None:
    """Relay and count what ended an orphan's run, and wake who may run the session's next one."""
    orphan.count()
    core.relay(orphan.tenant_id, orphan.session_id, orphan.frames)
    core.publisher.command("DEL", core.redis.keys.active_session(orphan.session_id))
    core.wake(orphan.tenant_id, orphan.session_id)


BATCH = 50
"""Sessions that are taken over in one transaction. Clients of the first one wait for the last one."""

# What others have locked is being taken over by them: survivors share the work.
_ORPHANED = """
SELECT s.id FROM sessions s JOIN instances i ON i.id = s.owner_id
WHERE i.lease_expires_at < now() AND s.id <> ALL($1::uuid[]) AND ($2::uuid IS NULL OR s.id = $2)
LIMIT $3 FOR NO KEY UPDATE OF s SKIP LOCKED
"""

_PATIENCE = "SET LOCAL lock_timeout = '1s'"
"""Others' locks on what belongs to one session are waited for no longer; then it is tried alone, and left for later."""

_IDLE = f"""
UPDATE sessions s SET generation = {NEXT_GENERATION}, owner_id = NULL, ports = '{{}}'
WHERE id = ANY($1::uuid[])
  AND NOT EXISTS (SELECT 1 FROM runs WHERE session_id = s.id AND status IN ('running','requires_action'))
  AND NOT EXISTS (SELECT 1 FROM requests WHERE session_id = s.id AND status = 'open')
  AND NOT EXISTS (SELECT 1 FROM commands WHERE session_id = s.id AND status = 'pending')
  AND NOT EXISTS (SELECT 1 FROM events WHERE session_id = s.id AND type = 'task')
RETURNING id, tenant_id
"""  # noqa: S608 - ours

_FREE = f"""
WITH freed AS (
  UPDATE sessions s SET generation = {NEXT_GENERATION}, owner_id = NULL, ports = '{{}}' FROM instances i
  WHERE s.id = $1 AND i.id = s.owner_id AND i.lease_expires_at < now() RETURNING s.id
), ended AS (
  UPDATE runs SET status = 'failed', finished_at = now(), error = $2
  WHERE session_id IN (SELECT id FROM freed)
    AND (status IN ('running','requires_action') OR (status = 'queued' AND steered_into IS NOT NULL)) RETURNING 1
), closed AS (
  UPDATE requests SET status = 'closed', resolved_at = now()
  WHERE session_id IN (SELECT id FROM freed) AND status = 'open'
), rejected AS (
  UPDATE commands SET status = 'rejected', applied_at = now()
  WHERE session_id IN (SELECT id FROM freed) AND status = 'pending'
)
SELECT count(*) FROM ended
"""  # noqa: S608 - ours

FREE_AFTER = 3
"""Failures to take a session over, after which it is freed without a word in its log, which cannot be written."""


_TOO_LONG = (TimeoutError, asyncpg.QueryCanceledError)
"""What passes, and may yet be the fault of one session: its statement took longer than db.STATEMENT_TIMEOUT."""


async def reap(core: Core, loop: Loop) -> list[Orphan]:
    """Take sessions from owners whose lease has run out, end the runs that they left behind, and say so.

    A run that an agent was given is not repeated: its tools may have had effects. A session that cannot be taken
    over is the loop's item and holds up no other one. Any number of instances may do this at once. Returns those that
    were taken.
    """
    taken: list[Orphan] = []
    while True:
        found: list[UUID] = []
        try:
            orphans = await _take_from_dead(core, found, loop.spared)
        except Exception as error:
            if not found or (isinstance(error, PASSING) and not isinstance(error, _TOO_LONG)):
                raise
            # Of one of them: each alone tells which.
            orphans = [orphan for id_ in found for orphan in await _take_one(core, loop, id_)]
        taken += orphans
        if len(found) < BATCH or not orphans:
            return taken


async def _take_from_dead(core: Core, found: list[UUID], spared: list[UUID], only: UUID | None = None) -> list[Orphan]:
    """Take a batch, or `only` one, in one transaction, and announce it. `found` is filled with what it tries."""
    async with core.db.transaction() as connection:
        found += [row["id"] for row in await connection.fetch(_ORPHANED, spared, only, BATCH)]
        if not found:
            return []
        await connection.execute(_PATIENCE)
        # Each a statement of its own: it must see what was committed while the first one waited for the rows.
        orphans = [Orphan(row["id"], row["tenant_id"], []) for row in await connection.fetch(_IDLE, found)]
        idle = {orphan.session_id for orphan in orphans}
        if busy := [id_ for id_ in found if id_ not in idle]:
            orphans += await abandon(connection, busy, failure("owner_lost"))
    for orphan in orphans:
        log.warning("ownership.reaped", session_id=str(orphan.session_id))
        announce(core, orphan)
    return orphans


async def _take_one(core: Core, loop: Loop, session_id: UUID) -> list[Orphan]:
    with loop.one(session_id):
        try:
            return await _take_from_dead(core, [], [], session_id)
        except (*PASSING, asyncpg.LockNotAvailableError):
            raise
        except Exception:
            if loop.failures_of(session_id) < FREE_AFTER:
                raise
        log.error("ownership.freed_unwritten", session_id=str(session_id))
        ended = await core.db.pool.fetchval(_FREE, session_id, _UNFINISHED)
        instruments.run_ended(Ended("failed", _UNFINISHED["code"]), ended)
    return []


_UNFINISHED = failure(
    "storage_failed", "The end of this run could not be stored. The conversation is kept; send the prompt again."
)


async def disown(
    db: Database,
    instance_id: UUID,
    session_id: UUID,
    generation: int,
    error: Mapping[str, Any] = _UNFINISHED,
    *,
    again: bool = True,
) -> Orphan | None:
    """Give back a session that this instance owns on paper only, with its run; see `abandon`."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT 1 FROM sessions WHERE id = $1 AND owner_id = $2 AND generation = $3 FOR NO KEY UPDATE",
            session_id,
            instance_id,
            generation,
        )
        if row is None:
            return None
        [orphan] = await abandon(connection, [session_id], error, again=again)
        return orphan


async def note_sent(db: Database, session_id: UUID, generation: int, run_id: UUID, sent: bool) -> None:
    """Note just before it that an agent is given the prompt, or before a start that there is none that could be.

    To a run that was parked the answer is what the prompt is to others.

    Raises LeaseLost: the session is somebody else's.
    """
    # The lock makes it wait for who takes the session from its owner, and see that.
    status = await db.pool.execute(
        "WITH pen AS MATERIALIZED (SELECT id FROM sessions WHERE id = $1 AND generation = $2 FOR SHARE)"
        " UPDATE runs SET unsent = NOT $4, parked = CASE WHEN NOT $4 THEN parked END FROM pen"
        " WHERE runs.id = $3 AND session_id = pen.id AND status = 'running'",
        session_id,
        generation,
        run_id,
        sent,
    )
    if status != "UPDATE 1":
        raise LeaseLost(f"session {session_id}: generation {generation} may not send run {run_id}")


async def give_back(db: Database, instance_id: UUID, session_id: UUID, generation: int, run_id: UUID) -> Orphan | None:
    """Give back a session with a run that was claimed here, and of which no agent has been told."""
    try:
        await note_sent(db, session_id, generation, run_id, False)
    except LeaseLost:
        return None
    return await disown(db, instance_id, session_id, generation)


async def abandon(
    connection: asyncpg.Connection, session_ids: Sequence[UUID], error: Mapping[str, Any], *, again: bool = True
) -> list[Orphan]:
    """End the ownership of sessions, with their rows locked: fence the owners, and end the active runs.

    A run that no agent was given is queued again, unless `again` is false, or it came back too often already. Others
    fail with `error`.
    """
    # Before the sessions are free: then the first that waits is found, which may be one of these.
    if again:
        await requeue(connection, session_ids)
    sessions = await connection.fetch(_FENCE, session_ids)
    runs = {row["session_id"]: row for row in await connection.fetch(_ACTIVE, session_ids)}
    told: defaultdict[UUID, list[Event]] = defaultdict(list)
    for session_id, event in (
        *await requests.abandon(connection, session_ids, str(error["code"])),
        *await agent_tasks.unfinished(connection, session_ids, str(error["code"])),
    ):
        told[session_id].append(event)
    await _reject_commands(connection, session_ids, "owner_lost")
    doubtful = await steering.in_doubt(connection, session_ids)
    orphans = []
    for row in sessions:
        run, events = runs.get(row["id"]), told[row["id"]]
        messages, before = doubtful.get(row["id"], []), row["last_seq"] + len(events)
        events += steering.failed(messages, error)
        if run is not None:
            events += [Event("error", error, run["id"]), Event("done", {"status": "failed"}, run["id"])]
        frames = await append(connection, row["id"], row["generation"], row["last_seq"], events) if events else []
        await steering.fail(connection, messages, error, before)
        ended = None
        if run is not None:
            ended = await store(connection, row["id"], run["id"], _failed(run, error), frames[-1].seq)
        orphans.append(Orphan(row["id"], row["tenant_id"], frames, ended))
    return orphans


def _failed(run: asyncpg.Record, error: Mapping[str, Any]) -> Outcome:
    with suppress(ValueError):
        if run["parked"]:
            return Parked.stored(run["parked"]).ended("failed", error)
    return Outcome("failed", error=dict(error), cost_usd=0.0 if run["unsent"] else None)  # the model was never asked


_FENCE = f"""
UPDATE sessions SET generation = {NEXT_GENERATION}, owner_id = NULL, ports = '{{}}' WHERE id = ANY($1::uuid[])
RETURNING id, tenant_id, generation, last_seq
"""  # noqa: S608 - ours

_ACTIVE = """
SELECT id, session_id, unsent, parked FROM runs
WHERE session_id = ANY($1::uuid[]) AND status IN ('running','requires_action') FOR NO KEY UPDATE
"""


async def _reject_commands(connection: asyncpg.Connection, session_ids: Sequence[UUID], code: str) -> None:
    await connection.execute(
        "UPDATE commands SET status = 'rejected', applied_at = now(), result = $2"
        " WHERE session_id = ANY($1::uuid[]) AND status = 'pending'",
        session_ids,
        {"code": code},
    )
