"""The official `anthropic` clients, by a base URL, against three instances behind a balancer."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
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


@asynccontextmanager
async def played(three: Fleet, *command: str) -> AsyncIterator[Stage]:
    async with balancing(three.instances) as balancer, program(*command) as drive:
        made = Stage(three, balancer, drive)
        yield made
        await made.restore()


@pytest.fixture(params=["sync", "async"])
async def stage(three: Fleet, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with played(three, sys.executable, str(HERE / "managed.py"), request.param) as made:
        yield made


NODE = HERE / "managed_node"


@cache
def _npm_ci() -> str:
    """Have what the lock file names. Says why not, where there is no node, or no registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed"
    note, wanted = NODE / "node_modules/.made-of", (NODE / "package-lock.json").read_text(encoding="utf-8")
    if note.exists() and note.read_text(encoding="utf-8") == wanted:
        return ""
    words = ("npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", "--fetch-retries=1")
    try:
        found = subprocess.run(words, cwd=NODE, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "npm: no answer"
    if found.returncode:
        return f"npm: {found.stderr[-500:]}"
    note.write_text(wanted, encoding="utf-8")
    return ""


@pytest.fixture
async def node(three: Fleet) -> AsyncIterator[Stage]:
    if why := await asyncio.to_thread(_npm_ci):
        pytest.skip(why)
    async with played(three, "node", str(NODE / "drive.mjs")) as made:
        yield made


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
        "agent.message",  # what the tool answered; each text of an answer is a message
        "agent.message",
        "span.model_request_end",
        "session.status_idle",
    ]
    assert "written" in found["texts"][-1]
    assert found["newest"] == found["listed"][::-1]
    assert types(found["few"]) == ["agent.tool_use", "agent.message", "agent.message"]
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


async def bereaved(stage: Stage) -> dict[str, Any]:
    """What a client tells that follows by the official recipe, while the owner of its session is killed."""
    async with gate() as passed:

        async def kill() -> None:
            found = (await stage.get("/sessions", params={"status": "running", "limit": "1"}))["data"][0]
            owner = next(i for i in stage.fleet.instances if i.id == found["owner"])
            owner.signal(signal.SIGKILL)
            await owner.ended()

        return await stage.during(stage.drive("reconnected", given(stage, gate=passed.url)), passed.held(kill))


async def test_the_official_recipe_loses_nothing_when_the_owner_is_killed(stage: Stage) -> None:
    found = await bereaved(stage)
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


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("write hello.txt: hi then say 7 kg", "agent.tool_result"),
        ("run echo 7 kg", "user.tool_confirmation"),
        ('use tool mcp__client__weigh {"thing": "a stone"}', "user.custom_tool_result"),
    ],
)
async def test_the_typescript_client_does_the_same(node: Stage, prompt: str, kind: str) -> None:
    found = await node.drive("steps", given(node, prompt=prompt))
    assert found["seen"] == found["listed"]
    assert kind in types(found["seen"])
    assert "7 kg" in found["texts"][-1]


async def test_the_typescript_client_loses_nothing_either(node: Stage) -> None:
    found = await bereaved(node)
    assert found["seen"] == found["listed"]
