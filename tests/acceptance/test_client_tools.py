"""Tools that the client's own program executes: the real CLI calls them, and any instance takes the result."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.acceptance.asking import ASKING, COMMAND, all_asked, asked, elsewhere, parked, request_state, resolutions
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse
from tests.mcp_things import stdio
from tests.sockets import open_socket

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}

WEIGH = {
    "name": "weigh",
    "description": "Say what a thing weighs.",
    "input_schema": {
        "type": "object",
        "properties": {"thing": {"type": "string", "maxLength": 100}},
        "required": ["thing"],
        "additionalProperties": False,
    },
}
CALL = 'use tool mcp__client__weigh {"thing": "a cat"}'


def with_tools(*tools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"client_tools": list(tools or [WEIGH]), "permission_mode": "default", "tools": ["Bash"], **more}


def path_of(call: Sse) -> str:
    return f"/sessions/{call.data['session_id']}/tool-results/{call.data['request_id']}"


async def called(fleet: Fleet, prompt: str = CALL, **config: Any) -> tuple[str, str, Sse]:
    """A call that waits: its session, its run, its event."""
    session_id = await fleet[0].session(**{**with_tools(), **config})
    run_id = await fleet[0].prompt(session_id, prompt)
    return session_id, run_id, await asked(fleet[0], run_id, "client_tool_call")


async def give(instance: Instance, call: Sse, content: Any = "4 kg", **more: Any) -> dict[str, Any]:
    answer = await instance.post(path_of(call), {"content": content, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def said(instance: Instance, run_id: str) -> str:
    events = await instance.follow(run_id)
    assert events[-1].data["status"] == "succeeded", events[-2:]
    return str(events[-2].data["result"])


async def test_a_call_waits_for_its_result_from_any_instance(fleet: Fleet) -> None:
    session_id, run_id, call = await called(fleet)
    assert {name: call.data[name] for name in ("tool_name", "input")} == {
        "tool_name": "weigh",
        "input": {"thing": "a cat"},
    }
    assert call.data["expires_at"]
    assert call.data["tool_use_id"].startswith("toolu_")
    other = await elsewhere(fleet, session_id)
    assert (await other.get(f"/runs/{run_id}")).json()["status"] == "requires_action"
    [waiting] = [r for r in (await other.get("/requests")).json()["data"] if r["request_id"] == call.data["request_id"]]
    assert (waiting["type"], waiting["tool_name"], waiting["input"]) == ("client_tool", "weigh", {"thing": "a cat"})
    assert (await give(other, call))["status"] == "applied"
    events = await fleet[0].follow(run_id)
    assert events[-2].data["result"].endswith("the tool answered: 4 kg")
    assert resolutions(events) == [("answered", "key")]
    init = next(e.data for e in events if e.event == "init")
    assert "mcp__client__weigh" in init["tools"]
    assert {"name": "client", "status": "connected", "source": "sdk"} in init["mcp_servers"]
    assert (await request_state(other, call))["status"] == "answered"


async def test_the_first_result_counts(fleet: Fleet) -> None:
    _, run_id, call = await called(fleet)
    answers = await asyncio.gather(
        *(fleet[n % 3].post(path_of(call), {"content": f"{n} kg"}) for n in range(9)),
    )
    assert Counter(a.status_code for a in answers) == {200: 1, 409: 8}
    assert {a.json()["error"]["code"] for a in answers if a.status_code == 409} == {"request_resolved"}
    first = next(n for n, a in enumerate(answers) if a.status_code == 200)
    assert (await said(fleet[0], run_id)).endswith(f"{first} kg")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "content"),
        ({"content": None}, "content"),
        ({"content": 4}, "content"),
        ({"content": []}, "content"),
        ({"content": [{"type": "text"}]}, "content"),
        ({"content": [{"type": "document", "source": {}}]}, "content"),
        ({"content": [{"type": "text", "text": "x"}] * 21}, "content"),
        ({"content": [{"type": "image", "source": {**SOURCE, "data": "eA=="}}]}, "content"),
        ({"content": "x", "is_error": "maybe"}, "is_error"),
        ({"content": "x", "result": "y"}, "result"),
    ],
)  # fmt: skip
async def test_what_is_no_result_leaves_the_call_open(waiting: Sse, fleet: Fleet, body: Any, field: str) -> None:
    answer = await fleet[1].post(path_of(waiting), body)
    assert answer.status_code == 422, answer.text
    assert any(e["field"].startswith(field) for e in answer.json()["error"]["details"]["errors"])
    assert (await request_state(fleet[1], waiting))["status"] == "open"


@pytest.fixture(scope="module")
async def waiting(fleet: Fleet) -> Any:
    _, run_id, call = await called(fleet)
    yield call
    await give(fleet[2], call)
    await said(fleet[0], run_id)


async def test_only_a_call_takes_a_result(fleet: Fleet, waiting: Sse) -> None:
    wrong = await fleet[1].post(path_of(waiting).replace("tool-results", "permissions"), {"decision": "allow"})
    assert "is a client tool's call, not a permission" in wrong.text
    question = {"request_id": waiting.data["request_id"], "answers": {"a": "b"}}
    wrong = await fleet[1].post(f"/sessions/{waiting.data['session_id']}/answer", question)
    assert wrong.status_code == 422
    unknown = await fleet[1].post(path_of(waiting)[:-4] + "0000", {"content": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")


async def test_results_of_blocks_and_failures_are_what_the_model_is_given(fleet: Fleet) -> None:
    picture = {"type": "image", "source": SOURCE}
    session_id, run_id, call = await called(fleet)
    await give(fleet[1], call, [{"type": "text", "text": "here it is"}, picture])
    events = await fleet[0].follow(run_id)
    [result] = [b for e in events if e.event == "message" for b in e.data["content"] if b["type"] == "tool_result"]
    assert [block["type"] for block in result["content"]] == ["text", "image"]
    run_id = await fleet[0].prompt(session_id, CALL)
    await give(fleet[2], await asked(fleet[0], run_id, "client_tool_call"), "no scales", is_error=True)
    events = await fleet[0].follow(run_id)
    [result] = [b for e in events if e.event == "message" for b in e.data["content"] if b["type"] == "tool_result"]
    assert (result["is_error"], "no scales" in str(result["content"])) == (True, True)


@pytest.mark.parametrize(
    "given", ["{}", '{"thing": 4}', '{"thing": "cat", "more": 1}', '{"thing": "%s"}' % ("x" * 101)]
)
async def test_an_input_that_does_not_fit_never_comes_to_the_client(fleet: Fleet, given: str) -> None:
    session_id = await fleet[0].session(**with_tools())
    events = await fleet[0].follow(await fleet[0].prompt(session_id, f"use tool mcp__client__weigh {given}"))
    assert not [e for e in events if e.event == "client_tool_call"]
    assert "does not fit the tool" in events[-2].data["result"]


async def test_calls_need_no_permission_and_a_rule_forbids_them(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**with_tools(disallowed_tools=["mcp__client__weigh"], unattended=True))
    events = await fleet[0].follow(await fleet[0].prompt(session_id, CALL))
    assert not [e for e in events if e.event == "client_tool_call"]
    session_id = await fleet[0].session(**with_tools(unattended=True))
    run_id = await fleet[0].prompt(session_id, CALL)
    await give(fleet[1], await asked(fleet[0], run_id, "client_tool_call"))
    assert (await said(fleet[0], run_id)).endswith("4 kg")


async def test_they_stand_beside_mcp_servers(fleet: Fleet) -> None:
    both = 'use tool mcp__things__weigh {"thing": "a dog"} then ' + CALL
    config = with_tools(mcp_servers={"things": stdio(SCALE="seven!!")}, permission_mode="bypassPermissions")
    session_id = await fleet[0].session(**config)
    run_id = await fleet[0].prompt(session_id, both)
    await give(fleet[1], await asked(fleet[0], run_id, "client_tool_call"))
    events = await fleet[0].follow(run_id)
    results = str([b for e in events if e.event == "message" for b in e.data["content"] if b["type"] == "tool_result"])
    assert "a dog weighs 7 stone" in results
    assert "4 kg" in results


async def test_a_result_comes_over_the_websocket(fleet: Fleet) -> None:
    async with open_socket(fleet[1]) as socket:
        run = await socket.ask("prompt", prompt=CALL, **with_tools())
        call = await asked(fleet[2], run["run_id"], "client_tool_call")
        ids = {name: call.data[name] for name in ("session_id", "request_id")}
        assert await socket.refused("tool_result", **ids) == (422, "validation_error")
        assert (await socket.ask("tool_result", **ids, content="5 kg"))["status"] == "applied"
        assert (await socket.of_run(run["run_id"]))["data"]["status"] == "succeeded"


async def test_no_mcp_server_has_their_name(fleet: Fleet) -> None:
    config = with_tools(mcp_servers={"client": stdio()})
    refused = await fleet[0].post("/sessions", config)
    assert (refused.status_code, refused.json()["error"]["details"]["errors"][0]["field"]) == (
        422,
        "mcp_servers.client",
    )
    session_id = await fleet[0].session(mcp_servers={"client": stdio()})
    refused = await fleet[0].post("/query", {"prompt": "say x", "session_id": session_id, "client_tools": [WEIGH]})
    assert (refused.status_code, refused.json()["error"]["details"]["errors"][0]["field"]) == (
        422,
        "mcp_servers.client",
    )


async def test_an_interrupt_closes_the_call(fleet: Fleet) -> None:
    session_id, run_id, call = await called(fleet)
    await (await elsewhere(fleet, session_id)).post(f"/sessions/{session_id}/interrupt")
    events = await fleet[0].follow(run_id)
    assert events[-1].data["status"] == "interrupted"
    assert resolutions(events) == [("closed", "interrupted")]
    late = await fleet[1].post(path_of(call), {"content": "x"})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "request_resolved")
    assert (await fleet[0].ask(session_id, "say on"))["result"].endswith("on")


async def test_a_call_that_nobody_answers_expires_and_the_agent_goes_on(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, ACTION_TIMEOUT_SECONDS="2")
    _, run_id, call = await called(fleet, CALL + " then say on")
    events = await fleet[0].follow(run_id)
    assert resolutions(events) == [("closed", "expired")]
    assert (events[-1].data["status"], events[-2].data["result"].endswith("on")) == ("succeeded", True)
    assert (await fleet[0].post(path_of(call), {"content": "x"})).status_code == 409


async def test_a_call_is_not_parked(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, PARK_AFTER_SECONDS="0.1")
    session_id, run_id, call = await called(fleet)
    await parked(
        fleet[0], await fleet[0].prompt(await fleet[0].session(**ASKING), COMMAND)
    )  # which waits for less long
    assert fleet[0].agent_of(session_id)
    await give(fleet[0], call)
    events = await fleet[0].follow(run_id)
    assert "parked" not in [e.data.get("status") for e in events if e.event == "status"]


@pytest.mark.slow
async def test_calls_of_an_owner_that_is_killed_are_closed_and_told(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id, run_id, call = await called(fleet)
    owner = await fleet.owner_of(session_id)
    other = (await fleet.others(owner))[0]
    owner.process.kill()
    events = await other.follow(run_id)
    assert (events[-1].data["status"], events[-2].data["code"]) == ("failed", "owner_lost")
    assert resolutions(events) == [("closed", "owner_lost")]
    assert (await other.post(path_of(call), {"content": "x"})).status_code == 409
    assert (await other.ask(session_id, "say on"))["result"].endswith("on")


async def given_until_taken(instance: Instance, path: str, result: Mapping[str, Any]) -> httpx.Response:
    """The answer to a result, given again as long as the server says that it is too busy, which a slow one may be."""
    answer = await instance.post(path, result)
    if answer.status_code != 503:
        return answer
    await asyncio.sleep(float(answer.headers["Retry-After"]))
    return await given_until_taken(instance, path, result)


@pytest.mark.slow
async def test_a_hundred_calls_at_once_are_each_answered_once(start_fleet: StartFleet) -> None:
    """Ten sessions with ten calls each, and three answers to each call, on three instances. With a long lease: where
    ten agents start on two cores beside other tests, five seconds may pass without a renewal."""
    fleet = await start_fleet(3, INSTANCE_LEASE_SECONDS="30")
    tool = {**WEIGH, "read_only": True}
    sessions = [await fleet[n % 3].session(**with_tools(tool)) for n in range(10)]
    together = " & ".join(f'mcp__client__weigh {{"thing": "thing {n}"}}' for n in range(10))
    runs = [await fleet[n % 3].prompt(s, f"use tools at once {together}") for n, s in enumerate(sessions)]
    found = await asyncio.gather(
        *(all_asked(fleet[n % 3], f"/runs/{r}/events", 10, "client_tool_call") for n, r in enumerate(runs))
    )
    calls = [call for some in found for call in some]
    assert len({call.data["request_id"] for call in calls}) == 100
    given = {path_of(call): {"content": f"{call.data['input']['thing']}!"} for call in calls}
    answers = await asyncio.gather(*(given_until_taken(fleet[n], *item) for item in given.items() for n in range(3)))
    assert Counter(a.status_code for a in answers) == {200: 100, 409: 200}
    for run_id in runs:
        events = await fleet[0].follow(run_id)
        assert events[-1].data["status"] == "succeeded"
        results = [b for e in events if e.event == "message" for b in e.data["content"] if b["type"] == "tool_result"]
        assert sorted(str(r["content"][0]["text"]) for r in results) == sorted(f"thing {n}!" for n in range(10))
