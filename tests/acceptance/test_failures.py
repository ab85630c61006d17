"""What clients see when processes die, pause, or lose their databases."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import psutil
import pytest

from apps.api.dev.embedded import Servers
from tests.acceptance.asking import (
    ASKING,
    COMMAND,
    asked,
    closed_for,
    decide,
    elsewhere,
    path_of,
    request_state,
    resolutions,
)
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Shared, Sse

BYPASS = {"permission_mode": "bypassPermissions"}
SLOW_TOOL = "run for i in 1; do sleep 60; done"
STREAM = "stream 4000 words every 20 ms"
"""Longer than any test: it is in the middle whenever a busy machine comes to look."""


async def gone(processes: list[psutil.Process]) -> None:
    """All of these end soon."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 10)
    assert not alive, alive


MOMENTS: dict[str, tuple[dict[str, Any], str, Callable[[Sse], bool]]] = {
    "stream": ({}, STREAM, lambda event: event.event == "partial"),
    "short stream": ({}, "stream 100 words every 20 ms", lambda event: event.event == "init"),
    "tool": (BYPASS, SLOW_TOOL, lambda e: e.event == "message" and e.data["content"][0]["type"] == "tool_use"),
    "request": (ASKING, COMMAND, lambda event: event.event == "permission_request"),
}
"""Configuration, prompt, and the event that says that its run is in the middle."""


@dataclass
class Watched:
    """A run of the scene, and what the other instance shows of it until its end."""

    session_id: str
    run_id: str
    seen: list[Sse]
    ended: asyncio.Task[None]

    @property
    def request(self) -> Sse:
        return next(event for event in self.seen if event.event == "permission_request")

    async def end(self) -> list[Sse]:
        await self.ended
        return self.seen


@dataclass
class Scene:
    """An instance that owns sessions in the middle of something, and another one where clients look on."""

    fleet: Fleet
    runs: dict[str, Watched]
    agents: list[psutil.Process]

    @property
    def owner(self) -> Instance:
        return self.fleet[0]

    @property
    def other(self) -> Instance:
        return self.fleet[1]

    @classmethod
    async def begin(cls, start_fleet: StartFleet, *moments: str, **settings: str) -> Scene:
        fleet = await start_fleet(1, **settings)
        sessions = [await fleet[0].session(**MOMENTS[moment][0]) for moment in moments]
        await asyncio.gather(*(fleet[0].ask(session_id, "say my number is 4711") for session_id in sessions))
        await fleet.start(1)
        runs = await asyncio.gather(
            *(cls._watch(fleet, session_id, moment) for session_id, moment in zip(sessions, moments, strict=True))
        )
        for session_id in sessions:
            assert await fleet.owner_of(session_id) is fleet[0]
        return cls(fleet, dict(zip(moments, runs, strict=True)), fleet[0].descendants())

    @staticmethod
    async def _watch(fleet: Fleet, session_id: str, moment: str) -> Watched:
        """A run that has come to its moment."""
        _, prompt, is_it = MOMENTS[moment]
        run_id = await fleet[1].prompt(session_id, prompt)
        seen: list[Sse] = []
        reached = asyncio.Event()

        async def watch() -> None:
            async with fleet[1].stream(f"/runs/{run_id}/events") as events:
                async for event in events:
                    seen.append(event)
                    if is_it(event):
                        reached.set()

        ended = asyncio.create_task(watch())
        async with asyncio.timeout(60):
            await reached.wait()
        return Watched(session_id, run_id, seen, ended)


async def check_owner_lost(other: Instance, watched: Watched) -> None:
    seen = watched.seen
    assert [e.event for e in seen[-2:]] == ["error", "done"]
    assert seen[-2].data["code"] == "owner_lost"
    assert seen[-2].data["retryable"] is True
    assert seen[-1].data["status"] == "failed"
    again = await other.follow(watched.run_id)
    durable = [e for e in seen if e.event != "partial"]
    assert [e for e in again if e.event != "partial"] == durable
    assert [int(e.id) for e in durable] == list(range(int(durable[0].id), int(durable[0].id) + len(durable)))
    half = durable[len(durable) // 2]
    rest = await other.follow(watched.run_id, headers={"Last-Event-ID": half.id})
    assert [e for e in rest if e.event != "partial"] == durable[durable.index(half) + 1 :]


async def killed(start_fleet: StartFleet, *moments: str) -> Scene:
    """The owner was killed in the middle of each of these."""
    scene = await Scene.begin(start_fleet, *moments)
    scene.owner.signal(signal.SIGKILL)
    await asyncio.gather(*(watched.ended for watched in scene.runs.values()))
    return scene


@pytest.mark.slow
async def test_killed_owner_in_the_middle(start_fleet: StartFleet) -> None:
    """Of a stream, and of a tool."""
    scene = await killed(start_fleet, "stream", "tool")
    await gone(scene.agents)
    for watched in scene.runs.values():
        await check_owner_lost(scene.other, watched)
        answer = await scene.other.ask(watched.session_id, "recall")
        assert "my number is 4711" in answer["result"]


async def test_a_killed_owner_closes_its_request_and_the_session_goes_on_elsewhere(start_fleet: StartFleet) -> None:
    scene = await killed(start_fleet, "request")
    watched, other = scene.runs["request"], scene.other
    await check_owner_lost(other, watched)
    assert [e.event for e in watched.seen[-3:]] == ["action_resolved", "error", "done"]
    assert resolutions(watched.seen) == [("closed", "owner_lost")]
    assert await closed_for(other, watched.request) == "owner_lost"
    await gone(scene.agents)
    run_id = await other.prompt(watched.session_id, COMMAND)
    await decide(other, await asked(other, run_id), decision="allow")
    assert "made" in (await other.follow(run_id))[-2].data["result"]
    assert "my number is 4711" in (await other.ask(watched.session_id, "recall"))["result"]


@pytest.mark.slow
async def test_a_paused_owner_writes_nothing_after_its_lease_and_an_answer_it_did_not_take_is_told(
    start_fleet: StartFleet,
) -> None:
    scene = await Scene.begin(start_fleet, "stream", "request")
    owner, other, waiting, session_id = scene.owner, scene.other, scene.runs["request"], scene.runs["stream"].session_id
    owner.signal(signal.SIGSTOP)
    answer = await other.post(path_of(waiting.request), {"decision": "deny", "message": "no"})
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted"), answer.text
    assert resolutions(await waiting.end()) == [("deny", "key")]
    assert (await request_state(other, waiting.request))["decision"] == "deny"
    for watched in scene.runs.values():
        assert (await watched.end())[-2].data["code"] == "owner_lost"
    before = (await other.get(f"/sessions/{session_id}")).json()
    assert before["owner"] is None
    async with other.stream(f"/sessions/{session_id}/events?after={before['last_seq']}") as live:
        owner.signal(signal.SIGCONT)
        await gone(scene.agents)
        after = await other.ask(session_id, "say and now")
        shown = [event async for event in until_done(live)]
    assert {event.data["run_id"] for event in shown} == {after["run_id"]}
    durable = [int(e.id) for e in shown if e.event != "partial"]
    assert durable == list(range(before["last_seq"] + 1, before["last_seq"] + 1 + len(durable)))
    assert resolutions(await other.follow(waiting.run_id)) == [("deny", "key")]
    # The instance itself comes back to life with a new lease, and works.
    await scene.fleet._ready(owner)
    assert (await owner.ask(session_id, "recall"))["status"] == "succeeded"


async def until_done(events: AsyncIterator[Sse]) -> AsyncIterator[Sse]:
    async for event in events:
        yield event
        if event.event == "done":
            return


@pytest.mark.slow
async def test_sigterm_lets_the_run_finish_and_an_answer_within_the_grace_counts(start_fleet: StartFleet) -> None:
    scene = await Scene.begin(start_fleet, "short stream", "request")
    owner, other, running, waiting = scene.owner, scene.other, scene.runs["short stream"], scene.runs["request"]
    owner.signal(signal.SIGTERM)
    assert (await running.end())[-1].data["status"] == "succeeded"
    await decide(other, waiting.request, decision="allow")
    assert "made" in (await waiting.end())[-2].data["result"]
    assert await owner.ended() == 0
    assert "my number is 4711" in (await other.ask(running.session_id, "recall"))["result"]


@pytest.mark.slow
async def test_sigterm_ends_runs_and_closes_requests_that_outlast_the_grace(start_fleet: StartFleet) -> None:
    scene = await Scene.begin(start_fleet, "tool", "request", SHUTDOWN_GRACE_SECONDS="0.5", PARK_AFTER_SECONDS="0")
    owner, other, waiting = scene.owner, scene.other, scene.runs["request"]
    owner.signal(signal.SIGTERM)
    events = await scene.runs["tool"].end()
    assert [e.event for e in events[-3:]] == ["result", "error", "done"]
    assert events[-2].data["code"] == "shutdown"
    assert resolutions(await waiting.end()) == [("closed", "shutdown")]
    assert waiting.seen[-2].data["code"] == "shutdown"
    assert await closed_for(other, waiting.request) == "shutdown"
    assert await owner.ended() == 0
    await gone(scene.agents)
    assert (await other.ask(waiting.session_id, "say still here"))["result"].endswith("still here")


# --- databases


@pytest.fixture(scope="module")
async def restartable(lasting_servers: Servers, start_lasting_fleet: StartFleet) -> AsyncIterator[Shared]:
    """A fleet of which the databases restart; it ends before they do."""
    fleet = await start_lasting_fleet(2, servers=lasting_servers, INSTANCE_LEASE_SECONDS="20")
    yield Shared(fleet)
    await fleet.stop()


async def during_a_stream(shared: Shared, servers: Servers, name: Literal["postgres", "valkey"]) -> list[Sse]:
    """What another instance than the owner shows of a run while a database restarts."""
    session_id = await shared.of(**ASKING)
    run_id = await shared.fleet[0].prompt(session_id, "stream 100 words every 20 ms then say the end")
    events: list[Sse] = []
    other = await elsewhere(shared.fleet, session_id)
    async with other.stream(f"/runs/{run_id}/events") as stream:
        async for event in stream:
            events.append(event)
            if event.id.endswith("-3"):
                await asyncio.to_thread(servers.restart, name)
    return events


@pytest.mark.slow
async def test_a_run_survives_a_restart_of_redis(lasting_servers: Servers, restartable: Shared) -> None:
    events = await during_a_stream(restartable, lasting_servers, "valkey")
    assert events[-1].data["status"] == "succeeded"
    durable = [e for e in events if e.event != "partial"]
    first = int(durable[0].id)
    assert [int(e.id) for e in durable] == list(range(first, first + len(durable)))
    texts = [e.data["content"][0]["text"] for e in durable if e.event == "message" and e.data["role"] == "assistant"]
    assert texts[0].endswith("word100")
    other = await elsewhere(restartable.fleet, events[-1].data["session_id"])
    assert (await other.ask(events[-1].data["session_id"], "recall"))["status"] == "succeeded"


async def test_a_request_and_its_answer_outlive_a_restart_of_redis(
    lasting_servers: Servers, restartable: Shared
) -> None:
    run_id, request, other = await waiting_for_a_person(restartable)
    await asyncio.to_thread(lasting_servers.restart, "valkey")
    await decide(other, request, decision="allow")
    events = await other.follow(run_id)
    assert resolutions(events) == [("allow", "key")]
    assert "made" in events[-2].data["result"]


async def test_an_answer_during_a_restart_of_postgresql_counts_once(
    lasting_servers: Servers, restartable: Shared
) -> None:
    run_id, request, other = await waiting_for_a_person(restartable)
    restart = asyncio.create_task(asyncio.to_thread(lasting_servers.restart, "postgres"))
    async with asyncio.timeout(30):
        while (answer := await other.post(path_of(request), {"decision": "allow"})).status_code >= 500:
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)
    await restart
    assert answer.status_code == 200 or answer.json()["error"]["details"]["resolved_by"]["type"] == "key"
    events = await other.follow(run_id)
    assert resolutions(events) == [("allow", "key")]
    assert "made" in events[-2].data["result"]


async def waiting_for_a_person(shared: Shared) -> tuple[str, Sse, Instance]:
    """A run, its request, and an instance that does not own it."""
    session_id = await shared.of(**ASKING)
    run_id = await shared.fleet[0].prompt(session_id, COMMAND)
    return run_id, await asked(shared.fleet[1], run_id), await elsewhere(shared.fleet, session_id)


async def test_a_run_survives_a_restart_of_postgresql(lasting_servers: Servers, restartable: Shared) -> None:
    events = await during_a_stream(restartable, lasting_servers, "postgres")
    status, run_id = events[-1].data["status"], events[-1].data["run_id"]
    assert status == "succeeded" or events[-2].data["code"] in ("storage_failed", "owner_lost")
    fleet = restartable.fleet
    assert (await fleet[0].get(f"/runs/{run_id}")).json()["status"] == status
    stored = await fleet[1].get(f"/runs/{run_id}/events", headers={"Accept": "application/json"})
    assert [int(e["id"]) for e in stored.json()["data"]] == [int(e.id) for e in events if e.event != "partial"]
    assert (await fleet[1].ask(events[-1].data["session_id"], "recall"))["status"] == "succeeded"


# --- agents and sessions


async def test_killing_the_agent_process_ends_its_run_with_a_clear_event(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    owner = await fleet.owner_of(session_id)
    run_id = await fleet[0].prompt(session_id, STREAM)
    async with owner.stream(f"/runs/{run_id}/events") as events:
        told = [await anext(e async for e in events if e.id.endswith("-40"))]
        cli = [p for p in owner.agent_of(session_id) if "claude" in p.name()]
        assert cli
        for process in cli:
            process.kill()
        told += [event async for event in events]
    assert told[-2].data["code"] == "agent_crashed"
    assert told[-1].data["status"] == "failed"
    assert STREAM in (await fleet[0].ask(session_id, "recall"))["result"]


async def test_deleting_a_session_ends_its_agent_and_its_streams(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    owner = await fleet.owner_of(session_id)
    run_id = await fleet[0].prompt(session_id, STREAM)
    async with owner.stream(f"/runs/{run_id}/events") as events:
        await anext(e async for e in events if e.event == "init")
    agents = owner.agent_of(session_id)
    assert [p for p in agents if "claude" in p.name()]
    other = (await fleet.others(owner))[0]
    async with other.stream(f"/sessions/{session_id}/events") as events:
        async for event in events:
            if event.event == "partial":
                response = await other.client.delete(f"/api/v1/sessions/{session_id}")
                assert response.status_code == 200
                break
        rest = [event async for event in events]
    assert rest[-1].event == "error"
    assert rest[-1].data["code"] == "session_deleted"
    await gone(agents)
    assert (await owner.get(f"/sessions/{session_id}")).status_code == 404
    again: httpx.Response = await owner.post(f"/sessions/{session_id}/query", {"prompt": "say hi"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "session_deleted")
