"""What is stored after a position, page by page: from the session's stream, which has deltas, or from PostgreSQL.

PostgreSQL is asked first how far the log goes and who owns it. The stream is a copy: entries of another generation, or
beyond that end, are not of this log (any more).
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from apps.api.core.codec import timestamp
from apps.api.core.events import log as event_log
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.relay import MAX_STREAM_FRAME
from apps.api.core.pages import PAGE_BYTES
from apps.api.db import Database
from apps.api.redis import TOMBSTONE_TTL_MS, Redis

_HEAD = """
SELECT s.generation, s.last_seq, s.expired_seq, e.created_at
FROM sessions s LEFT JOIN events e ON e.session_id = s.id AND e.seq = $3
WHERE s.id = $1 AND s.tenant_id = $2
"""

_MADE = "SELECT seq, created_at FROM events WHERE session_id = $1 AND seq = ANY($2::bigint[]) ORDER BY seq DESC"

_BEGUN = """
SELECT CASE WHEN $2::bigint > 0 AND lost @> $2 THEN lower(lost) - 1 END AS kept, expired_seq FROM sessions WHERE id = $1
"""

STREAM_ENTRIES = PAGE_BYTES // MAX_STREAM_FRAME
"""Entries of a stream that are read at a time: all of the largest size are one page."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A session and who asks for it."""

    tenant_id: UUID
    session_id: UUID


class Head(NamedTuple):
    """Where a log ends, whose it is, up to where it was removed for its age (`expired`), and when its event `seq` was
    made: empty if it has none."""

    generation: int
    last_seq: int
    expired: int
    seq: int
    created_at: bytes


class Replay:
    """Reads logs for the readers of one instance."""

    def __init__(self, db: Database, redis: Redis) -> None:
        self._db, self._redis = db, redis

    async def head(self, followed: Followed, seq: int) -> Head | None:
        """The end of the log now, and when its event `seq` was made. None where there is no such session."""
        row = await self._db.pool.fetchrow(_HEAD, followed.session_id, followed.tenant_id, seq)
        if row is None:
            return None
        made = row["created_at"]
        made_at = timestamp(made).encode() if made else b""
        return Head(row["generation"], row["last_seq"], row["expired_seq"], seq, made_at)

    async def common(self, followed: Followed, told: Sequence[tuple[int, bytes]]) -> int:
        """The newest of the events `told`, numbers and times, that the log has; 0 when it has none of them."""
        made = dict(told)
        rows = await self._db.pool.fetch(_MADE, followed.session_id, list(made))
        return next((row["seq"] for row in rows if timestamp(row["created_at"]).encode() == made[row["seq"]]), 0)

    async def lost(self, followed: Followed, kept: int, seq: int) -> None:
        """Note that the database has lost events after `kept` up to `seq`, and forget what was copied of them."""
        await event_log.note_lost(self._db, followed.session_id, kept, seq)
        keys, client = self._redis.keys, self._redis.client
        stream, cached = (name(followed.tenant_id, followed.session_id) for name in (keys.stream, keys.session))
        await self._redis.attempt(lambda: client.delete(stream))
        await self._redis.forget(cached, TOMBSTONE_TTL_MS)

    async def look_back(self, followed: Followed, last_seq: int) -> None:
        """Compare the stream with the end of the log, of which nobody has written more."""
        stream = self._redis.keys.stream(followed.tenant_id, followed.session_id)
        newest: Any = await self._redis.attempt(lambda: self._redis.client.xrevrange(stream, count=1))
        if newest and (seq := int(newest[0][0].partition(b"-")[0])) > last_seq:
            await self.lost(followed, last_seq, seq)

    async def begun(self, followed: Followed, seq: int) -> tuple[int | None, int]:
        """Where an event with this number was lost, so that nobody can say which one a client means, the last number
        before which nothing was lost; and up to which number events were removed for their age."""
        row = await self._db.pool.fetchrow(_BEGUN, followed.session_id, seq)
        return (None, 0) if row is None else (row["kept"], row["expired_seq"])

    async def pages(
        self, followed: Followed, position: Position, head: Head
    ) -> AsyncGenerator[tuple[list[Frame], bool]]:
        """What follows `position`, in pages of PAGE_BYTES or one event; of each, whether deltas may be missing in it.

        What is written meanwhile may be left out at the end.
        """
        stream_from: int | None = position.seq  # the stream may continue a reader who has this event; None: nobody
        while True:
            page, stored = [], False
            if stream_from is not None and position.seq >= stream_from:
                entries, whole = await self._from_stream(followed, position, head)
                page = _continued(entries, position)
                if len(page) == len(entries):
                    stream_from = None if whole else position.seq
                else:
                    first = entries[len(page)]
                    stream_from = first.seq if first.part else first.seq - 1
                page = await self._filled(followed, page)
            if not page and position.seq < head.last_seq:
                read = await event_log.read(self._db, followed.tenant_id, followed.session_id, position.seq)
                page, stored = read.frames, True
            if not page:
                return
            yield page, stored
            position = page[-1].position

    async def _from_stream(self, followed: Followed, position: Position, head: Head) -> tuple[list[Frame], bool]:
        """Entries after `position` that are of this log, and whether these are all. See `relay._entry`.

        What the stream holds by number only comes as a frame without bytes.
        """
        stream = self._redis.keys.stream(followed.tenant_id, followed.session_id)
        start = f"({position.seq}-{position.part}"
        entries: Any = await self._redis.attempt(
            lambda: self._redis.client.xrange(stream, min=start, count=STREAM_ENTRIES)
        )
        try:
            read = [_read_entry(*entry) for entry in entries or ()]
        except (KeyError, ValueError, IndexError):  # not what this version writes: PostgreSQL has the events
            return [], True
        found = [(frame, size) for frame, size in read if frame.generation == head.generation]
        newest = read[-1][0].seq if read else 0
        if newest > head.last_seq:  # entries are written after their event was stored, so it was
            now = await self.head(followed, newest)
            if now is None or now.last_seq < newest:
                await self.lost(followed, now.last_seq if now else 0, newest)
                return [], True
        sizes = itertools.accumulate(size for _, size in found)
        page = [frame for (frame, size), sum_ in zip(found, sizes, strict=True) if sum_ <= max(PAGE_BYTES, size)]
        # What came since `head` was read has come to the reader's mailbox, too.
        told = [frame for frame in page if frame.seq <= head.last_seq]
        return told, len(told) < len(page) or (len(page) == len(found) and len(read) < STREAM_ENTRIES)

    async def _filled(self, followed: Followed, page: list[Frame]) -> list[Frame]:
        """The page with the bytes of what the stream holds by number only, up to the first that is not there."""
        numbers = [frame.seq for frame in page if not frame.raw]
        if not numbers:
            return page
        stored = await event_log.read_numbers(self._db, followed.tenant_id, followed.session_id, numbers)
        by_number = {frame.seq: frame for frame in stored}
        filled = (frame if frame.raw else by_number.get(frame.seq) for frame in page)
        return [frame for frame in itertools.takewhile(lambda frame: frame is not None, filled) if frame]


def _read_entry(entry_id: bytes, fields: dict[bytes, bytes]) -> tuple[Frame, int]:
    generation = int(fields[b"g"])
    if b"f" in fields:
        return Frame.parse(fields[b"f"], generation), len(fields[b"f"])
    seq, _, _ = entry_id.partition(b"-")
    return Frame(int(seq), 0, "", b"", generation), int(fields[b"n"])


def continues(frame: Frame, position: Position) -> bool:
    """Whether nothing durable lies between `position` and `frame`."""
    return frame.seq == position.seq if frame.part else frame.seq == position.seq + 1


def _continued(frames: Sequence[Frame], position: Position) -> list[Frame]:
    """As many of the first frames as continue one another, and `position`."""
    page: list[Frame] = []
    for frame in frames:
        if not continues(frame, position):
            break
        page.append(frame)
        position = frame.position
    return page
