"""Prompts that are to go into the turn that runs: queued runs, until an agent says that it has taken them.

`runs.steer` marks them. `steered_into` names the run whose agent was given one, just before it is. From then on it
shares that turn's fate: taken, it has ended; not taken by the turn's end, it waits in the queue as before; where nobody
can say which, it fails as the turn does. No other process is given it meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import instruments
from apps.api.core.codec import decode, encode
from apps.api.core.events.log import Event
from apps.api.db import Database
from apps.api.errors import LeaseLost
from apps.api.instruments import Ended

MAX_AT_ONCE = 20
"""Messages that an agent is given between two calls of the model."""

_WAITS = """
SELECT EXISTS (SELECT 1 FROM runs WHERE session_id = $1 AND status = 'queued' AND steer AND steered_into IS NULL)
"""

# The lock makes it wait for who takes the session away, as `ownership.note_sent` does.
_HAND = """
WITH pen AS MATERIALIZED (
  SELECT id FROM sessions WHERE id = $1 AND generation = $2 FOR SHARE
), turn AS (
  SELECT r.id FROM runs r JOIN pen ON pen.id = r.session_id
  WHERE r.id = $3 AND r.status IN ('running','requires_action')
), next AS (
  SELECT r.id FROM runs r JOIN pen ON pen.id = r.session_id
  WHERE r.status = 'queued' AND r.steer AND r.steered_into IS NULL ORDER BY r.position LIMIT $4 FOR NO KEY UPDATE OF r
), handed AS (
  UPDATE runs SET steered_into = turn.id FROM next, turn WHERE runs.id = next.id
  RETURNING runs.id, runs.prompt, runs.position
)
SELECT (SELECT count(*) FROM pen) AS held, h.id, h.prompt FROM (SELECT 1) one LEFT JOIN handed h ON true
ORDER BY h.position
"""

_TAKE = """
UPDATE runs SET status = 'succeeded', started_at = now(), finished_at = now(), first_seq = $3,
  last_seq = $4, result = $5, total_cost_usd = 0
WHERE id = $1 AND steered_into = $2 AND status = 'queued'
"""

_KEEP = "UPDATE runs SET steered_into = NULL WHERE session_id = $1 AND steered_into = $2 AND status = 'queued'"

_FAIL = """
UPDATE runs SET status = 'failed', started_at = now(), finished_at = now(), first_seq = $2,
  last_seq = $3, error = $4, total_cost_usd = 0
WHERE id = $1 AND status = 'queued'
"""

_IN_DOUBT = """
SELECT id, session_id FROM runs WHERE session_id = ANY($1::uuid[]) AND status = 'queued' AND steered_into IS NOT NULL
ORDER BY position FOR NO KEY UPDATE
"""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that an agent is to be given, under the id of its run."""

    id: UUID
    prompt: Any


async def waits(db: Database, session_id: UUID) -> bool:
    """Whether a message waits for the turn of this session."""
    found: bool = await db.pool.fetchval(_WAITS, session_id)
    return found


async def hand(db: Database, session_id: UUID, generation: int, run_id: UUID) -> list[Message]:
    """Note that the agent is given what waits, in the turn of `run_id`. Call it just before that is so.

    Raises LeaseLost: the session is somebody else's.
    """
    rows = await db.pool.fetch(_HAND, session_id, generation, run_id, MAX_AT_ONCE)
    if not rows[0]["held"]:
        raise LeaseLost(f"session {session_id}: generation {generation} may not hand over messages")
    return [Message(row["id"], decode(row["prompt"])) for row in rows if row["id"] is not None]


def steered(message_id: UUID, run_id: UUID, state: str) -> Event:
    """The event that says what became of a message: `taken` by the turn of `run_id`, or `next_run`, of its own."""
    return Event("steered", {"message_id": str(message_id), "state": state}, run_id)


def result_of(message_id: UUID, run_id: UUID) -> dict[str, Any]:
    """The result of a run whose message the turn of `run_id` has taken: what it said to that is in the other run."""
    return {
        "status": "succeeded",
        "result": None,
        "structured_output": None,
        "is_error": False,
        "stop_reason": None,
        "terminal_reason": "steered",
        "num_turns": 0,
        "duration_ms": 0,
        "duration_api_ms": 0,
        "total_cost_usd": 0.0,
        "usage": None,
        "model_usage": {},
        "permission_denials": [],
        "user_message_uuids": [str(message_id)],
        "steered_into": str(run_id),
    }


async def take(connection: asyncpg.Connection, message_id: UUID, run_id: UUID, numbers: tuple[int, int]) -> None:
    """End the run of a message that the turn of `run_id` has taken. `numbers`: of its first event and its `done`.

    Raises NotHanded.
    """
    result = encode(result_of(message_id, run_id)).decode()
    if await connection.execute(_TAKE, message_id, run_id, *numbers, result) != "UPDATE 1":
        raise NotHanded(f"message {message_id}")
    instruments.run_ended(Ended("succeeded"))


async def keep(connection: asyncpg.Connection, session_id: UUID, run_id: UUID) -> None:
    """What the turn of `run_id` was given and has not taken waits again, in its old place."""
    await connection.execute(_KEEP, session_id, run_id)


async def in_doubt(connection: asyncpg.Connection, session_ids: Sequence[UUID]) -> Mapping[UUID, list[UUID]]:
    """Messages that agents of these sessions were given, and of which nobody has said more, by session."""
    found: defaultdict[UUID, list[UUID]] = defaultdict(list)
    for row in await connection.fetch(_IN_DOUBT, session_ids):
        found[row["session_id"]].append(row["id"])
    return found


def failed(messages: Sequence[UUID], error: Mapping[str, Any]) -> list[Event]:
    """The events that end the runs of messages that are in doubt, two for each: see `fail`."""
    ends = ((Event("error", error, id_), Event("done", {"status": "failed"}, id_)) for id_ in messages)
    return [event for pair in ends for event in pair]


async def fail(connection: asyncpg.Connection, messages: Sequence[UUID], error: Mapping[str, Any], before: int) -> None:
    """End the runs of messages that are in doubt, whose events come after number `before`."""
    for place, id_ in enumerate(messages):
        first = before + 1 + 2 * place
        if await connection.execute(_FAIL, id_, first, first + 1, dict(error)) == "UPDATE 1":
            instruments.run_ended(Ended("failed", error["code"]))


class NotHanded(Exception):
    """The run has ended before, or no agent was given its message."""
