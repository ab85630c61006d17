"""The official `anthropic` clients, by a base URL, against three instances behind a balancer."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.balancer import balancing
from tests.clients.drivers import HERE, program
from tests.clients.stage import Stage
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
