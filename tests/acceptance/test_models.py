"""Thinking, effort, fallback models and budgets; the client on another instance than the owner."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet import Fleet, Shared

OPUS, HAIKU = "claude-opus-5-5", "claude-haiku-5-5"
BUDGETED = "claude-haiku-4-5"
FALLING_BACK = {"model": OPUS, "fallback_model": HAIKU, "thinking": {"type": "disabled"}, "effort": "low"}


async def requested(fleet: Fleet, **config: Any) -> str:
    session_id = await fleet[0].session(**config)
    told: str = (await fleet[1].ask(session_id, "show request"))["result"]
    return told


async def test_thinking_reaches_the_model(fleet: Fleet) -> None:
    enabled = {"type": "enabled", "budget_tokens": 2048}
    assert '"budget_tokens": 2048' in await requested(fleet, model=BUDGETED, thinking=enabled)
    summarized = {"type": "adaptive", "display": "summarized"}
    assert '"thinking": {"type": "adaptive", "display": "summarized"}' in await requested(fleet, thinking=summarized)


async def test_the_current_models_think_adaptively_whatever_is_set_and_know_effort(shared: Shared) -> None:
    """As docs/models-and-budgets.md says: Claude Code decides what it asks of which model."""
    told = (await shared.fleet[1].ask(await shared.of(**FALLING_BACK), "show request"))["result"]
    assert f'"model": "{OPUS}"' in told
    assert '"thinking": {"type": "adaptive"' in told
    assert '"effort": "low"' in told


async def test_thinking_and_effort_can_change_with_a_prompt(fleet: Fleet) -> None:
    session_id = await fleet[0].session(model="claude-opus-4-6", thinking={"type": "disabled"})
    assert '"thinking": {"type": "disabled"}' in (await fleet[1].ask(session_id, "show request"))["result"]
    changed = await fleet[2].ask(session_id, "show request", thinking=None, effort="medium")
    assert '"disabled"' not in changed["result"]
    assert '"effort": "medium"' in changed["result"]


@pytest.mark.parametrize("status", [529, 500, 404])
async def test_another_model_answers_when_the_first_one_cannot(shared: Shared, status: int) -> None:
    fleet, session_id = shared.fleet, await shared.of(**FALLING_BACK)
    answer = await fleet[1].ask(session_id, f"fail with {status} for {OPUS}")
    assert answer["result"] == f"[demo model, scripted] {HAIKU} answers"
    assert set(answer["model_usage"]) == {HAIKU}
    events = await fleet[2].follow(answer["run_id"])
    told = [e.data for e in events if e.event == "status" and e.data["status"] == "model_fallback"]
    assert [(t["original_model"], t["fallback_model"]) for t in told] == [(OPUS, HAIKU)]
    assert f'"model": "{OPUS}"' in (await fleet[1].ask(session_id, "show request"))["result"]


async def test_a_prompt_that_takes_too_many_turns_fails_and_the_session_goes_on(fleet: Fleet) -> None:
    session_id = await fleet[0].session(max_turns=2, permission_mode="bypassPermissions")
    refused = await fleet[1].post("/query/single", {"session_id": session_id, "prompt": "use 5 tools"})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "max_turns_exceeded")
    assert error["details"]["result"]["terminal_reason"] == "max_turns"
    assert float(error["details"]["result"]["total_cost_usd"]) > 0
    run = (await fleet[2].get(f"/runs/{error['details']['run_id']}")).json()
    assert (run["status"], run["error"]["code"]) == ("failed", "max_turns_exceeded")
    assert (await fleet[2].ask(session_id, "say on"))["result"] == "[demo model, scripted] on"


async def test_a_budget_that_is_spent_ends_the_run_and_the_next_prompt_has_one_again(fleet: Fleet) -> None:
    session_id = await fleet[0].session(max_budget_usd=0.0001, permission_mode="bypassPermissions")
    refused = await fleet[1].post("/query/single", {"session_id": session_id, "prompt": "use 5 tools"})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "max_budget_exceeded")
    spent = error["details"]["result"]["total_cost_usd"]
    assert float(spent) > 0.0001
    assert (await fleet[2].get(f"/runs/{error['details']['run_id']}")).json()["total_cost_usd"] == spent
    again = await fleet[2].ask(session_id, "recall", max_budget_usd=5)
    assert "1. use 5 tools" in again["result"]
