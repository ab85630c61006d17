"""The event log: appending (fenced, gap-free) and reading what is stored.

Only the owner of a session appends, and every append names the owner's generation and the position it expects:
the statement writes all of a batch or nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import structlog

from apps.api import clock, instruments
from apps.api.core import codec
from apps.api.core.events.batches import Batch, Batches, Row
from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.core.events.relay import Publisher
from apps.api.core.lease import Lease
from apps.api.core.pages import bounded, cut
from apps.api.core.tasks import ask
from apps.api.db import CONNECTION_ERRORS, Database, retrying
from apps.api.errors import LeaseLost
from apps.api.redis import TOMBSTONE_TTL_MS, Redis

log = structlog.get_logger(__name__)
T = TypeVar("T")

_APPEND = """
WITH pen AS (
  UPDATE sessions SET last_seq = last_seq + $4, last_active_at = now()
  WHERE id = $1 AND generation = $2 AND last_seq = $3
  RETURNING id
)
INSERT INTO events (session_id, seq, run_id, type, parent_tool_use_id, subject, data, created_at)
SELECT pen.id, e.seq, e.run_id, e.type, e.parent, e.subject, e.data, e.created_at
FROM pen, unnest($5::bigint[], $6::uuid[], $7::text[], $8::text[], $9::text[], $10::text[], $11::timestamptz[])
  AS e(seq, run_id, type, parent, subject, data, created_at)
"""

NEXT_GENERATION = "generation + 1 + floor(random() * 4294967296)::bigint"
"""What a session's `generation` becomes when its owner changes. It grows; and as each step is drawn at random, a number
that a database lost when it went back (a standby that lagged was promoted, a backup restored) is not given out again:
whoever holds that number writes nothing, and what was copied under it is not taken for what is stored."""

MAX_READ = 500
"""Events that are read at a time, however small they are."""

MAX_NEWEST_BYTES = 4 * 1024 * 1024

_READ = bounded(
    """
SELECT e.seq, e.type, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.seq > $3 AND ($4::uuid IS NULL OR e.run_id = $4)
ORDER BY e.seq LIMIT $5
""",
    "data",
    "seq",
)

_NUMBERED = bounded(
    """
SELECT e.seq, e.type, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.seq = ANY($3::bigint[])
""",
    "data",
    "seq",
)

_NEWEST = bounded(
    """
SELECT e.seq, e.type, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.type = ANY($3) ORDER BY e.seq DESC LIMIT $4
""",
    "data",
    "seq DESC",
    MAX_NEWEST_BYTES,
)


ENDS_OF_DELTAS = frozenset({"message", "done"})
"""After these deltas are counted from 1 again; what else is stored between them does not hide that some are missing."""

SUBJECTS = {"message": "uuid", "checkpoint": "checkpoint_id", "action_resolved": "request_id", "status": "mode"}
"""The field that says what an event of a type is about; of a `status` only a reset has one. Queries read the column."""

ENDS_KEPT = 100
"""Ended runs that a writer keeps in mind. A session has one at a time, and what comes late comes within seconds."""

Also = Callable[[asyncpg.Connection, int], Awaitable[None]]
"""What else to store in the transaction of an append; it is given the number of the last event."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a writer appends: `fields` are the event's own, see the event table in the specification."""

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    run_id: UUID | None = None

    @property
    def parent_tool_use_id(self) -> str | None:
        return self._column("parent_tool_use_id")

    @property
    def subject(self) -> str | None:
        return self._column(SUBJECTS.get(self.type, ""))

    def _column(self, name: str) -> str | None:
        value = self.fields.get(name)
        return codec.clean_text(value) if isinstance(value, str) else None


async def append(
    connection: asyncpg.Connection, session_id: UUID, generation: int, last_seq: int, events: Sequence[Event]
) -> list[Frame]:
    """Append `events` after `last_seq` as the owner of `generation`; the first gets `last_seq + 1`.

    Returns the frames to publish once the transaction is committed.

    Raises:
        LeaseLost: the session is gone, has another owner, or somebody else wrote.
    """
    batch, frames = _numbered(session_id, generation, last_seq, events)
    columns = map(list, zip(*batch.rows, strict=True))
    status = await connection.execute(_APPEND, session_id, generation, last_seq, len(frames), *columns)
    if status != f"INSERT 0 {len(frames)}":
        raise LeaseLost(f"session {session_id}: generation {generation} may not write after {last_seq}")
    return frames


def _numbered(session_id: UUID, generation: int, last_seq: int, events: Sequence[Event]) -> tuple[Batch, list[Frame]]:
    now, frames, rows = clock.now(), list[Frame](), list[Row]()
    for seq, e in enumerate(events, last_seq + 1):
        data = codec.one_line(event_data(session_id, e.run_id, seq, now, e.fields))
        frames.append(Frame.build(Position(seq), e.type, data, generation))
        rows.append((seq, e.run_id, e.type, e.parent_tool_use_id, e.subject, data.decode(), now))
    return Batch(session_id, generation, last_seq, rows), frames


@dataclass(frozen=True, slots=True)
class Stored:
    """A page of the log, oldest first, and whether there is more of what was asked for."""

    frames: list[Frame]
    more: bool


async def read(
    db: Database, tenant_id: UUID, session_id: UUID, after: int, *, run_id: UUID | None = None, limit: int = MAX_READ
) -> Stored:
    """Stored events after `after`: at most `limit`, and PAGE_BYTES or one. None for another tenant's session."""
    rows = await db.pool.fetch(_READ, session_id, tenant_id, after, run_id, limit + 1)
    page, more = cut(rows, limit)
    return Stored(_frames(page), more)


async def read_numbers(db: Database, tenant_id: UUID, session_id: UUID, numbers: Sequence[int]) -> list[Frame]:
    """The stored events with these numbers, oldest first: the first PAGE_BYTES of them, or one."""
    return _frames(await db.pool.fetch(_NUMBERED, session_id, tenant_id, list(numbers)))


async def newest(db: Database, tenant_id: UUID, session_id: UUID, types: Sequence[str], *, limit: int) -> list[Frame]:
    """The newest stored events of these types, oldest first: at most `limit`, and MAX_NEWEST_BYTES or one.

    None for another tenant's session.
    """
    return _frames((await db.pool.fetch(_NEWEST, session_id, tenant_id, list(types), limit))[::-1])


def _frames(rows: Sequence[asyncpg.Record], generation: int = 0) -> list[Frame]:
    return [Frame.build(Position(row["seq"]), row["type"], row["data"].encode(), generation) for row in rows]


_LOST = """
UPDATE sessions s SET lost = coalesce(range_merge(s.lost, gone.numbers), gone.numbers)
FROM (SELECT int8range(least(coalesce($2, last_seq), $3), $3, '(]') AS numbers FROM sessions WHERE id = $1) AS gone
WHERE s.id = $1 AND NOT isempty(gone.numbers)
"""


async def note_lost(db: Database, session_id: UUID, kept: int | None, seq: int) -> None:
    """Note for somebody who had them that the database has lost events: those after number `kept` up to `seq`.

    Where `kept` is not known it is the end of the log; nothing is lost if that is not before `seq`.
    """
    if await db.pool.execute(_LOST, session_id, kept, seq) == "UPDATE 1":
        log.warning("events.lost", session_id=str(session_id), kept=kept, seq=seq)


class Writer:
    """The owner's pen for one session: numbers its events, stores what is durable, and relays all of it.

    One writer exists per (session, generation). Calls may come from several tasks; they are put in order.
    """

    def __init__(
        self,
        db: Database,
        redis: Redis,
        publisher: Publisher,
        lease: Lease,
        batches: Batches,
        *,
        tenant_id: UUID,
        session_id: UUID,
        generation: int,
        last_seq: int,
    ) -> None:
        self._db, self._publisher, self._lease, self._batches = db, publisher, lease, batches
        self._writes = f"write-{session_id}"
        self._cached = redis.keys.session(tenant_id, session_id)
        self._feed = redis.keys.feed(tenant_id, session_id)
        self.tenant_id, self.session_id, self.generation, self.last_seq = tenant_id, session_id, generation, last_seq
        self._part = 0
        self._ended: deque[UUID] = deque(maxlen=ENDS_KEPT)
        self._lock = asyncio.Lock()

    def take(self, generation: int, last_seq: int) -> None:
        """Write as the owner of this generation from now on, after this event. Before, it could write nothing."""
        self.generation, self.last_seq = generation, last_seq

    def delta(self, type_: str, run_id: UUID, fields: Mapping[str, Any]) -> None:
        """Relay an event that is not stored; not one of a run that has ended.

        Raises:
            LeaseLost: the lease has run out, so somebody else may own the session by now.
        """
        self._lease.require()
        if run_id in self._ended:
            return
        self._part += 1
        position = Position(self.last_seq, self._part)
        data = event_data(self.session_id, run_id, self.last_seq, clock.now(), fields)
        self._publisher.send(self._feed, (Frame.build(position, type_, data, self.generation),))

    async def repeat(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Read or store something else as the session's owner, again over short database outages, until the lease runs
        out. Only for what is safe to repeat.

        Raises:
            Unavailable: the database stayed away.
            Exception: what `attempt` raises besides.
        """
        return await retrying(attempt, until=self._lease.is_over)

    async def append(self, *events: Event, also: Also | None = None) -> None:
        """Store events, then relay them. Repeats over short database outages, until the lease runs out.

        Nothing of a run follows its `done`: what is said of it later is an event of the session, and of no run.
        Who is cancelled here has stored all of it, or will have in a moment.

        Raises:
            LeaseLost: fenced.
            Unavailable: the database stayed away.
            Exception: what `also` raised; then nothing was stored.
        """
        # Shielded: cut off between the commit and its note here, the writer would not know its position any more.
        await asyncio.shield(self.begin(*events, also=also))

    def begin(self, *events: Event, also: Also | None = None) -> asyncio.Task[None]:
        """The same, begun: its events come before those of later calls. Whoever waits for it shields it."""
        writing = asyncio.create_task(self._write(events, also), name=self._writes)
        writing.add_done_callback(ask)
        return writing

    async def _write(self, events: Sequence[Event], also: Also | None = None) -> None:
        async with self._lock:
            expected, tried = self.last_seq, False
            events = [replace(e, run_id=None) if e.run_id in self._ended else e for e in events]

            async def attempt() -> list[Frame]:
                nonlocal tried
                self._lease.require()
                if also is None and not tried:
                    batch, frames = _numbered(self.session_id, self.generation, expected, events)
                    if stored := await self._batches.store(batch):
                        return frames
                    tried = stored is None
                    self._lease.require()
                async with self._db.pool.acquire() as connection:
                    again, tried = tried, True
                    try:
                        if also is None:
                            return await append(connection, self.session_id, self.generation, expected, events)
                        async with connection.transaction():
                            frames = await append(connection, self.session_id, self.generation, expected, events)
                            await also(connection, frames[-1].seq)
                        return frames
                    except LeaseLost:
                        # The server may have completed, even after we began to repeat it, what a broken connection
                        # left open. So the question is asked only now, when the fence has told the repeat from it.
                        found = await self._stored(connection, expected, len(events)) if again else None
                        if found is None:
                            raise
                        return found

            began = time.perf_counter()
            try:
                frames = await retrying(attempt, until=self._lease.is_over)
            except LeaseLost:
                with suppress(*CONNECTION_ERRORS):
                    await note_lost(self._db, self.session_id, None, expected)
                raise
            instruments.APPEND_SECONDS.observe(time.perf_counter() - began)
            self.last_seq = frames[-1].seq
            self._ended.extend(event.run_id for event in events if event.type == "done" and event.run_id)
            if any(event.type in ENDS_OF_DELTAS for event in events):
                self._part = 0
            self._publisher.send(self._feed, frames)
            self._publisher.forget(self._cached, TOMBSTONE_TTL_MS)

    async def _stored(self, connection: asyncpg.Connection, expected: int, count: int) -> list[Frame] | None:
        # Nobody else writes with this generation, so a position that has moved means that our batch was stored.
        rows = await connection.fetch(
            "SELECT e.seq, e.type, e.data FROM events e JOIN sessions s ON s.id = e.session_id"
            " WHERE s.id = $1 AND s.generation = $2 AND s.last_seq = $3 AND e.seq > $4 ORDER BY e.seq",
            self.session_id,
            self.generation,
            expected + count,
            expected,
        )
        return _frames(rows, self.generation) or None
