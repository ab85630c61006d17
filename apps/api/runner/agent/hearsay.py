"""What a CLI says of itself, before it is added up or stored in columns: tools may have written it (forged output)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from apps.api.core import codec

CUMULATIVE = frozenset(
    {
        "inputTokens",
        "outputTokens",
        "cacheReadInputTokens",
        "cacheCreationInputTokens",
        "webSearchRequests",
        "costUSD",
        "thinkingTokens",
        "cacheCreationEphemeral5mInputTokens",
        "cacheCreationEphemeral1hInputTokens",
    }
)
"""Figures of a model that only grow while a process lives."""

MAX_COUNT, MAX_COST_USD = 10**12, 10.0**9
"""What one process may say of itself. Sums over a session, a tenant or a year stay within 64 bits."""


def figure(value: Any, most: float = MAX_COUNT) -> Any:
    """A figure of the SDK's; 0 for what is no number, and within bounds: what cannot be added up ends no run."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:  # so NaN is none, too
        return 0
    return min(value, most)


def figures(told: Any) -> dict[str, Any]:
    """The figures of one model."""
    named = told if isinstance(told, Mapping) else {}
    most = {"costUSD": MAX_COST_USD}
    return {k: figure(v, most.get(k, MAX_COUNT)) if k in CUMULATIVE else v for k, v in named.items()}


@dataclass(frozen=True, slots=True)
class Init:
    """What the CLI says of itself, as far as it can be stored."""

    session_id: UUID | None
    permission_mode: str | None
    tools: list[str] | None


def told_of_itself(data: Mapping[str, Any]) -> Init:
    """The parts of an `init` that the session keeps. What tools wrote into the CLI's output may be anything."""
    mode, tools = data.get("permissionMode"), data.get("tools")
    try:
        session_id = UUID(str(data.get("session_id")))
    except ValueError:
        session_id = None
    return Init(
        session_id,
        codec.clean_text(mode) if isinstance(mode, str) else None,
        [codec.clean_text(str(tool)) for tool in tools] if isinstance(tools, list) else None,
    )
