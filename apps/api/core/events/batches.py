"""Appends of several sessions as one statement: it costs each a quarter of what its own would, and they share a commit.

Each keeps its own fence. What cannot be stored at once (its writer is fenced out, somebody holds its session's row, it
is large, the statement fails) is left to its writer, who then asks for itself alone: nobody waits for another's lock,
or fails by another's fault.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from apps.api import tracing
from apps.api.db import PASSING, Database

log = structlog.get_logger(__name__)

AT_ONCE = 2
"""Statements under way: with one the next would wait for its sync to the disk, with more they hold less each."""

MOST = 50
"""Batches in one statement."""

MOST_BYTES = 64 * 1024
"""Of events that go together with others; what is larger goes alone."""

SECONDS = 3.0
"""For one statement. None of it waits for a lock that others keep for long."""

Row = tuple[int, UUID | None, str, str | None, str | None, str, datetime]
"""An event: seq, run_id, type, parent_tool_use_id, subject, data, created_at."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one writer appends: after its session's event `last_seq`, as the owner of `generation`."""

    session_id: UUID
    generation: int
    last_seq: int
    rows: Sequence[Row]


# Rows are numbered by batch, and not by session: of two writers of one session only one may be its owner. Sessions are
# looked up one by one, and never joined: the planner might read all of them.
_STORE = """
WITH held AS MATERIALIZED (
  SELECT s.id, a.n, a.count
  FROM unnest($1::int[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[]) AS a(n, id, generation, last_seq, count)
  CROSS JOIN LATERAL (
    SELECT id FROM sessions WHERE id = a.id AND generation = a.generation AND last_seq = a.last_seq
    FOR NO KEY UPDATE SKIP LOCKED
  ) s
), moved AS (
  UPDATE sessions s SET last_seq = last_seq + (SELECT count FROM held WHERE id = s.id LIMIT 1), last_active_at = now()
  WHERE id = ANY (ARRAY(SELECT id FROM held)) RETURNING id
), pen AS (
  SELECT held.id, held.n FROM held JOIN moved ON moved.id = held.id
), stored AS (
  INSERT INTO events (session_id, seq, run_id, type, parent_tool_use_id, subject, data, created_at)
  SELECT pen.id, e.seq, e.run_id, e.type, e.parent, e.subject, e.data, e.created_at
  FROM pen JOIN unnest($6::int[], $7::bigint[], $8::uuid[], $9::text[], $10::text[], $11::text[], $12::text[],
    $13::timestamptz[]) AS e(n, seq, run_id, type, parent, subject, data, created_at) ON e.n = pen.n
)
SELECT n FROM pen
"""


class Batches:
    """Where the writers of one instance append. Of each at most one batch waits here."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: deque[tuple[Batch, asyncio.Future[bool | None]]] = deque()
        self._at_work: set[asyncio.Task[None]] = set()

    async def store(self, batch: Batch) -> bool | None:
        """Store a batch. False: it was not stored; None: it is not known whether."""
        if sum(len(data) for *_, data, _ in batch.rows) > MOST_BYTES:
            return False
        stored: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, stored))
        if len(self._at_work) < AT_ONCE:
            task = asyncio.create_task(self._work(), name="append")
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)
        return await stored

    async def _work(self) -> None:
        tracing.work_on(None)  # what it stores is of many
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
            done: set[int] | None = None
            try:
                done = await self._store([batch for batch, _ in taken])
            except Exception as error:  # whoever is at fault hears of it when asking alone
                if not isinstance(error, PASSING):
                    log.warning("events.not_together", batches=len(taken), error=error)
            finally:
                for n, (_, stored) in enumerate(taken):
                    if not stored.done():
                        stored.set_result(None if done is None else n in done)

    async def _store(self, batches: Sequence[Batch]) -> set[int]:
        numbered = [(n, *row) for n, batch in enumerate(batches) for row in batch.rows]
        async with self._db.pool.acquire() as connection:
            rows = await connection.fetch(
                _STORE,
                list(range(len(batches))),
                [batch.session_id for batch in batches],
                [batch.generation for batch in batches],
                [batch.last_seq for batch in batches],
                [len(batch.rows) for batch in batches],
                *map(list, zip(*numbered, strict=True)),
                timeout=SECONDS,
            )
        return {row["n"] for row in rows}
