"""What is to be asked, and whether it may be asked again: nothing here sends anything."""

from __future__ import annotations

import os
import random
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from json import dumps, loads
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from claude_agent_api.errors import APIError, ClaudeAgentError, error_of

T = TypeVar("T")

PREFIX = "/api/v1"
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 60.0
CONNECT_SECONDS = 10.0
MAX_RETRIES = 8
RETRY_SECONDS = 120.0
"""All waits of one request together; and how long a stream may go without getting anywhere."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
MAX_CONNECTIONS = 1000

USER_AGENT = "claude-agent-api-client-python/0.1.0"

Body = Callable[[], "bytes | Iterable[bytes]"]
"""Makes a body anew for each attempt."""


def path(*parts: str) -> str:
    """`/sessions/ID/files`: whatever the parts hold, it is theirs alone.

    Raises ValueError for what can be no name: nothing at all, and `.` and `..`, which are steps also percent-encoded.
    """
    for part in parts:
        if part in ("", ".", ".."):
            raise ValueError(f"{part!r} is no id and no name")
    return "".join("/" + quote(part, safe="") for part in parts)


def file_path(text: str) -> str:
    """A path in a workspace, with its slashes."""
    return path(*text.split("/"))


@dataclass(frozen=True)
class Request(Generic[T]):
    """One request.

    Attributes:
        path: below `/api/v1`, percent-encoded.
        query: parameters; those that are None are left out.
        json: the body, as JSON; None: there is none.
        body: the body, where it is not JSON.
        idempotency_key: of a request that takes one; it may be repeated then.
        repeatable: whether to send it twice does no more than to send it once; None: as its method says.
        done_codes: errors that, after a repeat, say that the attempt before has done it. The answer is None then.
        done_at_once: they say so without a repeat, too: somebody else has done it.
        read: makes the answer of the body.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    repeatable: bool | None = None
    done_codes: frozenset[str] = frozenset()
    done_at_once: bool = False
    read: Callable[[bytes], T] = loads

    @property
    def may_repeat(self) -> bool:
        if self.repeatable is not None:
            return self.repeatable
        return self.idempotency_key is not None or self.method != "POST"

    def url(self, base: str) -> str:
        asked = [(name, _text(value)) for name, value in self.query.items() if value is not None]
        return base + PREFIX + self.path + ("?" + urlencode(asked, quote_via=quote) if asked else "")

    def all_headers(self, api_key: str) -> dict[bytes, bytes]:
        found = {"User-Agent": USER_AGENT, "Accept": "application/json", **self.headers}
        if api_key:
            found["X-API-Key"] = api_key
        if self.json is not None:
            found["Content-Type"] = "application/json"
        if self.idempotency_key is not None:
            found["Idempotency-Key"] = self.idempotency_key
        return {name.encode(): value.encode() for name, value in found.items()}

    def content(self) -> bytes | Iterable[bytes] | None:
        if self.json is not None:
            text = dumps(self.json, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode("utf-8", "surrogatepass")  # the server says what is wrong with half a character
        return self.body() if self.body else None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def nothing(_body: bytes) -> None:
    """For answers without a body."""


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def new_key(own: str | None = None) -> str:
    """The caller's Idempotency-Key, or one that nobody else has."""
    return own if own is not None else uuid.uuid4().hex


@dataclass(frozen=True)
class Server:
    """Where the API is, and who asks it."""

    url: str
    api_key: str = field(repr=False)

    @classmethod
    def of(cls, base_url: str | None, api_key: str | None) -> Server:
        """As the caller says, else as the environment says. Raises ValueError."""
        url = (base_url or os.environ.get("CLAUDE_AGENT_API_URL") or DEFAULT_URL).strip().rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"base_url must be like https://agents.example.org, not {url!r}")
        key = api_key if api_key is not None else os.environ.get("CLAUDE_AGENT_API_KEY", "")
        if not key.strip().isprintable():
            raise ValueError("api_key has a line end or another control character in it")
        return cls(re.sub(rf"{PREFIX}$", "", url), key.strip())


class Attempts:
    """How often one request, or the connection of a stream, is tried again, and after how long."""

    def __init__(self, max_retries: int, now: float, seconds: float = RETRY_SECONDS) -> None:
        self._left, self._count, self._end = max_retries, 0, now + seconds

    def wait(self, error: ClaudeAgentError, now: float) -> float:
        """Seconds to wait before the next attempt; raises the error when there is to be none."""
        if not error.retryable or self._left <= 0:
            raise error
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2.0**self._count) * (0.5 + random.random() / 2)
        if error.retry_after is not None:
            seconds = error.retry_after + random.random() * min(1.0, error.retry_after / 10)
        if now + seconds > self._end:
            raise error
        self._left -= 1
        self._count += 1
        return seconds


class Exchange(Generic[T]):
    """One request and its attempts: what a shell that can send and sleep has to do."""

    def __init__(self, request: Request[T], server: Server, max_retries: int, now: float) -> None:
        self.request, self._server = request, server
        self._attempts = Attempts(max_retries, now)
        self.repeated = False
        self.url = request.url(server.url)
        self.headers = request.all_headers(server.api_key)

    def failed(self, error: ClaudeAgentError, now: float, *, sent: bool = True) -> float:
        """Seconds to wait before the next attempt; raises the error when there is to be none.

        Args:
            sent: whether the server may have got the request.
        """
        if isinstance(error, APIError) and "run_id" in error.details:
            raise error  # a run that failed has failed, as often as it is asked for
        harmless = not sent or (isinstance(error, APIError) and error.not_begun)
        if not harmless:
            if not self.request.may_repeat:
                raise error
            self.repeated = True
        return self._attempts.wait(error, now)

    def is_done(self, error: APIError) -> bool:
        """Whether an error tells that an attempt whose answer was lost has done what was asked."""
        return (self.repeated or self.request.done_at_once) and error.code in self.request.done_codes

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> APIError:
        return error_of(status, headers, body, self.url)

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> T:
        """What the body of a success tells; raises APIError where it is not the API's."""
        try:
            return self.request.read(body)
        except ValueError:
            told = f"{self.url} answered {status}, and not as this API does"
            raise APIError(told, status=status, request_id=headers.get("x-request-id")) from None
