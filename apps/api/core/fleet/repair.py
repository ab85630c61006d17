"""For operators: end a run that is stuck, or say why it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import audit
from apps.api.core.fleet import ownership
from apps.api.core.fleet.ownership import Orphan
from apps.api.core.sessions.outcome import failure
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound

_LOOK = """
SELECT r.status, r.started_at, r.timeout_seconds, r.position, s.id AS session_id, s.owner_id, s.deleted_at,
  i.hostname, i.lease_expires_at > now() AS owner_alive, now() - r.started_at AS age, r.parked IS NOT NULL AS parked,
  (SELECT a.id FROM runs a WHERE a.session_id = s.id AND a.status IN ('running','requires_action')) AS active_id,
  (SELECT count(*) FROM runs q WHERE q.session_id = s.id AND q.status = 'queued' AND q.position < r.position) AS before,
  (SELECT count(*) FROM instances WHERE lease_expires_at > now() AND NOT draining AND slots > 0) AS takers
FROM runs r JOIN sessions s ON s.id = r.session_id LEFT JOIN instances i ON i.id = s.owner_id WHERE r.id = $1
"""

_REPAIRED = failure(
    "owner_lost", "An operator ended this run: no instance executed it. The conversation is kept; send it again."
)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done. `orphan` is to be relayed."""

    session_id: UUID
    action: str
    orphan: Orphan


async def repair(db: Database, run_id: UUID) -> Repaired:
    """Take a session with a dead owner, or none, from a run that still counts as running, and fail that run.

    Raises:
        NotFound: no such run.
        Conflict: `nothing_to_repair`; the message and `details` say in what state the run is and why it is right.
    """
    async with db.transaction() as connection:
        row = await connection.fetchrow(_LOOK, run_id)
        if row is None:
            raise NotFound.of("run")
        over = row["status"] in ("succeeded", "failed", "interrupted")
        orphan = None if over else await _take(connection, row["session_id"])
        if orphan is not None:
            action = "the session was taken from its dead owner" if row["owner_id"] else "the run had no owner"
            await audit.note(connection, "run.repaired", orphan.tenant_id, run_id, session_id=str(row["session_id"]))
            return Repaired(row["session_id"], action, orphan)
    raise Conflict(_reason(row), code="nothing_to_repair", details=_facts(row))


async def _take(connection: asyncpg.Connection, session_id: UUID) -> Orphan | None:
    row = await connection.fetchrow(
        "SELECT s.owner_id, i.lease_expires_at > now() AS owner_alive,"
        " EXISTS (SELECT 1 FROM runs WHERE session_id = s.id AND status IN ('running','requires_action')"
        " AND NOT (status = 'requires_action' AND parked IS NOT NULL AND s.owner_id IS NULL)) AS active"
        " FROM sessions s LEFT JOIN instances i ON i.id = s.owner_id WHERE s.id = $1 FOR NO KEY UPDATE OF s",
        session_id,
    )
    stuck = row is not None and not row["owner_alive"] and (row["owner_id"] is not None or row["active"])
    if not stuck:
        return None
    [orphan] = await ownership.abandon(connection, [session_id], _REPAIRED, again=False)
    return orphan


def _reason(row: asyncpg.Record) -> str:
    status = row["status"]
    if status in ("succeeded", "failed", "interrupted"):
        return f"The run is over: {status}."
    if status == "requires_action" and row["parked"]:
        return "The run waits for a person; until then no instance has it. To stop it, interrupt its session."
    if status in ("running", "requires_action"):
        wait = "waits for a person" if status == "requires_action" else f"has until {row['timeout_seconds']:g} s"
        age = f"{row['age'].total_seconds():.0f} s"
        return f"Its owner's lease is valid. It has run for {age}, and {wait}. To stop it, interrupt its session."
    if row["active_id"] is not None:
        return f"The run waits behind the session's active run {row['active_id']}."
    if row["before"]:
        return f"The run waits behind {row['before']} other prompts of its session."
    if not row["takers"]:
        return "The run waits, because no living instance takes runs: start one with RUNNER_SLOTS above 0."
    return "The run waits for a free slot; instances that take runs are alive."


def _facts(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "status": row["status"],
        "session_id": str(row["session_id"]),
        "owner": str(row["owner_id"]) if row["owner_id"] else None,
        "owner_alive": bool(row["owner_alive"]),
        "instances_that_take_runs": row["takers"],
    }
