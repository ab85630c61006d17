"""The live relay: one publishing and one subscribing Redis connection per instance.

Publishing may lose and so may pub/sub; both say so (`gap()`), and readers repair themselves from the session's
stream or from PostgreSQL. Measured choices (docs/adr/0004-live-relay.md): the payload travels in the PUBLISH, one
per session and flush; a flush happens at once when quiet and 2 ms apart when busy; redis-py opens the connections, and
`wire.py` writes and reads them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol
from uuid import UUID

import structlog
from redis.asyncio import Connection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from apps.api.core.events.frames import Frame, write_batch
from apps.api.core.events.wire import Asking, Listening, pack
from apps.api.redis import REDIS_ERRORS, STREAM_MAX_LENGTH, STREAM_TTL, STREAM_TTL_AFTER_RUN, Redis

log = structlog.get_logger(__name__)

BUSY_EVENTS_PER_SECOND = 1_000
BUSY_FLUSH_GAP = 0.002
"""Above that rate, wait this many seconds between flushes: fewer, larger writes."""

MAX_PENDING_BYTES = 16 * 1024 * 1024
"""What may wait for Redis of frames. Beyond it they are dropped; readers repair from PostgreSQL."""

MAX_COMMAND_BYTES = 2 * 1024 * 1024
"""What may wait for Redis of commands, some 20,000 of them. Beyond it the older half is dropped."""

MAX_STREAM_FRAME = 8 * 1024
"""Bytes of a delta that a session's stream holds: streams are bounded by entries, and live in memory that all sessions
share."""

MAX_STREAM_EVENT = 1024
"""The same of a stored event. Of a larger one the stream has the number and the size, and readers take it from
PostgreSQL. The first and the last event of a run are above it: with them, a run of few words would take twice the 4 KB
that are the least which a stream takes."""


class Listener(Protocol):
    """Somebody who wants a channel. Both calls must return at once."""

    def deliver(self, payload: bytes) -> None:
        """A message arrived."""

    def gap(self) -> None:
        """Messages may have been lost since the last one."""


def _backoff(attempt: int) -> float:
    return min(0.05 * float(2**attempt), 2.0) * random.uniform(0.5, 1.5)


async def _keep_connected(
    redis: Redis, name: str, work: Callable[[Connection], Awaitable[None]], lost: Callable[[], None]
) -> None:
    """Run `work` on a connection of its own, for ever; `lost` is called after each, and each failure to get one."""
    attempt = 0
    while True:
        connection = redis.connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            attempt = 0
            await work(connection)
        except REDIS_ERRORS as error:
            log.warning("relay.disconnected", connection=name, error=type(error).__name__, attempt=attempt)
            if isinstance(error, (TimeoutError, RedisTimeout)):
                redis.outage.begin(error)
        finally:
            await connection.disconnect(nowait=True)
            lost()
        await asyncio.sleep(_backoff(attempt))
        attempt = min(attempt + 1, 8)


def _deliver(listener: Listener, payload: bytes) -> None:
    """Hand a message on. One that its listener cannot read, of another version or program, was never heard: a gap."""
    try:
        listener.deliver(payload)
    except Exception as error:
        log.warning("relay.message_not_read", error=error)
        listener.gap()


class Publisher:
    """Sends frames to a session's stream and channel, and plain messages to other channels, in order."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._frames: dict[tuple[str, str], list[Frame]] = {}
        self._commands: list[bytes] = []
        self._sent: list[bytes] = []  # commands that Redis has not answered yet
        self._pending_bytes = self._command_bytes = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.dropped = 0

    def send(self, feed: tuple[str, str], frames: Sequence[Frame]) -> None:
        """Queue frames of one session for its stream and channel (`Keys.feed`: made once, since this is called for each
        delta). Never waits; may drop when Redis is away (counted in `dropped`)."""
        if not frames:
            return
        queue = self._frames.setdefault(feed, [])
        for frame in frames:
            queue.append(frame)
            self._pending_bytes += len(frame.raw)
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._drop()
        self._wake()

    def notify(self, channel: str, payload: str | bytes) -> None:
        """Publish a small message. Only ever a wake-up: the receiver also polls."""
        self.command("PUBLISH", channel, payload)

    def command(self, *words: str | bytes | int) -> None:
        """Queue a command that nobody waits for."""
        packed = pack(*words)
        self._commands.append(packed)
        self._command_bytes += len(packed)
        if self._command_bytes > MAX_COMMAND_BYTES:
            del self._commands[: (len(self._commands) + 1) // 2]
            self._command_bytes = sum(map(len, self._commands))
        self._wake()

    def forget(self, name: str, ttl_ms: int) -> None:
        """Drop a cached entry, and let nobody write it again for that long. Repeated until Redis has done it."""
        self._redis.tombstones.add(name, ttl_ms)

    async def flushed(self, timeout: float = 2.0) -> None:
        """Wait until nothing is pending, or `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    def _drop(self) -> None:
        self.dropped += sum(len(frames) for frames in self._frames.values())
        self._frames.clear()
        self._pending_bytes = 0

    def _lost(self) -> None:
        # What waited during an outage is stale for live readers, and they read it from PostgreSQL. A command is not:
        # what it invalidates would be served for as long as it is cached. None does harm when it comes twice.
        self._drop()
        if self._sent:
            self._commands, self._sent = self._sent + self._commands, []
            self._command_bytes = sum(map(len, self._commands))
            self._wake()

    async def run(self) -> None:
        """Flush until cancelled; reconnects for ever, with back-off and jitter."""
        self._redis.tombstones.wake = self._wake
        await _keep_connected(self._redis, "publisher", self._flush_loop, self._lost)

    async def _flush_loop(self, connection: Connection) -> None:
        wire = Asking(connection)
        try:
            await self._flush(wire)
        finally:
            wire.end()

    async def _flush(self, wire: Asking) -> None:
        window_started, window_events = time.monotonic(), 0
        self._work.set()  # for tombstones that an earlier connection could not write
        while True:
            await self._work.wait()
            self._work.clear()
            streams, events = self._take()
            forgotten = self._redis.tombstones.all()
            sets = [pack("SET", name, b"", "PX", tombstone.ttl_ms) for name, tombstone in forgotten.items()]
            if commands := [packed for _, packed in streams] + sets + self._sent:
                replies = iter(await wire.ask(commands))
                refused = {stream for (stream, _), reply in zip(streams, replies, strict=False) if _is_refused(reply)}
                answers = zip(forgotten.items(), replies, strict=False)
                self._redis.tombstones.written({name: t for (name, t), reply in answers if not _is_refused(reply)})
                for reply in replies:
                    _is_refused(reply)
                self._sent = []
                for stream in refused:
                    self.command("DEL", stream)
            if not self._work.is_set():
                self._idle.set()
            now = time.monotonic()
            window_events += events
            if now - window_started >= 0.1:
                window_started, window_events = now, int(window_events * 0.1 / (now - window_started)) // 2
            if window_events > BUSY_EVENTS_PER_SECOND * 0.1:
                await asyncio.sleep(BUSY_FLUSH_GAP)

    def _take(self) -> tuple[list[tuple[str, bytes]], int]:
        """What to send of frames, each with the stream that it is about, and how many events these are.

        Commands go after it, from `_sent`: whoever a wake-up wakes finds the events there.
        """
        taken, self._frames = self._frames, {}
        self._sent, self._commands = self._commands, []
        self._pending_bytes = self._command_bytes = 0
        commands: list[tuple[str, bytes]] = []
        for (stream, channel), frames in taken.items():
            for frame in frames:
                if entry := _entry(frame):
                    packed = pack("XADD", stream, "MAXLEN", "~", STREAM_MAX_LENGTH, *entry)
                    commands.append((stream, packed))
            batches = [[*of] for _, of in groupby(frames, attrgetter("generation"))] if len(frames) > 1 else [frames]
            commands += [(stream, pack("PUBLISH", channel, write_batch(batch))) for batch in batches]
            if any(frame.part == 0 for frame in frames):
                ttl = STREAM_TTL_AFTER_RUN if frames[-1].type == "done" else STREAM_TTL
                commands.append((stream, pack("EXPIRE", stream, ttl)))
        return commands, sum(map(len, taken.values()))


def _is_refused(reply: Any) -> bool:
    if not isinstance(reply, ResponseError):
        return False
    # XADD refuses a number at or below the newest. Either its writer is no longer the owner, or the stream is of events
    # that the database has lost. Nobody here can tell; but the stream is a copy, and can go.
    log.warning("relay.refused", error=reply)
    return True


def _entry(frame: Frame) -> tuple[str | bytes | int, ...]:
    """What a session's stream holds of a frame, from its id on: `follow` reads it. Nothing of a large delta."""
    at = f"{frame.seq}-{frame.part}"
    if len(frame.raw) <= (MAX_STREAM_FRAME if frame.part else MAX_STREAM_EVENT):
        return (at, "g", frame.generation, "f", frame.raw)
    return () if frame.part else (at, "g", frame.generation, "n", len(frame.raw))


class Subscriptions:
    """Channels that this instance listens to, on one connection whatever their number."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._listeners: dict[bytes, list[Listener]] = {}
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        self._wire: Listening | None = None
        self.connected = False

    @property
    def hears(self) -> bool:
        """Whether what is published can be expected to come. A Redis that hangs leaves its connections open."""
        return self.connected and not self._redis.outage.lasts

    async def hears_for(self, seconds: float) -> bool:
        """Wait so long, or until Redis is known to be away. Whether what was published meanwhile should have come."""
        heard = self.hears
        if heard:
            await self._redis.outage.begins(seconds)
        return heard and self.hears

    async def subscribe(self, channel: str, listener: Listener, timeout: float = 1.0) -> None:
        """Add a listener; returns when Redis confirmed, or after `timeout` seconds without that.

        Without a confirmation the listener still gets `gap()` as soon as the connection is back.
        """
        name = channel.encode()
        listeners = self._listeners.setdefault(name, [])
        if listener not in listeners:
            listeners.append(listener)
        confirmed = self._confirmed.get(name)
        if confirmed is None:
            confirmed = self._confirmed[name] = asyncio.get_running_loop().create_future()
            self._say("SUBSCRIBE", name)
        if not confirmed.done() and self.hears:
            await asyncio.wait([confirmed], timeout=timeout)
            if not confirmed.done():
                log.warning("relay.subscribe_not_confirmed")
                self._redis.outage.begin(TimeoutError("a subscription was not confirmed"))

    def unsubscribe(self, channel: str, listener: Listener) -> None:
        """Remove a listener; the last one ends the subscription."""
        name = channel.encode()
        listeners = self._listeners.get(name, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(name, None)
            self._confirmed.pop(name, None)
            self._say("UNSUBSCRIBE", name)

    def _say(self, command: str, channel: bytes) -> None:
        # While disconnected the reconnect subscribes to whatever is wanted by then.
        if self._wire is not None:
            self._wire.say(command, channel)

    async def run(self) -> None:
        """Read until cancelled; reconnects for ever, with back-off and jitter."""
        await _keep_connected(self._redis, "subscriber", self._session, self._disconnected)

    def _disconnected(self) -> None:
        for name, confirmed in self._confirmed.items():
            if confirmed.done():
                self._confirmed[name] = asyncio.get_running_loop().create_future()
        for listeners in tuple(self._listeners.values()):
            for listener in tuple(listeners):
                listener.gap()

    async def _session(self, connection: Connection) -> None:
        wire = self._wire = Listening(connection, self._hear)
        self.connected = True
        try:
            if self._listeners:
                wire.say("SUBSCRIBE", *self._listeners)
            await wire.ended()
        finally:
            self._wire, self.connected = None, False
            wire.end()

    def _hear(self, reply: list[bytes]) -> None:
        kind, channel = reply[0], reply[1]
        if kind == b"message":
            for listener in tuple(self._listeners.get(channel, ())):
                _deliver(listener, reply[2])
        elif kind == b"subscribe" and channel in self._confirmed:
            if not (confirmed := self._confirmed[channel]).done():
                confirmed.set_result(None)
            for listener in tuple(self._listeners.get(channel, ())):
                listener.gap()


class Wakeups:
    """Listens to a channel and hands each message to `heard`, and an empty one where some may have been lost."""

    def __init__(self, heard: Callable[[str], None]) -> None:
        self._heard = heard

    def deliver(self, payload: bytes) -> None:
        self._heard(payload.decode(errors="replace"))

    def gap(self) -> None:
        self._heard("")


def session_id_in(message: str) -> UUID | None:
    """The id in a wake-up; None for an empty one, or one of another version of this program."""
    try:
        return UUID(message)
    except ValueError:
        return None
