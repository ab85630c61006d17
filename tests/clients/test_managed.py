"""The official `anthropic` clients, by a base URL, against three instances behind a balancer."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from apps.api.dialects.managed import ids
from tests.balancer import balancing
from tests.clients.drivers import HERE, program
from tests.clients.stage import Stage, gate
from tests.conftest import StartFleet
from tests.fleet import API_KEY, Fleet

PREFIX = "/compat/managed-agents"


@pytest.fixture(scope="module")
async def three(start_lasting_fleet: StartFleet) -> Fleet:
    return await start_lasting_fleet(3)


@pytest.fixture(params=["sync", "async"])
async def stage(three: Fleet, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    drives = program(sys.executable, str(HERE / "managed.py"), request.param)
    async with balancing(three.instances) as balancer, drives as drive:
        made = Stage(three, balancer, drive)
        yield made
        await made.restore()


def given(stage: Stage, **more: Any) -> dict[str, Any]:
    return {"base_url": stage.balancer.url + PREFIX, "api_key": API_KEY, **more}


def types(told: Sequence[Sequence[str]]) -> list[str]:
    return [type_ for _, type_ in told]


async def test_the_first_steps_of_the_vendors_guide(stage: Stage) -> None:
    found = await stage.drive("first_steps", given(stage))
    assert found["seen"] == found["listed"]
    assert found["sent"][0] == found["seen"][0]
    assert types(found["seen"]) == [
        "user.message",
        "session.status_running",
        "span.model_request_start",
        "agent.tool_use",
        "span.model_request_end",
        "agent.tool_result",
        "span.model_request_start",
        "agent.message",
        "span.model_request_end",
        "session.status_idle",
    ]
    assert "written" in found["texts"][-1]
    assert found["newest"] == found["listed"][::-1]
    assert types(found["few"]) == ["agent.tool_use", "agent.message"]
    assert found["status"] == "idle"
    assert found["permissions"] == ["allow"]
    assert all(count > 0 for count in found["spans"])
    assert found["agent"] == ["Coding Assistant", "You are helpful.", "claude-sonnet-5-5", 1]


async def test_a_tool_waits_for_its_confirmation(stage: Stage) -> None:
    found = await stage.drive("tool_confirmed", given(stage, prompt="run echo yes", result="allow"))
    assert found["seen"] == found["listed"]
    assert found["answers"][0] == ["bash", "echo yes", "ask"]
    assert [found["answers"][1], "user.tool_confirmation"] in found["seen"]
    assert Counter(types(found["seen"]))["agent.tool_result"] == 1
    assert "yes" in found["texts"][-1]


async def test_a_tool_is_denied_with_a_reason(stage: Stage) -> None:
    asked = given(stage, prompt="run touch no.txt", result="deny", message="not in this house")
    found = await stage.drive("tool_confirmed", asked)
    assert found["seen"] == found["listed"]
    assert "not in this house" in found["texts"][-1]


async def test_a_custom_tool_is_executed_by_the_client(stage: Stage) -> None:
    found = await stage.drive("custom_tool", given(stage))
    assert found["called"][0] == ["agent.custom_tool_use", "weigh", {"thing": "a stone"}]
    assert found["called"][2]["status"] == 409
    assert found["called"][2]["retry"] == "false"
    assert [found["called"][1], "user.custom_tool_result"] in found["seen"]
    assert found["results"] == ["7 kg"]
    assert "7 kg" in found["texts"][-1]


async def test_an_interrupt_ends_the_turn_and_what_waits_begins(stage: Stage) -> None:
    found = await stage.drive("interrupted", given(stage))
    interrupt, queued, waits, processed = found["sent"]
    assert (waits, processed) == (queued, None)
    assert found["seen"] == found["listed"]
    assert [interrupt, "user.interrupt"] in found["seen"]
    assert Counter(types(found["seen"]))["session.status_idle"] == 2
    assert "next" in found["texts"][-1]


async def test_the_official_recipe_loses_nothing_when_the_owner_is_killed(stage: Stage) -> None:
    async with gate() as passed:
        driving = stage.drive("reconnected", given(stage, gate=passed.url))

        async def kill() -> None:
            found = (await stage.get("/sessions", params={"status": "running", "limit": "1"}))["data"][0]
            owner = next(i for i in stage.fleet.instances if i.id == found["owner"])
            owner.signal(signal.SIGKILL)
            await owner.ended()

        found = await stage.during(driving, passed.held(kill))
    assert found["seen"] == found["listed"]
    assert found["connections"] > 0
    assert len({id_ for id_, _ in found["listed"]}) == len(found["listed"])
    assert found["errors"] == ["unknown_error"]
    assert "still here" in found["texts"][-1]


async def test_messages_are_previewed_and_then_told_under_the_same_id(stage: Stage) -> None:
    found = await stage.drive("previewed", given(stage))
    assert found["previews"]
    assert set(found["previews"]) <= set(found["final"])
    assert found["finals"][-1][0] == found["finals"][-1][1]
    assert not [type_ for type_ in found["kept"] if type_.startswith("event_")]


async def test_a_subagent_is_a_thread(stage: Stage) -> None:
    body = {"name": f"delegates-{uuid4().hex[:8]}", "tools": ["Task", "Bash"], "allowed_tools": ["Task", "Bash"]}
    preset = (await (await stage.living()).post("/agents", body)).json()["agent_id"]
    headers = {"x-api-key": API_KEY}
    made = await stage.fleet[1].client.post(f"{PREFIX}/v1/environments", json={"name": "x"}, headers=headers)
    parameters = given(stage, agent=ids.write("agent", preset), environment=made.json()["id"])
    found = await stage.drive("delegated", parameters)
    main, own = found["threads"]
    assert found["created"] == [own[0]] == [found["found"]]
    assert (main[2], own[1:]) == (None, ["idle", main[0]])
    assert "agent.tool_use" in types(found["thread"])
    assert "agent.message" in types(found["thread"])
    told = [type_ for type_ in types(found["seen"]) if "thread" in type_]
    assert told == [
        "session.thread_created",
        "session.thread_status_running",
        "agent.thread_message_sent",
        "session.thread_status_idle",
        "agent.thread_message_received",
    ]


async def test_the_packages_own_runner_executes_custom_tools(stage: Stage) -> None:
    found = await stage.drive("run_by_the_runner", given(stage))
    assert found["calls"] in ([], [["weigh", True, False]])
    assert "7 kg" in found["texts"][-1]


async def test_versions_conflict_and_nothing_is_repeated(stage: Stage) -> None:
    found = await stage.drive("conflicts", given(stage))
    assert found["versions"] == [2, 2, 1]
    assert found["listed"]
    for name, status in (("stale", 409), ("archived", 409), ("missing", 404), ("unsupported", 400)):
        assert (found[name]["status"], found[name]["retry"]) == (status, "false"), found[name]
        assert found[name]["request_id"]
    assert found["gone"] == "session_deleted"
