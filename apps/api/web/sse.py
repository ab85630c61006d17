"""Server-sent events: a raw ASGI response that joins whatever is pending into one write.

A FastAPI route returns it like any other response. Measured against StreamingResponse and sse-starlette in
docs/adr/0004-live-relay.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from apps.api.core import tasks
from apps.api.errors import ApiError
from apps.api.web.opened import Held

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

Farewell = Callable[[ApiError], bytes]
"""The frames by which a stream tells why it ends before its time."""

LATER = "claude_agent_api.later"
"""Where a scope has a list of what to serve once the application has returned (web/middleware.py). A stream would
keep all that its request went through: half of the memory, and most of the calls of each write."""

PIECE = 64 * 1024
"""Bytes of one write: what a client that does not read costs, beside what its system holds."""

FAREWELL_SECONDS = 1.0
"""For a client to take the reason why its stream ends; it does not wait for one that is slow."""


def pieces(data: bytes) -> Iterable[bytes]:
    """The same bytes, cut so that each piece can wait for the client; once, if there are none."""
    if len(data) <= PIECE:  # nearly all
        return (data,)
    return (data[start : start + PIECE] for start in range(0, len(data), PIECE))


class EventStream(Response):
    """Writes chunks of complete SSE frames until the source ends, the client leaves, or it is ended."""

    media_type = None

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        held: Held,
        *,
        farewell: Farewell,
        headers: Mapping[str, str] | None = None,
        left: Leaving | None = None,
    ) -> None:
        """`chunks`: frames joined; an empty chunk becomes a keep-alive comment. `held`: is closed at the end. `left`:
        called when the client leaves before they end, or stops reading; not when the server ends the stream."""
        super().__init__(headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._chunks, self._held, self._farewell, self._left = chunks, held, farewell, left
        self._in_chunk = False
        held.kept = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (later := scope.get(LATER)) is not None:
            later.append(self.serve)
        else:
            await self.serve(receive, send)

    async def serve(self, receive: Receive, send: Send) -> None:
        """Answer, to the end."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self.raw_headers.clear()  # sent, and a stream lasts
            await self._run(receive, send)
        finally:
            self._held.close()

    async def _run(self, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._write(send), name="event-stream")
        left = False
        try:
            left = await _leaves(receive, writer, self._held.over) and not writer.done()
        finally:
            await tasks.end(writer)
            await self._chunks.aclose()
        error = None if writer.cancelled() else writer.exception()
        if error is not None:
            log.warning("sse.cut", error=error)
        if not left and error is None:
            await self._end(send)
        elif self._left is not None and (left or isinstance(error, _Unread)):
            await self._left()

    async def _write(self, send: Send) -> None:
        async for chunk in self._chunks:
            self._in_chunk = True
            for piece in pieces(chunk or KEEP_ALIVE):
                write = send({"type": "http.response.body", "body": piece, "more_body": True})
                try:
                    await tasks.within(WRITE_TIMEOUT, write)
                except (TimeoutError, OSError) as error:
                    raise _Unread from error
            self._in_chunk = False

    async def _end(self, send: Send) -> None:
        why = self._held.why
        # What is cut in the middle of an event ends there: its client drops the half, and takes nothing for it.
        last = self._farewell(why) if why is not None and not self._in_chunk else b""
        # Until the connection takes it; one that does not is ended by the server (connections.py).
        with suppress(TimeoutError):
            await tasks.within(FAREWELL_SECONDS, send({"type": "http.response.body", "body": last, "more_body": False}))


class _Unread(Exception):
    """The client does not read what is sent."""


async def _leaves(receive: Receive, *others: asyncio.Future[Any]) -> bool:
    """Whether the client goes away before any of the others is done. Without a task, which each stream would keep."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as bound:

            def stop(_: asyncio.Future[Any]) -> None:
                if bound.when() is None:
                    bound.reschedule(loop.time())

            for other in others:
                other.add_done_callback(stop)
            try:
                with suppress(HTTPException):  # a body that was announced does not come
                    await disconnected(receive)
            finally:
                for other in others:
                    other.remove_done_callback(stop)
    except TimeoutError:
        return False
    return True


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        continue
