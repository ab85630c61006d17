"""Agents that are started before anybody asks for them: who gets one, who does not, and what is left of the others."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from typing import Any
from uuid import uuid4

import psutil

from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import Instance
from tests.world import until

AHEAD = {"PREWARM": "1"}
soon = partial(until, every=0.05, seconds=30)


async def figure(instance: Instance, name: str) -> float:
    text = (await instance.client.get("/metrics")).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"claude_agent_api_{name} "))


async def ready(instance: Instance, count: int = 1) -> None:
    async def are() -> bool:
        return await figure(instance, "agents_ahead") == count

    await soon(are)


async def asked(instance: Instance, prompt: str = "say hello", **more: Any) -> dict[str, Any]:
    """A new session's first prompt; with what the process was made for it, if it was here before."""
    before = {process.pid for process in instance.descendants()}
    answer = await instance.post("/query/single", {"prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {**found, "ahead": bool(before & {process.pid for process in instance.agent_of(found["session_id"])})}


async def test_a_new_session_finds_an_agent_that_was_started_ahead(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **AHEAD)
    one = fleet[0]
    assert not (await asked(one))["ahead"]
    await ready(one)
    second = await asked(one, "use 1 tools", permission_mode="default")
    assert not second["ahead"]  # another configuration
    third = await asked(one, "say my number is 4711")
    assert third["ahead"]
    assert third["result"] == "[demo model, scripted] my number is 4711"
    assert "4711" in (await one.ask(third["session_id"], "recall"))["result"]  # and the session goes on with it
    assert await figure(one, "agents_ahead_taken_total") == 1
    await ready(one)
    async with one.stream(f"/sessions/{third['session_id']}/events?until=idle") as events:
        told = [event async for event in events if event.event != "partial"]
    assert [int(event.id) for event in told] == list(range(1, len(told) + 1))
    assert (await one.get(f"/sessions/{third['session_id']}")).json()["num_turns"] == 2


async def test_files_and_conversation_of_such_a_session_go_on_elsewhere(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, **AHEAD)
    await asked(fleet[0], permission_mode="bypassPermissions")
    await asked(fleet[0], permission_mode="bypassPermissions")
    await ready(fleet[0])
    made = await asked(fleet[0], "write note.txt: carrots", permission_mode="bypassPermissions")
    assert made["ahead"]
    fleet[0].signal(signal.SIGKILL)
    await fleet[0].ended()
    told = await fleet[1].ask(made["session_id"], "run cat note.txt")
    assert "carrots" in told["result"]


async def test_it_is_for_its_tenant_its_configuration_and_what_the_tenant_has_now(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **AHEAD)
    one = fleet[0]
    config: dict[str, Any] = {"system_prompt": "Be brief.", "max_turns": 7}
    preset = f"p{uuid4().hex[:8]}"
    assert (await one.post("/agents", {"name": preset, **config})).status_code == 201
    for _ in range(2):
        assert not (await asked(one, agent=preset))["ahead"]
    await ready(one)
    async with database_of(fleet) as db:
        others = await make_key(db, f"t{uuid4().hex}")
    stranger = await one.post("/query/single", {"prompt": "say hello", **config}, headers=others)
    assert stranger.status_code == 200, stranger.text
    assert await figure(one, "agents_ahead_taken_total") == 0
    skill = {"description": "Says a word.", "content": "Say plum."}
    assert (await one.client.put("/api/v1/skills/word", json=skill)).status_code in (200, 201)
    await ready(one)
    made = await asked(one, agent=preset)
    assert not made["ahead"]  # one was taken, and ended: it does not know the skill
    assert made["result"] == "[demo model, scripted] hello"


async def test_none_is_kept_for_a_tenant_that_is_suspended(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **AHEAD)
    one = fleet[0]
    tenant = f"t{uuid4().hex}"
    async with database_of(fleet) as db:
        headers = await make_key(db, tenant)
    assert (await one.post("/query/single", {"prompt": "say hello"}, headers=headers)).status_code == 200
    await ready(one)
    assert (await one.post(f"/admin/tenants/{tenant}/suspend")).status_code == 200
    await ready(one, 0)
    await soon(lambda: not one.descendants())


async def test_one_that_has_died_is_not_missed(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **AHEAD)
    one = fleet[0]
    first = await asked(one)
    await ready(one)
    known = {process.pid for process in one.agent_of(first["session_id"])}
    for process in one.descendants():
        if process.pid not in known and "claude" in process.name():
            process.kill()
    again = await asked(one)
    assert again["result"] == "[demo model, scripted] hello"


async def test_nothing_is_left_of_it_when_the_instance_ends(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **AHEAD)
    one = fleet[0]
    await asked(one)
    await ready(one)
    processes = one.descendants()
    workspaces = one.disk
    assert len(os.listdir(workspaces / ".ahead")) == 1
    one.signal(signal.SIGTERM)
    assert await one.ended() == 0
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert os.listdir(workspaces / ".ahead") == []
    sessions = [name for name in os.listdir(workspaces) if not name.startswith(".")]
    assert len(sessions) == 1


async def test_prompts_at_once_get_one_each_and_the_rest_start_as_ever(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, PREWARM="2")
    await asked(fleet[0])
    await asked(fleet[0])
    await ready(fleet[0], 2)
    told = await asyncio.gather(*(asked(fleet[number % 2], f"say number {number}") for number in range(6)))
    assert [one["result"] for one in told] == [f"[demo model, scripted] number {number}" for number in range(6)]
    assert len({one["session_id"] for one in told}) == 6
    assert await figure(fleet[0], "agents_ahead_taken_total") in (2, 3)
