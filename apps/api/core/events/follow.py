"""Following a session's events from any instance: what is stored, then live, without a gap or a repeat.

A reader subscribes before it replays, and keeps one position. Whatever could have been lost (a jump in the
numbers, a reconnect, a full mailbox, a tick that finds the database ahead) sends it back to the same replay.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from apps.api.core.codec import decode
from apps.api.core.events import log as event_log
from apps.api.core.events.frames import Frame, Position, parse_batch
from apps.api.core.events.relay import Subscriptions
from apps.api.core.tasks import Loop
from apps.api.db import CONNECTION_ERRORS, Database
from apps.api.redis import Redis

logger = structlog.get_logger(__name__)

MAILBOX_BYTES = 1024 * 1024
"""What may wait for one reader. Beyond it the mailbox is emptied, and the reader replays from its position."""

REPLAY_BATCH = 500
"""Events read at a time."""

CHECK_INTERVAL = 7.5
"""Seconds between checks against the database while Redis is connected; the second one in a row heals a reader."""

CHECK_INTERVAL_WITHOUT_REDIS = 0.5

KEEP_ALIVE_INTERVAL = 15.0
"""Seconds of silence after which a reader gets an empty batch, for a sign of life to its client."""

DELETED = b"deleted"
"""Published on a session's channel when the session is deleted; frames never look like this."""


class SessionDeleted(Exception):
    """The session was deleted while it was being followed."""


class Mailbox:
    """What waits for one reader. Bounded; filled by the relay, emptied by the reader."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self.behind = True
        self.deleted = False
        self.seq = 0

    def put(self, frames: list[Frame]) -> None:
        if self.behind:
            return
        self._frames.extend(frames)
        self._bytes += sum(len(frame.raw) for frame in frames)
        if self._bytes > MAILBOX_BYTES:
            self.gap()
        self._changed.set()

    def gap(self) -> None:
        """Forget what waits: the reader has to replay."""
        self._frames.clear()
        self._bytes = 0
        self.behind = True
        self._changed.set()

    def delete(self) -> None:
        self.deleted = True
        self._changed.set()

    def catch_up(self) -> None:
        """From here on keep what arrives; called before a replay reads."""
        self.behind = False

    def take(self) -> list[Frame]:
        frames = list(self._frames)
        self._frames.clear()
        self._bytes = 0
        return frames

    async def wait(self, timeout: float) -> bool:
        """Until something changed; False after `timeout` seconds without a change."""
        if not self._changed.is_set():
            try:
                # Not wait_for: until Python 3.12 it can swallow a cancellation, and the reader would never leave.
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                return False
        self._changed.clear()
        return True


_NEWEST = "SELECT id, last_seq, deleted_at FROM sessions WHERE id = ANY($1::uuid[])"


class _Topic:
    """One followed session on this instance: parses each published batch once for all of its readers."""

    def __init__(self, session_id: UUID) -> None:
        self.session_id = session_id
        self.mailboxes: list[Mailbox] = []

    def deliver(self, payload: bytes) -> None:
        if payload == DELETED:
            for mailbox in self.mailboxes:
                mailbox.delete()
            return
        frames = parse_batch(payload)
        for mailbox in self.mailboxes:
            mailbox.put(frames)

    def gap(self) -> None:
        for mailbox in self.mailboxes:
            mailbox.gap()

    def check(self, expected: int, *, deleted: bool) -> None:
        """Tell the readers who have not come as far as `expected`, or that the session is gone."""
        for mailbox in self.mailboxes:
            if deleted:
                mailbox.delete()
            elif mailbox.seq < expected:
                mailbox.gap()


@dataclass(frozen=True, slots=True)
class Followed:
    """A session and who asks for it."""

    tenant_id: UUID
    session_id: UUID


class Followers:
    """All followed sessions of this instance, and the tick that heals what pub/sub lost."""

    def __init__(
        self, db: Database, redis: Redis, subscriptions: Subscriptions, *, check_interval: float = CHECK_INTERVAL
    ) -> None:
        """`check_interval`: seconds between checks against the database while Redis is connected."""
        self._db, self._redis, self._subscriptions = db, redis, subscriptions
        self._check_interval = check_interval
        self._topics: dict[str, _Topic] = {}
        self._seen: dict[UUID, int] = {}
        self._was_connected = False

    @property
    def count(self) -> int:
        """How many readers there are."""
        return sum(len(topic.mailboxes) for topic in self._topics.values())

    @asynccontextmanager
    async def mailbox(self, followed: Followed) -> AsyncIterator[Mailbox]:
        """A subscribed mailbox, for as long as the block lasts."""
        channel = self._redis.keys.channel(followed.tenant_id, followed.session_id)
        mailbox = Mailbox()
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = _Topic(followed.session_id)
        topic.mailboxes.append(mailbox)
        try:
            await self._subscriptions.subscribe(channel, topic)
            yield mailbox
        finally:
            topic.mailboxes.remove(mailbox)
            if not topic.mailboxes:
                self._subscriptions.unsubscribe(channel, topic)
                if self._topics.get(channel) is topic:
                    del self._topics[channel]

    async def until_next_check(self) -> None:
        """Wait until it is time to compare."""
        self._was_connected = self._subscriptions.connected
        await asyncio.sleep(self._check_interval if self._was_connected else CHECK_INTERVAL_WITHOUT_REDIS)

    async def check(self, loop: Loop) -> None:
        """Compare all readers with the database, in one query for the whole instance."""
        topics = {topic.session_id: topic for topic in self._topics.values() if topic.mailboxes}
        rows = await self._db.pool.fetch(_NEWEST, list(topics)) if topics else []
        for row in rows:
            # While Redis works, what is new is on its way; what was there at the last check should have arrived.
            expected = self._seen.get(row["id"], 0) if self._was_connected else row["last_seq"]
            with loop.one(row["id"]):
                topics[row["id"]].check(expected, deleted=row["deleted_at"] is not None)
        self._seen = {row["id"]: row["last_seq"] for row in rows}

    async def follow(
        self,
        followed: Followed,
        after: Position,
        *,
        run_id: UUID | None = None,
        tick: float = KEEP_ALIVE_INTERVAL,
        gapless: bool = False,
    ) -> AsyncGenerator[list[Frame]]:
        """Events after `after`, for ever, in batches; an empty batch after `tick` seconds without one.

        Args:
            run_id: only events of this run. Those of others are silence.
            gapless: leave out deltas that do not continue those before them. Deltas are not durable: for readers who
                put them together, and cannot take back what they have told.

        Raises:
            SessionDeleted: the session was deleted meanwhile.
        """
        wanted = None if run_id is None else str(run_id).encode()
        async with self.mailbox(followed) as mailbox:
            position, told, deltas = after, time.monotonic(), _Deltas(after.part) if gapless else None
            while True:
                mailbox.seq = position.seq
                if mailbox.deleted:
                    raise SessionDeleted
                if mailbox.behind:
                    mailbox.catch_up()
                    try:
                        frames, complete, stored = await self._replay(followed, position)
                    except CONNECTION_ERRORS:
                        mailbox.gap()
                        yield []
                        await asyncio.sleep(CHECK_INTERVAL_WITHOUT_REDIS)
                        continue
                    if not complete:
                        mailbox.gap()
                    if stored and deltas is not None:
                        deltas.lost()
                else:
                    frames = mailbox.take()
                    if not frames:
                        if not await mailbox.wait(tick):
                            yield []
                            told = time.monotonic()
                        continue
                fresh, position = _fresh(frames, position, mailbox, deltas)
                if wanted is not None:
                    fresh = [frame for frame in fresh if frame.belongs_to(wanted)]
                if fresh or time.monotonic() - told >= tick:
                    yield fresh
                    told = time.monotonic()

    async def _replay(self, followed: Followed, position: Position) -> tuple[list[Frame], bool, bool]:
        """What follows `position`; whether that is all there is; and whether deltas may be missing from it.

        Prefers the stream, which has the deltas.
        """
        frames = await self._from_stream(followed, position)
        stored: list[Frame] = []
        if not frames or not _continues(frames[0], position):
            stored = await event_log.read(
                self._db, followed.tenant_id, followed.session_id, position.seq, limit=REPLAY_BATCH
            )
            if len(stored) == REPLAY_BATCH:
                return stored, False, True
            newest = stored[-1].position if stored else position
            frames = stored + [frame for frame in frames if frame.position > newest]
        return frames, len(frames) < REPLAY_BATCH, bool(stored)

    async def _from_stream(self, followed: Followed, position: Position) -> list[Frame]:
        stream = self._redis.keys.stream(followed.tenant_id, followed.session_id)
        start = f"({position.seq}-{position.part}"
        entries: Any = await self._redis.attempt(
            lambda: self._redis.client.xrange(stream, min=start, count=REPLAY_BATCH)
        )
        try:
            return [Frame.parse(fields[b"f"]) for _, fields in entries or ()]
        except (KeyError, ValueError, IndexError):  # not what this version writes: PostgreSQL has the events
            return []


def _continues(frame: Frame, position: Position) -> bool:
    """Whether nothing durable lies between `position` and `frame`."""
    return frame.seq == position.seq if frame.part else frame.seq == position.seq + 1


class _Deltas:
    """Which deltas continue what a reader was told. After a hole none of a message does, until that has come whole."""

    def __init__(self, last: int = 0) -> None:
        """`last`: the last delta that the reader has."""
        self._last = last
        self._in_message = self._holed = False
        self._whole: set[str | None] = set()  # callers whose message has come since the hole

    def lost(self) -> None:
        """What follows was stored: the deltas between are gone, of a message that had begun."""
        if self._in_message:
            self._hole()

    def _hole(self) -> None:
        self._holed = True
        self._whole.clear()

    def admits(self, frame: Frame) -> bool:
        """Whether the frame may be told."""
        if frame.part:
            self._in_message = True
            if frame.part != self._last + 1:
                self._hole()
            self._last = frame.part
            return not self._holed or decode(frame.data).get("parent_tool_use_id") in self._whole
        if frame.type in event_log.ENDS_OF_DELTAS:
            self._last = 0
        if frame.type == "done":
            self._in_message = self._holed = False
        elif frame.type == "message":
            self._in_message = False
            data = decode(frame.data) if self._holed else {}
            if data.get("role") == "assistant":
                self._whole.add(data.get("parent_tool_use_id"))
        return True


def _fresh(
    frames: list[Frame], position: Position, mailbox: Mailbox, deltas: _Deltas | None
) -> tuple[list[Frame], Position]:
    """Drop what was seen; stop at a hole in the durable numbers, and send the mailbox back to replay there."""
    fresh = []
    for frame in frames:
        if frame.position <= position:
            continue
        if not _continues(frame, position):
            mailbox.gap()
            break
        if deltas is None or deltas.admits(frame):
            fresh.append(frame)
        position = frame.position
    return fresh, position
