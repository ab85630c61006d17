"""Requests of an agent whose session is another instance's by now."""

from __future__ import annotations

import asyncio
import gc
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, ToolPermissionContext

from apps.api import clock
from apps.api.core.codec import encode
from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import requests
from apps.api.core.sessions.parking import Parked
from apps.api.core.sessions.requests import Asked
from apps.api.runner.session.approvals import QUESTION, Approvals
from apps.api.runner.session.background import Tasks
from apps.api.runner.session.steering import Steering
from apps.api.runner.session.turn import Turns
from tests.core.conftest import neighbourhood, world
from tests.world import PATIENCE, World, until

__all__ = ["neighbourhood", "world"]


class Owner:
    """Notes that the session is lost."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def lost(self, error: Exception) -> None:
        self.errors.append(error)

    async def heard(self, *_: object) -> None: ...

    async def ended(self, *_: object) -> None: ...


def approvals_of(core: Core, writer: Writer, turns: Turns, owner: Owner) -> Approvals:
    return Approvals(core, writer, turns, Tasks(), owner, Steering(core, writer, Mock(), turns, owner))


@pytest.mark.parametrize(
    "when", ["before it is asked", "while it is asked", "while it is withdrawn", "while it is withdrawn twice"]
)
async def test_a_request_of_a_session_that_is_lost_is_denied_and_its_owner_told(world: World, when: str) -> None:
    lease, claim, writer = await world.owned()
    owner, turns = Owner(), Turns(lambda: None)
    turns.assign(claim)
    approvals = approvals_of(world.core(action_timeout_seconds=0.5), writer, turns, owner)
    await approvals.saw([shown := str(uuid4())])
    if when == "before it is asked":
        lease.give_up()
    asking = asyncio.create_task(approvals.can_use_tool("Bash", {}, ToolPermissionContext(tool_use_id=shown)))
    if when != "before it is asked":
        await until(lambda: approvals.waiting)
        lease.give_up()
    if when.startswith("while it is withdrawn"):
        asking.cancel()
        if when == "while it is withdrawn twice":
            await asyncio.sleep(0)
            asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: bool(owner.errors))
        gc.collect()  # a failure that nobody has asked for is told when its task goes: see conftest.py
    else:
        assert isinstance(await asking, PermissionResultDeny)
    assert [type(error).__name__ for error in owner.errors] == ["LeaseLost"]
    assert not approvals.waiting


async def resolved(world: World, decision: dict[str, Any] | None, kind: str = "permission") -> tuple[Approvals, Turns]:
    """Those of a process that goes on with a call on which a person has decided, or nobody in time."""
    _, claim, writer = await world.owned()
    fields = {"tool_name": "Bash", "input": {"command": "seen"}, "suggestions": [], "questions": [{"question": "Q?"}]}
    asked = Asked(uuid4(), kind, claim.run_id, clock.now(), fields)
    async with world.db.transaction() as connection:
        await requests.insert(connection, world.tenant_id, claim.session_id, asked)
        await connection.execute(
            "UPDATE requests SET status = $2, decision = $3, resolved_by = '{}', resolved_at = now() WHERE id = $1",
            asked.id,
            "closed" if decision is None else "answered",
            encode(decision).decode() if decision else None,
        )
    turns = Turns(lambda: None)
    turns.assign(claim)
    approvals = approvals_of(world.core(), writer, turns, Owner())
    await approvals.take_up(Parked(asked.id, "toolu_1", 10.0))
    return approvals, turns


THIS = ToolPermissionContext(tool_use_id="toolu_1")


async def test_a_call_that_was_decided_on_waits_until_that_is_noted_and_is_carried_out_once(world: World) -> None:
    approvals, _ = await resolved(world, {"decision": "allow"})
    asking = asyncio.create_task(approvals.can_use_tool("Bash", {"command": "other"}, THIS))
    async with asyncio.timeout(10):
        await approvals.taken_up.wait()
    assert not (await asyncio.wait({asking}, timeout=0.2))[0]
    approvals.send()
    assert await asking == PermissionResultAllow(updated_input={"command": "seen"})
    assert isinstance(await approvals.can_use_tool("Bash", {"command": "seen"}, THIS), PermissionResultDeny)


@pytest.mark.parametrize(
    ("decision", "kind", "tool", "result"),
    [
        ({"decision": "allow", "updated_input": {"command": "mine"}}, "permission", "Bash", {"command": "mine"}),
        ({"decision": "deny", "message": "No."}, "permission", "Bash", "No."),
        (None, "permission", "Bash", "Nobody answered in time."),
        ({"decision": "allow"}, "permission", "Write", "This is not the call that was decided on."),
        ({"decision": "answered", "answers": {"Q?": "A"}}, "question", QUESTION, {"answers": {"Q?": "A"}}),
        (
            {"decision": "answered", "answers": {"Q?": "A"}},
            "question",
            "Bash",
            "This is not the call that was decided on.",
        ),
    ],
)
async def test_what_was_decided_is_what_is_done(
    world: World, decision: dict[str, Any] | None, kind: str, tool: str, result: Any
) -> None:
    approvals, _ = await resolved(world, decision, kind)
    approvals.send()
    given: dict[str, Any] = {"questions": [{"question": "Q?"}]} if kind == "question" else {"command": "seen"}
    found = await approvals.can_use_tool(tool, given, THIS)
    if isinstance(found, PermissionResultDeny):
        assert found.message == result
    else:
        assert found.updated_input == (given | result if kind == "question" else result)


async def _asking(world: World, claim: Claim, writer: Writer) -> tuple[Approvals, asyncio.Task[Any], UUID]:
    """A call that waits, and its request, which is stored."""
    turns = Turns(lambda: None)
    turns.enter(turns.assign(claim))
    approvals = approvals_of(world.core(), writer, turns, Owner())
    await approvals.saw(["toolu_1"])
    asking = asyncio.create_task(approvals.can_use_tool("Bash", {}, THIS))

    async def is_open() -> bool:
        return bool(await world.one("SELECT count(*) FROM requests WHERE run_id = $1", claim.run_id))

    await until(is_open)
    mine = approvals.sole(claim.run_id)
    assert mine is not None
    return approvals, asking, mine.asked.id


async def test_an_answer_that_comes_while_its_process_is_ended_is_left_to_who_parks_the_run(world: World) -> None:
    _, claim, writer = await world.owned()
    approvals, asking, _ = await _asking(world, claim, writer)
    mine = approvals.sole(claim.run_id)
    assert mine is not None
    approvals.leave(mine)
    answering = asyncio.create_task(approvals.answer(mine.asked.id, {"decision": "allow"}, {"type": "system"}))
    asking.cancel()
    await asyncio.wait({asking})
    assert await world.one("SELECT status FROM requests WHERE id = $1", mine.asked.id) == "open"
    assert not (await asyncio.wait({answering}, timeout=0.2))[0]
    approvals.gone()
    assert await answering
    assert [kind for _, kind, _ in await world.events(claim.session_id)] == ["permission_request"]


async def test_a_request_that_is_being_resolved_is_none_to_be_parked_with(world: World) -> None:
    _, claim, writer = await world.owned()
    turns = Turns(lambda: None)
    turns.assign(claim)
    approvals = approvals_of(world.core(), writer, turns, Owner())
    await approvals.saw(["toolu_1", "toolu_2"])
    asking = [asyncio.create_task(approvals.can_use_tool("Bash", {}, THIS))]
    await until(lambda: approvals.sole(claim.run_id) is not None)
    mine = approvals.sole(claim.run_id)
    assert mine is not None
    answering = asyncio.create_task(approvals.answer(mine.asked.id, {"decision": "allow"}, {"type": "system"}))
    await asyncio.sleep(0)
    assert approvals.sole(claim.run_id) is None
    await answering
    more = ToolPermissionContext(tool_use_id="toolu_2")
    asking.append(asyncio.create_task(approvals.can_use_tool("Bash", {}, more)))
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)


async def test_a_call_goes_on_at_once_and_what_follows_from_it_is_told_after_the_decision(world: World) -> None:
    _, claim, writer = await world.owned()
    approvals, asking, mine = await _asking(world, claim, writer)
    async with world.db.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", claim.session_id)
        answering = asyncio.create_task(approvals.answer(mine, {"decision": "allow"}, {"type": "system"}))
        assert isinstance(await asyncio.wait_for(asking, PATIENCE), PermissionResultAllow)
        after = asyncio.create_task(writer.append(Event("message")))
        assert not answering.done()  # nothing can be stored of this session now
    assert await answering
    await after
    told = [kind for _, kind, _ in await world.events(claim.session_id)]
    assert told == ["permission_request", "action_resolved", "message"]


async def test_an_answer_to_a_call_that_is_being_withdrawn_reaches_nobody(world: World) -> None:
    _, claim, writer = await world.owned()
    approvals, asking, mine = await _asking(world, claim, writer)
    async with world.db.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", claim.session_id)
        asking.cancel()
        await asyncio.sleep(0)
        answering = asyncio.create_task(approvals.answer(mine, {"decision": "allow"}, {"type": "system"}))
        await asyncio.sleep(0)
    assert not await answering
    await asyncio.wait({asking})
