"""Connections to the model API: kept open between calls, and read by callbacks, not by a task for each piece.

A client library costs some 100 µs for each delta of an answer; a parser in C that calls back costs 5 (docs/adr/0016).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Protocol, TypeVar
from urllib.parse import SplitResult

import httptools

from apps.api.core.network import proxies
from apps.api.core.network.model_api import ModelApi
from apps.api.core.network.resolver import Resolver, Unresolved, first_of

CONNECT_SECONDS = 10.0
"""For a name, a connection and TLS."""

KEEP_SECONDS = 30.0
"""For which an unused connection is kept: the model API closes it after about a minute."""

MAX_KEPT = 32
"""Unused connections that are kept."""

MAX_ADDRESSES = 4
"""Of a host that are tried before its last one."""

MAX_HEAD_BYTES = 64 * 1024
"""Of an answer."""

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


class Unreachable(Exception):
    """The model API gave no answer, or broke off. The message holds no address and no secret."""


class Answer(Protocol):
    """Who is told of an answer, in this order, from the event loop; nothing of it may raise."""

    def begins(self, status: int, headers: Headers) -> None:
        """Its head."""

    def goes_on(self, data: bytes) -> None:
        """The next piece of its body."""

    def ends(self, error: Unreachable | None) -> None:
        """There is no more of it; with `error` it broke off, perhaps before it had begun."""


class Connection(asyncio.Protocol):
    """A connection over which one request after the other is sent."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.kept_since = 0.0
        self.used = False
        self._answer: Answer | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._begun = self._framed = self._whole = self._keeps = False
        self._head_bytes = 0
        self._taking = asyncio.Event()
        self._taking.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment] # of streams it is one of these

    @property
    def usable(self) -> bool:
        """Whether it can take a request."""
        return self._answer is None and self.transport is not None and not self.transport.is_closing()

    async def ask(self, head: bytes, body: Sequence[bytes], answer: Answer) -> None:
        """Send a request; the answer is told while it comes, also while this sends."""
        assert self.transport is not None  # noqa: S101 - for the type checker
        self._answer, self._parser = answer, httptools.HttpResponseParser(self)
        self._headers, self._pieces, self._head_bytes = [], [], 0
        self._begun = self._framed = self._whole = self._keeps = False
        self.transport.write(head)
        for piece in body:
            await self._taking.wait()
            if self._answer is not answer:
                return
            self.transport.write(piece)

    def hold(self) -> None:
        """Read no more for now: who is told cannot take it."""
        if self.transport is not None:
            with suppress(RuntimeError):
                self.transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self.transport is not None:
            with suppress(RuntimeError):
                self.transport.resume_reading()

    def close(self) -> None:
        """End it, with whatever it is doing."""
        if self.transport is not None:
            self.transport.abort()

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._taking.clear()

    def resume_writing(self) -> None:
        self._taking.set()

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._parser is None:
            self.close()  # nobody has asked
            return
        if not self._begun:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(Unreachable("The model API's answer is not HTTP."))
            return
        if not self._begun and self._head_bytes > MAX_HEAD_BYTES:
            self._end(Unreachable("The head of the model API's answer is too large."))
            return
        if self._pieces:
            self._answer.goes_on(b"".join(self._pieces))
            self._pieces.clear()
        if self._whole:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._taking.set()
        if self._answer is not None:
            # Without a length the end of the connection is the end of the answer.
            unframed = self._begun and not self._framed and exc is None
            self._end(None if unframed else Unreachable("The model API broke the connection off."))

    def _end(self, error: Unreachable | None) -> None:
        answer, self._answer = self._answer, None
        self._parser = None
        if error is not None or not self._keeps:
            self.close()
        if answer is not None:
            answer.ends(error)

    # --- what the parser calls ---------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101
        status = self._parser.get_status_code()
        if status < 200:  # a word in between
            self._headers = []
            return
        self._begun = True
        self._framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)
        if self._answer is not None:
            self._answer.begins(status, self._headers)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._whole = self._begun
        self._keeps = self._framed and self._parser is not None and self._parser.should_keep_alive()


class Upstream:
    """The connections of one instance to model APIs."""

    def __init__(self) -> None:
        self._resolver = Resolver()
        self._kept: dict[tuple[str, str, int], list[Connection]] = {}

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """What this machine trusts. Reading it takes some 40 ms, which `Gateway.start` spends before anybody calls."""
        trusted = ssl.create_default_context()
        if more := os.environ.get("NODE_EXTRA_CA_CERTS"):  # what operators have set for the CLI
            trusted.load_verify_locations(more)
        return trusted

    async def connect(self, api: ModelApi, *, fresh: bool = False) -> Connection:
        """A connection that was kept, or a new one; with `fresh` a new one. Raises Unreachable."""
        kept = None if fresh else self._take(api)
        return kept or await self._open(api)

    def _take(self, api: ModelApi) -> Connection | None:
        kept = self._kept.get((api.scheme, api.host, api.port), [])
        now = time.monotonic()
        while kept:
            connection = kept.pop()
            if connection.usable and now - connection.kept_since < KEEP_SECONDS:
                connection.used = True
                return connection
            connection.close()
        return None

    def keep(self, api: ModelApi, connection: Connection) -> None:
        """Keep a connection whose answer has ended for the next request."""
        kept = self._kept.setdefault((api.scheme, api.host, api.port), [])
        if connection.usable and sum(map(len, self._kept.values())) < MAX_KEPT:
            connection.kept_since = time.monotonic()
            kept.append(connection)
        else:
            connection.close()

    async def _open(self, api: ModelApi) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                proxy = _proxy_for(api)
                if proxy is not None:
                    return await self._through(proxy, api)
                return await self._straight(api)
        except (OSError, TimeoutError, Unresolved, ValueError) as error:
            raise Unreachable("The model API cannot be reached.") from error

    async def _straight(self, api: ModelApi) -> Connection:
        loop, tls = asyncio.get_running_loop(), self.tls if api.scheme == "https" else None
        name = api.host if tls else None

        async def connect(address: str) -> Connection:
            return (await loop.create_connection(Connection, address, api.port, ssl=tls, server_hostname=name))[1]

        return await self._first(api.host, connect)

    async def _first(self, host: str, connect: Callable[[str], Awaitable[T]]) -> T:
        """A connection to the first of a host's addresses that takes one. Raises OSError, Unresolved."""
        *others, last = await self._resolver.addresses(host)
        return await first_of([*others[:MAX_ADDRESSES], last], connect)

    async def _through(self, proxy: SplitResult, api: ModelApi) -> Connection:
        """A connection through a proxy's tunnel (RFC 9110, CONNECT). Raises OSError, ValueError."""
        reader, writer = await self._first(
            proxy.hostname or "",
            lambda address: asyncio.open_connection(address, proxy.port or 80, limit=MAX_HEAD_BYTES),
        )
        try:
            writer.write(proxies.tunnel(proxy, f"{api.host}:{api.port}"))
            head = await reader.readuntil(b"\r\n\r\n")
            if head.split(b" ", 2)[1:2] != [b"200"]:
                raise ConnectionError("the proxy refuses")
            connection = Connection()
            transport = await asyncio.get_running_loop().start_tls(
                writer.transport, connection, self.tls, server_hostname=api.host
            )
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            writer.transport.abort()
            raise ConnectionError("the proxy speaks no HTTP") from error
        except BaseException:
            writer.transport.abort()
            raise
        if transport is None:
            raise ConnectionError("the connection has ended")
        connection.connection_made(transport)
        return connection

    async def close(self) -> None:
        """Close what is kept."""
        for kept in self._kept.values():
            for connection in kept:
                connection.close()
        self._kept.clear()
        await self._resolver.close()


def _proxy_for(api: ModelApi) -> SplitResult | None:
    """What has no TLS is not sent through one: it is a gateway of the operator's own."""
    return proxies.proxy_for("https", api.host) if api.scheme == "https" else None
