"""Sessions that wait for a person without a process, and go on where they stopped, on whichever instance."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url

from apps.api.dev.embedded import Servers
from tests.acceptance.asking import ASKING, asked, decide, parked, path_of, request_state, resolutions
from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import Fleet, Instance, Sse
from tests.mcp_things import serving, stdio
from tests.receiver import Reply, receiving

ONCE = "run echo made >> log.txt && cat log.txt"
"""What was made shows how often it ran."""

LIVE = {"PARK_AFTER_SECONDS": "0.1", "INSTANCE_LEASE_SECONDS": "30"}


@pytest.fixture(scope="module")
async def parking(start_lasting_fleet: StartFleet) -> Fleet:
    """Instances that park at once what waits."""
    return await start_lasting_fleet(2, **LIVE)


async def waiting(
    fleet: Fleet, prompt: str = ONCE, event: str = "permission_request", **config: Any
) -> tuple[str, str, Sse]:
    """A parked run: its session, its id, its request."""
    session_id = await fleet[0].session(**{**ASKING, **config})
    run_id = await fleet[0].prompt(session_id, prompt)
    request = await asked(fleet[1], run_id, event)
    await parked(fleet[1], run_id)
    return session_id, run_id, request


async def state_of(instance: Instance, session_id: str) -> dict[str, Any]:
    return (await instance.get(f"/sessions/{session_id}")).json()  # type: ignore[no-any-return]


def told(events: list[Sse]) -> list[str]:
    """What a stream told, in order: kinds, and of `status` what it says; not that files came to another instance."""
    kinds = [e.data["status"] if e.event == "status" else e.event for e in events if e.event != "partial"]
    return [kind for kind in kinds if kind != "restoring"]


def blocks(events: list[Sse], kind: str) -> list[dict[str, Any]]:
    """Parts of the messages that were told."""
    return [block for e in events if e.event == "message" for block in e.data["content"] if block["type"] == kind]


async def ended(instance: Instance, run_id: str) -> list[Sse]:
    """All events of a run; it ends, and does not wait for a person again."""
    async with asyncio.timeout(90):
        return await instance.follow(run_id)


async def result_of(instance: Instance, run_id: str) -> str:
    events = await ended(instance, run_id)
    assert events[-1].data["status"] == "succeeded", events[-2:]
    return str(events[-2].data["result"])


async def log_of(instance: Instance, session_id: str) -> str:
    """What ONCE has made, as the agent reads it."""
    return str((await instance.ask(session_id, "run cat log.txt"))["result"]).rpartition("answered: ")[2]


async def test_a_parked_session_has_no_process_and_goes_on_with_the_very_call(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking)
    state = await state_of(parking[1], session_id)
    assert (state["status"], state["active"], state["owner"]) == ("requires_action", False, None)
    assert state["active_run_id"] == run_id
    assert (await parking[1].get(f"/runs/{run_id}")).json()["status"] == "requires_action"
    assert not [i for i in parking.instances if i.agent_of(session_id)]
    inbox = (await parking[1].get("/requests")).json()["data"]
    assert request.data["request_id"] in [r["request_id"] for r in inbox]
    found = (await parking[0].get("/sessions", params={"status": "requires_action"})).json()["data"]
    assert session_id in [s["session_id"] for s in found]
    await decide(parking[1], request, decision="allow")
    events = await ended(parking[1], run_id)
    # Its files are brought if another instance goes on with it.
    assert told(events) == [
        "init", "message", "message", "permission_request", "parked", "action_resolved", "resumed",
        "message", "message", "result", "done",
    ]  # fmt: skip
    assert events[-2].data["result"].endswith("the tool answered: made")
    assert len(blocks(events, "tool_use")) == 1
    assert await log_of(parking[0], session_id) == "made"


async def test_what_both_processes_have_used_is_what_the_run_has_cost(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking, "run touch a.txt then run touch b.txt")
    await decide(parking[1], request, decision="allow")
    await parked(parking[1], run_id, 2)
    await decide(parking[0], await asked(parking[0], run_id, number=2), decision="allow")
    result = (await ended(parking[1], run_id))[-2].data
    run = (await parking[0].get(f"/runs/{run_id}")).json()
    assert result["num_turns"] == 3
    async with database_of(parking) as db:
        metered = await db.pool.fetchrow(
            "SELECT count(*), sum(input_tokens) AS input, sum(output_tokens) AS output FROM model_calls"
            " WHERE run_id = $1 AND kind = 'messages' AND complete",
            run_id,
        )
    assert metered["count"] == 3
    cost = float(run["total_cost_usd"])
    assert run["usage"]["input_tokens"] == metered["input"]
    assert run["usage"]["output_tokens"] == metered["output"]
    assert cost == pytest.approx(sum(float(used["cost_usd"]) for used in run["model_usage"].values()))
    assert run["total_cost_usd"] == result["total_cost_usd"]
    state = await state_of(parking[0], session_id)
    assert float(state["total_cost_usd"]) == pytest.approx(cost)
    assert state["num_turns"] == 3


async def test_the_bound_of_a_run_holds_over_its_processes(parking: Fleet) -> None:
    prompt = " then ".join(f"run touch {name}" for name in "abc")
    _, run_id, request = await waiting(parking, prompt, max_turns=2)
    await decide(parking[1], request, decision="allow")
    await decide(parking[0], await asked(parking[0], run_id, number=2), decision="allow")
    events = await ended(parking[1], run_id)
    assert (events[-2].event, events[-2].data["code"]) == ("error", "max_turns_exceeded")
    assert told(events).count("parked") == 1  # the last turn keeps its process


async def test_a_denied_call_is_never_carried_out_and_the_agent_reads_why(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking, f"{ONCE} then say fine")
    await decide(parking[1], request, decision="deny", message="not on a Saturday")
    events = await ended(parking[1], run_id)
    results = [
        block for e in events if e.event == "message" for block in e.data["content"] if "result" in block["type"]
    ]
    assert [(r["content"], r["is_error"]) for r in results] == [("not on a Saturday", True)]
    assert "No such file" in await log_of(parking[0], session_id)


async def test_a_denial_that_stops_ends_the_run_without_a_process(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking)
    answer = await decide(parking[1], request, decision="deny", interrupt=True)
    assert answer["status"] == "applied"
    events = await ended(parking[1], run_id)
    assert told(events)[-3:] == ["parked", "action_resolved", "done"]
    assert events[-1].data["status"] == "interrupted"
    assert "No such file" in await log_of(parking[0], session_id)


async def test_a_changed_input_is_what_is_carried_out(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking)
    await decide(parking[1], request, decision="allow", updated_input={"command": "echo changed >> log.txt"})
    await ended(parking[1], run_id)
    assert await log_of(parking[0], session_id) == "changed"


async def test_what_is_remembered_with_the_answer_holds_in_the_same_run(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking, f"{ONCE} then {ONCE}")
    await decide(parking[1], request, decision="allow", remember=True)
    events = await ended(parking[1], run_id)
    assert told(events).count("permission_request") == 1
    assert await log_of(parking[0], session_id) == "made\nmade"


async def test_a_question_is_answered(parking: Fleet) -> None:
    session_id, run_id, _ = await waiting(parking, "ask Which colour? options red, blue", "question")
    answer = await parking[1].post(f"/sessions/{session_id}/answer", {"answers": {"Which colour?": "blue"}})
    assert answer.status_code == 200, answer.text
    assert '"Which colour?"="blue"' in await result_of(parking[0], run_id)


async def test_the_second_answer_learns_who_was_faster(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking)
    answers = await asyncio.gather(*(parking[n % 2].post(path_of(request), {"decision": "allow"}) for n in range(6)))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 5
    assert {a.json()["error"]["code"] for a in answers if a.status_code == 409} == {"request_resolved"}
    await result_of(parking[0], run_id)
    assert await log_of(parking[0], session_id) == "made"


async def test_prompts_wait_behind_a_parked_run_and_come_in_their_order(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking)
    later = [await parking[n].prompt(session_id, f"say number {n}") for n in range(2)]
    await asyncio.sleep(1.5)  # time for a claim, if there could be one
    states = [(await parking[0].get(f"/runs/{run}")).json()["status"] for run in later]
    assert states == ["queued", "queued"]
    await decide(parking[1], request, decision="allow")
    assert (await result_of(parking[0], later[1])).endswith("number 1")
    ends = [(await parking[0].get(f"/runs/{run}")).json()["finished_at"] for run in (run_id, *later)]
    assert ends == sorted(ends)


@pytest.mark.parametrize("by", ["interrupt", "cancel"])
async def test_a_parked_run_is_stopped_without_a_process(parking: Fleet, by: str) -> None:
    session_id, run_id, request = await waiting(parking)
    following = await parking[0].prompt(session_id, "say still here")
    path = f"/sessions/{session_id}/interrupt" if by == "interrupt" else f"/runs/{run_id}/cancel"
    stopped = await parking[1].post(path)
    assert stopped.json()["status"] == "applied", stopped.text
    events = await ended(parking[1], run_id)
    assert resolutions(events) == [("closed", "interrupted")]
    assert events[-1].data["status"] == "interrupted"
    run = (await parking[0].get(f"/runs/{run_id}")).json()
    assert (run["error"]["code"], run["model_usage"] != {}, float(run["total_cost_usd"]) > 0) == (
        "interrupted",
        True,
        True,
    )
    assert (await result_of(parking[0], following)).endswith("still here")
    assert (await request_state(parking[0], request))["resolved_by"]["reason"] == "interrupted"
    assert "No such file" in await log_of(parking[0], session_id)


async def test_a_prompt_that_interrupts_and_a_reset_end_a_parked_run(parking: Fleet) -> None:
    session_id, run_id, _ = await waiting(parking)
    assert (await parking[1].ask(session_id, "say at once", on_busy="interrupt"))["result"].endswith("at once")
    assert (await parking[0].get(f"/runs/{run_id}")).json()["status"] == "interrupted"
    again = await parking[0].prompt(session_id, ONCE)
    await parked(parking[1], again)
    reset = await parking[1].post(f"/sessions/{session_id}/reset", {"mode": "hard"})
    assert reset.status_code in (200, 202), reset.text
    await decide(parking[1], await asked(parking[1], again), decision="allow")
    assert "said nothing before" in (await parking[0].ask(session_id, "recall"))["result"]


async def test_a_parked_session_can_be_deleted_and_is_no_parent_but_before_its_run(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking)
    fork = await parking[1].post(f"/sessions/{session_id}/fork", {})
    assert (fork.status_code, fork.json()["error"]["code"]) == (409, "session_busy")
    assert (await parking[1].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    assert (await parking[1].post(path_of(request), {"decision": "allow"})).status_code == 404
    assert (await parking[0].get(f"/runs/{run_id}")).json()["status"] == "interrupted"


async def test_calls_beside_the_one_that_waits_are_told_as_not_carried_out(parking: Fleet) -> None:
    prompt = "run at once touch a.txt & touch b.txt & touch c.txt then run ls"
    session_id, run_id, request = await waiting(parking, prompt)
    await decide(parking[1], request, decision="allow")
    events = await ended(parking[0], run_id)
    results = [
        block for e in events if e.event == "message" for block in e.data["content"] if "result" in block["type"]
    ]
    uses = blocks(events, "tool_use")
    assert {r["tool_use_id"] for r in results} == {u["id"] for u in uses}
    undone = [r for r in results if r["is_error"]]
    assert ["was not carried out" in r["content"] for r in undone] == [True, True]
    assert events[-2].data["result"].endswith("the tool answered: a.txt")
    assert (await parking[1].ask(session_id, "run ls"))["result"].endswith("the tool answered: a.txt")


@pytest.mark.parametrize("decision", ["allow", "deny"])
async def test_what_a_hook_makes_ask_is_decided_by_the_person_and_told_to_the_hook_once(
    parking: Fleet, decision: str
) -> None:
    await parking[0].client.put("/api/v1/secrets/HOOK_SECRET", json={"value": "a-key-of-the-tests"})
    async with receiving() as receiver:
        hooks = {
            event: [{"url": receiver.url(f"/{event}"), "secret": "${HOOK_SECRET}", "matcher": "Bash"}]
            for event in ("PreToolUse", "PostToolUse")
        }
        receiver.replies(Reply({"decision": "ask"}))  # of a command that no rule would ask for
        prompt = "run echo harmless then say fine"
        _, run_id, request = await waiting(parking, prompt, hooks=hooks, allowed_tools=["Bash"])
        changed = {"updated_input": {"command": "echo changed"}} if decision == "allow" else {}
        receiver.replies(Reply({"decision": "allow"}))
        await decide(parking[1], request, decision=decision, **changed)
        events = await ended(parking[1], run_id)
        calls = [r.json["data"]["hook_event"] for r in receiver.received]
    results = [
        block for e in events if e.event == "message" for block in e.data["content"] if "result" in block["type"]
    ]
    if decision == "allow":
        assert ([r["content"] for r in results], calls) == (["changed"], ["PreToolUse", "PostToolUse"])
    else:
        assert (results[0]["is_error"], calls) == (True, ["PreToolUse"])


async def test_a_mode_that_is_set_while_a_run_is_parked_is_for_the_next_one(parking: Fleet) -> None:
    session_id, run_id, request = await waiting(parking, f"{ONCE} then {ONCE}")
    changed = await parking[1].post(f"/sessions/{session_id}/control", {"permission_mode": "bypassPermissions"})
    assert changed.status_code == 200, changed.text
    await decide(parking[1], request, decision="allow")
    await parked(parking[0], run_id, 2)
    await decide(parking[1], await asked(parking[0], run_id, number=2), decision="allow")
    await result_of(parking[0], run_id)
    assert (await parking[0].ask(session_id, ONCE))["result"].endswith("made\nmade\nmade")


async def test_a_plan_is_approved(parking: Fleet) -> None:
    tools = [*ASKING["tools"], "ExitPlanMode"]
    prompt = 'use tool ExitPlanMode {"plan": "make it"} then run touch made.txt then say fine'
    _, run_id, request = await waiting(parking, prompt, permission_mode="plan", tools=tools)
    assert request.data["tool_name"] == "ExitPlanMode"
    await decide(parking[1], request, decision="allow")
    await parked(parking[0], run_id, 2)
    async with database_of(parking) as db:  # the mode that the agent has got to by then
        assert (
            await db.pool.fetchval("SELECT config ->> 'permission_mode' FROM runs WHERE id = $1", run_id) == "default"
        )
    await decide(parking[1], await asked(parking[0], run_id, number=2), decision="allow")
    assert (await result_of(parking[0], run_id)).endswith("fine")


async def test_a_tool_of_an_mcp_server_goes_on_in_a_new_server(parking: Fleet) -> None:
    prompt = 'use tool mcp__things__weigh {"thing": "a cat"}'
    _, run_id, request = await waiting(parking, prompt, mcp_servers={"things": stdio(SCALE="seven!!")})
    await decide(parking[1], request, decision="allow")
    assert "a cat weighs 7 stone" in await result_of(parking[0], run_id)


LATE = """
CREATE OR REPLACE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NEW; END';
CREATE TRIGGER late BEFORE UPDATE ON runs FOR EACH ROW WHEN (OLD.unsent AND NOT NEW.unsent) EXECUTE FUNCTION late();
"""
"""An agent speaks long before the database has noted that it is given what it waited for."""


async def test_a_call_of_a_tool_that_is_not_there_any_more_fails_the_run(parking: Fleet, servers: Servers) -> None:
    prompt = 'use tool mcp__things__weigh {"thing": "a cat"} then say fine'
    with serving("http") as (url, _):
        named = {"things": {"type": "http", "url": url}}
        session_id, run_id, request = await waiting(parking, prompt, mcp_servers=named)
    name = make_url(parking.env["DATABASE_URL"]).database
    owner = await asyncpg.connect(servers.database_owner_url(str(name)).replace("+asyncpg", ""))
    try:
        await owner.execute(LATE)
        await decide(parking[1], request, decision="allow")
        events = await ended(parking[0], run_id)
    finally:
        await owner.execute("DROP TRIGGER late ON runs")
        await owner.close()
    assert told(events)[4:] == ["parked", "action_resolved", "resumed", "message", "result", "error", "done"]
    [dropped] = blocks(events, "tool_result")
    assert (dropped["is_error"], "dropped without running" in str(dropped["content"])) == (True, True)
    assert (events[-2].data["code"], "not carried out" in events[-2].data["message"]) == ("execution_error", True)
    assert (await parking[1].ask(session_id, "say still here"))["result"].endswith("still here")


async def test_a_structured_output_comes_after_the_call(parking: Fleet) -> None:
    schema = {"type": "json_schema", "schema": {"type": "object", "properties": {"answer": {"type": "integer"}}}}
    _, run_id, request = await waiting(parking, 'run touch a then answer by schema {"answer": 7}', output_format=schema)
    await decide(parking[1], request, decision="allow")
    events = await ended(parking[1], run_id)
    assert events[-2].data["structured_output"] == {"answer": 7}


SERVER = "python3 -m http.server 0 --bind 127.0.0.1"
NOT_PARKED = {
    "a task is at work": "run in background sleep 30 then write made.txt: x",
    "a subagent asks": "delegate write made.txt: x",
    "its shell is elsewhere": "run mkdir sub && cd sub then write made.txt: x",
    "it serves a port": f"run ({SERVER} >/dev/null 2>&1 &) ; sleep 1 then write made.txt: x",
}


@pytest.mark.parametrize("why", NOT_PARKED)
async def test_what_another_process_could_not_go_on_with_keeps_its_process(parking: Fleet, why: str) -> None:
    session_id = await parking[0].session(**ASKING, allowed_tools=["Bash"])
    run_id = await parking[0].prompt(session_id, NOT_PARKED[why])
    request = await asked(parking[1], run_id)
    assert request.data["tool_name"] == "Write"
    await asyncio.sleep(2.5)  # two looks
    state = await state_of(parking[1], session_id)
    assert (state["status"], state["active"]) == ("requires_action", True)
    await decide(parking[1], request, decision="allow")
    events = await ended(parking[1], run_id)
    assert "parked" not in told(events)
    assert events[-1].data["status"] == "succeeded"


async def test_a_file_that_was_written_by_a_call_that_waited_is_rewound(parking: Fleet) -> None:
    prompt = "write a.txt: new then run cat a.txt"
    session_id, run_id, request = await waiting(parking, prompt, enable_file_checkpointing=True)
    await decide(parking[1], request, decision="allow")
    assert (await result_of(parking[0], run_id)).endswith("new")
    rewound = await parking[1].post(f"/sessions/{session_id}/rewind", {"checkpoint_id": run_id})
    assert rewound.status_code == 200, rewound.text
    assert "No such file" in str((await parking[0].ask(session_id, "run cat a.txt"))["result"])


async def test_nobody_answers_in_time(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, **LIVE, ACTION_TIMEOUT_SECONDS="4")
    _, run_id, request = await waiting(fleet, f"{ONCE} then say fine")
    events = await ended(fleet[1], run_id)
    assert told(events)[4:7] == ["parked", "action_resolved", "resumed"]
    assert resolutions(events) == [("closed", "expired")]
    assert events[-2].data["result"].endswith("fine")
    late = await fleet[0].post(path_of(request), {"decision": "allow"})
    assert late.json()["error"]["code"] == "request_resolved"


async def test_a_run_that_an_instance_parked_goes_on_when_that_is_dead(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **LIVE)
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, ONCE)
    request = await asked(fleet[0], run_id)
    await parked(fleet[0], run_id)
    fleet[0].signal(signal.SIGKILL)
    await fleet[0].ended()
    await fleet.start(1)
    await decide(fleet[1], request, decision="allow")
    assert (await result_of(fleet[1], run_id)).endswith("answered: made")
    assert await log_of(fleet[1], session_id) == "made"


async def test_an_instance_that_dies_while_it_takes_a_run_up_leaves_it_to_another(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, **LIVE | {"INSTANCE_LEASE_SECONDS": "3"})
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, ONCE)
    request = await asked(fleet[0], run_id)
    await parked(fleet[0], run_id)
    async with fleet[0].stream(f"/runs/{run_id}/events") as events:
        answering = asyncio.create_task(fleet[0].post(path_of(request), {"decision": "allow"}))
        async for sse in events:
            if sse.event == "action_resolved":  # claimed in a moment, and an agent takes longer to start
                break
        fleet[0].signal(signal.SIGKILL)
    await asyncio.gather(answering, return_exceptions=True)
    await fleet[0].ended()
    await fleet.start(1)
    assert (await result_of(fleet[1], run_id)).endswith("answered: made")
    assert await log_of(fleet[1], session_id) == "made"


async def test_an_instance_that_stops_parks_what_waits(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, ONCE)
    request = await asked(fleet[0], run_id)
    fleet[0].signal(signal.SIGTERM)
    await fleet[0].ended()
    await fleet.start(1)
    await decide(fleet[1], request, decision="allow")
    assert (await result_of(fleet[1], run_id)).endswith("answered: made")
    assert await log_of(fleet[1], session_id) == "made"


async def test_who_waits_for_persons_takes_no_agent_from_another_tenant(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, MAX_LIVE_SESSIONS="4")
    sessions = [await fleet[0].session(**ASKING) for _ in range(4)]
    runs = [await fleet[0].prompt(session_id, ONCE) for session_id in sessions]
    requests = [await asked(fleet[0], run_id) for run_id in runs]
    async with database_of(fleet) as db:
        other = await make_key(db)
    answer = await fleet[0].client.post("/api/v1/query/single", json={"prompt": "say hi"}, headers=other)
    assert answer.json()["result"].endswith("hi"), answer.text
    active = [(await state_of(fleet[0], session_id))["active"] for session_id in sessions]
    assert active.count(False) == 1
    for request in requests:
        await decide(fleet[0], request, decision="allow")
    for run_id in runs:
        assert (await result_of(fleet[0], run_id)).endswith("answered: made")


async def test_nothing_is_parked_where_that_is_off(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, PARK_AFTER_SECONDS="0", MAX_LIVE_SESSIONS="1")
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, ONCE)
    request = await asked(fleet[0], run_id)
    kept = await fleet[0].prompt(await fleet[0].session(), "say hi")
    await asyncio.sleep(2.5)  # two looks
    assert (await state_of(fleet[0], session_id))["active"]
    await decide(fleet[0], request, decision="allow")
    assert (await result_of(fleet[0], kept)).endswith("hi")
