"""Commands: durable messages to the owner of a session. The row comes first, the wake-up second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from apps.api.core.relay import Publisher, Subscriptions
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound
from apps.api.redis import Redis

WAIT = 2.0
"""Seconds that a request waits for its command to be applied before it answers `accepted`."""

_POLL = 0.25
"""Seconds between looks at the row while waiting, for when the reply on Redis is lost."""


@dataclass(frozen=True, slots=True)
class Command:
    """What the owner is asked to do. `type` is `interrupt` so far."""

    id: UUID
    session_id: UUID
    run_id: UUID | None
    type: str
    payload: Mapping[str, Any]


class _Bell:
    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def deliver(self, payload: bytes) -> None:
        self.rung.set()

    def gap(self) -> None:
        """A lost reply is found by polling."""


# With the session's row locked: whoever takes the session from its owner does so before, and then nothing is stored,
# or after, and then rejects what is. A command that nobody will ever answer must not be answered with "accepted".
_STORE = """
WITH target AS (SELECT id FROM sessions WHERE id = $2 AND owner_id = $6 FOR SHARE)
INSERT INTO commands (id, session_id, run_id, type, payload)
SELECT $1, target.id, r.id, $4, $5 FROM target JOIN runs r ON r.id = $3
WHERE r.status IN ('running','requires_action')
"""


async def send(
    db: Database,
    redis: Redis,
    publisher: Publisher,
    subscriptions: Subscriptions,
    tenant_id: UUID,
    session_id: UUID,
    type_: str,
    payload: Mapping[str, Any] | None = None,
) -> tuple[str, UUID]:
    """Ask the owner of the session's active run. Returns `applied` or `accepted`, and the run's id.

    Raises:
        NotFound: no such session.
        Conflict: `no_live_run`: nothing runs, or its owner is dead, or the run ended before the command arrived.
    """
    row = await db.pool.fetchrow(
        """
        SELECT s.deleted_at, i.id AS owner_id, r.id AS run_id FROM sessions s
        LEFT JOIN instances i ON i.id = s.owner_id AND i.lease_expires_at > now()
        LEFT JOIN runs r ON r.session_id = s.id AND r.status IN ('running','requires_action')
        WHERE s.id = $1 AND s.tenant_id = $2
        """,
        session_id,
        tenant_id,
    )
    if row is None:
        raise NotFound.of("session")
    if row["deleted_at"] is not None:
        raise Conflict("This session has been deleted.", code="session_deleted")
    if row["owner_id"] is None or row["run_id"] is None:
        raise Conflict("No run of this session is live.", code="no_live_run")
    command = Command(uuid4(), session_id, row["run_id"], type_, payload or {})
    bell = _Bell()
    try:
        await subscriptions.subscribe(redis.keys.reply(command.id), bell)
        stored = await db.pool.execute(
            _STORE,
            command.id,
            command.session_id,
            command.run_id,
            command.type,
            dict(command.payload),
            row["owner_id"],
        )
        if stored != "INSERT 0 1":
            raise Conflict("No run of this session is live.", code="no_live_run")
        publisher.notify(redis.keys.instance(row["owner_id"]), f"command:{session_id}")
        status = await _settled(db, command.id, bell)
    finally:
        subscriptions.unsubscribe(redis.keys.reply(command.id), bell)
    if status == "rejected":
        raise Conflict("The run ended before it could be stopped.", code="no_live_run")
    return ("applied" if status == "applied" else "accepted"), row["run_id"]


async def _settled(db: Database, command_id: UUID, bell: _Bell) -> str:
    deadline = asyncio.get_running_loop().time() + WAIT
    status = "pending"
    while status == "pending" and (left := deadline - asyncio.get_running_loop().time()) > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(_POLL, left)):
                await bell.rung.wait()
        bell.rung.clear()
        status = await db.pool.fetchval("SELECT status FROM commands WHERE id = $1", command_id) or "rejected"
    return status


async def pending(db: Database, instance_id: UUID) -> list[Command]:
    """Commands that wait for this instance, oldest first."""
    rows = await db.pool.fetch(
        "SELECT c.id, c.session_id, c.run_id, c.type, c.payload FROM commands c JOIN sessions s ON s.id = c.session_id"
        " WHERE c.status = 'pending' AND s.owner_id = $1 ORDER BY c.created_at LIMIT 200",
        instance_id,
    )
    return [Command(**dict(row)) for row in rows]


async def settle(
    db: Database, redis: Redis, publisher: Publisher, command: Command, *, applied: bool, result: Mapping[str, Any]
) -> None:
    """Record what came of a command, and tell who waits."""
    await db.pool.execute(
        "UPDATE commands SET status = $2, applied_at = now(), result = $3 WHERE id = $1 AND status = 'pending'",
        command.id,
        "applied" if applied else "rejected",
        dict(result),
    )
    publisher.notify(redis.keys.reply(command.id), "settled")
