"""A small HTTP/1.1 client on bare asyncio: so cheap that what it measures is the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

Feed = Callable[[bytes], None]

HEAD_END = b"\r\n\r\n"
STREAM_END = b"0\r\n\r\n"
TIMEOUT = 120.0
"""Seconds for one answer or one stream."""


class Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, its answer whole or as a stream of raw bytes."""

    def __init__(self, host: str, key: str) -> None:
        self._common = f"Host: {host}\r\nX-API-Key: {key}\r\n"
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._last = b""
        self._feed: Feed | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, url: str, key: str) -> Connection:
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: cls(parts.netloc, key), parts.hostname or "", parts.port or 80)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def prepare(self, method: str, path: str, body: Any = None) -> bytes:
        """A request as bytes; encode it before the clock starts."""
        payload = b"" if body is None else orjson.dumps(body)
        kind = f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n" if payload else ""
        return f"{method} {path} HTTP/1.1\r\n{self._common}{kind}\r\n".encode() + payload

    async def send(self, request: bytes, feed: Feed | None = None) -> tuple[int, bytes]:
        """Send; returns status and body. With `feed` the body goes there as it arrives, chunk heads included.

        Raises:
            ConnectionError: the server closed the connection.
            TimeoutError: no complete answer within TIMEOUT.
        """
        assert self._transport is not None
        self._buffer, self._last, self._feed = b"", b"", feed
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await asyncio.wait_for(self._answer, TIMEOUT)

    def follow(self, request: bytes, feed: Feed) -> None:
        """Send, and give what arrives to `feed` until `close`."""
        assert self._transport is not None
        self._buffer, self._last, self._feed = b"", b"", feed
        self._answer = asyncio.get_running_loop().create_future()
        self._answer.add_done_callback(lambda done: done.exception())
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.done():
            return
        if self._feed is not None and self._buffer.startswith(b"HTTP/1.1 200"):
            self._stream(data, answer)
            return
        self._buffer += data
        head, found, body = self._buffer.partition(HEAD_END)
        if not found:
            return
        if self._feed is not None and head.startswith(b"HTTP/1.1 200"):
            self._buffer = head
            self._stream(body, answer)
        elif len(body) >= _length(head):
            answer.set_result((int(head[9:12]), body))

    def _stream(self, data: bytes, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        assert self._feed is not None
        self._feed(data)
        self._last = (self._last + data[-len(STREAM_END) :])[-len(STREAM_END) :]
        if self._last == STREAM_END:
            answer.set_result((200, b""))

    def header(self, name: str) -> str:
        """A header of the latest answer."""
        for line in self._buffer.partition(HEAD_END)[0].split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode().lower() == name.lower():
                return value.strip().decode()
        raise KeyError(name)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))


def _length(head: bytes) -> int:
    lowered = head.lower()
    at = lowered.find(b"content-length:")
    return int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


class Frames:
    """Splits a stream into its complete frames, without copying more than the unfinished last one.

    `arrived(block)` gets what became complete with one read: zero or more frames, chunk heads between them.
    """

    def __init__(self, arrived: Feed) -> None:
        self._arrived = arrived
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        block = self._rest + data if self._rest else data
        cut = block.rfind(b"\n\n") + 2
        if cut == 1:
            self._rest = block
            return
        self._rest = block[cut:]
        self._arrived(block[:cut])
