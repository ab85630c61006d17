"""What clients see when processes die, pause, or lose their databases."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import httpx
import psutil

from apps.api.dev.embedded import Servers
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse

BYPASS = {"permission_mode": "bypassPermissions"}
SLOW_TOOL = "run for i in 1; do sleep 60; done"
STREAM = "stream 4000 words every 20 ms"
"""Longer than any test: it is in the middle whenever a busy machine comes to look."""


async def gone(processes: list[psutil.Process]) -> None:
    """All of these end soon."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 10)
    assert not alive, alive


async def kill_during(
    fleet: Fleet, session_id: str, prompt: str, moment: str
) -> tuple[list[Sse], list[psutil.Process]]:
    """Kill the owner when `moment` (an event's type, or `tool`) is seen; returns what another instance showed."""
    run_id = await fleet[0].prompt(session_id, prompt)
    owner = await owner_when_running(fleet, session_id)
    other = (await fleet.others(owner))[0]
    seen: list[Sse] = []
    agents: list[psutil.Process] = []
    async with other.stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            seen.append(event)
            tool = event.event == "message" and event.data["content"][0]["type"] == "tool_use"
            if not agents and (event.event == moment or (moment == "tool" and tool)):
                agents = owner.descendants()
                owner.signal(signal.SIGKILL)
    assert agents
    return seen, agents


async def owner_when_running(fleet: Fleet, session_id: str) -> Instance:
    async with fleet[0].stream(f"/sessions/{session_id}/events") as events:
        async for event in events:
            if event.event == "init":
                break
    return await fleet.owner_of(session_id)


async def check_owner_lost(fleet: Fleet, session_id: str, seen: list[Sse], agents: list[psutil.Process]) -> None:
    assert [e.event for e in seen[-2:]] == ["error", "done"]
    assert seen[-2].data["code"] == "owner_lost"
    assert seen[-2].data["retryable"] is True
    assert seen[-1].data["status"] == "failed"
    await gone(agents)
    living = next(i for i in fleet.instances if i.process.poll() is None)
    again = await living.follow(seen[0].data["run_id"])
    durable = [e for e in seen if e.event != "partial"]
    assert [e for e in again if e.event != "partial"] == durable
    assert [int(e.id) for e in durable] == list(range(int(durable[0].id), int(durable[0].id) + len(durable)))
    half = durable[len(durable) // 2]
    rest = await living.follow(seen[0].data["run_id"], headers={"Last-Event-ID": half.id})
    assert [e for e in rest if e.event != "partial"] == durable[durable.index(half) + 1 :]
    answer = await living.ask(session_id, "recall")
    assert "my number is 4711" in answer["result"]


async def test_killed_owner_in_the_middle_of_a_stream(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3)
    session_id = await fleet[0].session()
    await fleet[0].ask(session_id, "say my number is 4711")
    seen, agents = await kill_during(fleet, session_id, STREAM, "partial")
    await check_owner_lost(fleet, session_id, seen, agents)


async def test_killed_owner_in_the_middle_of_a_tool(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3)
    session_id = await fleet[0].session(**BYPASS)
    await fleet[0].ask(session_id, "say my number is 4711")
    seen, agents = await kill_during(fleet, session_id, SLOW_TOOL, "tool")
    await check_owner_lost(fleet, session_id, seen, agents)


async def test_a_paused_owner_writes_nothing_after_its_lease(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id = await fleet[0].session()
    run_id = await fleet[0].prompt(session_id, STREAM)
    owner = await owner_when_running(fleet, session_id)
    other = (await fleet.others(owner))[0]
    owner.signal(signal.SIGSTOP)
    events = await other.follow(run_id)
    assert events[-2].data["code"] == "owner_lost"
    before = (await other.get(f"/sessions/{session_id}")).json()
    assert before["owner"] is None
    async with other.stream(f"/sessions/{session_id}/events?after={before['last_seq']}") as live:
        agents = owner.descendants()
        owner.signal(signal.SIGCONT)
        await gone(agents)
        answer = await other.ask(session_id, "say and now")
        shown = [event async for event in until_done(live)]
    assert {event.data["run_id"] for event in shown} == {answer["run_id"]}
    durable = [int(e.id) for e in shown if e.event != "partial"]
    assert durable == list(range(before["last_seq"] + 1, before["last_seq"] + 1 + len(durable)))
    # The instance itself comes back to life with a new lease, and works.
    await fleet._ready(owner)
    assert (await owner.ask(session_id, "recall"))["status"] == "succeeded"


async def until_done(events: AsyncIterator[Sse]) -> AsyncIterator[Sse]:
    async for event in events:
        yield event
        if event.event == "done":
            return


async def test_sigterm_lets_the_run_finish(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id = await fleet[0].session()
    run_id = await fleet[0].prompt(session_id, "stream 100 words every 20 ms")
    owner = await owner_when_running(fleet, session_id)
    other = (await fleet.others(owner))[0]
    following = asyncio.create_task(other.follow(run_id))
    owner.signal(signal.SIGTERM)
    events = await following
    assert events[-1].data["status"] == "succeeded"
    assert await owner.ended() == 0
    assert (await other.ask(session_id, "recall"))["status"] == "succeeded"


async def test_sigterm_ends_a_run_that_outlasts_the_grace(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, SHUTDOWN_GRACE_SECONDS="0.5")
    session_id = await fleet[0].session(**BYPASS)
    run_id = await fleet[0].prompt(session_id, SLOW_TOOL)
    owner = await owner_when_running(fleet, session_id)
    agents = owner.descendants()
    other = (await fleet.others(owner))[0]
    owner.signal(signal.SIGTERM)
    events = await other.follow(run_id)
    assert [e.event for e in events[-3:]] == ["result", "error", "done"]
    assert events[-2].data["code"] == "shutdown"
    assert await owner.ended() == 0
    await gone(agents)


async def test_a_run_survives_a_restart_of_redis(own_servers: Servers, start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, servers=own_servers)
    session_id = await fleet[0].session()
    run_id = await fleet[0].prompt(session_id, "stream 100 words every 20 ms then say the end")
    owner = await owner_when_running(fleet, session_id)
    other = (await fleet.others(owner))[0]
    events = []
    async with other.stream(f"/runs/{run_id}/events") as stream:
        async for event in stream:
            events.append(event)
            if event.id == "2-3":
                await asyncio.to_thread(own_servers.restart, "valkey")
    assert events[-1].data["status"] == "succeeded"
    durable = [e for e in events if e.event != "partial"]
    assert [int(e.id) for e in durable] == list(range(1, len(durable) + 1))
    texts = [e.data["content"][0]["text"] for e in durable if e.event == "message" and e.data["role"] == "assistant"]
    assert texts[0].endswith("word100")
    assert (await other.ask(session_id, "recall"))["status"] == "succeeded"


async def test_a_run_survives_a_restart_of_postgresql(own_servers: Servers, start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, servers=own_servers, INSTANCE_LEASE_SECONDS="10")
    session_id = await fleet[0].session()
    run_id = await fleet[0].prompt(session_id, "stream 100 words every 20 ms then say the end")
    owner = await owner_when_running(fleet, session_id)
    other = (await fleet.others(owner))[0]
    events = []
    async with other.stream(f"/runs/{run_id}/events") as stream:
        async for event in stream:
            events.append(event)
            if event.id == "2-3":
                await asyncio.to_thread(own_servers.restart, "postgres")
    status = events[-1].data["status"]
    assert status == "succeeded" or events[-2].data["code"] in ("storage_failed", "owner_lost")
    run = (await other.get(f"/runs/{run_id}")).json()
    assert run["status"] == status
    stored = await other.get(f"/runs/{run_id}/events", headers={"Accept": "application/json"})
    assert [int(e["id"]) for e in stored.json()["data"]] == [int(e.id) for e in events if e.event != "partial"]
    assert (await other.ask(session_id, "recall"))["status"] == "succeeded"


async def test_killing_the_agent_process_ends_its_run_with_a_clear_event(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    session_id = await fleet[0].session()
    run_id = await fleet[0].prompt(session_id, STREAM)
    async with fleet[0].stream(f"/runs/{run_id}/events") as events:
        told = [await anext(e async for e in events if e.id == "2-40")]
        cli = [p for p in fleet[0].descendants() if "claude" in p.name()]
        assert cli
        for process in cli:
            process.kill()
        told += [event async for event in events]
    assert told[-2].data["code"] == "agent_crashed"
    assert told[-1].data["status"] == "failed"
    assert STREAM in (await fleet[0].ask(session_id, "recall"))["result"]


async def test_deleting_a_session_ends_its_agent_and_its_streams(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id = await fleet[0].session()
    await fleet[0].prompt(session_id, STREAM)
    owner = await owner_when_running(fleet, session_id)
    agents = owner.descendants()
    other = (await fleet.others(owner))[0]
    async with other.stream(f"/sessions/{session_id}/events") as events:
        async for event in events:
            if event.event == "partial":
                response = await other.client.delete(f"/api/v1/sessions/{session_id}")
                assert response.status_code == 204
                break
        rest = [event async for event in events]
    assert rest[-1].event == "error"
    assert rest[-1].data["code"] == "session_deleted"
    await gone(agents)
    assert (await owner.get(f"/sessions/{session_id}")).status_code == 404
    again: httpx.Response = await owner.post(f"/sessions/{session_id}/query", {"prompt": "say hi"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "session_deleted")
