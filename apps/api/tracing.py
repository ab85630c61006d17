"""What a task works on, as log lines tell it, and the trace that it belongs to (W3C Trace Context).

A trace goes with the run: the `traceparent` of the request that brought a prompt is stored with it, and whoever has to
do with the run later, on whatever instance, goes on with it. Spans are made where OTEL_EXPORTER_OTLP_ENDPOINT says
where to send them. Nothing of OpenTelemetry is imported elsewhere, and a client's `traceparent` is then passed on as it
came. See docs/adr/0027-observability.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

from apps.api import clock

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")

Kind = Literal["internal", "server", "client"]
Attributes = Mapping[str, str | int | float | bool | None]
"""Of a span, by OpenTelemetry's names, and where it has none by ours. None is left out."""

NOTHING: Attributes = {}


def parse(header: str) -> str | None:
    """A `traceparent` that can be gone on with, as version 00; None where it is none. Later versions may have more."""
    if not _TRACEPARENT.match(header) or (len(header) > 55 and (header[:2] == "00" or header[55] != "-")):
        return None
    return f"00{header[2:55]}"


def trace_of(traceparent: str) -> str:
    """The id of the trace."""
    return traceparent[3:35]


# --- what a task works on --------------------------------------------------------------------------------------------


class About(Protocol):
    """What a task works on."""

    @property
    def traceparent(self) -> str | None:
        """Of what is being done: what comes of it, such as a run, goes on with it."""

    def told(self) -> dict[str, str]:
        """For a log line: ids, by their names."""


@dataclass(slots=True)
class Work:
    """What a task works on, filled in as it becomes known."""

    traceparent: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    run_id: str | None = None

    def told(self) -> dict[str, str]:
        """See About."""
        return ids(self.traceparent, request_id=self.request_id, session_id=self.session_id, run_id=self.run_id)


def ids(traceparent: str | None, **more: object | None) -> dict[str, str]:
    """Those that are there, for a log line."""
    found = {name: str(value) for name, value in more.items() if value is not None}
    return found if traceparent is None else {**found, "trace_id": trace_of(traceparent)}


_ABOUT: ContextVar[About | None] = ContextVar("about", default=None)


def work_on(about: About | None) -> None:
    """This task, and what it starts from now on, works on this; or on what is several others'."""
    _ABOUT.set(about)


@contextmanager
def working_on(about: About) -> Iterator[None]:
    """The same, in a block."""
    token = _ABOUT.set(about)
    try:
        yield
    finally:
        _ABOUT.reset(token)


def about() -> Mapping[str, str]:
    """What this task works on, for a log line."""
    found = _ABOUT.get()
    return {} if found is None else found.told()


def current() -> str | None:
    """The traceparent of what this task works on."""
    found = _ABOUT.get()
    return None if found is None else found.traceparent


def queued(session_id: object, run_id: object) -> None:
    """The request that this task serves has queued this run."""
    found = _ABOUT.get()
    if isinstance(found, Work):
        found.session_id, found.run_id = str(session_id), str(run_id)


def attributes(told: Mapping[str, str]) -> Attributes:
    """What log lines are told, for a span, which has the id of the trace anyway."""
    return {f"claude_agent_api.{name}": value for name, value in told.items() if name != "trace_id"}


def headers(traceparent: str | None) -> dict[str, str]:
    """For a request that is part of the trace."""
    return {} if traceparent is None else {"traceparent": traceparent}


# --- spans -----------------------------------------------------------------------------------------------------------


class Span:
    """A part of a trace, where traces are sent nowhere.

    Attributes:
        traceparent: what is given on: its own, or what came in where there is none.
    """

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None = None) -> None:
        self.traceparent = traceparent

    def set(self, attributes: Attributes) -> None:
        """Tell more of it."""

    def rename(self, name: str) -> None:
        """Give it a name that was not known when it began."""

    def end(self, error: str | None = None) -> None:
        """It is over; the first word counts. `error`: why it failed."""


_make: Callable[..., Span] | None = None


def on() -> bool:
    """Whether spans are sent anywhere."""
    return _make is not None


def begin(
    name: str, parent: str | None, attributes: Attributes = NOTHING, kind: Kind = "internal", *, ago: float = 0.0
) -> Span:
    """Begin a span below `parent`, or a trace; so many seconds ago. Whoever begins it ends it."""
    if _make is None:
        return Span(parent)
    return _make(name, parent, attributes, kind, clock.timestamp() - ago)


def send_by(make: Callable[..., Span] | None) -> None:
    """Have spans made by this from now on, or by nobody; it is given what `begin` is, and seconds since 1970."""
    global _make
    _make = make
