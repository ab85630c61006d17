"""A stream over any number of connections, and what a turn makes of it: nothing here sends or waits."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

from claude_agent_api._request import RETRY_SECONDS, Attempts, Request, nothing, path
from claude_agent_api._sse import EventTooLarge, Parser, Raw
from claude_agent_api.errors import ClaudeAgentError, ConnectionFailed, RunFailed, error_of_stream
from claude_agent_api.types import Event, ResultData

STREAM_SECONDS = 45.0
"""A stream that is silent for so long is dead: the server breaks each silence after 15."""

LASTING_SECONDS = 10.0
"""A connection that has held for so long was a good one, whatever it brought."""


class Following:
    """The events of one stream, each once, in their order.

    The shell feeds it what comes, tells it how connections end, and asks it for requests.

    Attributes:
        position: of the last event that has come; None: there was none.
        given: of the last one that was taken.
        ended: whether nothing more will come.
        events: those that have come and were not taken.
    """

    def __init__(
        self,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        after: str | None = None,
        until_done: bool = False,
        partials: bool = True,
        max_retries: int,
        now: float,
    ) -> None:
        """`until_done`: it is of one run, and ends with its `done`. `partials`: whether to give `partial` events."""
        self._path, self._query = path, dict(query or {})
        self._until_done, self._partials, self._max_retries = until_done, partials, max_retries
        self.position = self.given = after
        self.ended = False
        self.events: deque[Event] = deque()
        self._parser, self._brought = Parser(), False
        self._opened: float | None = None
        self._attempts = Attempts(max_retries, now)
        self._failure: ClaudeAgentError | None = None

    def request(self) -> Request[None]:
        """What to ask for, from here on."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": self.position} if self.position else {})}
        return Request("GET", self._path, self._query, headers=headers, read=nothing)

    def opened(self, now: float) -> None:
        """There is a new connection."""
        self._parser, self._opened, self._brought = Parser(), now, False

    def feed(self, chunk: bytes) -> None:
        """Take what has come. Raises ConnectionFailed where that is no stream of events."""
        try:
            for raw in self._parser.feed(chunk):
                self._take(raw)
        except (EventTooLarge, ValueError, LookupError, TypeError) as error:
            raise ConnectionFailed("what comes is no stream of this API's events") from error

    def _take(self, raw: Raw) -> None:
        data = json.loads(raw.data)
        if not isinstance(data, dict):
            raise ValueError("an event's data is an object")
        if self.ended or self._failure or (raw.event != "resync" and self._was_seen(raw.id)):
            return
        if raw.id is None and raw.event == "error":
            self._failure = error_of_stream(data)
            return
        self._brought = True
        if raw.event == "resync":
            self.position = str(data["seq"])
        elif raw.id is not None:
            self.position = raw.id
        if raw.event != "partial" or self._partials:
            self.events.append(cast(Event, {"id": raw.id, "event": raw.event, "data": data}))
        self.ended = self._until_done and raw.event == "done"

    def _was_seen(self, id_: str | None) -> bool:
        """Whether it is not after our position, as when something on the way does not pass `Last-Event-ID` on."""
        own, other = _place(self.position), _place(id_)
        return own is not None and other is not None and other <= own and not self._brought

    def next(self) -> Event:
        """The first of those that have come."""
        event = self.events.popleft()
        self.given = str(event["data"]["seq"]) if event["event"] == "resync" else event["id"] or self.given
        return event

    def fail(self) -> None:
        """Raise what the server has said about why the stream ends before its time, if it has said that."""
        if self._failure is not None:
            raise self._failure

    def cut(self, error: ClaudeAgentError, now: float) -> float:
        """The connection has ended, or there was none: seconds to wait before the next one. Raises the error when
        there is to be none: many have failed, one after the other, and brought nothing."""
        if self._brought or (self._opened is not None and now - self._opened >= LASTING_SECONDS):
            self._attempts = Attempts(self._max_retries, now, RETRY_SECONDS)
            self._brought = False
        self._opened = None
        return self._attempts.wait(error, now)


def _place(id_: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in id_.split("-")) if id_ else None
    except ValueError:
        return None


def events_of_run(run_id: str, after: str | None, max_retries: int, now: float, *, partials: bool = True) -> Following:
    """From the first event, or after one, to `done`."""
    where = path("runs", run_id) + "/events"
    return Following(where, after=after, until_done=True, partials=partials, max_retries=max_retries, now=now)


class Outcome:
    """What the events of a run come to.

    Attributes:
        session_id, run_id: "" until an event has told them.
        status: None until the run is done.
    """

    def __init__(self, session_id: str = "", run_id: str = "") -> None:
        self.session_id, self.run_id = session_id, run_id
        self.status: str | None = None
        self._result: ResultData | None = None
        self._error: Mapping[str, Any] | None = None

    def take(self, event: Event) -> None:
        """One event, in its turn."""
        self.session_id = self.session_id or event["data"]["session_id"]
        self.run_id = self.run_id or event["data"]["run_id"] or ""
        if event["event"] == "result":
            self._result = event["data"]
        elif event["event"] == "error":
            self._error = event["data"]
        elif event["event"] == "done":
            self.status = event["data"]["status"]

    def result(self) -> ResultData:
        """Of a run that is done. Raises RunFailed."""
        if self.status == "succeeded":  # without a result: a rewind, or a run whose events were removed for their age
            told = {"session_id": self.session_id, "run_id": self.run_id, "status": "succeeded", "result": None}
            return self._result or cast(ResultData, told)
        if self.status is None:
            raise ConnectionFailed("the stream has ended before the run has")
        error = self._error or {"code": self.status, "message": f"The run has {self.status}."}
        if self._error is None and self.status == "interrupted":
            error = {"code": "interrupted", "message": "The run was interrupted.", "retryable": True}
        raise RunFailed(
            error["message"],
            code=error["code"],
            session_id=self.session_id,
            run_id=self.run_id,
            retryable=bool(error.get("retryable")),
            retry_after=error.get("retry_after_seconds"),
            details=error.get("details"),
            result=self._result,
        )


class Text:
    """The agent's own words, each once: those of the deltas, and of messages whose deltas were lost on the way."""

    def __init__(self) -> None:
        self._given = ""  # of the message that is being written
        self._part = 0
        self._gap = False

    def take(self, event: Event) -> str:
        """The words that an event adds, if any."""
        if event["event"] == "partial":
            part = (_place(event["id"]) or (0, 0))[-1]
            self._gap = self._gap or part != self._part + 1
            self._part = part
            delta = event["data"]["delta"]
            if self._gap or event["data"]["parent_tool_use_id"] or delta["type"] != "text":
                return ""
            self._given += delta["text"]
            return delta["text"]
        if event["event"] != "message":
            return ""
        self._part, self._gap = 0, False
        data = event["data"]
        whole = "".join(block["text"] for block in data["content"] if block["type"] == "text")
        if data["role"] != "assistant" or data["parent_tool_use_id"] or not whole:
            return ""
        rest = whole.removeprefix(self._given) if whole.startswith(self._given) else ""
        self._given = ""
        return rest
