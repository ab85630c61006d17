"""Hooks as webhooks: asked by the real CLI on the session's owner, configured and watched on other instances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet, Shared, Sse
from tests.receiver import Received, Receiver, Reply, receiving
from tests.recorder import Recorder

KEY = b"a-key-of-the-tests"
SECRET = "HOOK_SECRET"
BYPASS = {"permission_mode": "bypassPermissions"}


@pytest.fixture(scope="module")
async def one_receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
def receiver(one_receiver: Receiver) -> Receiver:
    """The module's, which has received nothing and answers nothing special: sessions are shared by its address."""
    one_receiver.received.clear()
    one_receiver.replies(Reply())
    return one_receiver


@pytest.fixture(scope="module")
async def secret(fleet: Fleet) -> str:
    response = await fleet[0].client.put(f"/api/v1/secrets/{SECRET}", json={"value": KEY.decode()})
    assert response.status_code in (200, 201)
    return f"${{{SECRET}}}"


def hook(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "secret": f"${{{SECRET}}}", **more}


def of_bash(receiver: Receiver) -> dict[str, Any]:
    """The hooks of most tests, which share the session."""
    return {"PreToolUse": [hook(receiver.url("/a?b=c"), matcher="Bash")]}


ADDING = ("UserPromptSubmit", "PreToolUse", "PostToolUse", "PostToolUseFailure", "SubagentStart")
"""Events whose hooks may add context."""
EVENTS = (*ADDING, "Stop", "SubagentStop")


def of_every(receiver: Receiver) -> dict[str, Any]:
    """A hook for each event: what it answers is up to the test."""
    return {event: [hook(receiver.url(f"/{event}"))] for event in EVENTS}


def answers(receiver: Receiver, event: str, reply: Reply) -> None:
    """What it answers to one event; nothing to others."""

    async def answer(request: Received) -> Reply:
        return reply if request.json["data"]["hook_event"] == event else Reply({})

    receiver.answer = answer


async def ran(shared: Shared, prompt: str, hooks: dict[str, Any], **config: Any) -> list[Sse]:
    """All events of a prompt's run, sent to an instance that is not the session's owner and read from another."""
    session_id = await shared.of(**{**BYPASS, **config, "hooks": hooks})
    one, other = await shared.fleet.others(await shared.fleet.owner_of(session_id))
    return await other.follow(await one.prompt(session_id, prompt))


def told(events: list[Sse], of: str | None = None) -> list[dict[str, Any]]:
    """What the run tells of its hooks, or of those of one event."""
    return [event.data for event in events if event.event == "hook" and of in (None, event.data["hook_event"])]


def tool_results(events: list[Sse]) -> str:
    blocks = [b for e in events if e.event == "message" for b in e.data["content"] if isinstance(b, dict)]
    return "\n".join(str(block) for block in blocks if block["type"] == "tool_result")


def result(events: list[Sse]) -> dict[str, Any]:
    [found] = [event.data for event in events if event.event == "result"]
    return found


async def test_a_hook_that_blocks_rm_blocks_rm_and_nothing_else(
    shared: Shared, secret: str, receiver: Receiver
) -> None:
    async def no_rm(request: Received) -> Reply:
        refused = "rm " in request.json["data"]["tool_input"]["command"]
        return Reply({"decision": "deny", "reason": "rm is not allowed here"} if refused else {})

    receiver.answer = no_rm
    events = await ran(shared, "write kept.txt: kept then run rm kept.txt then run cat kept.txt", of_bash(receiver))
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
    shared: Shared, secret: str, receiver: Receiver
) -> None:
    events = await ran(shared, "run echo hello", of_bash(receiver))
    [request] = receiver.received
    assert request.is_signed_by(KEY)
    assert not request.is_signed_by(b"another")
    assert (request.target, request.headers["content-type"]) == ("/a?b=c", "application/json")
    assert request.json["type"] == "hook"
    assert request.json["delivery_id"] == request.id
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


def of_bash_and_files(receiver: Receiver) -> dict[str, Any]:
    return {"PreToolUse": [hook(receiver.url(), matcher=matcher) for matcher in ("Bash", "Write|Edit")]}


async def test_a_hook_changes_the_input_of_a_tool(shared: Shared, secret: str, receiver: Receiver) -> None:
    receiver.replies(Reply({"decision": "allow", "updated_input": {"command": "echo changed"}}))
    hooks = of_bash_and_files(receiver)
    events = await ran(shared, "run echo original", hooks, permission_mode="dontAsk")
    assert "changed" in tool_results(events)
    assert "original" not in tool_results(events)


async def test_a_hook_changes_the_input_without_a_decision_of_its_own(
    shared: Shared, secret: str, receiver: Receiver
) -> None:
    receiver.replies(Reply({"updated_input": {"command": "echo changed"}}))
    events = await ran(shared, "run echo original", of_bash(receiver))
    assert "changed" in tool_results(events)


async def test_a_hook_allows_what_nothing_else_would(shared: Shared, secret: str, receiver: Receiver) -> None:
    async def of_files(request: Received) -> Reply:
        return Reply({"decision": "allow"} if request.json["data"]["tool_name"] == "Write" else {})

    receiver.answer = of_files
    hooks = of_bash_and_files(receiver)
    events = await ran(shared, "write b.txt: allowed then run cat b.txt", hooks, permission_mode="dontAsk")
    assert "allowed" in tool_results(events).splitlines()[-1]


async def test_a_hook_adds_context_that_the_model_reads(
    shared: Shared, secret: str, receiver: Receiver, recorded: Recorder
) -> None:
    async def context(request: Received) -> Reply:
        event = request.json["data"]["hook_event"]
        return Reply({"additional_context": long + event} if event in ADDING else {})

    receiver.answer, long, before = context, "word " * 1600, recorded.count
    prompt = "run touch a.txt then run cat nothing then delegate say ok then say ok"
    events = await ran(shared, prompt, of_every(receiver))
    conversation = next(e.data["sdk_session_id"] for e in events if e.event == "init")
    asked = "".join(request.text for request in recorded.of(conversation, before))
    assert [event for event in ADDING if long + event not in asked] == []


@pytest.mark.parametrize("event", ["Stop", "SubagentStop"])
async def test_a_hook_lets_an_agent_go_on_that_was_about_to_stop(
    shared: Shared, secret: str, receiver: Receiver, event: str
) -> None:
    async def not_yet(request: Received) -> Reply:
        data = request.json["data"]
        done = data["hook_event"] != event or data["stop_hook_active"] or "own this" in data["last_assistant_message"]
        return Reply({} if done else {"decision": "deny", "reason": "one more thing"})

    receiver.answer = not_yet
    events = await ran(shared, "delegate say hello", of_every(receiver))
    texts = [b["text"] for e in events if e.event == "message" for b in e.data["content"] if b["type"] == "text"]
    assert any("one more thing" in text for text in texts)
    assert [t["decision"] for t in told(events, event)] == ["deny", "none"]


async def test_a_hook_blocks_a_prompt(shared: Shared, secret: str, receiver: Receiver) -> None:
    async def not_that(request: Received) -> Reply:
        refused = request.json["data"].get("prompt") == "say never"
        return Reply({"decision": "deny", "reason": "not that"} if refused else {})

    receiver.answer = not_that
    events = await ran(shared, "say never", of_every(receiver))
    assert "blocked by hook:\nnot that" in result(events)["result"]
    assert [e for e in events if e.event == "message" and e.data["role"] == "assistant"] == []
    assert [t["decision"] for t in told(events, "UserPromptSubmit")] == ["deny"]


@pytest.mark.parametrize(
    ("event", "ran_first", "reason"),
    [("PreToolUse", False, "hook_stopped"), ("PostToolUse", True, "hook_stopped"), ("PermissionRequest", False, None)],
)
async def test_a_hook_stops_the_run(
    shared: Shared, secret: str, receiver: Receiver, event: str, ran_first: bool, reason: str | None
) -> None:
    answers(receiver, event, Reply({"continue": False, "stop_reason": "enough for today"}))
    asking = {"permission_mode": "default"} if event == "PermissionRequest" else {}
    hooks = of_permission(receiver) if asking else of_every(receiver)
    events = await ran(shared, "run touch a.txt then say more", hooks, **asking)
    assert [t["decision"] for t in told(events, event)] == ["stop"]
    assert ("completed with no output" in tool_results(events)) == ran_first
    assert "more" not in str(result(events)["result"])
    if reason:
        assert result(events)["terminal_reason"] == reason


def of_permission(receiver: Receiver) -> dict[str, Any]:
    return {"PermissionRequest": [hook(receiver.url())]}


@pytest.mark.parametrize(("decision", "allowed"), [("allow", True), ("deny", False)])
async def test_a_hook_answers_a_permission_request(
    shared: Shared, secret: str, receiver: Receiver, decision: str, allowed: bool
) -> None:
    receiver.replies(Reply({"decision": decision, "reason": "because of the hook"}))
    events = await ran(shared, "run touch a.txt", of_permission(receiver), permission_mode="default")
    assert ("because of the hook" in tool_results(events)) != allowed
    assert ("completed with no output" in tool_results(events)) == allowed
    assert [(t["hook_event"], t["decision"]) for t in told(events)] == [("PermissionRequest", decision)]
    asked = [e.data["by"] for e in events if e.event == "action_resolved"]  # none where the hook was fast enough
    assert asked in ([], [{"type": "system", "reason": "withdrawn"}])


MATCHERS = ["Ba", "ash", "Ba.*", "*", "Edit|Bash", "[A-B]ash", "Write", "B(a|u)sh?", "Task"]


def of_matchers(receiver: Receiver) -> dict[str, Any]:
    """A hook for each of them; its path is its number."""
    return {"PreToolUse": [hook(receiver.url(f"/{n}"), matcher=matcher) for n, matcher in enumerate(MATCHERS)]}


@pytest.mark.parametrize(
    ("prompt", "tool", "matching"),
    [
        ("run echo one", "Bash", {"Ba.*", "*", "Edit|Bash", "[A-B]ash", "B(a|u)sh?"}),
        ("delegate say hello", "Agent", {"*", "Task"}),
    ],
)
async def test_a_matcher_is_asked_about_whole_names_and_task_means_the_tool_that_starts_subagents(
    shared: Shared, secret: str, receiver: Receiver, prompt: str, tool: str, matching: set[str]
) -> None:
    await ran(shared, prompt, of_matchers(receiver))
    assert {MATCHERS[int(request.target[1:])] for request in receiver.received} == matching
    assert {request.json["data"]["tool_name"] for request in receiver.received} == {tool}


async def test_one_hook_that_denies_outweighs_others_that_allow(
    shared: Shared, secret: str, receiver: Receiver
) -> None:
    no = f"/{MATCHERS.index('Edit|Bash')}"

    async def answer(request: Received) -> Reply:
        return Reply({"decision": "deny" if request.target == no else "allow", "reason": f"of {request.target}"})

    receiver.answer = answer
    events = await ran(shared, "run echo unwanted", of_matchers(receiver))
    assert sorted(t["decision"] for t in told(events)) == [*["allow"] * 4, "deny"]
    assert f"of {no}" in tool_results(events)
    assert "unwanted" not in tool_results(events)


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
    shared: Shared, secret: str, receiver: Receiver, kind: str
) -> None:
    reply, reason = FAILURES[kind]
    receiver.replies(reply)
    events = await ran(shared, "run echo unwanted", of_bash(receiver))
    assert "The hook that decides on this failed" in tool_results(events)
    assert "unwanted" not in tool_results(events)
    [failed] = told(events)
    assert failed["decision"] == "failed"
    assert reason in failed["error"]
    assert {request.target for request in receiver.received} == {"/a?b=c"}
    assert events[-1].data["status"] == "succeeded"


GONE = "HOOK_SECRET_GONE"
PRIVATE = {"10.0.0.1": "", "169.254.169.254": "/latest", "[::1]": ":9/", "0": "/"}


@pytest.fixture
async def failing(shared: Shared, secret: str, receiver: Receiver) -> dict[str, Any]:
    """The hooks of a session, which fail in ways of their own, each with another tool; those of Bash may be ignored.
    The secret of one of them has gone."""
    before = [
        hook(receiver.url("/ignored"), matcher="Bash", on_failure="allow"),
        hook(receiver.url("/silent"), matcher="Glob", timeout_seconds=0.3),
        *(hook(f"http://{host}{rest}", matcher="Write") for host, rest in PRIVATE.items()),
        {"url": receiver.url("/unsigned"), "secret": f"${{{GONE}}}", "matcher": "Task"},
    ]
    after = [hook(receiver.url("/ignored"))]
    hooks, fleet = {"PreToolUse": before, "PostToolUse": after, "Stop": after}, shared.fleet
    await fleet[0].client.put(f"/api/v1/secrets/{GONE}", json={"value": "for now"})
    await shared.of(**BYPASS, hooks=hooks)
    await fleet[1].client.delete(f"/api/v1/secrets/{GONE}")
    receiver.received.clear()
    return hooks


async def test_a_silent_hook_fails_after_its_time(shared: Shared, failing: dict[str, Any], receiver: Receiver) -> None:
    go_on = receiver.hangs("/silent")
    events = await ran(shared, 'run touch unwanted then use tool Glob {"pattern": "*"}', failing)
    go_on.set()
    failed = [t for t in told(events) if t["decision"] == "failed"]
    assert [(t["tool_name"], t["error"]) for t in failed] == [("Glob", "no answer within 0.3 s")]
    assert "The hook that decides on this failed" in tool_results(events)
    assert "unwanted" not in tool_results(events)


async def test_a_private_target_is_refused_without_an_exception(shared: Shared, failing: dict[str, Any]) -> None:
    events = await ran(shared, "write b.txt: unwanted then run cat b.txt", failing)
    failed = [t for t in told(events, "PreToolUse") if t["tool_name"] == "Write"]
    assert sorted(f["host"].strip("[]") for f in failed) == sorted(host.strip("[]") for host in PRIVATE)
    for failure in failed:
        assert failure["decision"] == "failed"
        assert "not a public one" in failure["error"]
    assert "No such file" in tool_results(events)
    assert "unwanted" not in tool_results(events)


async def test_a_hook_whose_secret_is_gone_fails_and_names_it(
    shared: Shared, failing: dict[str, Any], receiver: Receiver
) -> None:
    events = await ran(shared, "delegate say unwanted", failing)
    [failed] = told(events, "PreToolUse")
    assert GONE in failed["error"]
    assert "/unsigned" not in [request.target for request in receiver.received]
    assert "unwanted" not in tool_results(events)


async def test_a_failing_hook_that_may_be_ignored_is_ignored_and_told(
    shared: Shared, failing: dict[str, Any], receiver: Receiver
) -> None:
    receiver.replies(Reply(status=500))
    events = await ran(shared, "run echo wanted", failing)
    assert "wanted" in tool_results(events)
    assert [(t["hook_event"], t["decision"]) for t in told(events)] == [
        ("PreToolUse", "failed"),
        ("PostToolUse", "failed"),
        ("Stop", "failed"),
    ]


async def test_loopback_is_private_too_unless_the_operator_allows_it(
    start_fleet: StartFleet, receiver: Receiver
) -> None:
    fleet = await start_fleet(1, OUTBOUND_ALLOW="")
    await fleet[0].client.put(f"/api/v1/secrets/{SECRET}", json={"value": KEY.decode()})
    session_id = await fleet[0].session(**BYPASS, hooks={"PreToolUse": [hook(receiver.url())]})
    events = await fleet[0].follow(await fleet[0].prompt(session_id, "run echo unwanted"))
    assert "not a public one" in told(events)[0]["error"]
    assert receiver.received == []


async def test_an_interrupt_does_not_wait_for_a_hook(shared: Shared, secret: str, receiver: Receiver) -> None:
    go_on = receiver.hangs()
    session_id, fleet = await shared.of(**BYPASS, hooks=of_bash(receiver)), shared.fleet
    run_id = await fleet[0].prompt(session_id, "run echo unwanted")
    await receiver.until(len)
    assert (await fleet[1].post(f"/sessions/{session_id}/interrupt")).json()["status"] == "applied"
    go_on.set()
    events = await fleet[2].follow(run_id)
    assert (events[-1].event, events[-1].data["status"]) == ("done", "interrupted")


async def test_a_hook_may_leave_the_decision_to_a_person(shared: Shared, secret: str, receiver: Receiver) -> None:
    receiver.replies(Reply({"decision": "ask", "reason": "a person should look at this"}))
    session_id = await shared.of(**BYPASS, hooks=of_bash(receiver))
    one, other = await shared.fleet.others(await shared.fleet.owner_of(session_id))
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
