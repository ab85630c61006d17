"""The clients that people have for the AI SDK and AG-UI, as they are published, against three instances behind a
balancer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.balancer import balancing
from tests.clients.drivers import program
from tests.clients.stage import Drive, Stage, gate
from tests.clients.surfaces.installed import HERE, installed
from tests.conftest import StartFleet
from tests.fleet import Fleet

SAID = "[demo model, scripted] "
SLOWLY = "stream 40 words every 50 ms"
TOOL = {"name": "weather", "description": "The weather of a city.", "input_schema": {"type": "object"}}
TWO = "run echo one > one.txt then run echo two > two.txt then say done"
ONE = "run echo one > one.txt then say done"
ASK = {"permission_mode": "default"}


@pytest.fixture(scope="module")
async def three(start_lasting_fleet: StartFleet) -> Fleet:
    return await start_lasting_fleet(3)


@pytest.fixture
async def stage(three: Fleet, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """With one of the drivers: the words of a command line."""
    await asyncio.to_thread(installed)
    first, *more = request.param.split()
    async with balancing(three.instances) as balancer, program("node", str(HERE / first), *more) as drive:
        stage = Stage(three, balancer, drive)
        yield stage
        await stage.restore()


OLDER = pytest.param("drive_ai.mjs ai6", id="v6", marks=pytest.mark.slow)
AI = pytest.mark.parametrize("stage", [OLDER, pytest.param("drive_ai.mjs ai7", id="v7")], indirect=True)
AG = pytest.mark.parametrize("stage", ["drive_ag.mjs"], indirect=True, ids=["ag-ui"])


async def chat(stage: Stage, name: str, drive: Drive | None = None, **more: Any) -> dict[str, Any]:
    return await (drive or stage.drive)(name, stage.common(chat=f"chat/{uuid4()}", **more))


async def cut(stage: Stage, name: str, more: dict[str, Any], *, kill: bool = False) -> dict[str, Any]:
    """A scenario whose connections break at its gate; with `kill` the instances die that do not own the session."""
    async with gate() as at:

        async def happen() -> None:
            if kill:
                victims = [i for i in stage.fleet.instances if not i.agent_of("")][:2]
                for victim in victims:
                    victim.process.kill()
                    await victim.ended()
            await stage.balancer.drop()

        return await stage.during(stage.drive(name, stage.common(gate=at.url, **more)), at.held(happen))


@AI
async def test_a_chat_of_several_messages(stage: Stage) -> None:
    got = await chat(stage, "text", prompts=["stream 5 words", "recall"])
    assert got["error"] is None
    assert got["roles"] == ["user", "assistant"] * 2
    assert got["texts"][0] == "word1 word2 word3 word4 word5"
    assert "stream 5 words" in got["texts"][1]


@AI
async def test_tools_are_allowed_and_denied(stage: Stage) -> None:
    decisions = [{"approved": True}, {"approved": False, "reason": "not that one"}]
    got = await chat(stage, "approvals", prompt=TWO, body=ASK, decisions=decisions)
    assert got["error"] is None
    assert [asked["command"] for asked in got["asked"]] == ["echo one > one.txt", "echo two > two.txt"]
    assert got["states"] == ["output-available", "output-denied"]
    assert got["text"].endswith(f"{SAID}done")
    assert got["posts"] == ["POST chat"] * 3


@AI
async def test_calls_at_once_are_allowed(stage: Stage) -> None:
    prompt = "run at once echo a > a.txt & echo b > b.txt then say done"
    got = await chat(stage, "approvals", prompt=prompt, body=ASK, decisions=[{"approved": True}] * 2)
    assert got["error"] is None
    assert got["states"] == ["output-available"] * 2
    assert got["text"].endswith(f"{SAID}done")


@AI
async def test_the_client_executes_a_tool(stage: Stage) -> None:
    prompt = 'use tool mcp__client__weather {"city": "Ulm"} then say done'
    got = await chat(stage, "client_tool", prompt=prompt, body={"client_tools": [TOOL]}, output={"degrees": 21})
    assert got["error"] is None
    assert got["outputs"] == [{"degrees": 21}]
    assert got["text"].endswith(f"{SAID}done")
    assert got["posts"] == ["POST chat"] * 2


@AI
async def test_a_stream_that_was_cut_is_resumed_with_all_of_its_message(stage: Stage) -> None:
    got = await cut(stage, "resumed", {"chat": str(uuid4()), "prompt": SLOWLY})
    assert got["error"] is None
    assert got["text"] == " ".join(f"word{n}" for n in range(1, 41))
    assert got["roles"] == ["user", "assistant"]


@AI
async def test_a_page_that_is_loaded_anew_is_shown_what_is_asked(stage: Stage) -> None:
    got = await cut(stage, "asked_after_reload", {"chat": str(uuid4()), "prompt": ONE, "body": ASK})
    assert got["error"] is None
    assert got["states"] == ["output-available"]
    assert got["text"].endswith(f"{SAID}done")


@AI
async def test_two_tabs_answer_at_once(stage: Stage) -> None:
    got = await chat(stage, "two_tabs", prompt=ONE, body=ASK)
    assert (got["error"], got["other"]["error"]) == (None, None)
    assert got["text"] == got["other"]["text"]
    assert got["text"].endswith(f"{SAID}done")
    assert len((await stage.get("/sessions", params={"limit": "1"}))["data"]) == 1


@AI
async def test_a_message_is_edited_and_one_answered_again(stage: Stage) -> None:
    given: dict[str, Any] = {"prompts": ["remember apples", "remember pears"], "edited": "remember plums"}
    got = await chat(stage, "edit_and_regenerate", **given)
    assert got["error"] is None
    for text in (got["recalled"], got["text"]):
        assert ("apples" in text, "plums" in text, "pears" in text) == (True, True, False)
    assert got["id"] != got["before"]


@AI
async def test_a_run_is_stopped(stage: Stage) -> None:
    got = await chat(stage, "stopped", prompt="stream 1000 words every 50 ms")
    assert (got["stop"], got["status"], got["error"]) == (200, "ready", None)


@AI
async def test_what_is_refused_is_shown(stage: Stage) -> None:
    got = await chat(stage, "refused")
    assert got["status"] == "error"
    assert "nonsense" in got["error"]


@AI
async def test_a_run_whose_owner_is_killed_ends_with_an_error(stage: Stage) -> None:
    async with gate() as at:

        async def kill() -> None:
            session = (await stage.get("/sessions", params={"limit": "1"}))["data"][0]["session_id"]
            owner = await stage.fleet.owner_of(session)
            owner.process.kill()
            await owner.ended()

        given = stage.common(chat=str(uuid4()), prompt="stream 400 words every 50 ms", gate=at.url)
        got = await stage.during(stage.drive("resumed", given), at.held(kill))
    # Either its own stream told it, or there was nothing to resume by then.
    assert got["cut"]["status"] == "error" or got["status"] in ("ready", "error")
    again = await stage.drive("text", stage.common(chat=given["chat"], prompts=["say again"]))
    assert (again["error"], again["text"]) == (None, f"{SAID}again")


# --- AG-UI ---


@pytest.fixture(scope="module")
async def agent(three: Fleet) -> str:
    made = await three[0].post("/agents", {"name": "helper", "permission_mode": "default"})
    assert made.status_code == 201, made.text
    return "helper"


async def thread(stage: Stage, name: str, **more: Any) -> dict[str, Any]:
    got = await stage.drive(name, stage.common(thread=f"thread/{uuid4()}", agent="helper", **more))
    assert got["warnings"] == []
    return got


@AG
async def test_a_thread_of_several_messages(stage: Stage, agent: str) -> None:
    got = await thread(stage, "text", prompts=["think about it then stream 5 words", "recall"])
    assert [run["error"] for run in got["runs"]] == [None, None]
    assert "word5" in got["texts"][0]
    assert "stream 5 words" in got["texts"][1]
    assert "reasoning" in got["roles"]
    assert got["runs"][0]["types"][0] == "RUN_STARTED"
    assert got["runs"][0]["end"]["outcome"] == {"type": "success"}


@AG
async def test_interrupts_are_resolved_and_cancelled(stage: Stage, agent: str) -> None:
    got = await thread(
        stage, "interrupts", prompt=TWO, payloads=[{"approved": True}, {"approved": False, "reason": "no"}]
    )
    outcomes = [run["end"]["outcome"]["type"] for run in got["runs"]]
    assert outcomes == ["interrupt", "interrupt", "success"]
    assert got["text"] == f"{SAID}done"
    assert len(got["results"]) == 2
    got = await thread(stage, "interrupts", prompt=ONE, payloads=[None])
    assert got["text"] == f"{SAID}done"


@AG
async def test_a_question_is_answered(stage: Stage, agent: str) -> None:
    got = await thread(
        stage, "interrupts", prompt="ask Which colour? options red, blue then say done", payloads=["blue"]
    )
    assert got["runs"][0]["end"]["outcome"]["interrupts"][0]["reason"] == "question"
    assert got["text"] == f"{SAID}done"


@AG
async def test_the_front_end_executes_a_tool(stage: Stage, agent: str) -> None:
    tool = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}
    prompt = 'use tool mcp__client__weather {"city": "Ulm"} then say done'
    props = {"allowed_tools": ["mcp__client__weather"]}
    got = await thread(stage, "front_end_tool", prompt=prompt, tool=tool, content="21", props=props)
    assert [run["error"] for run in got["runs"]] == [None, None]
    assert got["text"] == f"{SAID}done"
    assert got["results"] == ["21"]


@AG
async def test_a_thread_that_was_cut_is_told_again(stage: Stage, agent: str) -> None:
    got = await cut(stage, "reconnected", {"thread": str(uuid4()), "agent": "helper", "prompt": SLOWLY})
    assert got["second"]["error"] is None
    assert got["second"]["types"][:2] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
    assert got["text"] == " ".join(f"word{n}" for n in range(1, 41))
    assert got["roles"] == ["user", "assistant"]


@AG
async def test_a_page_that_is_loaded_anew_is_shown_the_interrupt(stage: Stage, agent: str) -> None:
    got = await cut(stage, "asked_after_reload", {"thread": str(uuid4()), "agent": "helper", "prompt": ONE})
    assert got["last"]["error"] is None
    assert got["text"] == f"{SAID}done"
    assert got["ids"][0] == got["user"]


@AG
async def test_two_resume_at_once(stage: Stage, agent: str) -> None:
    got = await thread(stage, "two_tabs", prompt=ONE)
    assert [run["error"] for run in got["runs"]] == [None, None]
    assert got["text"] == got["other"]["text"] == f"{SAID}done"


@AG
async def test_the_state_of_a_thread_is_kept(stage: Stage, agent: str) -> None:
    got = await thread(stage, "state", prompt="say hello", state={"colour": "blue"})
    assert got["state"] == {"colour": "blue"}
    assert got["roles"] == ["user", "assistant"]
    assert got["ids"][0] == got["user"]
    assert got["contents"] == ["say hello", f"{SAID}hello"]
