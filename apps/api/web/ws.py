"""WebSockets: what dialects share of a connection. Texts in, bounded writes out, its close code, its part in a drain.

Every message waits until the socket takes it, so nothing piles up: a reader that is slow slows down what is read for
it, and is cut after WRITE_TIMEOUT. Which messages there are is the dialect's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID

from starlette.websockets import WebSocket, WebSocketDisconnect

from apps.api.auth import Principal
from apps.api.core import tasks
from apps.api.errors import ApiError
from apps.api.shares import Level, Share
from apps.api.web.sse import WRITE_TIMEOUT

GONE = 1006
TOO_LARGE = 1009
FAILED = 1011
RESTART = 1012
UNAUTHORIZED = 4401
FORBIDDEN = 4403
AUTH_TIMEOUT = 4408
SLOW_READER = 4409
TOO_MANY = 4429


STRANGERS_BYTES = 4 * 1024
"""Size of the message in which a client shows its key. server.py sees to it that no more is read before."""

KNOWN = "claude_agent_api.known"
"""The ASGI extension by which a server is told that a client has shown its key: `{"call": …}`. See server.py."""


def known(websocket: WebSocket, caller: Principal | None) -> None:
    """The client has shown its key, or a link: let it send what any client may, as far as there is room."""
    holders: dict[Level, UUID | None] = {} if caller is None else {"key": caller.key_id}
    bodies: Share = websocket.app.state.instance.shares["bodies"]
    if extension := websocket.scope.get("extensions", {}).get(KNOWN):
        extension["call"](lambda size: bodies.take(size, holders))


class Closed(Exception):
    """The connection is over, or has to be closed with this code.

    Attributes:
        code: a close code; those from 4000 on are ours, and resemble the HTTP status.
        reason: for the client; at most 123 bytes.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


def refusal(error: ApiError) -> Closed:
    """How a connection ends that must not go on for this reason."""
    if error.code == "shutdown":
        return Closed(RESTART, "this instance stops; connect again")
    other = UNAUTHORIZED if error.status < 500 else FAILED
    return Closed({403: FORBIDDEN, 429: TOO_MANY}.get(error.status, other), error.code)


class Socket:
    """One accepted connection."""

    def __init__(self, websocket: WebSocket, *, write_timeout: float = WRITE_TIMEOUT) -> None:
        """`write_timeout`: seconds that one message may wait for a slow client before the connection is cut."""
        self._websocket, self._write_timeout = websocket, write_timeout
        self._writing = asyncio.Lock()

    async def receive(self) -> str | bytes:
        """The next message: text, or bytes from a binary frame.

        Raises:
            Closed: the client has left.
        """
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Closed(message.get("code") or GONE)
        text: str | None = message.get("text")
        return message["bytes"] if text is None else text

    async def send(self, texts: Iterable[str]) -> None:
        """Send messages, one after the other and with no other between them.

        Raises:
            Closed: the client has left, or does not read.
        """
        async with self._writing:
            try:
                for text in texts:
                    await tasks.within(self._write_timeout, self._websocket.send_text(text))
            except TimeoutError as error:
                raise Closed(SLOW_READER, "too slow; connect again and follow from the last id") from error
            except (WebSocketDisconnect, RuntimeError) as error:
                # Starlette and uvicorn raise RuntimeError when either of them has begun to close.
                raise Closed(GONE) from error

    async def close(self, closed: Closed) -> None:
        """Close with this code, unless the client has left already."""
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._websocket.close(closed.code, closed.reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return
