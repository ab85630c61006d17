"""Hooks as webhooks: asked by the real CLI on the session's owner, configured and watched on other instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet, Sse
from tests.receiver import Received, Receiver, Reply, receiving

KEY = b"a-key-of-the-tests"
SECRET = "HOOK_SECRET"
BYPASS = {"permission_mode": "bypassPermissions"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture(scope="module")
async def secret(fleet: Fleet) -> str:
    response = await fleet[0].client.put(f"/api/v1/secrets/{SECRET}", json={"value": KEY.decode()})
    assert response.status_code in (200, 201)
    return f"${{{SECRET}}}"


def hook(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "secret": f"${{{SECRET}}}", **more}


async def ran(fleet: Fleet, prompt: str, hooks: dict[str, Any], **config: Any) -> list[Sse]:
    """All events of a prompt's run, sent to an instance that is not the session's owner and read from another."""
    session_id = await fleet[0].session(**{**BYPASS, **config, "hooks": hooks})
    await fleet[0].ask(session_id, "say I own this")
    one, other = await fleet.others(await fleet.owner_of(session_id))
    return await other.follow(await one.prompt(session_id, prompt))


def told(events: list[Sse]) -> list[dict[str, Any]]:
    return [event.data for event in events if event.event == "hook"]


def tool_results(events: list[Sse]) -> str:
    blocks = [b for e in events if e.event == "message" for b in e.data["content"] if isinstance(b, dict)]
    return "\n".join(str(block) for block in blocks if block["type"] == "tool_result")


def result(events: list[Sse]) -> dict[str, Any]:
    [found] = [event.data for event in events if event.event == "result"]
    return found


async def test_a_hook_that_blocks_rm_blocks_rm_and_nothing_else(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    async def no_rm(request: Received) -> Reply:
        refused = "rm " in request.json["data"]["tool_input"]["command"]
        return Reply({"decision": "deny", "reason": "rm is not allowed here"} if refused else {})

    receiver.answer = no_rm
    hooks = {"PreToolUse": [hook(receiver.url("/hook"), matcher="Bash")]}
    events = await ran(fleet, "write a.txt: kept then run rm a.txt then run cat a.txt", hooks)
    assert "rm is not allowed here" in tool_results(events)
    assert "kept" in tool_results(events).splitlines()[-1]
    decisions = [(t["hook_event"], t["decision"], t["tool_name"], t["reason"]) for t in told(events)]
    assert decisions == [
        ("PreToolUse", "deny", "Bash", "rm is not allowed here"),
        ("PreToolUse", "none", "Bash", None),
    ]
    assert all(t["duration_ms"] >= 0 and t["host"] == "127.0.0.1" and t["tool_use_id"] for t in told(events))
    assert [e.data["run_id"] for e in events if e.event == "hook"] == [events[-1].data["run_id"]] * 2
    assert events[-1].data["status"] == "succeeded"


async def test_a_request_is_signed_and_says_what_happens_without_paths_of_the_host(
    fleet: Fleet, secret: str, receiver: Receiver
) -> None:
    events = await ran(fleet, "run echo hello", {"PreToolUse": [hook(receiver.url("/a?b=c"))]})
    [request] = receiver.received
    assert request.is_signed_by(KEY)
    assert not request.is_signed_by(b"another")
    assert (request.target, request.headers["content-type"]) == ("/a?b=c", "application/json")
    assert request.json["type"] == "hook"
    assert request.json["id"] == request.id
    data = request.json["data"]
    run = events[-1].data
    assert (data["session_id"], data["run_id"]) == (run["session_id"], run["run_id"])
    assert (data["hook_event"], data["tool_name"], data["permission_mode"]) == (
        "PreToolUse",
        "Bash",
        "bypassPermissions",
    )
    assert data["tool_input"]["command"] == "echo hello"
    assert data["tool_use_id"] == told(events)[0]["tool_use_id"]
    assert not {"transcript_path", "cwd"} & data.keys()


async def test_a_hook_changes_the_input_of_a_tool(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    receiver.replies(Reply({"decision": "allow", "updated_input": {"command": "echo changed"}}))
    events = await ran(fleet, "run echo original", {"PreToolUse": [hook(receiver.url())]}, permission_mode="dontAsk")
    assert "changed" in tool_results(events)
    assert "original" not in tool_results(events)


async def test_a_hook_changes_the_input_without_a_decision_of_its_own(
    fleet: Fleet, secret: str, receiver: Receiver
) -> None:
    receiver.replies(Reply({"updated_input": {"command": "echo changed"}}))
    events = await ran(fleet, "run echo original", {"PreToolUse": [hook(receiver.url())]})
    assert "changed" in tool_results(events)


async def test_a_hook_allows_what_nothing_else_would(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    receiver.replies(Reply({"decision": "allow"}))
    hooks = {"PreToolUse": [hook(receiver.url(), matcher="Write|Edit")]}
    events = await ran(fleet, "write b.txt: allowed then run cat b.txt", hooks, permission_mode="dontAsk")
    assert "allowed" in tool_results(events).splitlines()[-1]


@pytest.mark.parametrize(
    ("event", "prompt"),
    [
        ("UserPromptSubmit", "say ok"),
        ("PreToolUse", "run touch a.txt then say ok"),
        ("PostToolUse", "run touch a.txt then say ok"),
        ("PostToolUseFailure", "run cat nothing then say ok"),
        ("SubagentStart", "delegate say ok"),
    ],
)
async def test_a_hook_adds_context_that_the_model_reads(
    fleet: Fleet, secret: str, receiver: Receiver, event: str, prompt: str
) -> None:
    async def tokens(context: str) -> int:
        receiver.replies(Reply({"additional_context": context}))
        usage = result(await ran(fleet, prompt, {event: [hook(receiver.url())]}))["model_usage"]
        return sum(model["inputTokens"] for model in usage.values())

    words = "word " * 1600  # the demo model counts a quarter of the characters as tokens
    assert await tokens(words) - await tokens("word") > 1600


@pytest.mark.parametrize("event", ["Stop", "SubagentStop"])
async def test_a_hook_lets_an_agent_go_on_that_was_about_to_stop(
    fleet: Fleet, secret: str, receiver: Receiver, event: str
) -> None:
    async def not_yet(request: Received) -> Reply:
        data = request.json["data"]
        done = data["stop_hook_active"] or "own this" in data["last_assistant_message"]
        return Reply({} if done else {"decision": "deny", "reason": "one more thing"})

    receiver.answer = not_yet
    events = await ran(fleet, "delegate say hello", {event: [hook(receiver.url())]})
    texts = [b["text"] for e in events if e.event == "message" for b in e.data["content"] if b["type"] == "text"]
    assert any("one more thing" in text for text in texts)
    assert [t["decision"] for t in told(events)] == ["deny", "none"]


async def test_a_hook_blocks_a_prompt(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    receiver.replies(Reply(), Reply({"decision": "deny", "reason": "not that"}))
    events = await ran(fleet, "say never", {"UserPromptSubmit": [hook(receiver.url())]})
    assert "blocked by hook:\nnot that" in result(events)["result"]
    assert [e for e in events if e.event == "message" and e.data["role"] == "assistant"] == []
    assert receiver.received[-1].json["data"]["prompt"] == "say never"


@pytest.mark.parametrize(
    ("event", "ran_first", "reason"),
    [("PreToolUse", False, "hook_stopped"), ("PostToolUse", True, "hook_stopped"), ("PermissionRequest", False, None)],
)
async def test_a_hook_stops_the_run(
    fleet: Fleet, secret: str, receiver: Receiver, event: str, ran_first: bool, reason: str | None
) -> None:
    receiver.replies(Reply({"continue": False, "stop_reason": "enough for today"}))
    mode = "default" if event == "PermissionRequest" else "bypassPermissions"
    events = await ran(fleet, "run touch a.txt then say more", {event: [hook(receiver.url())]}, permission_mode=mode)
    assert [t["decision"] for t in told(events)] == ["stop"]
    assert ("completed with no output" in tool_results(events)) == ran_first
    assert "more" not in str(result(events)["result"])
    if reason:
        assert result(events)["terminal_reason"] == reason


@pytest.mark.parametrize(("decision", "allowed"), [("allow", True), ("deny", False)])
async def test_a_hook_answers_a_permission_request(
    fleet: Fleet, secret: str, receiver: Receiver, decision: str, allowed: bool
) -> None:
    receiver.replies(Reply({"decision": decision, "reason": "because of the hook"}))
    hooks = {"PermissionRequest": [hook(receiver.url())]}
    events = await ran(fleet, "run touch a.txt", hooks, permission_mode="default")
    assert ("because of the hook" in tool_results(events)) != allowed
    assert ("completed with no output" in tool_results(events)) == allowed
    assert [(t["hook_event"], t["decision"]) for t in told(events)] == [("PermissionRequest", decision)]
    asked = [e.data["by"] for e in events if e.event == "action_resolved"]  # none where the hook was fast enough
    assert asked in ([], [{"type": "system", "reason": "withdrawn"}])


async def test_one_hook_that_denies_outweighs_others_that_allow(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    async def answer(request: Received) -> Reply:
        return Reply({"decision": "deny" if request.target == "/no" else "allow", "reason": f"of {request.target}"})

    receiver.answer = answer
    hooks = {"PreToolUse": [hook(receiver.url("/yes")), hook(receiver.url("/no")), hook(receiver.url("/yes"))]}
    events = await ran(fleet, "run echo unwanted", hooks)
    assert sorted(t["decision"] for t in told(events)) == ["allow", "allow", "deny"]
    assert "of /no" in tool_results(events)
    assert "unwanted" not in tool_results(events)


async def test_a_matcher_is_asked_about_whole_names(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    matchers = ["Ba", "ash", "Ba.*", "*", "Edit|Bash", "[A-B]ash", "Write", "B(a|u)sh?", "Task"]
    hooks = {"PreToolUse": [hook(receiver.url(f"/{n}"), matcher=matcher) for n, matcher in enumerate(matchers)]}
    await ran(fleet, "run echo one", hooks)
    asked = {matchers[int(request.target[1:])] for request in receiver.received}
    assert asked == {"Ba.*", "*", "Edit|Bash", "[A-B]ash", "B(a|u)sh?"}


async def test_the_matcher_task_means_the_tool_that_starts_subagents(
    fleet: Fleet, secret: str, receiver: Receiver
) -> None:
    await ran(fleet, "delegate say hello", {"PreToolUse": [hook(receiver.url(), matcher="Task")]})
    assert [request.json["data"]["tool_name"] for request in receiver.received] == ["Agent"]


# --- failures ------------------------------------------------------------------------------------------------------

FAILURES = {
    "a status": (Reply({"decision": "allow"}, status=500), "answered 500"),
    "a redirect": (Reply(status=302, headers={"Location": "/elsewhere"}), "answered 302"),
    "no JSON": (Reply(b"fine by me"), "not one that a hook may give: is not valid JSON"),
    "no object": (Reply([]), "not one that a hook may give: body"),
    "an unknown field": (Reply({"decison": "deny"}), "decison"),
    "an unknown decision": (Reply({"decision": "approve"}), "decision"),
    "too much": (Reply(b" " * 70_000), "larger than"),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_tool_does_not_run_when_its_hook_fails(
    fleet: Fleet, secret: str, receiver: Receiver, kind: str
) -> None:
    reply, reason = FAILURES[kind]
    receiver.replies(reply)
    events = await ran(fleet, "run echo unwanted", {"PreToolUse": [hook(receiver.url("/here"))]})
    assert "The hook that decides on this failed" in tool_results(events)
    assert "unwanted" not in tool_results(events)
    [failed] = told(events)
    assert failed["decision"] == "failed"
    assert reason in failed["error"]
    assert {request.target for request in receiver.received} == {"/here"}
    assert events[-1].data["status"] == "succeeded"


async def test_a_silent_hook_fails_after_its_time(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    never = asyncio.Event()

    async def silent(_request: Received) -> Reply:
        await never.wait()
        return Reply()

    receiver.answer = silent
    events = await ran(fleet, "run echo unwanted", {"PreToolUse": [hook(receiver.url(), timeout_seconds=0.3)]})
    never.set()
    assert [t["error"] for t in told(events)] == ["no answer within 0.3 s"]
    assert "unwanted" not in tool_results(events)


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://169.254.169.254/latest", "http://[::1]:9/", "http://0/"])
async def test_a_private_target_is_refused_without_an_exception(fleet: Fleet, secret: str, url: str) -> None:
    events = await ran(fleet, "run echo unwanted", {"PreToolUse": [hook(url)]})
    [failed] = told(events)
    assert "not a public one" in failed["error"]
    assert "unwanted" not in tool_results(events)


async def test_loopback_is_private_too_unless_the_operator_allows_it(
    start_fleet: StartFleet, receiver: Receiver
) -> None:
    fleet = await start_fleet(1, OUTBOUND_ALLOW="")
    await fleet[0].client.put(f"/api/v1/secrets/{SECRET}", json={"value": KEY.decode()})
    session_id = await fleet[0].session(**BYPASS, hooks={"PreToolUse": [hook(receiver.url())]})
    events = await fleet[0].follow(await fleet[0].prompt(session_id, "run echo unwanted"))
    assert "not a public one" in told(events)[0]["error"]
    assert receiver.received == []


async def test_a_failing_hook_that_may_be_ignored_is_ignored_and_told(
    fleet: Fleet, secret: str, receiver: Receiver
) -> None:
    receiver.replies(Reply(status=500))
    hooks = {
        "PreToolUse": [hook(receiver.url(), on_failure="allow")],
        "PostToolUse": [hook(receiver.url())],
        "Stop": [hook(receiver.url())],
    }
    events = await ran(fleet, "run echo wanted", hooks)
    assert "wanted" in tool_results(events)
    assert [(t["hook_event"], t["decision"]) for t in told(events)] == [
        ("PreToolUse", "failed"),
        ("PostToolUse", "failed"),
        ("Stop", "failed"),
    ]


async def test_a_hook_whose_secret_is_gone_fails_and_names_it(fleet: Fleet, receiver: Receiver) -> None:
    name = f"GONE_{uuid4().hex.upper()}"
    await fleet[0].client.put(f"/api/v1/secrets/{name}", json={"value": "for now"})
    session_id = await fleet[0].session(
        **BYPASS, hooks={"PreToolUse": [{"url": receiver.url(), "secret": f"${{{name}}}"}]}
    )
    await fleet[1].client.delete(f"/api/v1/secrets/{name}")
    events = await fleet[1].follow(await fleet[0].prompt(session_id, "run echo unwanted"))
    assert name in told(events)[0]["error"]
    assert receiver.received == []


async def test_an_interrupt_does_not_wait_for_a_hook(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    never = asyncio.Event()

    async def silent(_request: Received) -> Reply:
        await never.wait()
        return Reply()

    receiver.answer = silent
    session_id = await fleet[0].session(**BYPASS, hooks={"PreToolUse": [hook(receiver.url(), timeout_seconds=60)]})
    run_id = await fleet[0].prompt(session_id, "run echo unwanted")
    await receiver.until(len)
    assert (await fleet[1].post(f"/sessions/{session_id}/interrupt")).json()["status"] == "applied"
    never.set()
    events = await fleet[2].follow(run_id)
    assert (events[-1].event, events[-1].data["status"]) == ("done", "interrupted")


async def test_a_hook_may_leave_the_decision_to_a_person(fleet: Fleet, secret: str, receiver: Receiver) -> None:
    receiver.replies(Reply({"decision": "ask", "reason": "a person should look at this"}))
    session_id = await fleet[0].session(**BYPASS, hooks={"PreToolUse": [hook(receiver.url())]})
    await fleet[0].ask(session_id, "say I own this")
    one, other = await fleet.others(await fleet.owner_of(session_id))
    run_id = await one.prompt(session_id, "run echo looked-at")
    events = []
    async with other.stream(f"/runs/{run_id}/events") as stream:
        async for event in stream:
            events.append(event)
            if event.event == "permission_request":
                path = f"/sessions/{session_id}/permissions/{event.data['request_id']}"
                assert (await one.post(path, {"decision": "allow"})).status_code == 200
    assert [t["decision"] for t in told(events)] == ["ask"]
    assert "permission_request" in [event.event for event in events]
    assert "looked-at" in tool_results(events)
