"""A prompt posted to one instance, used from the others."""

from __future__ import annotations

import asyncio

import pytest

from tests.fleet import Fleet, Shared, Sse

BYPASS = {"permission_mode": "bypassPermissions"}
SLOW_TOOL = "run for i in 1; do sleep 60; done"


def tool_is_running(event: Sse) -> bool:
    return event.event == "message" and event.data["content"][0]["type"] == "tool_use"


@pytest.mark.slow
async def test_two_other_instances_see_the_same_events_in_the_same_order(fleet: Fleet) -> None:
    session_id = await fleet[0].session()
    run_id = await fleet[0].prompt(session_id, "stream 200 words every 5 ms")
    second, third = await asyncio.gather(fleet[1].follow(run_id), fleet[2].follow(run_id))
    assert second == third
    assert [e.event for e in second if e.event != "partial"] == ["init", "message", "message", "result", "done"]
    words = "".join(e.data["delta"]["text"] for e in second if e.event == "partial")
    assert words.split() == [f"word{n}" for n in range(1, 201)]
    assert [int(e.id) for e in second if e.event != "partial"] == [1, 2, 3, 4, 5]


async def test_interrupt_from_another_instance_stops_a_running_tool(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    run_id = await fleet[0].prompt(session_id, SLOW_TOOL)
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if tool_is_running(event):
                answer = await fleet[2].post(f"/sessions/{session_id}/interrupt")
                assert answer.json() == {"session_id": session_id, "run_id": run_id, "status": "applied"}
            last = event
    assert (last.event, last.data["status"]) == ("done", "interrupted")
    assert (await fleet[0].get(f"/runs/{run_id}")).json()["status"] == "interrupted"


async def test_the_next_prompt_on_another_instance_remembers_the_conversation(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    await fleet[0].ask(session_id, "say my number is 4711")
    answer = await fleet[1].ask(session_id, "recall")
    assert "4711" in answer["result"]


async def test_a_stream_resumes_on_another_instance_without_gap_or_repeat(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    run_id = await fleet[0].prompt(session_id, "stream 100 words every 5 ms")
    seen: list[Sse] = []
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            seen.append(event)
            if len(seen) == 40:
                break
    rest = await fleet[2].follow(run_id, headers={"Last-Event-ID": seen[-1].id})
    ids = [e.id for e in (*seen, *rest)]
    assert len(ids) == len(set(ids))
    words = "".join(e.data["delta"]["text"] for e in (*seen, *rest) if e.event == "partial")
    assert words.split() == [f"word{n}" for n in range(1, 101)]
    assert rest[-1].event == "done"


async def test_a_client_that_leaves_changes_nothing_for_its_run(shared: Shared) -> None:
    fleet, body = shared.fleet, {"prompt": "stream 40 words every 20 ms", "session_id": await shared.of(**BYPASS)}
    async with fleet[0].client.stream("POST", "/api/v1/query", json=body) as reply:
        run_id = reply.headers["X-Run-ID"]
        async for line in reply.aiter_lines():
            if line == "event: partial":
                break
    events = await fleet[1].follow(run_id)
    assert events[-1].data["status"] == "succeeded"


async def test_a_second_stream_of_the_session_shows_all_runs_and_ends_when_idle(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    newest = (await fleet[0].get(f"/sessions/{session_id}")).json()["last_seq"]
    first = await fleet[0].prompt(session_id, "say one")
    second = await fleet[1].prompt(session_id, "say two")
    async with fleet[2].stream(f"/sessions/{session_id}/events?until=idle&after={newest}") as events:
        seen = [event async for event in events]
    assert [e.data["run_id"] for e in seen if e.event == "done"] == [first, second]
    durable = [int(e.id) for e in seen if e.event != "partial"]
    assert durable == list(range(newest + 1, newest + 1 + len(durable)))


async def test_the_agents_environment_holds_no_server_secret(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS, env={"COLOUR": "blue"})
    await fleet[0].ask(session_id, "run env; cat /proc/$PPID/environ; cat /proc/*/environ")
    messages = (await fleet[1].get(f"/sessions/{session_id}/messages")).text
    assert "COLOUR=blue" in messages
    secrets = (fleet.env["API_KEY"], fleet.env["ANTHROPIC_API_KEY"])
    for name in ("DATABASE_URL", "REDIS_URL", "postgresql", "valkey.sock", *secrets):
        assert name not in messages


async def test_an_agent_cannot_read_another_sessions_files(shared: Shared) -> None:
    fleet, theirs = shared.fleet, await shared.of(**BYPASS)
    await fleet[0].ask(theirs, "write secret.txt: the treasure map")
    await asyncio.to_thread(fleet.spread, theirs)
    mine = await shared.of(**BYPASS, env={"COLOUR": "blue"})
    root = fleet.env["WORKSPACES_DIR"]
    command = f"ls {root}; cat {root}/{theirs}/secret.txt; echo mine > here.txt; cat here.txt"
    said = (await fleet[1].ask(mine, f"run {command}"))["result"]
    assert "treasure map" not in said
    assert "Permission denied" in said or "No such file" in said  # as with namespaces
    assert "mine" in said
