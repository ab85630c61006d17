"""Stopping a run, or what a session does: a queued run never begins, an active one is interrupted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import instruments
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, Event, append
from apps.api.core.fleet import commands, parked
from apps.api.core.fleet.commands import Sent, not_live
from apps.api.core.sessions import sessions
from apps.api.core.sessions.outcome import failure
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound
from apps.api.instruments import Ended

PATIENCE = 2.0
"""Seconds to wait for a session that is between two owners."""


class NotQueued(Exception):
    """The run has begun, or is over, or an agent was given its message in another run's turn."""


def done(run_id: UUID) -> Event:
    """The one event of a run that never began."""
    return Event("done", {"status": "interrupted"}, run_id)


CANCELLED = failure("interrupted", "The run was cancelled before it began.")


async def end(connection: asyncpg.Connection, run_id: UUID, seq: int, error: Mapping[str, Any] = CANCELLED) -> None:
    """End a queued run whose `done` is number `seq`. Raises NotQueued."""
    status = await connection.execute(
        "UPDATE runs SET status = 'interrupted', finished_at = now(), first_seq = $2, last_seq = $2, error = $3"
        " WHERE id = $1 AND status = 'queued' AND parked IS NULL AND steered_into IS NULL",
        run_id,
        seq,
        dict(error),
    )
    if status != "UPDATE 1":
        raise NotQueued
    instruments.run_ended(Ended("interrupted", error["code"]))


_CURRENT = f"""
SELECT s.deleted_at, ({sessions.CURRENT}) AS run_id FROM sessions s WHERE s.id = $1 AND s.tenant_id = $2
"""  # noqa: S608 - ours


async def interrupt(core: Core, tenant_id: UUID, session_id: UUID, meant: UUID | None = None) -> Sent:
    """Stop a session's current run: the active one; where none is, the one that is queued first. See `cancel`.

    Args:
        meant: the run that is to be the current one.

    Raises:
        NotFound: no such session.
        Conflict: `no_live_run`: nothing runs or waits, or it ended by itself meanwhile, or it is not the one that is
            meant; `session_deleted`.
    """
    row = await core.db.pool.fetchrow(_CURRENT, session_id, tenant_id)
    if row is None:
        raise NotFound.of("session")
    if row["deleted_at"] is not None:
        raise Conflict("This session has been deleted.", code="session_deleted")
    if row["run_id"] is None:
        raise not_live()
    if meant not in (None, row["run_id"]):
        raise not_live("This run is not the current one of the session.")
    return await cancel(core, tenant_id, row["run_id"])


async def cancel(core: Core, tenant_id: UUID, run_id: UUID) -> Sent:
    """Cancel a run, wherever it is. When this returns `applied`, it has ended.

    Raises:
        NotFound: no such run.
        Conflict: `no_live_run`: it is over already, or an agent was given its message; `session_deleted`.
    """
    until = asyncio.get_running_loop().time() + PATIENCE
    while True:
        row = await core.db.pool.fetchrow(
            "SELECT r.session_id, r.status, r.finished_at, s.owner_id, r.parked IS NOT NULL AS parked,"
            " r.status = 'queued' AND r.steered_into IS NOT NULL AS handed FROM runs r"
            " JOIN sessions s ON s.id = r.session_id WHERE r.id = $1 AND r.tenant_id = $2",
            run_id,
            tenant_id,
        )
        if row is None:
            raise NotFound.of("run")
        if row["finished_at"] is not None:
            raise not_live(f"This run is over: {row['status']}.")
        if row["handed"]:
            raise not_live("The agent has been given this message in the turn that runs.")
        session_id: UUID = row["session_id"]
        if row["owner_id"] is None and (frames := await _cancel_unowned(core.db, session_id, run_id, row["parked"])):
            core.relay(tenant_id, session_id, frames)
            core.wake(tenant_id, session_id)
            return Sent("applied", run_id, {})
        try:
            return await commands.send(core, tenant_id, session_id, "cancel", run_id=run_id)
        except Conflict as conflict:
            if conflict.code != "no_live_run" or asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(random.uniform(0.1, 0.3))


async def _cancel_unowned(db: Database, session_id: UUID, run_id: UUID, is_parked: bool) -> list[Frame]:
    # Whoever owns a session for one transaction may write its events: see `places.announce_unowned`.
    async with db.transaction() as connection:
        if is_parked:
            return await parked.end(connection, session_id, run_id)
        last_seq = await connection.fetchval(
            "SELECT last_seq FROM sessions WHERE id = $1 AND owner_id IS NULL AND deleted_at IS NULL FOR NO KEY UPDATE",
            session_id,
        )
        if last_seq is None:
            return []
        try:
            await end(connection, run_id, last_seq + 1)
        except NotQueued:
            return []
        generation = await connection.fetchval(
            f"UPDATE sessions SET generation = {NEXT_GENERATION} WHERE id = $1 RETURNING generation",  # noqa: S608
            session_id,
        )
        return await append(connection, session_id, generation, last_seq, [done(run_id)])
