"""The two connections of the relay, once redis-py has opened them: address, TLS, credentials and name are its business.

What it does after that for each reply (a timer and some ten coroutines) costs several times as much as the reply, and
the relay has two for each event: docs/adr/0004-live-relay.md. Here hiredis reads what has come, in the transport's own
call, and one timer for the whole connection sees whether Redis still answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hiredis import Reader, pack_command
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

PING_INTERVAL = 5.0
"""Seconds between signs of life on a connection that only listens."""

MISSED_PINGS = 3
"""So many intervals without a byte count as a dead connection."""

REPLY_TIMEOUT = 2.0
"""Seconds for the replies to one batch of commands."""

REPLY_ROUNDS = 5
"""Looks at the clock that make up REPLY_TIMEOUT. A process that is late itself comes late to each of them, and between
two it reads what has come: it does not take its own delay for one of Redis."""

MAX_UNSENT = 2 * 1024 * 1024
"""Bytes that may wait on a connection that only listens: its commands, some 20,000 of them."""

_MORE = object()


def pack(*words: str | bytes | int) -> bytes:
    """A command as Redis reads it."""
    packed: bytes = pack_command(words)  # type: ignore[arg-type] # its stub knows tuples of one only
    return packed


class Wire(asyncio.Protocol):
    """One connection. `over` is done when it has ended, with what ended it."""

    def __init__(self, connection: Connection, interval: float) -> None:
        """Take an open connection over from redis-py. `interval`: seconds between two calls of `look`."""
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[Exception] = self._loop.create_future()
        parse_error = connection._parser.parse_error
        self._reader = Reader(protocolError=InvalidResponse, replyError=parse_error, notEnoughData=_MORE)
        writer: asyncio.StreamWriter = connection._writer  # type: ignore[assignment] # which it has once it is open
        self._transport = writer.transport
        self._transport.set_protocol(self)
        self._interval = interval
        self._timer = self._loop.call_later(interval, self._tick)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _MORE:
                if isinstance(reply, RedisConnectionError):  # it is being started, or has too many clients
                    raise reply
                self.heard(reply)
        except Exception as error:
            self.end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc or RedisConnectionError("Redis closed the connection"))

    async def ended(self) -> NoReturn:
        """Wait until it has, and raise what ended it."""
        await asyncio.wait([self.over])
        raise self.over.result()

    def end(self, why: Exception | None = None) -> None:
        """End it at once, and what is left unsent: who reconnects begins anew."""
        if not self.over.done():
            self.over.set_result(why or RedisConnectionError("closed"))
            self._timer.cancel()
            self._transport.abort()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._tick)
        self.look()

    def heard(self, reply: Any) -> None:
        """A reply or a message has come."""
        raise NotImplementedError

    def look(self) -> None:
        """See whether Redis still answers."""
        raise NotImplementedError


class Asking(Wire):
    """Batches of commands, one at a time, each with all of its replies."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, REPLY_TIMEOUT / REPLY_ROUNDS)
        self._replies: list[Any] = []
        self._wanted = self._rounds = 0
        self._answered: asyncio.Future[None] | None = None

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to these commands, in order; a refusal is a ResponseError among them.

        Raises:
            TimeoutError, OSError, RedisError: the connection is over, or Redis does not answer.
        """
        self._replies, self._wanted, self._rounds = [], len(commands), 0
        self._answered = self._loop.create_future()
        if not self.over.done():
            self._transport.write(b"".join(commands))
            await self._answered
        if self.over.done():
            raise self.over.result()
        return self._replies

    def heard(self, reply: Any) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._wanted:
            self._wake()

    def end(self, why: Exception | None = None) -> None:
        super().end(why)
        self._wake()

    def look(self) -> None:
        self._rounds += 1
        if len(self._replies) < self._wanted and self._rounds > REPLY_ROUNDS:
            self.end(TimeoutError("no reply from Redis"))

    def _wake(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)


class Listening(Wire):
    """Subscriptions: commands without replies of their own, and what comes of them."""

    def __init__(self, connection: Connection, hear: Callable[[list[bytes]], None]) -> None:
        """`hear` is given each message, and each confirmation."""
        super().__init__(connection, PING_INTERVAL)
        self._hear, self._silent = hear, 0

    def say(self, *words: str | bytes) -> None:
        """Send a command. A Redis that takes none of them ends the connection."""
        if self.over.done():
            return
        self._transport.write(pack(*words))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.end(TimeoutError("Redis does not read"))

    def heard(self, reply: Any) -> None:
        self._silent = 0
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, list):  # else the answer to a PING
            self._hear(reply)

    def look(self) -> None:
        self._silent += 1
        if self._silent > MISSED_PINGS:
            self.end(TimeoutError("no sign of life from Redis"))
        else:
            self.say("PING")
