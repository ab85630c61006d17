"""A person in the loop: requests of an agent on one instance, answered on others."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from apps.api.core import codec
from tests.acceptance.asking import (
    ASKING,
    COMMAND,
    all_asked,
    asked,
    decide,
    elsewhere,
    path_of,
    request_state,
    resolutions,
)
from tests.conftest import NewKey, StartFleet, database_of, make_key
from tests.fleet import Fleet, Instance, Shared, Sse, events_of


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_a_tool_call_waits_until_another_instance_allows_it(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    assert (request.data["tool_name"], request.data["input"]["command"]) == ("Bash", "touch made.txt && echo made")
    state = (await fleet[2].get(f"/sessions/{session_id}")).json()
    assert state["status"] == "requires_action"
    assert (await fleet[2].get(f"/runs/{run_id}")).json()["status"] == "requires_action"
    inbox = (await fleet[1].get("/requests")).json()["data"]
    assert request.data["request_id"] in [r["request_id"] for r in inbox]
    assert (await decide(fleet[2], request, decision="allow"))["status"] == "applied"
    events = await fleet[1].follow(run_id)
    kinds = [e.event for e in events if e.event != "partial"]
    assert kinds == [
        "init", "message", "message", "permission_request", "action_resolved", "message", "message", "files", "result",
        "done",
    ]  # fmt: skip
    told = next(e for e in events if e.event == "action_resolved").data
    assert (told["decision"], told["by"]["type"]) == ("allow", "key")
    assert "made" in events[-2].data["result"]


async def test_a_denied_tool_does_not_run_and_the_agent_reads_why(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    await decide(fleet[1], await asked(fleet[1], run_id), decision="deny", message="not on a Saturday")
    events = await fleet[2].follow(run_id)
    assert "not on a Saturday" in events[-2].data["result"]
    assert events[-1].data["status"] == "succeeded"


async def test_a_changed_input_is_what_runs(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    await decide(fleet[2], request, decision="allow", updated_input={"command": "echo something else"})
    assert "something else" in (await fleet[1].follow(run_id))[-2].data["result"]


async def test_the_second_answer_learns_who_was_faster(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    path = f"/sessions/{session_id}/permissions/{request.data['request_id']}"
    answers = await asyncio.gather(*(fleet[n % 3].post(path, {"decision": "allow"}) for n in range(9)))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 8
    for late in (a.json()["error"] for a in answers if a.status_code == 409):
        assert late["code"] == "request_resolved"
        assert late["details"]["decision"] == "allow"
        assert late["details"]["resolved_by"]["key_name"]
    assert (await fleet[0].follow(run_id))[-1].data["status"] == "succeeded"


async def test_a_question_is_answered_from_another_instance(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, "ask Which colour? options red, blue")
    question = await asked(fleet[1], run_id, "question")
    assert question.data["questions"][0]["question"] == "Which colour?"
    answer = await fleet[2].post(f"/sessions/{session_id}/answer", {"answers": {"Which colour?": "blue"}})
    assert answer.json()["status"] == "applied", answer.text
    events = await fleet[1].follow(run_id)
    assert "blue" in events[-2].data["result"]


async def test_an_interrupt_while_waiting_closes_the_request(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    assert (await fleet[2].post(f"/sessions/{session_id}/interrupt")).json()["status"] == "applied"
    events = await fleet[1].follow(run_id)
    told = next(e for e in events if e.event == "action_resolved").data
    assert (told["decision"], told["by"]) == ("closed", {"type": "system", "reason": "interrupted"})
    assert events[-1].data["status"] == "interrupted"
    late = await fleet[2].post(
        f"/sessions/{session_id}/permissions/{request.data['request_id']}", {"decision": "allow"}
    )
    assert (late.status_code, late.json()["error"]["code"]) == (409, "request_resolved")
    assert (await fleet[1].ask(session_id, "say still here"))["result"].endswith("still here")


AT_ONCE, OF_EACH = 5, 4


def wanted(session: int) -> str:
    """A prompt with which an agent asks for several commands at once."""
    commands = (f"touch {session}-{n} && echo made-{n}-here" for n in range(OF_EACH))
    return "delegate at once " + " & ".join(f"run {command}" for command in commands)


@pytest.mark.slow
async def test_twenty_requests_at_once_are_each_answered_once_from_another_instance(start_fleet: StartFleet) -> None:
    # Who waits holds no slot: more sessions wait than there are slots.
    fleet = await start_fleet(3, RUNNER_SLOTS="1", INSTANCE_LEASE_SECONDS="30")
    sessions = [await fleet[0].session(**ASKING) for _ in range(AT_ONCE)]
    runs = await asyncio.gather(*(fleet[n % 3].prompt(sessions[n], wanted(n)) for n in range(AT_ONCE)))
    found = await asyncio.gather(
        *(all_asked(fleet[(n + 1) % 3], f"/runs/{runs[n]}/events", OF_EACH) for n in range(AT_ONCE))
    )
    assert len((await fleet[0].get("/requests?limit=200")).json()["data"]) == 20
    owners = [await fleet.owner_of(session) for session in sessions]
    assert len({owner.id for owner in owners}) == 3
    others = [await fleet.others(owner) for owner in owners]
    asking = [(others[n], request) for n in range(AT_ONCE) for request in found[n]]

    async def attempt(instances: list[Instance], request: Sse, number: int) -> httpx.Response:
        decision = {"decision": "deny", "message": f"refused by {number}"} if number % 2 else {"decision": "allow"}
        return await instances[number % 2].post(path_of(request), decision)

    answers = await asyncio.gather(*(attempt(*one, number) for number in range(5) for one in asking))
    winners = [only_winner(answers[n :: len(asking)]) for n in range(len(asking))]
    for n in range(AT_ONCE):
        events = await others[n][0].follow(runs[n])
        told = {e.data["request_id"]: e.data["decision"] for e in events if e.event == "action_resolved"}
        assert resolutions(events) == [(decision, "key") for decision in told.values()]
        for (_, request), winner in list(zip(asking, winners, strict=True))[n * OF_EACH :][:OF_EACH]:
            assert told.pop(request.data["request_id"]) == ("deny" if winner % 2 else "allow")
            made = request.data["input"]["command"].partition("echo ")[2]
            assert (made in events[-2].data["result"]) == (winner % 2 == 0)
            assert f"refused by {winner}" in events[-2].data["result"] or winner % 2 == 0
        assert told == {}
        assert events[-1].data["status"] == "succeeded"
    assert (await fleet[1].get("/requests")).json()["data"] == []


def only_winner(answers: list[httpx.Response]) -> int:
    """Which of five answers to one request was taken; the others are told so."""
    assert sorted(a.status_code for a in answers) == [200, 409, 409, 409, 409], [a.text for a in answers]
    winner = [a.status_code for a in answers].index(200)
    for late in (a.json()["error"] for a in answers if a.status_code == 409):
        assert late["code"] == "request_resolved"
        assert late["details"]["decision"] == ("deny" if winner % 2 else "allow")
        assert late["details"]["resolved_by"]["type"] == "key"
    return winner


async def test_a_request_outlives_the_clients_disconnect_and_the_runs_timeout_stands_still(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    body = {"prompt": "run touch x; for i in 1; do sleep 60; done", "session_id": session_id, "timeout_seconds": 1.5}
    async with fleet[0].client.stream("POST", "/api/v1/query", json=body) as reply:
        run_id = reply.headers["X-Run-ID"]
        request = await anext(e async for e in events_of(reply) if e.event == "permission_request")
    await asyncio.sleep(1.8)  # longer than the run's timeout
    other = await elsewhere(fleet, session_id)
    assert (await other.get(f"/runs/{run_id}")).json()["status"] == "requires_action"
    await decide(other, request, decision="allow")
    events = await other.follow(run_id)
    assert resolutions(events) == [("allow", "key")]
    assert events[-2].data["code"] == "timeout", "the clock goes on after the answer"


async def test_a_request_that_nobody_answers_in_time_is_closed_and_the_agent_goes_on(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, ACTION_TIMEOUT_SECONDS="0.5")
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    events = await fleet[1].follow(run_id)
    assert resolutions(events) == [("closed", "expired")]
    assert "Nobody answered in time" in events[-2].data["result"]
    assert events[-1].data["status"] == "succeeded"
    request = next(e for e in events if e.event == "permission_request")
    late = await fleet[1].post(path_of(request), {"decision": "allow"})
    assert refusal(late) == (409, "request_resolved")
    assert late.json()["error"]["details"]["resolved_by"] == {"type": "system", "reason": "expired"}


async def test_two_requests_of_one_session_are_decided_apart(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    first, second = "touch one.txt", "touch two.txt"
    run_id = await fleet[0].prompt(session_id, f"delegate at once run {first} & run {second}")
    one, two = await all_asked(fleet[1], f"/runs/{run_id}/events", 2)
    assert {one.data["input"]["command"], two.data["input"]["command"]} == {first, second}
    assert one.data["tool_use_id"] != two.data["tool_use_id"]
    await decide(fleet[1], two, decision="deny", message="not two")
    assert (await fleet[2].get(f"/runs/{run_id}")).json()["status"] == "requires_action"
    await decide(fleet[2], one, decision="allow")
    events = await fleet[0].follow(run_id)
    assert resolutions(events) == [("deny", "key"), ("allow", "key")]
    assert "not two" in events[-2].data["result"]


async def test_a_subagents_request_names_it_and_holds_the_run(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, f"delegate {COMMAND}")
    request = await asked(fleet[1], run_id)
    started = await all_asked(fleet[1], f"/runs/{run_id}/events", 1, "task")
    assert request.data["agent_id"] == started[0].data["task_id"]
    assert (await fleet[1].get(f"/runs/{run_id}")).json()["status"] == "requires_action"
    await decide(fleet[2], request, decision="allow")
    events = await fleet[1].follow(run_id)
    assert "made" in events[-2].data["result"]


LIMITED = """
[limited]
description = "Asks"
tools = ["Bash", "Write"]
allow = ["Bash(git status:*)"]
never = ["Bash(curl:*)"]
permission_modes = ["default", "plan"]
models = ["claude-sonnet-5-5"]
[other]
description = "Other"
"""


@pytest.fixture(scope="module")
async def brief(start_lasting_fleet: StartFleet, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Two instances that keep no idle session for long, with profiles of their own."""
    file = tmp_path_factory.mktemp("profiles") / "profiles.toml"
    file.write_text(LIMITED)
    return await start_lasting_fleet(2, SESSION_IDLE_SECONDS="0.3", PROFILES_FILE=str(file))


async def test_a_background_tasks_request_outlives_the_run_and_keeps_the_session(brief: Fleet) -> None:
    fleet = brief
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, f"delegate in background {COMMAND}")
    (request,) = await all_asked(fleet[1], f"/sessions/{session_id}/events", 1)
    assert (await fleet[1].follow(run_id))[-1].data["status"] == "succeeded"
    assert request.data["run_id"] is None
    await asyncio.sleep(1)  # longer than an idle session is kept
    assert (await fleet[1].ask(session_id, "say meanwhile"))["status"] == "succeeded"
    assert (await request_state(fleet[1], request))["status"] == "open"
    other = await elsewhere(fleet, session_id)
    await decide(other, request, decision="allow")
    async with other.stream(f"/sessions/{session_id}/events", headers={"Last-Event-ID": request.id}) as events:
        result = await anext(e async for e in events if e.event == "result" and "task ended" in e.data["result"])
    assert "made" in result.data["result"]
    assert (await other.get(f"/runs/{result.data['run_id']}")).json()["origin"] == "background"


async def test_a_denial_may_end_the_run(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    await decide(await elsewhere(fleet, session_id), request, decision="deny", interrupt=True)
    events = await fleet[2].follow(run_id)
    assert resolutions(events) == [("deny", "key")]
    assert events[-1].data["status"] == "interrupted"
    assert (await fleet[1].ask(session_id, "say still here"))["result"].endswith("still here")


async def test_a_remembered_tool_is_remembered_as_a_whole_and_a_command_by_its_rule(start_fleet: StartFleet) -> None:
    """By the agent that asked, by the next one of its owner, and by one of the next owner."""
    fleet = await start_fleet(2)
    session_id = await fleet[0].session(**ASKING)

    async def requests(prompt: str) -> int:
        events = await fleet[1].follow(await fleet[1].prompt(session_id, prompt))
        assert events[-1].data["status"] == "succeeded"
        return len([e for e in events if e.event == "permission_request"])

    once = (("write a.txt: hello", "write b.txt: hello"), ("run mkdir a", "run mkdir a"), (COMMAND, COMMAND))
    for prompt, again in once:
        run_id = await fleet[0].prompt(session_id, prompt)
        request = await asked(fleet[1], run_id)
        await decide(await elsewhere(fleet, session_id), request, decision="allow", remember=True)
        await fleet[1].follow(run_id)
        assert await requests(again) == 0, again
    asking = await fleet[1].prompt(session_id, "run rmdir a")
    await decide(fleet[1], await asked(fleet[1], asking), decision="deny")
    assert (await fleet[1].follow(asking))[-1].data["status"] == "succeeded"
    await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})
    for prompt in ("write c.txt: hello", COMMAND):
        assert await requests(prompt) == 0, "another process remembers it, too"
    owner, heir = await fleet.owner_of(session_id), await elsewhere(fleet, session_id)
    owner.process.terminate()
    await owner.ended()
    assert "made" in (await heir.ask(session_id, COMMAND))["result"]
    assert await fleet.owner_of(session_id) is heir


async def test_a_decision_cannot_widen_the_sessions_profile(brief: Fleet) -> None:
    fleet = brief
    async with database_of(fleet) as db:
        bound = await make_key(db, "default", profiles=["other"])
    session_id = await fleet[0].session(profile="limited")
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    other = await elsewhere(fleet, session_id)
    path = path_of(request)
    wider: dict[str, Any]
    for wider in ({"remember": True}, {"updated_input": {"command": "curl http://127.0.0.1"}}):
        answer = await other.post(path, {"decision": "allow", **wider})
        assert refusal(answer) == (403, "tool_not_permitted"), answer.text
    assert refusal(await other.post(path, {"decision": "allow"}, headers=bound)) == (403, "profile_not_permitted")
    for wider in ({"permission_mode": "bypassPermissions"}, {"model": "claude-opus-5-5"}):
        assert refusal(await other.post(f"/sessions/{session_id}/control", wider)) == (403, "option_not_permitted")
    assert (await request_state(other, request))["status"] == "open"
    await decide(other, request, decision="allow")
    assert "made" in (await other.follow(run_id))[-2].data["result"]
    allowed = await other.post(f"/sessions/{session_id}/control", {"permission_mode": "plan"})
    assert allowed.status_code == 200, allowed.text


WHY = "And\x00 why?"
TOLD = codec.clean_text(WHY)
QUESTIONS = {
    "questions": [
        {
            "question": question,
            "header": "Choice",
            "multiSelect": several,
            "options": [{"label": label, "description": label} for label in ("red", "blue", "green")],
        }
        for question, several in (("Which colour?", False), ("Which others?", True), (WHY, False))
    ]
}


async def test_several_questions_take_a_label_several_labels_and_free_words(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    prompt = f"use tool AskUserQuestion {orjson.dumps(QUESTIONS).decode()}"
    run_id = await fleet[0].prompt(session_id, prompt)
    question = await asked(fleet[1], run_id, "question")
    assert [q["question"] for q in question.data["questions"]] == ["Which colour?", "Which others?", TOLD]
    other, path = await elsewhere(fleet, session_id), f"/sessions/{session_id}/answer"
    wrong = await other.post(path, {"answers": {"Which colour?": "red", "What size?": "large"}})
    assert refusal(wrong) == (422, "validation_error")
    assert "What size?" in wrong.text
    as_permission = await other.post(path_of(question), {"decision": "allow"})
    assert refusal(as_permission) == (422, "validation_error")
    answers = {"Which colour?": "red", "Which others?": ["blue", "green"], TOLD: "they go well together"}
    answer = await other.post(path, {"request_id": question.data["request_id"], "answers": answers})
    assert answer.json()["status"] == "applied", answer.text
    result = (await fleet[2].follow(run_id))[-2].data["result"]
    for said in ("red", "blue, green", "they go well together"):
        assert said in result


async def test_a_permission_is_not_answered_like_a_question(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    request = await asked(fleet[1], await fleet[0].prompt(session_id, COMMAND))
    path, answers = f"/sessions/{session_id}/answer", {"answers": {"Which?": "this"}}
    assert refusal(await fleet[1].post(path, answers)) == (404, "request_not_found")
    named = await fleet[1].post(path, {"request_id": request.data["request_id"], **answers})
    assert refusal(named) == (422, "validation_error")
    assert "permission" in named.text
    assert (await fleet[2].post(f"/sessions/{session_id}/interrupt")).json()["status"] == "applied"


async def test_requests_belong_to_their_tenant_and_only_writers_decide(shared: Shared, new_key: NewKey) -> None:
    stranger = await new_key()
    reader = await new_key("default", scopes=["read"])
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    bodies: dict[str, dict[str, Any] | None] = {
        path_of(request): {"decision": "allow"},
        f"/sessions/{session_id}/answer": {"answers": {"a": "b"}},
        f"/sessions/{session_id}/interrupt": None,
        f"/sessions/{session_id}/reset": {"mode": "soft"},
        f"/sessions/{session_id}/control": {"model": "claude-opus-5-5"},
        f"/runs/{run_id}/cancel": None,
    }
    for path, body in bodies.items():
        foreign = await fleet[1].post(path, body, headers=stranger)
        assert (foreign.status_code, foreign.json()["error"]["code"][-9:]) == (404, "not_found"), path
        assert refusal(await fleet[1].post(path, body, headers=reader)) == (403, "insufficient_scope"), path
    for path in ("requests", "context", "mcp"):
        assert (await fleet[2].get(f"/sessions/{session_id}/{path}", headers=stranger)).status_code == 404
    assert (await fleet[2].get("/requests", headers=stranger)).json()["data"] == []
    listed = (await fleet[2].get("/requests?limit=200", headers=reader)).json()["data"]
    assert request.data["request_id"] in [r["request_id"] for r in listed]
    strange = Sse("", "", {**request.data, "session_id": await fleet[0].session()})
    assert refusal(await fleet[1].post(path_of(strange), {"decision": "allow"})) == (404, "request_not_found")
    await decide(fleet[1], request, decision="allow")
    assert (await fleet[2].follow(run_id))[-1].data["status"] == "succeeded"


async def test_a_background_tasks_request_is_closed_when_the_agent_ends(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    newest = (await fleet[0].get(f"/sessions/{session_id}")).json()["last_seq"]
    await fleet[0].prompt(session_id, f"delegate in background {COMMAND}")
    (request,) = await all_asked(fleet[1], f"/sessions/{session_id}/events?after={newest}", 1)
    assert (await fleet[2].post(f"/sessions/{session_id}/reset", {"mode": "soft"})).json()["status"] == "applied"
    state = await request_state(fleet[1], request)
    assert (state["status"], state["resolved_by"]["type"]) == ("closed", "system")
    assert refusal(await fleet[1].post(path_of(request), {"decision": "allow"})) == (409, "request_resolved")
