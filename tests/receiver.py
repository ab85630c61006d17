"""A small real HTTP server on loopback that receives hooks and webhooks, and answers as a test says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    target: str
    headers: dict[str, str]
    body: bytes
    peer_port: int = 0
    method: str = "POST"
    at: float = 0.0

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def is_signed_by(self, key: bytes) -> bool:
        """Whether one of its signatures is of this key; written from the text of the standard, not from our code."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return wanted in self.headers["webhook-signature"].split(" ")


@dataclass(frozen=True)
class Reply:
    """What the server answers: JSON, or bytes as they are."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = f"HTTP/1.1 {self.status} Status\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
        return head.encode() + body


Answering = Callable[[Received], Awaitable[Reply]]


class Receiver:
    """The server. `answer` may be replaced at any time; `received` has every request so far."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Answering = self._accept
        self.port = 0
        self._news = asyncio.Condition()

    @staticmethod
    async def _accept(_request: Received) -> Reply:
        return Reply()

    def replies(self, *replies: Reply) -> None:
        """Answer with these, one after the other, and with the last one from then on."""
        left = list(replies)

        async def answer(_request: Received) -> Reply:
            return left.pop(0) if len(left) > 1 else left[0]

        self.answer = answer

    def hangs(self, where: str = "/") -> asyncio.Event:
        """Do not answer what comes to a path that begins so until the event that this returns is set."""
        go_on = asyncio.Event()

        async def answer(request: Received) -> Reply:
            if request.target.startswith(where):
                await go_on.wait()
            return Reply()

        self.answer = answer
        return go_on

    def url(self, path: str = "/", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def until(self, enough: Callable[[list[Received]], Any], seconds: float = 30) -> list[Received]:
        """Wait until what was received is enough; returns all of it."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: enough(self.received))
            return list(self.received)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = head[0].split(" ")
            request = Received(target, headers, body, writer.get_extra_info("peername")[1], method, time.monotonic())
            async with self._news:
                self.received.append(request)
                self._news.notify_all()
            writer.write((await self.answer(request)).encoded())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the server under test has hung up, as some tests want it
        finally:
            writer.close()


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()
