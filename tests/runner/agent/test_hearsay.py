"""What a CLI says of itself may have been written by a tool: it is stored as far as it can be, and breaks nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from claude_agent_sdk import AssistantMessage, ResultMessage, SystemMessage, TextBlock, ToolUseBlock

from apps.api.core.events.log import Event
from apps.api.core.sessions import sessions
from apps.api.core.sessions.outcome import finish
from apps.api.runner.agent import messages
from apps.api.runner.agent.hearsay import MAX_COST_USD, MAX_COUNT, told_of_itself
from apps.api.runner.agent.outcome import Meter, outcome_of
from tests.core.conftest import neighbourhood, world
from tests.runner.session.test_conversation import Talk
from tests.world import World

__all__ = ["neighbourhood", "world"]

FORGED: Any = {
    "mo\x00del\ud83d": {"inputTokens": 2**70, "outputTokens": -5, "costUSD": float("inf"), "webSearchRequests": "many"},
    "other": "nothing",
}


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), "x", -(10**400)], ids=range(4))
async def test_forged_figures_end_a_run_like_any_others(world: World, cost: Any) -> None:
    _, claim, writer = await world.owned()
    forged = ResultMessage("success", 1, 1, False, 2**80, "s", total_cost_usd=cost, model_usage=FORGED)
    outcome, last = outcome_of(forged, Meter())
    await finish(writer, claim.run_id, outcome, *last, Event("done"))
    state = await world.run(claim.run_id)
    assert state["status"] == "succeeded"
    [used] = state["usage"]
    assert (used["model"], used["input_tokens"], used["output_tokens"]) == ("mo\ufffddel\ufffd", MAX_COUNT, 0)
    assert used["cost_usd"] == MAX_COST_USD


@pytest.mark.parametrize(
    ("data", "mode", "tools"),
    [
        ({"session_id": "no\x00", "permissionMode": "de\x00f", "tools": ["B\ud83d", 1]}, "de\ufffdf", ["B\ufffd", "1"]),
        ({"session_id": None, "permissionMode": ["x"], "tools": "Bash"}, None, None),
        ({}, None, None),
    ],
)
async def test_a_session_notes_what_it_can_of_a_forged_beginning(
    world: World, data: dict[str, Any], mode: str | None, tools: list[str] | None
) -> None:
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    assert told_of_itself(data).session_id is None
    await talk.conversation._note(talk.agent, SystemMessage("init", data))
    row = await world.db.pool.fetchrow(
        "SELECT permission_mode, tools, sdk_session_id FROM sessions WHERE id = $1", claim.session_id
    )
    assert tuple(row) == (mode, tools, claim.sdk_session_id)


async def test_messages_of_a_forged_caller_are_stored_and_read(world: World) -> None:
    _, claim, writer = await world.owned()
    calling = AssistantMessage(content=[ToolUseBlock("\x00\ud83d", "Task", {})], model="m", parent_tool_use_id=None)
    called = replace(calling, content=[TextBlock("x")], parent_tool_use_id="\x00\ud83d")
    await writer.append(*messages.events(calling, claim.run_id), *messages.events(called, claim.run_id))
    page = await sessions.messages(world.db, world.tenant_id, claim.session_id, limit=10, cursor=None)
    assert [len(message["subagent_messages"]) for message in page.data] == [1]
