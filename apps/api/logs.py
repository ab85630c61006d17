"""Logging: structlog, one JSON object a line, or coloured text with DEBUG. Never prompts, headers or secrets.

Exceptions quote what they could not digest: pydantic its inputs, asyncpg a query's arguments, a codec the whole text.
So they are handed over as they are, and this module decides what may be told of them: the message of those that are
known not to quote, of others only the type and where it was raised. Ours that quote say so: `quotes = True`.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import MutableMapping
from pathlib import PurePath
from types import TracebackType
from typing import Any

import structlog

from apps.api import tracing
from apps.api.settings import Settings

MAX_KINDS = 1_000
"""Kinds of failures, by the name of their log line and their type, that are kept in mind."""

_ROOT = PurePath(__file__).parents[2]


def told(error: BaseException) -> str:
    """An exception on one line, without what a client or an agent sent."""
    kind = type(error)
    ours = kind.__module__.startswith("apps.api.") and not getattr(kind, "quotes", False)
    if ours or isinstance(error, OSError):
        return f"{kind.__name__}: {error}"[:500]
    frames = traceback.extract_tb(error.__traceback__)
    return f"{kind.__name__} at {_place(frames[-1])}" if frames else kind.__name__


def told_with_trace(error: BaseException) -> str:
    """An exception and those that it came from, each with the lines of code that it went through."""
    lines: list[str] = []
    found: BaseException | None = error
    while found is not None and len(lines) < 200:
        lines += [told(found), *(f"  {_place(frame)}" for frame in traceback.extract_tb(found.__traceback__))]
        if isinstance(found, BaseExceptionGroup):
            lines += [f"  of {told(inner)}" for inner in found.exceptions]
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return "\n".join(lines)


def _place(frame: traceback.FrameSummary) -> str:
    path = PurePath(frame.filename)
    shown = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else PurePath(*path.parts[-3:])
    return f"{shown}:{frame.lineno} {frame.name}"


class _Traces:
    """Which tracebacks are written: one per kind and second. Writing them costs more than most of what fails."""

    def __init__(self) -> None:
        self._until: dict[tuple[Any, type[BaseException]], float] = {}

    def allow(self, event: Any, kind: type[BaseException]) -> bool:
        now = time.monotonic()
        if self._until.get((event, kind), 0.0) > now:
            return False
        if len(self._until) >= MAX_KINDS:
            self._until.clear()
        self._until[event, kind] = now + 1.0
        return True


_traces = _Traces()


def _exceptions(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Tell exceptions among the fields, and the one of `exc_info`."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()[1]
    if isinstance(given, BaseException) and _traces.allow(event.get("event"), type(given)):
        event["exception"] = told_with_trace(given)
    for name, value in event.items():
        if isinstance(value, BaseException):
            event[name] = told(value)
    return event


_instance: dict[str, str] = {}


def speak_for(instance_id: object) -> None:
    """Have every line from now on say which instance it is of."""
    _instance["instance_id"] = str(instance_id)


def _about(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What the task works on. What the line itself says of it counts."""
    for name, value in (*tracing.about().items(), *_instance.items()):
        event.setdefault(name, value)
    return event


class _Formatter(logging.Formatter):
    """Of the libraries' own records."""

    def formatException(  # noqa: N802 - the library's name
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return told_with_trace(ei[1]) if ei[1] is not None else ""


def configure_logging(settings: Settings) -> None:
    """Set up structlog and let the libraries' own records through at WARNING."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if settings.debug else None
    structlog.configure(
        processors=[
            _about,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _exceptions,
            renderer or structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
