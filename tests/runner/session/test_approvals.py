"""Requests of an agent whose session is another instance's by now."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from claude_agent_sdk import PermissionResultDeny, ToolPermissionContext

from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.turn import Turns
from tests.core.conftest import neighbourhood, world
from tests.world import World, until

__all__ = ["neighbourhood", "world"]


class Owner:
    """Notes that the session is lost."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def lost(self, error: Exception) -> None:
        self.errors.append(error)

    async def heard(self, *_: object) -> None: ...

    async def ended(self, *_: object) -> None: ...


@pytest.mark.parametrize("when", ["before it is asked", "while it is asked", "while it is withdrawn"])
async def test_a_request_of_a_session_that_is_lost_is_denied_and_its_owner_told(world: World, when: str) -> None:
    lease, claim, writer = await world.owned()
    owner, turns = Owner(), Turns(lambda: None)
    turns.assign(claim)
    approvals = Approvals(world.core(action_timeout_seconds=0.5), writer, turns, Tasks(), owner)
    await approvals.saw([shown := str(uuid4())])
    if when == "before it is asked":
        lease.give_up()
    asking = asyncio.create_task(approvals.can_use_tool("Bash", {}, ToolPermissionContext(tool_use_id=shown)))
    if when != "before it is asked":
        await until(lambda: approvals.waiting)
        lease.give_up()
    if when == "while it is withdrawn":
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    else:
        assert isinstance(await asking, PermissionResultDeny)
    assert [type(error).__name__ for error in owner.errors] == ["LeaseLost"]
    assert not approvals.waiting
