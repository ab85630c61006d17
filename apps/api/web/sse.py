"""Server-sent events: a raw ASGI response that joins whatever is pending into one write.

A FastAPI route returns it like any other response. Measured against StreamingResponse and sse-starlette in
docs/adr/0004-live-relay.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from apps.api.core import tasks

log = structlog.get_logger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"

WRITE_TIMEOUT = 30.0
"""Seconds that one write may wait for a slow client before the stream is cut; it can resume from its last id."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


Leaving = Callable[[], Awaitable[None]]
"""What to do when a client leaves before it has all that it came for."""


class Stream(Protocol):
    """What a drain can end: an event stream, or a WebSocket."""

    def end(self, *, only_endless: bool) -> None:
        """End it in order; with `only_endless`, only what no run bounds."""


S = TypeVar("S", bound=Stream)


class Streams(Generic[S]):
    """The open streams of this instance, so that a drain can end them."""

    def __init__(self) -> None:
        self._open: set[S] = set()

    def __iter__(self) -> Iterator[S]:
        return iter(tuple(self._open))

    @property
    def count(self) -> int:
        return len(self._open)

    def add(self, stream: S) -> None:
        self._open.add(stream)

    def remove(self, stream: S) -> None:
        self._open.discard(stream)

    def end(self, *, only_endless: bool) -> None:
        """End all streams, or those that no run bounds; their clients reconnect elsewhere."""
        for stream in self:
            stream.end(only_endless=only_endless)


class EventStream(Response):
    """Writes chunks of complete SSE frames until the source ends, the client leaves, or it is ended."""

    media_type = None

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        streams: Streams[EventStream],
        *,
        endless: bool = False,
        headers: Mapping[str, str] | None = None,
        left: Leaving | None = None,
    ) -> None:
        """`chunks`: frames joined; an empty chunk becomes a keep-alive comment. `left`: called when the client leaves
        before they end, or stops reading; not when the server ends the stream."""
        super().__init__(headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._chunks, self._streams, self._endless = chunks, streams, endless
        self._left = left
        self._ended: asyncio.Future[None] | None = None

    def end(self, *, only_endless: bool) -> None:
        """Stop writing; the response ends in order."""
        if only_endless and not self._endless:
            return
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer = asyncio.create_task(self._write(send), name="event-stream")
        gone = asyncio.create_task(disconnected(receive), name="event-stream-disconnect")
        self._ended = asyncio.get_running_loop().create_future()
        self._streams.add(self)
        try:
            await asyncio.wait({writer, gone, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.remove(self)
            left = gone.done() and not writer.done()
            await tasks.end(writer, gone)
            await self._chunks.aclose()
        error = None if writer.cancelled() else writer.exception()
        if error is not None:
            log.warning("sse.cut", error=error)
        if not left and error is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif self._left is not None and (left or isinstance(error, _Unread)):
            await self._left()

    async def _write(self, send: Send) -> None:
        async for chunk in self._chunks:
            try:
                async with asyncio.timeout(WRITE_TIMEOUT):
                    await send({"type": "http.response.body", "body": chunk or KEEP_ALIVE, "more_body": True})
            except (TimeoutError, OSError) as error:
                raise _Unread from error


class _Unread(Exception):
    """The client does not read what is sent."""


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        continue
