"""What is stored as the SDK told it, in the API's own words: money as decimals, one shape of usage."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from apps.api import clock
from apps.api.core.codec import decode, usd
from apps.api.core.config.agent import AgentConfig
from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.web import figures
from tests.contract import check_event

TOLD: dict[str, Any] = {
    "status": "succeeded",
    "result": "done",
    "structured_output": {"price_usd": 0.5, "costUSD": 1e-7},
    "total_cost_usd": 0.0024000000000000002,
    "usage": {
        "input_tokens": 300,
        "output_tokens": 60,
        "server_tool_use": {"web_search_requests": 2},
        "speed": "standard",
    },
    "model_usage": {"claude-sonnet-4-5": {"inputTokens": 400, "costUSD": 1e-05, "contextWindow": 200000}},
}
NONE = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}


@pytest.mark.parametrize(
    ("amount", "told"),
    [
        (0, "0"),
        (0.0, "0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (0.0024000000000000002, "0.0024000000000000002"),
        (1e-07, "0.0000001"),
        (1e22, "10000000000000000000000"),
        (100.0, "100"),
        (Decimal("12.3400"), "12.34"),
        ("0.0123", "0.0123"),
        (None, None),
    ],
)
def test_money_is_told_with_all_its_figures_and_without_an_exponent(amount: Any, told: str | None) -> None:
    assert usd(amount) == told
    assert told is None or Decimal(told) == Decimal(str(amount))


def test_a_result_has_money_as_text_and_usage_in_one_shape_and_the_agents_own_data_as_it_is() -> None:
    assert figures.result(TOLD) == {
        **TOLD,
        "total_cost_usd": "0.0024000000000000002",
        "usage": {**TOLD["usage"], **NONE, "web_search_requests": 2},
        "model_usage": {
            "claude-sonnet-4-5": {
                "input_tokens": 400,
                "output_tokens": 0,
                **NONE,
                "web_search_requests": 0,
                "cost_usd": "0.00001",
                "context_window": 200000,
            }
        },
    }


def test_only_results_are_rewritten_and_keep_their_place() -> None:
    ids, fields = (uuid4(), uuid4()), {"is_error": False, "num_turns": 1, **TOLD}
    made = [
        Frame.build(Position(seq), type_, event_data(*ids, seq, clock.now(), fields), 7)
        for seq, type_ in enumerate(("message", "result", "done"), 4)
    ]
    assert figures.frames(made[:1]) is not made
    assert figures.frames(made[:1])[0] is made[0]
    message, result, done = figures.frames(made)
    assert (message, done) == (made[0], made[2])
    assert (result.position, result.type, result.run_id, result.generation) == (Position(5), "result", str(ids[1]), 7)
    assert decode(result.data)["total_cost_usd"] == "0.0024000000000000002"
    assert result.created_at == made[1].created_at


def test_what_is_told_fits_the_document() -> None:
    more = {
        "session_id": str(uuid4()),
        "run_id": str(uuid4()),
        "seq": 1,
        "created_at": "2026-01-31T12:00:00.000Z",
        "is_error": False,
        "stop_reason": None,
        "terminal_reason": None,
        "num_turns": 1,
        "duration_ms": 1,
        "duration_api_ms": 1,
        "permission_denials": [],
        "user_message_uuids": [],
    }
    check_event("result", "1", {**more, **figures.result(TOLD)})
    for part in ({"total_cost_usd": "1e-7"}, {"total_cost_usd": "-1"}, {"model_usage": {"m": {"cost_usd": "x"}}}):
        with pytest.raises(AssertionError):
            check_event("result", "1", {**more, **figures.result(TOLD), **part})


@pytest.mark.parametrize("given", [0.5, 1, "0.5", "12", "0.000001"])
def test_money_may_be_given_as_a_number_or_as_it_is_told(given: Any) -> None:
    assert AgentConfig(max_budget_usd=given).max_budget_usd == float(given)


@pytest.mark.parametrize(
    "given", ["1e5", " 1", "1_000", "inf", "nan", "-1", "", "0", 0, -1, True, "1.", ".5", [], "1,5"]
)
def test_what_is_no_money_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        AgentConfig(max_budget_usd=given)


def test_the_sum_over_models_is_the_runs_own() -> None:
    rows = [
        {"model": "a", "input_tokens": 3, "cost_usd": 0.1},
        {"model": "b", "input_tokens": 4, "output_tokens": 1, "cost_usd": 0.2},
    ]
    told = figures.run({"total_cost_usd": 0.3, "usage": rows, "result": None})
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"], told["total_cost_usd"]) == (7, 1, "0.3")
    assert [used["cost_usd"] for used in told["model_usage"].values()] == ["0.1", "0.2"]
