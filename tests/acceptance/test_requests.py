"""A person in the loop: requests of an agent on one instance, answered on others."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fleet import Fleet, Instance, Sse

ASKING = {"permission_mode": "default", "tools": ["Bash", "Write", "AskUserQuestion"]}
COMMAND = "run touch made.txt && echo made"


async def asked(instance: Instance, run_id: str, event: str = "permission_request") -> Sse:
    """The first request of a run, as another instance tells it."""
    async with instance.stream(f"/runs/{run_id}/events") as events:
        async for sse in events:
            assert sse.event not in ("result", "done"), sse
            if sse.event == event:
                return sse
    raise AssertionError("the stream has ended")


async def decide(instance: Instance, request: Sse, **decision: Any) -> dict[str, Any]:
    path = f"/sessions/{request.data['session_id']}/permissions/{request.data['request_id']}"
    answer = await instance.post(path, decision)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def test_a_tool_call_waits_until_another_instance_allows_it(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
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
        "init", "message", "message", "permission_request", "action_resolved", "message", "message", "result", "done",
    ]  # fmt: skip
    told = next(e for e in events if e.event == "action_resolved").data
    assert (told["decision"], told["by"]["type"]) == ("allow", "key")
    assert "made" in events[-2].data["result"]


async def test_a_denied_tool_does_not_run_and_the_agent_reads_why(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    await decide(fleet[1], await asked(fleet[1], run_id), decision="deny", message="not on a Saturday")
    events = await fleet[2].follow(run_id)
    assert "not on a Saturday" in events[-2].data["result"]
    assert events[-1].data["status"] == "succeeded"


async def test_a_changed_input_is_what_runs(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    await decide(fleet[2], request, decision="allow", updated_input={"command": "echo something else"})
    assert "something else" in (await fleet[1].follow(run_id))[-2].data["result"]


async def test_what_is_remembered_is_not_asked_again(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    await decide(fleet[1], await asked(fleet[1], run_id), decision="allow", remember=True)
    await fleet[2].follow(run_id)
    again = await fleet[2].ask(session_id, COMMAND)
    assert "made" in again["result"]
    await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})
    assert "made" in (await fleet[0].ask(session_id, COMMAND))["result"], "another process remembers it, too"


async def test_the_second_answer_learns_who_was_faster(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
    request = await asked(fleet[1], await fleet[0].prompt(session_id, COMMAND))
    path = f"/sessions/{session_id}/permissions/{request.data['request_id']}"
    answers = await asyncio.gather(*(fleet[n % 3].post(path, {"decision": "allow"}) for n in range(9)))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 8
    for late in (a.json()["error"] for a in answers if a.status_code == 409):
        assert late["code"] == "request_resolved"
        assert late["details"]["decision"] == "allow"
        assert late["details"]["resolved_by"]["key_name"]


async def test_a_question_is_answered_from_another_instance(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, "ask Which colour? options red, blue")
    question = await asked(fleet[1], run_id, "question")
    assert question.data["questions"][0]["question"] == "Which colour?"
    answer = await fleet[2].post(f"/sessions/{session_id}/answer", {"answers": {"Which colour?": "blue"}})
    assert answer.json()["status"] == "applied", answer.text
    events = await fleet[1].follow(run_id)
    assert "blue" in events[-2].data["result"]


async def test_an_interrupt_while_waiting_closes_the_request(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
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
