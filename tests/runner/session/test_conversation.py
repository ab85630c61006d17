"""What the turns of an agent cost, and which run it is counted for."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from claude_agent_sdk import (
    ClaudeSDKClient,
    Message,
    ResultMessage,
    SystemMessage,
)

from apps.api.core.events.log import Writer
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.core.tenant import usage
from apps.api.core.tenant.usage import Scope
from apps.api.runner.agent.process import Agent
from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.ports import Ports
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
        store = Transcripts(core.db, Lease(uuid4(), 60), claim.session_id, claim.generation, claim.sdk_session_id)
        approvals, ports = Approvals(core, writer, self.turns, self.tasks), Ports(writer, self.turns)
        self.conversation = Conversation(core, writer, store, self.turns, self.tasks, approvals, ports)
        self.agent = Agent(claim, ClaudeSDKClient())

    async def hear(self, *messages: Message) -> None:
        for message in messages:
            await self.conversation.hear(self.agent, message)


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
