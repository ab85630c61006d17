"""Connections of agents' processes to the gateway: one request after the other, with a token, for two paths."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http.client import responses
from typing import Protocol

import httptools
import orjson

MAX_HEAD_BYTES = 64 * 1024
"""Of a request."""

MAX_BODY_BYTES = 64_000_000
"""Of a request. The Messages API takes 32 MB; another one behind a gateway may take more."""

HEAD_SECONDS = 10.0
"""For a stranger to say who it is."""

PATHS = {b"/v1/messages": "messages", b"/v1/messages/count_tokens": "count_tokens"}
"""What agents may ask for."""

# What says how to read the request, not who sends it: an agent's process may write whatever it likes.
_PASSED = frozenset((b"accept", b"content-type", b"anthropic-version", b"anthropic-beta", b"user-agent", b"x-app"))
_PASSED_PREFIX = b"x-stainless-"


@dataclass(slots=True)
class Asked:
    """A request of an agent's process.

    Attributes:
        kind: `messages` or `count_tokens`.
        path: with its query.
        headers: those that are passed on.
        body: in pieces, as they came.
    """

    kind: str
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: list[bytes] = field(default_factory=list)
    size: int = 0


class NotPossible(Exception):
    """What an agent asks for cannot be asked of the model API.

    Attributes:
        status, kind: of the error, as the Messages API has it.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Serving(Protocol):
    """Who serves callers."""

    def meets(self, caller: Caller, token: bytes) -> object | None:
        """Whose token it is; None for one that is none."""

    def holds(self, caller: Caller, size: int) -> bool:
        """Whether so many bytes of a request may be held, besides those that are."""

    def lets_go(self, caller: Caller, size: int) -> None:
        """So many are held no more."""

    def came(self, caller: Caller) -> None:
        """A connection was made."""

    def asks(self, caller: Caller, asked: Asked) -> None:
        """A whole request has come. What is done for it ends with `Caller.done`."""

    def left(self, caller: Caller) -> None:
        """The connection has ended, perhaps in the middle of what was asked."""


def refusal(status: int, kind: str, message: str) -> bytes:
    """The body of an error, in the shape of the Messages API."""
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


class Caller(asyncio.Protocol):
    """One connection.

    Attributes:
        holder: whose token the last request had.
        since: when it was made, on the loop's clock.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.transport: asyncio.Transport | None = None
        self.holder: object | None = None
        self.since = 0.0
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._head, self._token = b"", 0, b""
        self._asked: Asked | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._busy = self._chunked = self._refused = False
        self._held = 0
        self.taking = asyncio.Event()
        self.taking.set()
        self.on_pause, self.on_resume = _nothing, _nothing

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.since = asyncio.get_running_loop().time()
        self._serving.came(self)

    def data_received(self, data: bytes) -> None:
        if self._busy:  # it may say nothing until it has its answer
            self.end()
            return
        if self._asked is None and not self._refused:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400, "invalid_request_error", "This is no HTTP/1.1 request for messages.")
            if self.transport is not None:
                self.transport.close()  # where it would end is not known
            return
        if self._asked is None and self._head > MAX_HEAD_BYTES:
            self._refuse(400, "invalid_request_error", "The head of the request is too large.")
            self.end()

    def pause_writing(self) -> None:
        self.taking.clear()
        self.on_pause()

    def resume_writing(self) -> None:
        self.taking.set()
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self.let_go()
        self.taking.set()
        self._serving.left(self)

    # --- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url, self._token, self._headers, self._asked = b"", b"", [], None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"x-api-key":
            self._token = value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            self._token = self._token or value[7:]
        elif name in _PASSED or name.startswith(_PASSED_PREFIX):
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head = 0
        path, _, query = self._url.partition(b"?")
        self.let_go()
        self.holder = self._serving.meets(self, self._token)
        if self.holder is None:
            self._refuse(401, "authentication_error", "This token is not valid, or its process has ended.")
        elif self._parser.get_method() != b"POST" or path not in PATHS:
            self._refuse(404, "not_found_error", "Agents may ask for /v1/messages and its count_tokens alone.")
        else:
            whole = path + b"?beta=true" if query == b"beta=true" else path
            self._asked = Asked(PATHS[path], whole, self._headers)

    def on_body(self, body: bytes) -> None:
        asked = self._asked
        if asked is None or self._busy:
            return
        if asked.size + len(body) > MAX_BODY_BYTES:
            self._refuse(413, "request_too_large", f"The request is larger than {MAX_BODY_BYTES} bytes.")
        elif not self._serving.holds(self, len(body)):
            self._refuse(429, "rate_limit_error", "Too many bytes of requests wait for an answer.")
        else:
            asked.body.append(body)
            asked.size += len(body)
            self._held += len(body)

    def on_message_complete(self) -> None:
        asked = self._asked
        if self._refused and self.transport is not None:
            self.transport.close()
        if asked is None or self._closing:
            return
        if self._busy:
            self.end()  # a second request before the first one has its answer
            return
        self._busy = True
        self._serving.asks(self, asked)

    # --- answers -----------------------------------------------------------------------------------------------------

    @property
    def _closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def begin(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """Send the head of an answer; of unknown length if None."""
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        lines = [b"HTTP/1.1 %d %s" % (status, responses.get(status, "Answer").encode())]
        lines += [b"%s: %s" % header for header in headers]
        self._chunked = length is None
        self._write(b"\r\n".join([*lines, framing, b"", b""]))

    def piece(self, data: bytes) -> None:
        """Send the next piece of its body."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def let_go(self) -> None:
        """The body of its request is held no more."""
        self._serving.lets_go(self, self._held)
        self._held = 0

    def done(self) -> None:
        """The answer has ended: the next request may come."""
        self.let_go()
        if self._chunked:
            self._write(b"0\r\n\r\n")
        self._busy, self._asked, self.on_pause, self.on_resume = False, None, _nothing, _nothing

    def answer(self, status: int, kind: str, message: str) -> None:
        """Send an error as a whole."""
        body = refusal(status, kind, message)
        self.begin(status, [(b"content-type", b"application/json")], len(body))
        self.piece(body)
        self.done()

    def _refuse(self, status: int, kind: str, message: str) -> None:
        self._asked = None
        if self._closing or self._refused:
            return
        body = refusal(status, kind, message)
        self.begin(status, [(b"content-type", b"application/json"), (b"connection", b"close")], len(body))
        self.piece(body)
        # What is on its way is read and thrown away: a connection that is closed before may take the answer with it.
        self._refused = True
        asyncio.get_running_loop().call_later(HEAD_SECONDS, self.end)

    def _write(self, data: bytes) -> None:
        if not self._closing:
            assert self.transport is not None  # noqa: S101
            self.transport.write(data)

    def end(self) -> None:
        """Break the connection off."""
        if self.transport is not None:
            self.transport.abort()


def _nothing() -> None:
    return
