"""The event log: appending (fenced, gap-free) and reading what is stored.

Only the owner of a session appends, and every append names the owner's generation and the position it expects:
the statement writes all of a batch or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core import codec
from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.core.events.relay import Publisher
from apps.api.core.lease import Lease
from apps.api.db import CONNECT_TIMEOUT, Database, retrying
from apps.api.errors import LeaseLost
from apps.api.redis import TOMBSTONE_TTL_MS, Redis

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

_READ = """
SELECT e.seq, e.type, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.seq > $3 AND ($4::uuid IS NULL OR e.run_id = $4)
ORDER BY e.seq LIMIT $5
"""

_NEWEST = """
SELECT * FROM (
  SELECT e.seq, e.type, e.data FROM events e JOIN sessions s ON s.id = e.session_id
  WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.type = ANY($3) ORDER BY e.seq DESC LIMIT $4
) AS found ORDER BY seq
"""


ENDS_OF_DELTAS = frozenset({"message", "done"})
"""After these deltas are counted from 1 again; what else is stored between them does not hide that some are missing."""

SUBJECTS = {"message": "uuid", "checkpoint": "checkpoint_id", "action_resolved": "request_id", "status": "mode"}
"""The field that says what an event of a type is about; of a `status` only a reset has one. Queries read the column."""

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
    now = datetime.now(UTC)
    frames = [
        Frame.build(Position(seq), e.type, event_data(session_id, e.run_id, seq, now, e.fields))
        for seq, e in enumerate(events, last_seq + 1)
    ]
    status = await connection.execute(
        _APPEND,
        session_id,
        generation,
        last_seq,
        len(frames),
        [f.seq for f in frames],
        [e.run_id for e in events],
        [e.type for e in events],
        [e.parent_tool_use_id for e in events],
        [e.subject for e in events],
        [f.data.decode() for f in frames],
        [now] * len(frames),
    )
    if status != f"INSERT 0 {len(frames)}":
        raise LeaseLost(f"session {session_id}: generation {generation} may not write after {last_seq}")
    return frames


async def read(
    db: Database, tenant_id: UUID, session_id: UUID, after: int, *, run_id: UUID | None = None, limit: int = 500
) -> list[Frame]:
    """Stored events after `after`, oldest first, at most `limit`. Empty for another tenant's session."""
    return _frames(await db.pool.fetch(_READ, session_id, tenant_id, after, run_id, limit))


async def newest(db: Database, tenant_id: UUID, session_id: UUID, types: Sequence[str], *, limit: int) -> list[Frame]:
    """The newest `limit` stored events of these types, oldest first. Empty for another tenant's session."""
    return _frames(await db.pool.fetch(_NEWEST, session_id, tenant_id, list(types), limit))


def _frames(rows: Sequence[asyncpg.Record]) -> list[Frame]:
    return [Frame.build(Position(row["seq"]), row["type"], row["data"].encode()) for row in rows]


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
        *,
        tenant_id: UUID,
        session_id: UUID,
        generation: int,
        last_seq: int,
    ) -> None:
        self._db, self._publisher, self._lease = db, publisher, lease
        self._stream = redis.keys.stream(tenant_id, session_id)
        self._channel = redis.keys.channel(tenant_id, session_id)
        self._cached = redis.keys.session(tenant_id, session_id)
        self.tenant_id, self.session_id, self.generation, self.last_seq = tenant_id, session_id, generation, last_seq
        self._part = 0
        self._lock = asyncio.Lock()

    def delta(self, type_: str, run_id: UUID, fields: Mapping[str, Any]) -> None:
        """Relay an event that is not stored.

        Raises:
            LeaseLost: the lease has run out, so somebody else may own the session by now.
        """
        self._lease.require()
        self._part += 1
        position = Position(self.last_seq, self._part)
        data = event_data(self.session_id, run_id, self.last_seq, datetime.now(UTC), fields)
        self._publisher.send(self._stream, self._channel, (Frame.build(position, type_, data),))

    async def append(self, *events: Event, also: Also | None = None) -> None:
        """Store events, then relay them. Repeats over short database outages, until the lease runs out.

        Who is cancelled here has stored all of it, or will have in a moment.

        Raises:
            LeaseLost: fenced.
            Unavailable: the database stayed away.
            Exception: what `also` raised; then nothing was stored.
        """
        # Shielded: cut off between the commit and its note here, the writer would not know its position any more.
        await asyncio.shield(self._write(events, also))

    async def _write(self, events: Sequence[Event], also: Also | None = None) -> None:
        async with self._lock:
            expected, tried = self.last_seq, False

            async def attempt() -> list[Frame]:
                nonlocal tried
                self._lease.require()
                async with self._db.pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
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
                        stored = await self._stored(connection, expected, len(events)) if again else None
                        if stored is None:
                            raise
                        return stored

            frames = await retrying(attempt, until=self._lease.is_over)
            self.last_seq = frames[-1].seq
            if any(event.type in ENDS_OF_DELTAS for event in events):
                self._part = 0
            self._publisher.send(self._stream, self._channel, frames)
            self._publisher.command("SET", self._cached, b"", "PX", TOMBSTONE_TTL_MS)

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
        return [Frame.build(Position(row["seq"]), row["type"], row["data"].encode()) for row in rows] or None
