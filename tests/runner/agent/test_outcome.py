"""From the SDK's result to the outcome of a run, and which run what is used is counted for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ResultMessage,
    SystemMessage,
)

from apps.api.core.codec import decode
from apps.api.core.tenant.usage import ModelUsage
from apps.api.errors import RUN_FAILURES, RateLimited
from apps.api.runner.agent.model_failures import Signs
from apps.api.runner.agent.outcome import Meter, outcome_of

SDK_SESSION = "fdcb1e7b-f3dd-41c9-91c7-8a8768ad2f07"
MODEL = "claude-sonnet-5-5"
USAGE = {
    "input_tokens": 300,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 0,
    "output_tokens": 60,
    "output_tokens_details": {"thinking_tokens": 0},
    "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
    "service_tier": "standard",
    "iterations": [],
}


def figures(input_tokens: int, output_tokens: int, cost: float) -> dict[str, Any]:
    """A model's entry in `model_usage`, as the CLI counts it: since the CLI's own start."""
    return {
        "inputTokens": input_tokens,
        "outputTokens": output_tokens,
        "cacheReadInputTokens": 0,
        "cacheCreationInputTokens": 0,
        "webSearchRequests": 0,
        "costUSD": cost,
        "contextWindow": 200_000,
        "maxOutputTokens": 32_000,
        "thinkingTokens": 0,
        "canonicalModel": MODEL,
        "provider": "firstParty",
    }


SUCCESS = ResultMessage(
    subtype="success",
    duration_ms=358,
    duration_api_ms=95,
    is_error=False,
    num_turns=3,
    session_id=SDK_SESSION,
    stop_reason="end_turn",
    total_cost_usd=0.0024,
    usage=USAGE,
    result="thought.",
    model_usage={MODEL: figures(400, 80, 0.0024)},  # type: ignore[dict-item]
    permission_denials=[],
    uuid="d99a46a1-193c-48c2-a594-dba34f52dc46",
    terminal_reason="completed",
)
FAILED = replace(SUCCESS, is_error=True, subtype="error_during_execution", result=None, terminal_reason=None)


def api_error(status: int | None, reason: str | None = "api_error") -> ResultMessage:
    """A failed call to the model: the CLI calls it a success."""
    text = f"API Error: {status} fake"
    return replace(
        SUCCESS,
        is_error=True,
        stop_reason="stop_sequence",
        result=text,
        api_error_status=status,
        terminal_reason=reason,
    )


# --- outcomes ------------------------------------------------------------------------------------------------------

OUTCOMES: dict[str, tuple[ResultMessage, str, str | None]] = {
    "success": (SUCCESS, "succeeded", None),
    "success without a reason": (replace(SUCCESS, terminal_reason=None), "succeeded", None),
    "model: 400": (api_error(400), "failed", "model_request_invalid"),
    "model: 401": (api_error(401), "failed", "model_authentication_failed"),
    "model: 403": (api_error(403), "failed", "model_authentication_failed"),
    "model: 404": (api_error(404), "failed", "model_not_found"),
    "model: 413": (api_error(413), "failed", "model_request_invalid"),
    "model: 429": (api_error(429), "failed", "model_rate_limited"),
    "model: 500": (api_error(500), "failed", "model_error"),
    "model: 502": (api_error(502), "failed", "model_unreachable"),
    "model: 504": (api_error(504), "failed", "model_unreachable"),
    "model: 529": (api_error(529), "failed", "model_overloaded"),
    "model: a refusal that persists": (
        replace(api_error(None), stop_reason="refusal"),
        "failed",
        "model_refused",
    ),
    "model: too long": (
        replace(api_error(400), terminal_reason="prompt_too_long"),
        "failed",
        "context_window_exceeded",
    ),
    "model: a picture": (replace(api_error(400), terminal_reason="image_error"), "failed", "model_request_invalid"),
    "model: no answer": (api_error(None), "failed", "model_unreachable"),
    "model: status without a reason": (api_error(429, None), "failed", "model_rate_limited"),
    "aborted while streaming": (replace(FAILED, terminal_reason="aborted_streaming"), "interrupted", "interrupted"),
    "aborted in a tool": (replace(FAILED, terminal_reason="aborted_tools"), "interrupted", "interrupted"),
    "max turns": (
        replace(FAILED, subtype="error_max_turns", terminal_reason="max_turns"),
        "failed",
        "max_turns_exceeded",
    ),
    "max turns, not called an error": (
        replace(SUCCESS, subtype="error_max_turns", terminal_reason="max_turns"),
        "failed",
        "max_turns_exceeded",
    ),
    "max budget": (replace(FAILED, subtype="error_max_budget_usd"), "failed", "max_budget_exceeded"),
    "execution": (replace(FAILED, errors=["it broke"]), "failed", "execution_error"),
    "an error that calls itself success": (replace(SUCCESS, is_error=True), "failed", "execution_error"),
    "an error with no words": (replace(FAILED, errors=None), "failed", "execution_error"),
}


@pytest.mark.parametrize(("result", "status", "code"), OUTCOMES.values(), ids=OUTCOMES)
def test_the_outcome_of_a_result(result: ResultMessage, status: str, code: str | None) -> None:
    outcome, last = outcome_of(result, Meter())
    assert outcome.status == status
    assert (outcome.error or {}).get("code") == code
    assert last[0].type == "result"
    assert last[0].fields["status"] == status
    if status == "failed":
        assert [event.type for event in last] == ["result", "error"]
        assert last[1].fields == outcome.error


@pytest.mark.parametrize("result", [given for given, _, code in OUTCOMES.values() if code])
def test_every_failure_is_one_that_clients_can_look_up(result: ResultMessage) -> None:
    error = outcome_of(result, Meter())[0].error
    assert error is not None
    assert set(error) == {"code", "message", "retryable"}
    assert error["code"] in RUN_FAILURES
    assert error["retryable"] is RUN_FAILURES[error["code"]][1]
    assert isinstance(error["message"], str)
    assert error["message"]


def synthetic(kind: str | None, parent: str | None = None) -> AssistantMessage:
    """What the CLI writes in the model's place when that has failed."""
    return AssistantMessage([], "<synthetic>", parent_tool_use_id=parent, error=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "status", "words", "code"),
    [
        ("authentication_failed", None, "Not logged in · Please run /login", "model_not_configured"),
        ("authentication_failed", 401, "Failed to authenticate. API Error: 401", "model_authentication_failed"),
        ("billing_error", 400, "Credit balance is too low", "model_billing_failed"),
        ("max_output_tokens", None, "API Error: the 128000 output token maximum", "model_output_limit"),
        (
            "max_output_tokens",
            None,
            "API Error: The model has reached its context window limit.",
            "context_window_exceeded",
        ),
        ("overloaded", None, "API Error: overloaded", "model_overloaded"),
        ("rate_limit", None, "API Error: slow down", "model_rate_limited"),
        ("server_error", None, "API Error: Connection refused (ECONNREFUSED)", "model_unreachable"),
        ("unknown", None, "API Error: Stream ended without receiving any events", "model_unreachable"),
        ("a kind of a later CLI", None, "API Error: ?", "model_unreachable"),
        (None, None, "API Error: ?", "model_unreachable"),
    ],
)
def test_the_kind_that_the_cli_tells_chooses_the_code(
    kind: str | None, status: int | None, words: str, code: str
) -> None:
    told = Signs()
    told.hear(synthetic(kind))
    told.hear(synthetic("of a subagent", "toolu_1"))
    error = outcome_of(replace(api_error(status), result=words), Meter(), told=told)[0].error
    assert error is not None
    assert (error["code"], error["message"]) == (code, words)
    assert code in RUN_FAILURES


@pytest.mark.parametrize(
    ("delays", "seconds"),
    [
        ([], None),
        ([8581], 9),
        ([8581, 600], 9),
        ([12], 1),
        ([10**9], 3600),
        (["x"], 1),
        ([None], 1),
        ([float("nan")], 1),
    ],
)
@pytest.mark.parametrize("status", [429, 529])
def test_a_busy_model_says_when_to_come_back(status: int, delays: list[Any], seconds: int | None) -> None:
    told = Signs()
    for delay in delays:
        told.hear(SystemMessage("api_retry", {"retry_delay_ms": delay, "error_status": status}))
    error = outcome_of(api_error(status), Meter(), told=told)[0].error
    assert error is not None
    assert error.get("retry_after_seconds") == seconds
    other = outcome_of(api_error(500), Meter(), told=told)[0].error
    assert other is not None
    assert "retry_after_seconds" not in other


@pytest.mark.parametrize("status", [*range(400, 600), 0, 302, 999])
def test_every_status_of_the_model_has_a_code_that_clients_can_look_up(status: int) -> None:
    error = outcome_of(api_error(status), Meter())[0].error
    assert error is not None
    assert error["code"] in RUN_FAILURES
    assert error["code"].startswith("model_")
    assert error["message"] == f"API Error: {status} fake"


def test_an_execution_error_tells_what_the_sdk_told() -> None:
    told = outcome_of(replace(FAILED, errors=["one", "two"]), Meter())[0].error
    assert told is not None
    assert told["message"] == "one; two"


def test_an_outcome_holds_the_figures_that_the_session_adds_up() -> None:
    outcome, [result] = outcome_of(SUCCESS, Meter())
    assert outcome.num_turns == 3
    assert outcome.cost_usd == pytest.approx(0.0024)
    assert outcome.usage == [ModelUsage(MODEL, input_tokens=400, output_tokens=80, cost_usd=0.0024)]
    fields = dict(result.fields)
    assert outcome.result is not None
    assert decode(outcome.result) == fields
    assert fields == {
        "status": "succeeded",
        "result": "thought.",
        "structured_output": None,
        "is_error": False,
        "stop_reason": "end_turn",
        "terminal_reason": "completed",
        "num_turns": 3,
        "duration_ms": 358,
        "duration_api_ms": 95,
        "total_cost_usd": pytest.approx(0.0024),
        "usage": USAGE,
        "model_usage": {MODEL: figures(400, 80, 0.0024)},
        "permission_denials": [],
        "user_message_uuids": [],
    }


def test_a_result_without_figures_counts_nothing() -> None:
    bare = ResultMessage("success", 1, 0, False, 0, SDK_SESSION)
    outcome, [result] = outcome_of(bare, Meter())
    assert (outcome.status, outcome.cost_usd, outcome.num_turns) == ("succeeded", 0.0, 0)
    assert outcome.usage == []
    assert result.fields["model_usage"] == {}
    assert result.fields["permission_denials"] == []


def test_a_structured_output_is_part_of_the_result() -> None:
    _, [result] = outcome_of(replace(SUCCESS, structured_output={"answer": 1}), Meter())
    assert result.fields["structured_output"] == {"answer": 1}


def test_a_result_may_hold_what_json_encoders_refuse() -> None:
    outcome, _ = outcome_of(replace(SUCCESS, result="\x00\ud83d"), Meter())
    assert outcome.result is not None
    assert "\x00" not in outcome.result  # PostgreSQL would refuse it
    assert decode(outcome.result)["result"] == "\x00\ud83d"


# --- the meter -----------------------------------------------------------------------------------------------------


def metered(cost: float, **models: dict[str, Any]) -> ResultMessage:
    return replace(SUCCESS, total_cost_usd=cost, model_usage=models)  # type: ignore[arg-type]


def share(meter: Meter, result: ResultMessage) -> tuple[float | None, dict[str, Any]]:
    meter.read(result)
    return meter.take()


def test_each_run_gets_its_share_of_figures_that_the_sdk_only_ever_adds_up() -> None:
    meter = Meter()
    first = share(meter, metered(0.25, big=figures(100, 10, 0.25)))
    second = share(meter, metered(0.75, big=figures(250, 11, 0.75)))
    assert first == (0.25, {"big": figures(100, 10, 0.25)})
    assert second == (0.5, {"big": figures(150, 1, 0.5)})


def test_a_share_names_only_models_that_this_run_used() -> None:
    meter = Meter()
    share(meter, metered(1, big=figures(100, 10, 1)))
    cost, models = share(meter, metered(1.5, big=figures(100, 10, 1), small=figures(5, 5, 0.5)))
    assert cost == 0.5
    assert models == {"small": figures(5, 5, 0.5)}


def test_the_size_of_a_context_window_is_no_counter() -> None:
    meter = Meter()
    share(meter, metered(1, big=figures(1, 1, 1)))
    _, models = share(meter, metered(2, big=figures(2, 2, 2)))
    assert models["big"]["contextWindow"] == 200_000


def test_nothing_is_lost_or_negative_when_the_sdk_counts_from_zero_again() -> None:
    meter = Meter()
    share(meter, metered(5, big=figures(100, 10, 5)))
    assert share(meter, metered(0)) == (0, {})  # the result of `/clear`
    assert share(meter, metered(1, big=figures(20, 2, 1))) == (1, {"big": figures(20, 2, 1)})
    assert share(meter, metered(0.5, big=figures(10, 1, 0.5))) == (0.5, {"big": figures(10, 1, 0.5)})


def test_a_run_takes_what_several_results_have_told_since_the_run_before_it() -> None:
    meter = Meter()
    share(meter, metered(1, big=figures(10, 1, 1)))
    meter.read(metered(1.5, big=figures(15, 2, 1.5)))  # a background turn that is shown inside the next run
    assert share(meter, metered(2, big=figures(15, 2, 1.5), small=figures(1, 1, 0.5))) == (
        1,
        {"big": figures(5, 1, 0.5), "small": figures(1, 1, 0.5)},
    )


def test_there_is_no_cost_where_no_result_came() -> None:
    meter = Meter()
    assert meter.take() == (None, {})
    share(meter, metered(1))
    assert meter.take() == (None, {})


def test_all_shares_make_the_sum() -> None:
    meter = Meter()
    costs = [share(meter, metered(n * n / 64))[0] or 0 for n in range(1, 20)]
    assert sum(costs) == 19 * 19 / 64


def test_what_the_gateway_has_refused_fails_for_that_and_what_succeeds_none_the_less_does_not() -> None:
    refused = RateLimited("No more.", code="budget_reached", details={"scope": "key"})
    error = outcome_of(api_error(403), Meter(), refused=refused)[0].error
    assert error is not None
    assert (error["code"], error["message"], error["details"]) == ("budget_reached", "No more.", {"scope": "key"})
    assert outcome_of(SUCCESS, Meter(), refused=refused)[0].status == "succeeded"
