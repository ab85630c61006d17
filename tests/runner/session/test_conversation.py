"""What the turns of an agent cost, and which run it is counted for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeSDKClient,
    Message,
    ResultMessage,
    SystemMessage,
)

from apps.api.core.config.agent import AgentConfig
from apps.api.core.events.log import Writer
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease, now
from apps.api.core.sessions.parking import Parked
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.core.tenant import usage
from apps.api.core.tenant.usage import Scope
from apps.api.runner.agent.process import Agent, Poisoned
from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.denials import Denials
from apps.api.runner.session.ports import Ports
from apps.api.runner.session.steering import Steering
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.turn import Turns
from tests.core.conftest import neighbourhood, world
from tests.runner.session.test_background import ENDED, OUTLASTS
from tests.world import World, administrator, core_of, until, waiting_for_locks

__all__ = ["neighbourhood", "world"]

MODEL = "claude-sonnet-5-5"


def begins(claim: Claim, *uuids: str) -> SystemMessage:
    told = {"session_id": str(claim.sdk_session_id), "user_message_uuids": list(uuids)}
    return SystemMessage("init", told)


def ends(claim: Claim, cost: float, tokens: int) -> ResultMessage:
    """A result with what the process has used so far."""
    figures: dict[str, Any] = {MODEL: {"inputTokens": tokens, "outputTokens": 1, "costUSD": cost}}
    return ResultMessage("success", 1, 1, False, 1, str(claim.sdk_session_id), total_cost_usd=cost, model_usage=figures)


class Talk:
    """A conversation without an agent that lives, and the turns that it ends."""

    def __init__(self, world: World, writer: Writer, claim: Claim) -> None:
        core, self.turns, self.tasks = core_of(world), Turns(lambda: None), Tasks()
        lease = Lease(uuid4(), 60)
        lease.renewed(now())
        self.store = store = Transcripts(core.db, lease, claim.session_id, claim.generation, claim.sdk_session_id)
        steering = Steering(core, writer, store, self.turns, Mock())
        approvals = Approvals(core, writer, self.turns, self.tasks, Mock(), steering)
        self.told: list[float] = []
        parts = self.turns, self.tasks, approvals, Ports(writer, self.turns), Denials(writer, self.turns), steering
        self.conversation = Conversation(core, writer, store, Storing(core, writer), *parts, self.told.append)
        self.agent = Agent(claim, ClaudeSDKClient())

    async def hear(self, *messages: Message) -> None:
        for message in messages:
            await self.conversation.hear(self.agent, message)

    async def stored(self, *entries: dict[str, Any]) -> None:
        await self.store.append({"project_key": "-w", "session_id": str(self.store.conversation)}, entries)


async def test_a_background_turn_inside_a_run_is_counted_for_that_run(world: World) -> None:
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    talk.turns.assign(claim)
    await talk.hear(begins(claim), ends(claim, 1.0, 100), begins(claim, str(claim.run_id)), ends(claim, 3.0, 300))
    run = await world.run(claim.run_id)
    assert (run["status"], run["total_cost_usd"]) == ("succeeded", 3.0)
    assert [(row["cost_usd"], row["input_tokens"]) for row in run["usage"]] == [(3.0, 300)]
    assert await world.one("SELECT total_cost_usd FROM sessions WHERE id = $1", claim.session_id) == 3.0


async def test_it_is_counted_also_when_the_agent_dies_before_the_runs_own_turn(world: World) -> None:
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    turn = talk.turns.assign(claim)
    turn.begin()
    await talk.hear(begins(claim), ends(claim, 1.0, 100))
    await talk.conversation.fail(turn, "agent_crashed", "It is gone.")
    run = await world.run(claim.run_id)
    assert (run["status"], run["total_cost_usd"], run["usage"][0]["input_tokens"]) == ("failed", 1.0, 100)


async def test_a_background_turn_between_runs_is_a_run_with_a_cost_of_its_own(world: World) -> None:
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    talk.turns.assign(claim)
    await talk.hear(begins(claim, str(claim.run_id)), ends(claim, 1.0, 100))
    talk.turns.leave()
    await talk.hear(begins(claim), ends(claim, 1.5, 120))
    rows = await world.db.pool.fetch(
        "SELECT origin, total_cost_usd FROM runs WHERE session_id = $1 ORDER BY position", claim.session_id
    )
    assert [tuple(row) for row in rows] == [("client", 1.0), ("background", 0.5)]
    assert talk.told == [1.0, 0.5]
    page = await usage.report(world.db, world.tenant_id, Scope(), [], limit=1, cursor=None)
    assert (page.data[0]["runs"], page.data[0]["input_tokens"], page.data[0]["cost_usd"]) == (2, 120, 1.5)


async def test_a_session_has_news_or_a_turn_while_the_turn_that_tells_of_a_task_begins(world: World) -> None:
    """Else it counts as idle meanwhile, and is given back under its agent."""
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    talk.turns.assign(claim)
    await talk.hear(begins(claim, str(claim.run_id)), OUTLASTS, ends(claim, 1.0, 100))
    talk.turns.leave()
    await talk.hear(ENDED)
    async with administrator(world.settings) as admin:
        await admin.execute("BEGIN; LOCK TABLE runs")
        beginning = asyncio.create_task(talk.hear(begins(claim)))
        await until(lambda: waiting_for_locks(admin, 1))
        assert (talk.tasks.news, talk.turns.in_background) == (True, None)
        await admin.execute("COMMIT")
    await beginning
    assert not talk.tasks.news
    assert talk.turns.in_background is not None


def prompt(name: str, source: str) -> dict[str, Any]:
    content = '"promptSource":"sdk"'
    return {"type": "user", "uuid": name, "message": {"role": "user", "content": content}, "promptSource": source}


def tool_result(name: str) -> dict[str, Any]:
    content = [{"type": "tool_result", "content": "x"}]
    return {
        "type": "user",
        "uuid": name,
        "message": {"role": "user", "content": content},
        "toolUseResult": {"promptSource": "sdk"},
    }


def answer(name: str) -> dict[str, Any]:
    return {"type": "assistant", "uuid": name, "message": {"role": "assistant", "content": []}}


def refuses(claim: Claim, name: str) -> list[Message]:
    """What the CLI says of a turn that the model refuses."""
    said = AssistantMessage([], MODEL, error="invalid_request", uuid=name)
    result = ResultMessage("success", 1, 1, True, 1, str(claim.sdk_session_id), api_error_status=400, result="no")
    return [said, result]


@pytest.mark.parametrize("guest", [False, True])
async def test_a_turn_of_the_agents_own_that_the_model_refuses_is_forgotten_and_the_process_with_it(
    world: World, guest: bool
) -> None:
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    turn = talk.turns.assign(claim)
    if guest:
        turn.begin()
    else:
        await talk.hear(begins(claim, str(claim.run_id)), ends(claim, 1.0, 100))
        talk.turns.leave()
    await talk.stored(prompt("1", "sdk"), answer("2"), {"type": "queue-operation"})
    await talk.stored(prompt("3", "system"), answer("4"), tool_result("5"), answer("6"))
    await talk.stored(prompt("7", "sdk"))  # the process is ahead of what has been heard
    with pytest.raises(Poisoned):
        await talk.hear(begins(claim), *refuses(claim, "6"))
    await talk.stored(answer("8"))
    rows = await world.db.pool.fetch("SELECT uuid FROM transcript_entries WHERE session_id = $1", claim.session_id)
    assert [row["uuid"] for row in rows if row["uuid"]] == ["1", "2"]
    forgotten = [data for _, _, data in await world.events(claim.session_id) if data.get("status") == "turn_forgotten"]
    assert len(forgotten) == 1
    assert turn.lose() == guest  # the next agent is given the prompt


async def test_a_run_whose_agent_never_started_cost_nothing_and_a_killed_one_tells_nothing(world: World) -> None:
    for begun, cost in ((False, 0.0), (True, None)):
        _, claim, writer = await world.owned()
        talk = Talk(world, writer, claim)
        turn = talk.turns.assign(claim)
        if begun:
            turn.begin()
        await talk.conversation.fail(turn, "agent_crashed" if begun else "agent_start_failed")
        assert (await world.run(claim.run_id))["total_cost_usd"] == cost
    assert await usage.unmeasured(world.db, world.tenant_id, Scope()) == 1


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        ("plan", "plan"),
        ("default", "default"),
        ("bypassPermissions", "acceptEdits"),
        (7, "acceptEdits"),
        (None, "acceptEdits"),
    ],
)
async def test_an_agent_takes_along_the_mode_that_it_got_to_only_if_it_asks_no_less(
    world: World, told: Any, mode: str
) -> None:
    _, claim, writer = await world.owned()
    talk = Talk(world, writer, claim)
    talk.turns.assign(claim)
    await talk.hear(begins(claim, str(claim.run_id)), SystemMessage("status", {"permissionMode": told}))
    config = AgentConfig(permission_mode="acceptEdits")
    assert talk.conversation.in_its_mode(config).permission_mode == mode


async def test_the_turn_that_goes_on_in_a_new_process_is_one_run_with_what_the_first_has_used(world: World) -> None:
    _, claim, writer = await world.owned()
    figures = {MODEL: {"inputTokens": 100, "outputTokens": 1, "costUSD": 1.0}}
    claim = replace(claim, parked=Parked(uuid4(), "toolu_1", 10.0, 2, 1.0, (), figures))
    talk = Talk(world, writer, claim)
    turn = talk.turns.assign(claim)
    talk.conversation.owe(claim)
    talk.conversation.new_process()
    await talk.conversation.take_up(turn)
    await talk.hear(begins(claim), ends(claim, 0.5, 50))  # the CLI names no message of a user's
    run = await world.run(claim.run_id)
    assert (run["status"], run["total_cost_usd"], run["usage"][0]["input_tokens"]) == ("succeeded", 1.5, 150)
    assert [kind for _, kind, _ in await world.events(claim.session_id)] == ["status", "result", "done"]
    assert await world.one("SELECT num_turns FROM sessions WHERE id = $1", claim.session_id) == 3
