"""Parked runs: they wait for a person, and no instance has them (docs/adr/0019-parked-sessions.md).

Such a run is `requires_action` in a session without an owner, and `runs.parked` says how to go on. Whoever resolves its
request, on any instance, owns the session for that one transaction: it tells so, and queues the run again in its old
place, or ends it. `parked` is cleared just before an agent is given the answer: until then any instance may begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import instruments
from apps.api.core.codec import decode
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, Event, append
from apps.api.core.sessions import requests
from apps.api.core.sessions.outcome import failure, store
from apps.api.core.sessions.parking import Parked
from apps.api.core.tasks import Loop
from apps.api.errors import LeaseLost

BATCH = 100
"""Requests whose time is over that are closed in one go."""


@dataclass(frozen=True, slots=True)
class _Pen:
    session_id: UUID
    generation: int
    last_seq: int
    run_id: UUID
    parked: Parked
    waits: bool


_RUN = """
SELECT s.last_seq, r.id AS run_id, r.parked, r.status FROM sessions s JOIN runs r ON r.session_id = s.id
WHERE s.id = $1 AND s.owner_id IS NULL AND s.deleted_at IS NULL AND r.parked IS NOT NULL
"""

_TAKE = f"""
UPDATE sessions SET generation = {NEXT_GENERATION}, owner_id = NULL, ports = '{{}}' WHERE id = $1 RETURNING generation
"""  # noqa: S608 - ours


async def park(
    connection: asyncpg.Connection, session_id: UUID, seq: int, run_id: UUID, parked: Parked, config: Mapping[str, Any]
) -> list[Frame]:
    """Leave a run of ours to whoever takes it up, and its session to nobody. Its process has ended.

    Whoever has answered meanwhile is heard: then the run is queued at once. Returns what is to be relayed of that.

    Args:
        seq: the session's newest event, which says that the run is parked.
        config: what its process had, changes included; later ones are for later runs.

    Raises LeaseLost: the run does not wait.
    """
    generation = await connection.fetchval(_TAKE, session_id)
    status = await connection.execute(
        "UPDATE runs SET parked = $2, config = $3 WHERE id = $1 AND status = 'requires_action'",
        run_id,
        parked.text(),
        dict(config),
    )
    if status != "UPDATE 1":
        raise LeaseLost(f"session {session_id}: run {run_id} does not wait any more")
    request = await connection.fetchrow(
        "SELECT status, decision, resolved_by FROM requests WHERE id = $1", parked.request_id
    )
    # Nobody will obey what is still to be obeyed: who answered has had an effect, everybody else asks again.
    await connection.execute(
        "UPDATE commands SET status = CASE WHEN type = 'answer' THEN 'applied' ELSE 'rejected' END, applied_at = now(),"
        " result = CASE WHEN type <> 'answer' THEN $2::jsonb END WHERE session_id = $1 AND status = 'pending'",
        session_id,
        {"code": "no_live_run"},
    )
    if request["status"] == "open":
        return []
    if request["status"] != "answered":
        raise LeaseLost(f"session {session_id}: request {parked.request_id} is closed")
    pen = _Pen(session_id, generation, seq, run_id, parked, True)
    return await _answered(connection, pen, decode(request["decision"]), request["resolved_by"])


async def _pen(connection: asyncpg.Connection, session_id: UUID, *, waiting: bool = True) -> _Pen | None:
    """Own a session whose run is parked, for this transaction. None when there is no such run, or somebody owns it.

    `waiting`: one that waits for a person, and not for an instance.
    """
    await connection.execute("SELECT 1 FROM sessions WHERE id = $1 FOR NO KEY UPDATE", session_id)
    # A second statement, because it must see what was committed while the first one waited for the row.
    row = await connection.fetchrow(_RUN, session_id)
    if row is None or row["status"] not in ("requires_action", "queued"):
        return None
    waits = row["status"] == "requires_action"
    if waiting and not waits:
        return None
    generation = await connection.fetchval(_TAKE, session_id)
    return _Pen(session_id, generation, row["last_seq"], row["run_id"], Parked.stored(row["parked"]), waits)


async def _go_on(connection: asyncpg.Connection, pen: _Pen, told: Event) -> list[Frame]:
    frames = await append(connection, pen.session_id, pen.generation, pen.last_seq, [told])
    await connection.execute(
        "UPDATE runs SET status = 'queued', unsent = false, announced_position = NULL"
        " WHERE id = $1 AND status = 'requires_action'",
        pen.run_id,
    )
    return frames


async def _end(connection: asyncpg.Connection, pen: _Pen, code: str, *told: Event) -> list[Frame]:
    error = failure(code)
    status = "interrupted" if code == "interrupted" else "failed"
    why = [] if status == "interrupted" else [Event("error", error, pen.run_id)]
    events = [*told, *why, Event("done", {"status": status}, pen.run_id)]
    frames = await append(connection, pen.session_id, pen.generation, pen.last_seq, events)
    ended = await store(connection, pen.session_id, pen.run_id, pen.parked.ended(status, error), frames[-1].seq)
    instruments.run_ended(ended)
    return frames


async def _answered(
    connection: asyncpg.Connection, pen: _Pen, decision: Mapping[str, Any], by: Mapping[str, Any]
) -> list[Frame]:
    told = requests.answered(pen.parked.request_id, pen.run_id, decision, by)
    if decision.get("interrupt"):
        return await _end(connection, pen, "interrupted", told)
    return await _go_on(connection, pen, told)


def _tell(core: Core, tenant_id: UUID, session_id: UUID, frames: list[Frame]) -> None:
    core.relay(tenant_id, session_id, frames)
    core.wake(tenant_id, session_id)


async def answer(
    core: Core,
    tenant_id: UUID,
    session_id: UUID,
    request_id: UUID,
    decision: Mapping[str, Any],
    by: Mapping[str, Any],
    decide: requests.Decide,
) -> UUID | None:
    """Answer a parked run, which then goes on wherever there is room. Returns the run; None when it is not parked.

    `decide` stores the decision; what it raises leaves nothing stored.
    """
    async with core.db.transaction() as connection:
        pen = await _pen(connection, session_id)
        if pen is None or pen.parked.request_id != request_id:
            return None
        await decide(connection)
        frames = await _answered(connection, pen, decision, by)
    _tell(core, tenant_id, session_id, frames)
    return pen.run_id


async def taken_up(core: Core, run_id: UUID) -> bool:
    """Whether a run that was parked has its answer, or has ended."""
    row = await core.db.pool.fetchrow("SELECT parked FROM runs WHERE id = $1", run_id)
    return row is None or row["parked"] is None


async def end(
    connection: asyncpg.Connection, session_id: UUID, run_id: UUID | None = None, code: str = "interrupted"
) -> list[Frame]:
    """End a session's parked run, whether it waits for a person or for an instance. Returns what is to be relayed: none
    if there is no such run, or it is not the one meant.

    Args:
        run_id: the one that is meant.
        code: `interrupted`, or of the failure that it ends with; why its request is closed.
    """
    pen = await _pen(connection, session_id, waiting=False)
    if pen is None or run_id not in (None, pen.run_id):
        return []
    told = []
    if pen.waits and await requests.close(connection, pen.parked.request_id, code):
        by = requests.by_system(code)
        told = [requests.resolved(pen.parked.request_id, pen.run_id, "closed", by)]
    return await _end(connection, pen, code, *told)


_EXPIRED = """
SELECT q.id, q.session_id, q.tenant_id FROM requests q JOIN runs r ON r.id = q.run_id
WHERE q.status = 'open' AND q.run_id IS NOT NULL AND q.expires_at < now()
  AND r.parked IS NOT NULL AND r.status = 'requires_action' AND q.session_id <> ALL($1::uuid[])
ORDER BY q.expires_at LIMIT $2
"""


async def expire(core: Core, loop: Loop) -> None:
    """Close the requests of parked runs that nobody has answered in time; the runs go on, and are told so.

    Any number of instances may do this at once. The loop's items are sessions.
    """
    for row in await core.db.pool.fetch(_EXPIRED, loop.spared, BATCH):
        with loop.one(row["session_id"]):
            await _expire(core, row["tenant_id"], row["session_id"], row["id"])


async def _expire(core: Core, tenant_id: UUID, session_id: UUID, request_id: UUID) -> None:
    async with core.db.transaction() as connection:
        pen = await _pen(connection, session_id)
        if pen is None or pen.parked.request_id != request_id:
            return
        if not await requests.close(connection, request_id, "expired"):
            return
        told = requests.resolved(request_id, pen.run_id, "closed", requests.by_system("expired"))
        frames = await _go_on(connection, pen, told)
    instruments.DENIED_BY_NOBODY.inc()
    _tell(core, tenant_id, session_id, frames)
