"""What one agent process is made of, and which runs it is for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from claude_agent_sdk import ClaudeSDKClient

from apps.api.core.config.agent import AgentConfig
from apps.api.core.fleet.claims import Claim
from apps.api.core.tasks import end
from apps.api.runner.agent.process import RECYCLE_AFTER_TURNS, Agent
from apps.api.runner.guard.cgroups import Group


class Stubborn(ClaudeSDKClient):
    """Takes another model, and no other permission mode."""

    async def set_model(self, model: str | None = None) -> None:
        """As asked."""

    async def set_permission_mode(self, mode: str) -> None:
        raise Exception("Cannot set permission mode")


async def test_what_an_agent_took_of_a_change_that_it_refused_is_known_to_the_next_run() -> None:
    claim = Claim(uuid4(), "prompt", "say", False, 60, AgentConfig(model="before"), uuid4(), uuid4(), 1, 0, uuid4())
    agent = Agent(claim, Stubborn())
    with pytest.raises(Exception, match="Cannot set"):
        await agent.change({"model": "after", "permission_mode": "plan"})
    assert (agent.config.model, agent.config.permission_mode) == ("after", claim.config.permission_mode)


def test_an_agent_that_the_kernel_ended_for_its_memory_is_told_like_one_that_the_watchdog_ended(tmp_path: Path) -> None:
    claim = Claim(uuid4(), "prompt", "say", False, 60, AgentConfig(), uuid4(), uuid4(), 1, 0, uuid4())
    agent = Agent(claim, ClaudeSDKClient())
    agent.group = Group(tmp_path)
    assert agent.why_it_ended(None) == "agent_crashed"
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 3\n")
    assert agent.why_it_ended(None) == agent.exceeded == "agent_out_of_memory"
    (tmp_path / "memory.events").unlink()  # the group is removed with the agent
    assert agent.exceeded == "agent_out_of_memory"


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_an_agent_whose_tasks_are_at_work_is_not_recycled_for_its_size() -> None:
    claim = Claim(uuid4(), "prompt", "say", False, 60, AgentConfig(), uuid4(), uuid4(), 1, 0, uuid4())
    agent = Agent(claim, ClaudeSDKClient())
    agent._reader = asyncio.create_task(for_ever())  # as if it lived
    agent._turns = RECYCLE_AFTER_TURNS
    assert agent.unfit(claim, tasks=True, at_work=False) == "recycled"
    assert agent.unfit(claim, tasks=True, at_work=True) is None
    await end(agent._reader)
    assert agent.unfit(claim, tasks=True, at_work=True) == "agent_ended"
