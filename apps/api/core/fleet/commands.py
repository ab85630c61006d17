"""Commands: durable messages to the owner of a session. The row comes first, the wake-up second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import structlog

from apps.api.core import codec, tasks
from apps.api.core.codec import encode
from apps.api.core.context import Core
from apps.api.core.events.relay import Publisher
from apps.api.db import CONNECTION_ERRORS, Database
from apps.api.errors import Conflict, NotFound
from apps.api.redis import Redis

log = structlog.get_logger(__name__)

WAIT = 2.0
"""Seconds that a request waits for its command to be applied before it answers `accepted`."""

EXPIRY = 60.0
"""Seconds after which an owner does not apply a command any more: its sender has had an answer after WAIT, and an owner
takes at most 20 s for each."""

QUESTIONS = ("context", "mcp")
"""Types that only ask, and change nothing: without somebody who waits for the answer they are of no use."""

PATIENCE = WAIT + 1.0
"""Seconds after which one of QUESTIONS is not answered any more: its sender waits for WAIT only."""

URGENT = ("interrupt", "cancel", "answer")
"""Types that never wait behind others, which are applied one at a time in each session: they ask nothing of the agent's
program, which may be stuck, or only to stop."""

MAX_URGENT = 20
"""Urgent commands of one session that its owner takes in one look."""

MAX_RESULT_BYTES = 4 * 1024 * 1024
"""Size of what a command may answer."""

MAX_STORED = 8
"""Commands of one session that may be pending, and as many interrupts and cancels beside them. One more is refused; an
interrupt or cancel is only not stored, since it would tell the owner nothing new. Answers are not counted: there are no
more of them than open requests."""

KEEP_HOURS = 1
"""Hours that applied and rejected commands are kept, for operators."""

_UNSTORABLE = {"code": "control_failed", "message": "What the agent answered cannot be stored."}

_POLL = 0.25
"""Seconds between looks at the row while waiting, for when the reply on Redis is lost."""


@dataclass(frozen=True, slots=True)
class Command:
    """What the owner is asked to do.

    Attributes:
        type: `cancel`, `answer`, `control`, `context` or `mcp`; see runner/session/command_handlers.py.
        run_id: the run that it is about, if it is about one.
        payload: of an `answer` as its owner gets it with the `decision` on the request, and `by` whom it is.
    """

    id: UUID
    session_id: UUID
    run_id: UUID | None
    type: str
    payload: Mapping[str, Any]

    @property
    def urgent(self) -> bool:
        """Whether it waits for no other command of its session."""
        return self.type in URGENT


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a command: `applied`, with what the owner answered, or `accepted`: the owner has been told."""

    status: str
    run_id: UUID | None
    result: dict[str, Any]


class _Bell:
    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def deliver(self, payload: bytes) -> None:
        self.rung.set()

    def gap(self) -> None:
        """The reply may have been lost: who waits looks."""
        self.rung.set()


_FRESH = f"""(type = 'answer'
  OR created_at > now() - make_interval(secs => CASE WHEN type IN {QUESTIONS} THEN {PATIENCE} ELSE {EXPIRY} END))"""

# With the session's row locked: whoever takes the session from its owner does so before, and then nothing is stored,
# or after, and then rejects what is. A command that nobody will ever answer must not be answered with "accepted".
# A statement of its own, so that the next one counts what was stored before.
_LOCK = "SELECT 1 FROM sessions WHERE id = $1 FOR NO KEY UPDATE"

_STORE = f"""
WITH target AS (
  SELECT id FROM sessions WHERE id = $2 AND owner_id = $6
), expired AS (
  DELETE FROM commands WHERE session_id = $2 AND status = 'pending' AND NOT {_FRESH}
), waiting AS (
  SELECT count(*) AS count FROM commands
  WHERE session_id = $2 AND status = 'pending' AND type <> 'answer' AND {_FRESH}
    AND type IN ('interrupt', 'cancel') = ($4 IN ('interrupt', 'cancel'))
), stored AS (
  INSERT INTO commands (id, session_id, run_id, type, payload)
  SELECT $1, target.id, $3, $4, $5 FROM target, waiting
  WHERE ($3::uuid IS NULL OR EXISTS (SELECT 1 FROM runs WHERE id = $3 AND finished_at IS NULL))
    AND ($4 = 'answer' OR waiting.count < $7)
  RETURNING id
)
SELECT EXISTS (SELECT 1 FROM stored) AS stored, count >= $7 AND $4 <> 'answer' AS full FROM waiting
"""  # noqa: S608 - ours

_TARGET = """
SELECT s.deleted_at, i.id AS owner_id, r.id AS run_id FROM sessions s
LEFT JOIN instances i ON i.id = s.owner_id AND i.lease_expires_at > now()
LEFT JOIN runs r ON r.session_id = s.id AND r.status IN ('running','requires_action')
WHERE s.id = $1 AND s.tenant_id = $2
"""


def not_live(message: str = "No run of this session is live.") -> Conflict:
    """409 `no_live_run`."""
    return Conflict(message, code="no_live_run")


async def send(
    core: Core,
    tenant_id: UUID,
    session_id: UUID,
    type_: str,
    payload: Mapping[str, Any] | None = None,
    *,
    run_id: UUID | None = None,
    any_run: bool = False,
) -> Sent:
    """Ask the owner of a session, and wait for its answer for at most WAIT seconds.

    Args:
        run_id: the run that it is about; the active one unless given.
        any_run: it is about the session: a living owner is enough.

    Raises:
        NotFound: no such session.
        Conflict: `no_live_run`: nothing runs, or its owner is dead, or the run ended before the command arrived;
            or the owner's own code, when it could not do it; `too_many_commands`: MAX_STORED wait already. Not for a
            cancellation.
    """
    row = await core.db.pool.fetchrow(_TARGET, session_id, tenant_id)
    if row is None:
        raise NotFound.of("session")
    if row["deleted_at"] is not None:
        raise Conflict("This session has been deleted.", code="session_deleted")
    about = run_id or (None if any_run else row["run_id"])
    if row["owner_id"] is None or (about is None and not any_run):
        raise not_live()
    command = Command(uuid4(), session_id, about, type_, payload or {})

    async def store() -> bool:
        async with core.db.transaction() as connection:
            await connection.execute(_LOCK, session_id)
            fields = (command.id, session_id, about, type_, dict(command.payload), row["owner_id"])
            found = await connection.fetchrow(_STORE, *fields, MAX_STORED)
        if found["full"] and type_ in ("interrupt", "cancel"):
            return False  # one more would tell the owner nothing new
        if found["full"]:
            raise Conflict("The agent has not got to what was asked of it before.", code="too_many_commands")
        if not found["stored"]:
            raise not_live()
        return True

    return await deliver(core, command, row["owner_id"], store)


async def deliver(core: Core, command: Command, owner_id: UUID, store: Callable[[], Awaitable[bool]]) -> Sent:
    """Store a command by `store`, tell the owner, and wait for its answer for at most WAIT seconds. `store` returns
    whether the owner is to be told.

    Raises:
        Conflict: the owner could not do it; what `store` raises.
    """
    bell, reply = _Bell(), core.redis.keys.reply(command.id)
    # Beside the rest: nobody replies before it is stored, and a confirmation that comes later than that rings as well.
    subscribing = asyncio.create_task(core.subscriptions.subscribe(reply, bell), name=f"reply-{command.id}")
    try:
        if not await store():
            return Sent("accepted", command.run_id, {})
        bell.rung.clear()
        core.publisher.notify(core.redis.keys.instance(owner_id), f"command:{command.session_id}")
        status, result = await _settled(core.db, command.id, bell)
    finally:
        await tasks.end(subscribing)
        core.subscriptions.unsubscribe(reply, bell)
    if status == "rejected":
        raise _rejection(result)
    return Sent("applied" if status == "applied" else "accepted", command.run_id, result)


def _rejection(result: Mapping[str, Any]) -> Conflict:
    if "message" in result:
        return Conflict(result["message"], code=result["code"])
    return not_live("The run ended before the command reached it.")


async def _settled(db: Database, command_id: UUID, bell: _Bell) -> tuple[str, dict[str, Any]]:
    """What came of a command within WAIT seconds. It is stored: a database that cannot be asked makes it no failure."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT):
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL):
                        await bell.rung.wait()
                bell.rung.clear()
                with suppress(*CONNECTION_ERRORS):
                    row = await db.pool.fetchrow("SELECT status, result FROM commands WHERE id = $1", command_id)
                    if row is None or row["status"] != "pending":
                        return ("rejected", {}) if row is None else (row["status"], row["result"] or {})
    return "pending", {}


_PENDING = f"""
SELECT c.id, c.session_id, c.run_id, c.type, c.payload, q.decision, q.resolved_by FROM sessions s CROSS JOIN LATERAL (
  (SELECT * FROM commands
   WHERE session_id = s.id AND status = 'pending' AND type IN {URGENT} AND {_FRESH} AND id <> ALL($2::uuid[])
   ORDER BY created_at LIMIT $4)
  UNION ALL
  (SELECT * FROM commands
   WHERE session_id = s.id AND status = 'pending' AND type NOT IN {URGENT} AND {_FRESH} AND s.id <> ALL($3::uuid[])
   ORDER BY created_at LIMIT 1)
) c LEFT JOIN LATERAL (
  SELECT decision, resolved_by FROM requests
  WHERE id = (c.payload ->> 'request_id')::uuid AND status = 'answered' OFFSET 0
) q ON c.type = 'answer'
WHERE s.owner_id = $1 ORDER BY c.created_at
"""  # noqa: S608 - ours


async def pending(
    db: Database, instance_id: UUID, taken: Collection[UUID] = (), busy: Collection[UUID] = ()
) -> list[Command]:
    """What this instance is to do next, oldest first: the urgent commands of each session, and one other.

    None that has expired. The answer to a request never does: it is stored, and its tool call waits for it.

    Args:
        taken: commands that are being obeyed.
        busy: sessions that are at one which is not urgent.
    """
    rows = await db.pool.fetch(_PENDING, instance_id, list(taken), list(busy), MAX_URGENT)
    return [_command(**dict(row)) for row in rows]


def _command(decision: str | None, resolved_by: Mapping[str, Any] | None, payload: Any, **fields: Any) -> Command:
    if decision is not None:
        payload = {**payload, "decision": codec.decode(decision), "by": resolved_by}
    return Command(payload=payload, **fields)


async def settle(
    db: Database, redis: Redis, publisher: Publisher, command: Command, *, applied: bool, result: Mapping[str, Any]
) -> None:
    """Record what came of a command, and tell who waits. A result that cannot be stored makes it a rejected one."""
    told = codec.clean(result)
    if len(encode(told)) > MAX_RESULT_BYTES:
        applied, told = False, _UNSTORABLE
    try:
        await _record(db, command, applied, told)
    except (asyncpg.DataError, asyncpg.StatementTooComplexError, ValueError, TypeError) as error:
        log.warning("command.result_not_stored", command_type=command.type, error=type(error).__name__)
        await _record(db, command, False, _UNSTORABLE)
    publisher.notify(redis.keys.reply(command.id), "settled")


async def _record(db: Database, command: Command, applied: bool, result: Mapping[str, Any]) -> None:
    await db.pool.execute(
        "UPDATE commands SET status = $2, applied_at = now(), result = $3 WHERE id = $1 AND status = 'pending'",
        command.id,
        "applied" if applied else "rejected",
        result,
    )


async def forget_old(db: Database) -> None:
    """Remove commands that were settled long ago: who sent them waited for WAIT seconds."""
    await db.sweep(
        "DELETE FROM commands WHERE id IN (SELECT id FROM commands"
        " WHERE applied_at < now() - make_interval(hours => $1) ORDER BY applied_at LIMIT $2)",
        KEEP_HOURS,
    )
