"""What one agent process is made of, and which runs it is for."""

from __future__ import annotations

from uuid import uuid4

import pytest
from claude_agent_sdk import ClaudeSDKClient

from apps.api.core.config.agent import AgentConfig
from apps.api.core.fleet.claims import Claim
from apps.api.runner.agent.process import Agent


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
