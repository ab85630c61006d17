"""What is stored, as the native API tells it: money as decimals of USD, and what was used in one shape.

What the SDK told is stored as it told it, in events, too. It is put into these words here, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apps.api.core.codec import decode, encode, usd
from apps.api.core.events.frames import Frame

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "web_search_requests",
)
"""What every `usage` tells."""

_PARTS_OF_A_NAME = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def usage(counted: Mapping[str, Any]) -> dict[str, Any]:
    """The SDK's figures of a turn, or a sum of ours, with all of COUNTS."""
    searches = counted.get("server_tool_use")
    known = {"web_search_requests": searches.get("web_search_requests")} if isinstance(searches, Mapping) else {}
    return {**dict.fromkeys(COUNTS, 0), **{k: v for k, v in {**known, **counted}.items() if v is not None}}


def of_model(counted: Mapping[str, Any]) -> dict[str, Any]:
    """The SDK's figures of one model: `inputTokens` is `input_tokens`, `costUSD` is `cost_usd`."""
    named = {_PARTS_OF_A_NAME.sub("_", name).lower(): value for name, value in counted.items()}
    return {**usage(named), "cost_usd": usd(named.get("cost_usd") or 0)}


def together(counted: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The sum of what several models have used."""
    rows = list(counted)
    return {name: sum(int(row.get(name) or 0) for row in rows) for name in COUNTS}


def result(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `result` event; what a rewind has changed stays as it is."""
    told = dict(stored)
    if "total_cost_usd" in told:
        told["total_cost_usd"] = usd(told["total_cost_usd"])
    if isinstance(told.get("usage"), Mapping):
        told["usage"] = usage(told["usage"])
    if isinstance(told.get("model_usage"), Mapping):
        told["model_usage"] = {name: of_model(counted) for name, counted in told["model_usage"].items()}
    return told


def run(state: Mapping[str, Any]) -> dict[str, Any]:
    """A run as `core/sessions/runs.py` reads it."""
    used = state["usage"]
    return {
        **state,
        "total_cost_usd": usd(state["total_cost_usd"]),
        "usage": together(used),
        "model_usage": {row["model"]: of_model({k: v for k, v in row.items() if k != "model"}) for row in used},
        "result": None if state["result"] is None else result(state["result"]),
    }


def config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, as they are shown."""
    money = {name: usd(options[name]) for name in ("max_budget_usd", "max_session_usd") if name in options}
    return {**options, **money}


def details(told: Mapping[str, Any]) -> dict[str, Any]:
    """Details of an error: of a run that failed they hold its result."""
    return {**told, "result": result(told["result"])} if isinstance(told.get("result"), Mapping) else dict(told)


def frames(sent: Sequence[Frame]) -> Sequence[Frame]:
    """Events as clients get them: one of a run has figures."""
    if not any(frame.type == "result" for frame in sent):
        return sent
    return [_result(frame) if frame.type == "result" else frame for frame in sent]


def _result(frame: Frame) -> Frame:
    return Frame.build(frame.position, frame.type, encode(result(decode(frame.data))), frame.generation)
