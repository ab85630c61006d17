"""Between the code server's words and the core's. Pure functions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from apps.api import clock
from apps.api.core.codec import decode, encode
from apps.api.core.config.aliases import current_model
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.dialects.compat.code_server.schemas import Options
from apps.api.dialects.compat.common import status_and_detail
from apps.api.errors import ApiError
from apps.api.web.following import outcome_or_error

CONVERSATION, ONE_OFF = "code_server", "code_server.query"
"""Surfaces of sessions: those that clients know, and those behind one-off queries."""


def error_shape(error: ApiError, request_id: str) -> tuple[int, Any]:
    """`{"detail": …}`; 400 for every invalid request, 500 for every failure."""
    status, detail = status_and_detail(error)
    return 400 if status == 422 and "errors" in error.details else status, {"detail": detail}


def options(core: Core, body: Options, surface: str) -> dict[str, Any]:
    """What a new session begins with."""
    return {
        "surface": surface,
        "model": current_model(core.settings, body.model),
        "allowed_tools": body.allowed_tools or None,
        # The same, but leaves a profile its own first mode.
        "permission_mode": None if body.permission_mode == "default" else body.permission_mode,
    }


def moment(text: str | None = None) -> str:
    """A time of the core's (now, if none) as the original wrote it: seconds, without a zone. It is UTC."""
    when = datetime.fromisoformat(text) if text else clock.now()
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def answer(run: dict[str, Any]) -> dict[str, Any]:
    """The answer to a prompt. An interrupted one has what there is. Raises RunFailed for one that failed."""
    result = run["result"] or {} if run["status"] == "interrupted" else outcome_or_error(run)
    return {
        "response": result.get("result") or "",
        "duration_ms": result.get("duration_ms") or 0,
        "num_turns": result.get("num_turns") or 0,
        "total_cost_usd": result.get("total_cost_usd") or 0.0,
    }


def line(kind: str, **fields: Any) -> bytes:
    """One `data:` line of a stream, with the empty line behind it that ends an event."""
    return b"data: " + encode({"type": kind, **fields}) + b"\n\n"


class Lines:
    """From a run's events to the lines of its stream: the agent's own text, then `error` if it failed, then `done`."""

    def __init__(self) -> None:
        self._said = ""

    def of(self, frame: Frame) -> bytes:
        """The lines for one event; empty for most."""
        if frame.type not in ("partial", "message", "error", "done"):
            return b""
        data = decode(frame.data)
        if frame.type == "done":
            return line("done")
        if frame.type == "error":
            return line("error", error=data["message"])
        if data.get("parent_tool_use_id"):
            return b""
        if frame.type == "partial":
            return self._say(data["delta"]["text"]) if data["delta"]["type"] == "text" else b""
        return self._rest(data) if data["role"] == "assistant" else b""

    def _say(self, text: str) -> bytes:
        self._said += text
        return line("text", content=text)

    def _rest(self, message: dict[str, Any]) -> bytes:
        # Deltas are not durable: what was lost of them is in the message that they build.
        text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        if not text:
            return b""
        rest = text.removeprefix(self._said)
        self._said = ""
        return line("text", content=rest) if rest else b""


def farewell(reason: str) -> bytes:
    """The end of a stream that ends before its run."""
    return line("error", error=reason) + line("done")
