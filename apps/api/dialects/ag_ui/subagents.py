"""Subagents, by the call that each works for: begun once in a run of AG-UI's, and ended before that ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Event = dict[str, Any]


class Subagents:
    """Those of one run."""

    def __init__(self) -> None:
        self._open = set[str]()
        self._over = set[str]()

    def of(self, call: str, block: Mapping[str, Any]) -> tuple[str | None, list[Event]]:
        """The subagent that works for a call, and what begins it; None where it has been told as ended, as one that
        goes on in the background is."""
        if call in self._over:
            return None, []
        if call in self._open:
            return call, []
        self._open.add(call)
        given = block.get("input") if isinstance(block.get("input"), Mapping) else {}
        assert given is not None  # noqa: S101 - for the type checker
        kind, about = given.get("subagent_type"), given.get("description")
        start = {"type": "SUBAGENT_STARTED", "subagentRunId": call, "name": kind if _says(kind) else "agent"}
        return call, [{**start, "parentToolCallId": call, **({"description": about} if _says(about) else {})}]

    def end(self, call: str, *, failed: bool, why: str) -> list[Event]:
        """What ends the subagent of a call that has its result."""
        if call not in self._open:
            return []
        self._open.discard(call)
        self._over.add(call)
        if failed:
            return [{"type": "SUBAGENT_ERROR", "subagentRunId": call, "message": why[:1000] or "failed"}]
        return [{"type": "SUBAGENT_FINISHED", "subagentRunId": call, "outcome": {"type": "success"}}]

    def suspend(self) -> list[Event]:
        """What ends those that are at work for now: the next run of theirs begins them anew."""
        outcome = {"type": "suspended"}
        told = [{"type": "SUBAGENT_FINISHED", "subagentRunId": c, "outcome": outcome} for c in sorted(self._open)]
        self._open.clear()
        return told


def _says(text: Any) -> bool:
    return isinstance(text, str) and bool(text)
