"""Two connections and what passes between them, with no more held than one side has not taken yet."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http.client import responses
from typing import Protocol

from apps.api.runner.egress.asked import MAX_HEAD_BYTES, Asked, Malformed, read

HELD_BYTES = 256 * 1024
"""Of each direction, while its reader is slower than its writer."""


class Side(asyncio.Protocol):
    """One of the two connections.

    Attributes:
        other: the second one, once there are two.
        passed: bytes that came by this side.
        heard: when the last of them came, on the loop's clock.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.passed = 0
        self.heard = asyncio.get_running_loop().time()
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # of streams it is one of these
        assert self.transport is not None  # noqa: S101 - for the type checker
        self.transport.set_write_buffer_limits(HELD_BYTES)

    def data_received(self, data: bytes) -> None:
        self.passed += len(data)
        self.heard = asyncio.get_running_loop().time()
        if self.other is not None:
            self.other.send(data)

    def eof_received(self) -> bool:
        """It says no more, and may go on to listen."""
        self._ended = True
        if self.other is None or self.other._ended:
            self.close()
        else:
            self.other.say_no_more()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.hold()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.close() if exc is None else self.other.abort()

    def send(self, data: bytes) -> None:
        """Pass this on."""
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def say_no_more(self) -> None:
        """The other side has ended what it says."""
        if self.transport is not None and not self.transport.is_closing():
            with suppress(OSError, RuntimeError):
                self.transport.write_eof()

    def hold(self) -> None:
        """Read no more for now."""
        if self.transport is not None:
            with suppress(RuntimeError):
                self.transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self.transport is not None:
            with suppress(RuntimeError):
                self.transport.resume_reading()

    def close(self) -> None:
        """End it when what was sent has gone."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Break it off."""
        if self.transport is not None:
            self.transport.abort()


class Far(Side):
    """The connection to a host, perhaps through another proxy, whose answer comes first."""

    def __init__(self) -> None:
        super().__init__()
        self._answer: asyncio.Future[None] | None = None
        self.said = b""

    async def connect_through(self, request: bytes) -> None:
        """Ask a proxy for a tunnel; `said` is then what came behind its answer. Raises ConnectionError."""
        self._answer = asyncio.get_running_loop().create_future()
        self.send(request)
        self.go_on()
        await self._answer
        head, _, self.said = self.said.partition(b"\r\n\r\n")
        if head.split(b" ", 2)[1:2] != [b"200"]:
            raise ConnectionError("the server's proxy refuses")

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
            return
        self.said += data  # some hosts speak first
        waiting = self._answer is not None and not self._answer.done()
        if len(self.said) > 2 * MAX_HEAD_BYTES + HELD_BYTES:
            self.abort()
        elif not waiting or b"\r\n\r\n" in self.said:
            self.hold()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server's proxy has hung up"))
        super().connection_lost(exc)


class Serving(Protocol):
    """Who serves programs."""

    def came(self, near: Near) -> None:
        """A connection was made."""

    def asks(self, near: Near, asked: Asked) -> None:
        """The head of a request has come; nothing more is read until `Near.join`."""

    def left(self, near: Near) -> None:
        """The connection has ended."""


class Near(Side):
    """The connection of an agent's program.

    Attributes:
        since: when it was made, or refused, on the loop's clock.
        refused: nothing of it is passed on.
    """

    def __init__(self, serving: Serving) -> None:
        super().__init__()
        self._serving = serving
        self.since = self.heard
        self._head: bytes | None = b""
        self._rest = b""
        self.refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._serving.came(self)

    def data_received(self, data: bytes) -> None:
        if self._head is None or self.refused:
            super().data_received(data)
            return
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            self.refuse(431, "The head of the request is too large.")
            return
        if not found:
            return
        self.hold()
        try:
            asked = read(head)
        except Malformed as error:
            self.refuse(400, str(error))
            return
        self._head, self._rest = None, rest
        self._serving.asks(self, asked)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._serving.left(self)

    def join(self, far: Far, first: bytes, answer: bytes) -> None:
        """From now on both are one: `first` goes to the host, then what has come already; `answer` to the program."""
        self.other, far.other = far, self
        for data in (first, self._rest):
            far.send(data)
        for data in (answer, far.said):
            self.send(data)
        self.passed, far.passed, self._rest, far.said = len(self._rest), len(far.said), b"", b""
        self.heard = far.heard = asyncio.get_running_loop().time()
        self.go_on()
        far.go_on()

    def refuse(self, status: int, message: str, *headers: str) -> None:
        """Answer, and end it once the program has: what it has sent is thrown away, since a connection that is closed
        before may take the answer with it."""
        self.refused, self.since = True, asyncio.get_running_loop().time()
        body = f"{message}\n"
        lines = [f"HTTP/1.1 {status} {responses.get(status, 'No')}", "Content-Type: text/plain", "Connection: close"]
        lines += [*headers, f"Content-Length: {len(body.encode())}", "", body]
        self.send("\r\n".join(lines).encode())
        self.say_no_more()
        self.go_on()
