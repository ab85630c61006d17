"""Following a session's events from any instance: what is stored, then live, without a gap or a repeat.

A reader subscribes before it replays, and keeps one position. Whatever could have been lost (a jump in the
numbers, a reconnect, a full mailbox, a tick that finds the database ahead) sends it back to the same replay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from uuid import UUID

import structlog

from apps.api import clock, instruments
from apps.api.core.events.frames import Frame, Position, parse_batch, resync
from apps.api.core.events.place import Deltas, Place
from apps.api.core.events.relay import Subscriptions
from apps.api.core.events.replay import Followed, Replay
from apps.api.core.tasks import Loop
from apps.api.db import CONNECTION_ERRORS, Database
from apps.api.redis import Redis

logger = structlog.get_logger(__name__)

MAILBOX_BYTES = 1024 * 1024
"""What may wait for one reader. Beyond it the mailbox is emptied, and the reader replays from its position."""

CHECK_INTERVAL = 1.5
"""Seconds between checks against the database while Redis is connected."""

ARRIVAL = 0.5
"""Seconds after which what was stored should have come over Redis. Its owner may be cut off from Redis when this
instance is not: a reader is healed ARRIVAL + CHECK_INTERVAL after an event was stored, or sooner."""

CHECK_INTERVAL_WITHOUT_REDIS = 0.25

KEEP_ALIVE_INTERVAL = 15.0
"""Seconds of silence after which a reader gets an empty batch, for a sign of life to its client."""

LAG_INTERVAL = 0.05
"""Seconds between two looks at how late a reader gets its deltas, which cost some 4 µs each."""

CLOCK = 0.001
"""Seconds by which a timer of the event loop may come too early."""

DELETED = b"deleted"
"""Published on a session's channel when the session is deleted; frames never look like this."""


class SessionDeleted(Exception):
    """The session was deleted while it was being followed."""

    code = "session_deleted"


class RunLost(SessionDeleted):
    """The run that was followed has never been: the database has lost it."""

    code = "storage_failed"


class Mailbox:
    """What waits for one reader. Bounded; filled by the relay, emptied by the reader."""

    __slots__ = (
        "_bytes",
        "_changed",
        "_frames",
        "_timer",
        "_until",
        "_waiter",
        "behind",
        "deleted",
        "generation",
        "seq",
    )

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._bytes = 0
        self._changed = False
        self._waiter: asyncio.Future[None] | None = None
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.behind = True
        self.deleted = False
        self.seq = 0
        self.generation = 0

    def put(self, frames: list[Frame]) -> None:
        if self.behind:
            return
        self._frames += frames
        for frame in frames:
            self._bytes += len(frame.raw)
        if self._bytes > MAILBOX_BYTES:
            self.gap()
        self._change()

    def gap(self) -> None:
        """Forget what waits: the reader has to replay."""
        self._frames = []
        self._bytes = 0
        self.behind = True
        self._change()

    def delete(self) -> None:
        self.deleted = True
        self._change()

    def show(self, place: Place) -> None:
        """Let the checks see how far the reader has come."""
        self.seq, self.generation = place.position.seq, place.generation

    def catch_up(self) -> None:
        """From here on keep what arrives; called before a replay reads."""
        self.behind = False

    def take(self) -> list[Frame]:
        frames, self._frames = self._frames, []
        self._bytes = 0
        return frames

    async def wait(self, timeout: float) -> bool:
        """Until something changed; False after `timeout` seconds without a change. One waits at a time, each for as
        long as the one before."""
        if not self._changed:
            loop = asyncio.get_running_loop()
            self._waiter, self._until = loop.create_future(), loop.time() + timeout
            if self._timer is None:
                self._timer = loop.call_later(timeout, self._look)
            await self._waiter
        changed, self._changed = self._changed, False
        return changed

    def _change(self) -> None:
        self._changed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look(self) -> None:
        # A timer for each wait would cost several times what the wait does: one outlasts many.
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        loop = asyncio.get_running_loop()
        if (left := self._until - loop.time()) > CLOCK:
            self._timer = loop.call_later(left, self._look)
        else:
            self._wake()

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_OTHERWISE = f"""
SELECT id, s.generation, last_seq, deleted_at, last_active_at < now() - interval '{ARRIVAL} s' AS arrived
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS known(session_id, seq, generation)
JOIN sessions s ON s.id = known.session_id
WHERE s.last_seq <> known.seq OR s.generation <> known.generation OR s.deleted_at IS NOT NULL
"""  # noqa: S608 - ours
"""Of all sessions that are followed here those that are not as their readers know them: few, mostly none."""

UNKNOWN = -1
"""A generation that no session has."""


class _Topic:
    """One followed session on this instance: parses each published batch once for all of its readers."""

    __slots__ = ("mailboxes", "session_id")

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

    def check(self, expected: int, generation: int, *, deleted: bool) -> None:
        """Tell readers who have not come as far as `expected`, or not to this owner; or that the session is gone."""
        for mailbox in self.mailboxes:
            if deleted:
                mailbox.delete()
            elif mailbox.seq < expected or mailbox.generation != generation:
                mailbox.gap()

    def check_end(self, seen: int, last_seq: int) -> None:
        """The same where the readers had come to `seen` before the database was asked: it may have lost events."""
        if seen > last_seq:
            self.gap()

    @property
    def reached(self) -> tuple[int, int]:
        """How far the readers have come, and in which generation; UNKNOWN where one differs from another."""
        first = self.mailboxes[0]
        if len(self.mailboxes) > 1 and len({(each.seq, each.generation) for each in self.mailboxes}) > 1:
            return max(each.seq for each in self.mailboxes), UNKNOWN
        return first.seq, first.generation


class Followers:
    """All followed sessions of this instance, and the tick that heals what pub/sub lost."""

    def __init__(
        self, db: Database, redis: Redis, subscriptions: Subscriptions, *, check_interval: float = CHECK_INTERVAL
    ) -> None:
        """`check_interval`: seconds between checks against the database while Redis is connected."""
        # Requests may take all of theirs, and readers are to be compared none the less.
        self._db, self._redis, self._subscriptions = db.for_runner(), redis, subscriptions
        self._replay = Replay(db, redis)
        self._check_interval = check_interval
        self._topics: dict[str, _Topic] = {}
        self._seen: dict[UUID, int] = {}

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
            mailbox.close()
            topic.mailboxes.remove(mailbox)
            if not topic.mailboxes:
                self._subscriptions.unsubscribe(channel, topic)
                if self._topics.get(channel) is topic:
                    del self._topics[channel]

    async def start(self, followed: Followed, after: Position, newest: int) -> Position:
        """Where a reader begins who has just come and wants what follows `after`: there; or before, if that is beyond
        `newest`, the end of the log, or may be the number of an event that the database has lost; or later, if what
        follows was removed for its age."""
        kept, expired = await self._replay.begun(followed, after.seq)
        if kept is not None or after.seq > newest:
            after = Position(newest if kept is None else min(kept, newest))
        return Position(expired) if after.seq < expired else after

    async def look_back(self, tenant_id: UUID, session_id: UUID, last_seq: int) -> None:
        """Before a new owner goes on after `last_seq`: if Redis has later events, the database has lost them."""
        with suppress(*CONNECTION_ERRORS):
            await self._replay.look_back(Followed(tenant_id, session_id), last_seq)

    async def until_next_check(self) -> None:
        """Wait until it is time to compare."""
        heard = await self._subscriptions.hears_for(self._check_interval)
        await asyncio.sleep(0 if heard else CHECK_INTERVAL_WITHOUT_REDIS)

    async def check(self, loop: Loop) -> None:
        """Compare all readers with the database, in one query for the whole instance."""
        topics = {topic.session_id: topic for topic in self._topics.values() if topic.mailboxes}
        reached: dict[UUID, int] = {}
        generations = []
        for session_id, topic in topics.items():
            reached[session_id], generation = topic.reached
            generations.append(generation)
        known = list(reached), list(reached.values()), generations
        rows = await self._db.pool.fetch(_OTHERWISE, *known) if topics else []
        for row in rows:
            # While Redis works, what is new is on its way; what was there at the last check should have arrived. That
            # Redis has just come back makes no difference: what came before is told as a gap with the subscription.
            due = row["arrived"] or not self._subscriptions.hears
            expected = row["last_seq"] if due else self._seen.get(row["id"], 0)
            topic = topics[row["id"]]
            with loop.one(row["id"]):
                topic.check(expected, row["generation"], deleted=row["deleted_at"] is not None)
                topic.check_end(reached[row["id"]], row["last_seq"])
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
            SessionDeleted: the session was deleted meanwhile; RunLost: or the database has lost the run.
        """
        wanted = None if run_id is None else str(run_id).encode()
        told = time.monotonic()
        async with self.mailbox(followed) as mailbox:
            place = Place(after, Deltas(after.part) if gapless else None)
            async with aclosing(self._batches(followed, mailbox, place, tick)) as batches:
                async for frames in batches:
                    silence = not frames
                    if wanted is not None:
                        frames = [frame for frame in frames if frame.belongs_to(wanted) or frame.type == "resync"]
                    if frames or silence or time.monotonic() - told >= tick:
                        yield frames
                        told = time.monotonic()
                    if run_id and not silence and not await self._still_is(run_id, frames):
                        raise RunLost

    async def _batches(
        self, followed: Followed, mailbox: Mailbox, place: Place, tick: float
    ) -> AsyncGenerator[list[Frame]]:
        """What follows the place, for ever; an empty batch is a sign of life."""
        measured = 0.0
        while True:
            mailbox.show(place)
            if mailbox.deleted:
                raise SessionDeleted
            if mailbox.behind:
                mailbox.catch_up()
                try:
                    async with aclosing(self._missed(followed, mailbox, place)) as missed:
                        async for frames in missed:
                            yield frames
                except CONNECTION_ERRORS:
                    mailbox.gap()
                    yield []
                    await asyncio.sleep(CHECK_INTERVAL_WITHOUT_REDIS)
            elif frames := mailbox.take():
                if fresh := place.move(frames, mailbox.gap):
                    yield fresh
                    # A delta was made when it was published; and who asks for more has written it.
                    if fresh[0].part and (now := time.monotonic()) >= measured + LAG_INTERVAL:
                        measured = now
                        instruments.RELAY_LAG.observe(max(clock.timestamp() - fresh[0].made_at, 0.0))
            elif not await mailbox.wait(tick):
                yield []

    async def _still_is(self, run_id: UUID, frames: list[Frame]) -> bool:
        if all(frame.type != "resync" for frame in frames):
            return True
        with suppress(*CONNECTION_ERRORS):  # not known is not lost
            return bool(await self._db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM runs WHERE id = $1)", run_id))
        return True

    async def _missed(self, followed: Followed, mailbox: Mailbox, place: Place) -> AsyncGenerator[list[Frame]]:
        """What is stored after the place; first `resync` where the database has lost what was told before."""
        head = await self._replay.head(followed, place.position.seq)
        if head is None:
            return
        if place.is_lost(head):
            seq = head.last_seq
            if place.told:
                seq = await self._replay.common(followed, place.told)
                await self._replay.lost(followed, seq, place.position.seq)
            place.go_back(seq)
            yield [resync(followed.session_id, seq)]
        if place.position.seq < head.expired:
            place.skip(head.expired)
            yield [resync(followed.session_id, head.expired, expired=True)]
        place.begin(head)
        async with aclosing(self._replay.pages(followed, place.position, head)) as pages:
            async for frames, stored in pages:
                if stored and place.deltas is not None:
                    place.deltas.lost()
                fresh = place.move(frames, mailbox.gap)
                mailbox.show(place)
                if fresh:
                    yield fresh
