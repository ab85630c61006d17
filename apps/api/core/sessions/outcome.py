"""How a run ends: its last events, its row, its usage and the session's totals, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import instruments
from apps.api.core.codec import clean_text
from apps.api.core.events.log import Also, Event, Writer
from apps.api.core.tenant import usage
from apps.api.core.tenant.usage import ModelUsage
from apps.api.errors import RUN_FAILURES
from apps.api.instruments import Ended


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: `succeeded`, `failed` or `interrupted`.
        result: the fields of the `result` event as JSON text, if the SDK gave a result.
        error: see `failure`; None if it succeeded.
        cost_usd, usage, num_turns: this run's own share, as the SDK counted them; no cost when it told none.
    """

    status: str
    result: str | None = None
    error: dict[str, Any] | None = None
    cost_usd: float | None = None
    usage: Sequence[ModelUsage] = ()
    num_turns: int = 0


def failure(code: str, message: str = "") -> dict[str, Any]:
    """The error of a run, and the fields of its `error` event: `code`, `message`, `retryable`.

    The message may quote the model's endpoint, and is also stored as jsonb: the end of a run must not fail for that.

    Args:
        code: one of RUN_FAILURES.
        message: where the usual one of the code does not say enough.
    """
    _, retryable, usual = RUN_FAILURES[code]
    return {"code": code, "message": clean_text(message or usual), "retryable": retryable}


FINISH_RUN = """
UPDATE runs SET status = $2, finished_at = now(), error = $3, result = $4, total_cost_usd = $5, last_seq = $6,
  parked = NULL
WHERE id = $1 AND (status IN ('running','requires_action') OR (status = 'queued' AND parked IS NOT NULL))
RETURNING extract(epoch FROM now() - started_at)::float8 AS seconds
"""

MAX_REQUEUED = 2
"""How often a run comes back to the queue, so that one that no instance can start does not go around for ever."""

# What a client has cancelled meanwhile does not begin again. To find the place here would be to count the queue: it
# counts as not told, so that it is told like any other, if the run waits: see `places.waiting`. One that was parked has
# begun before, and only waits for the process that goes on with it.
_REQUEUE = """
UPDATE runs r SET status = 'queued', unsent = false,
  started_at = CASE WHEN parked IS NOT NULL THEN started_at END,
  first_seq = CASE WHEN parked IS NOT NULL THEN first_seq END,
  requeued = requeued + 1, requeued_by = s.owner_id, requeued_at = now(), announced_position = NULL
FROM sessions s
WHERE s.id = r.session_id AND s.deleted_at IS NULL AND r.session_id = ANY($1::uuid[]) AND r.status = 'running'
  AND r.unsent AND r.requeued < $2
  AND NOT EXISTS (SELECT 1 FROM commands WHERE run_id = r.id AND type = 'cancel' AND status = 'pending')
"""


async def requeue(connection: asyncpg.Connection, session_ids: Sequence[UUID]) -> None:
    """The one way back to the queue: for the active runs of these sessions that no agent was given.

    Nothing has happened for them, so that another instance may begin anew. The caller has locked the sessions' rows,
    and frees them next.
    """
    await connection.execute(_REQUEUE, session_ids, MAX_REQUEUED)


_ADD_TOTALS = """
UPDATE sessions SET
  num_turns = num_turns + $2, total_cost_usd = total_cost_usd + $3, updated_at = now(), usage = usage || (
    SELECT coalesce(jsonb_object_agg(key, coalesce((usage->>key)::bigint, 0) + value::bigint), '{}'::jsonb)
    FROM jsonb_each_text($4::jsonb)
  )
WHERE id = $1
"""


class NotRunning(Exception):
    """The run has ended before, or has not begun."""


async def finish(writer: Writer, run_id: UUID, outcome: Outcome, *events: Event, also: Also | None = None) -> None:
    """Append the last events of a run; with them end it, record its usage, add up the session's totals, and `also`.

    Raises:
        NotRunning: nothing was stored. A run ends once, and its row decides how.
        Exception: what `Writer.append` raises.
    """

    ended: Ended | None = None

    async def end_run(connection: asyncpg.Connection, last_seq: int) -> None:
        nonlocal ended
        ended = await store(connection, writer.session_id, run_id, outcome, last_seq)
        if also is not None:
            await also(connection, last_seq)

    await writer.append(*events, also=end_run)
    if ended is not None:
        instruments.run_ended(ended)


async def store(
    connection: asyncpg.Connection, session_id: UUID, run_id: UUID, outcome: Outcome, last_seq: int
) -> Ended:
    """End a run, whose last event is number `last_seq`, with its usage and the session's totals. Returns what is to be
    counted once that is committed. Raises NotRunning."""
    row = await connection.fetchrow(
        FINISH_RUN, run_id, outcome.status, outcome.error, outcome.result, outcome.cost_usd, last_seq
    )
    if row is None:
        raise NotRunning(f"run {run_id}")
    await connection.execute(
        _ADD_TOTALS, session_id, outcome.num_turns, outcome.cost_usd or 0.0, usage.tokens(outcome.usage)
    )
    await usage.record(connection, run_id, outcome.usage)
    return Ended(outcome.status, outcome.error["code"] if outcome.error else None, row["seconds"])
