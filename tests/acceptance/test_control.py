"""Control of a live session: mode, model, tasks, MCP servers, cancel, reset, on_busy, on_disconnect."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
import pytest

from tests.acceptance.asking import ASKING, COMMAND, all_asked, asked, decide, elsewhere, resolutions
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Shared

BYPASS = {"permission_mode": "bypassPermissions"}
STREAM = "stream 4000 words every 20 ms"
OTHER_MODEL = "claude-opus-5-5"


async def control(instance: Instance, session_id: str, **asked: Any) -> httpx.Response:
    return await instance.post(f"/sessions/{session_id}/control", asked)


async def applied(response: httpx.Response) -> dict[str, Any]:
    assert (response.status_code, response.json().get("status")) == (200, "applied"), response.text
    return response.json()  # type: ignore[no-any-return]


async def reset(instance: Instance, session_id: str, mode: str) -> None:
    await applied(await instance.post(f"/sessions/{session_id}/reset", {"mode": mode}))


async def init_of(instance: Instance, session_id: str, prompt: str = "say what are you") -> dict[str, Any]:
    """The `init` of a new run."""
    events = await instance.follow(await instance.prompt(session_id, prompt))
    assert events[-1].data["status"] == "succeeded", events[-2]
    return next(e.data for e in events if e.event == "init")


async def speaking(instance: Instance, run_id: str) -> None:
    """Until a run has begun to speak."""
    await all_asked(instance, f"/runs/{run_id}/events", 1, "partial")


# --- mode and model


async def test_mode_and_model_changed_while_a_request_waits_hold_for_the_rest_of_the_run_and_later(
    fleet: Fleet,
) -> None:
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, f"{COMMAND} then run touch b then say end")
    request = await asked(fleet[1], run_id)
    other = await elsewhere(fleet, session_id)
    await applied(await control(other, session_id, permission_mode="bypassPermissions"))
    await applied(await control(other, session_id, model=OTHER_MODEL))
    await decide(other, request, decision="allow")
    events = await other.follow(run_id)
    assert len([e for e in events if e.event == "permission_request"]) == 1, "the second command was not asked for"
    changed = next(e.data for e in events if e.event == "status" and e.data["status"] == "reconfigured")
    assert changed["permission_mode"] == "bypassPermissions"
    spoke = [e.data["model"] for e in events if e.event == "message" and e.data.get("model")]
    assert spoke[0] != OTHER_MODEL
    assert spoke[-1] == OTHER_MODEL
    later = ("bypassPermissions", OTHER_MODEL)
    init = await init_of(other, session_id)
    assert (init["permission_mode"], init["model"]) == later
    await reset(other, session_id, "soft")
    init = await init_of(other, session_id)
    assert (init["permission_mode"], init["model"]) == later
    state = (await other.get(f"/sessions/{session_id}")).json()
    assert (state["permission_mode"], state["model"]) == later


async def test_what_the_agent_refuses_is_told_in_its_words(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    refused = await control(await elsewhere(fleet, session_id), session_id, mcp_reconnect="nothing")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "control_failed")
    assert "nothing" in refused.json()["error"]["message"]


# --- cancel


async def test_a_queued_run_of_an_owned_session_is_cancelled(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    active = await fleet[0].prompt(session_id, STREAM)
    queued = await fleet[1].prompt(session_id, "say never")
    await speaking(fleet[1], active)
    other = await elsewhere(fleet, session_id)
    following = asyncio.create_task(other.follow(queued))
    assert (await applied(await other.post(f"/runs/{queued}/cancel")))["run_id"] == queued
    assert (await following)[-1].data["status"] == "interrupted"
    assert (await other.get(f"/runs/{queued}")).json()["error"]["code"] == "interrupted"
    again = await other.post(f"/runs/{queued}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "no_live_run")
    await applied(await other.post(f"/runs/{active}/cancel"))
    assert (await other.follow(active))[-1].data["status"] == "interrupted"
    assert (await other.ask(session_id, "say still here"))["result"].endswith("still here")


async def test_what_nobody_owns_is_changed_and_cancelled_and_the_others_run_in_order_and_are_read_here(
    start_fleet: StartFleet,
) -> None:
    """On an instance without slots, which other instances' runs are followed on as well."""
    fleet = await start_fleet(1, RUNNER_SLOTS="0")
    session_id = await fleet[0].session()
    await applied(await control(fleet[0], session_id, permission_mode="acceptEdits", model=OTHER_MODEL))
    refused = await control(fleet[0], session_id, stop_task="any")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_live_run")
    runs = [await fleet[0].prompt(session_id, f"say number {n}") for n in range(3)]
    following = asyncio.create_task(fleet[0].follow(runs[0]))
    await applied(await fleet[0].post(f"/runs/{runs[0]}/cancel"))
    assert [e.event for e in await following if e.event != "queued"] == ["done"]
    await fleet.start(1, RUNNER_SLOTS="1")
    streams = [await fleet[0].follow(run) for run in runs]
    assert [events[-1].data["status"] for events in streams] == ["interrupted", *["succeeded"] * 2]
    assert [events[-2].data["result"][-8:] for events in streams[1:]] == ["number 1", "number 2"]
    init = next(e.data for e in streams[1] if e.event == "init")
    assert (init["permission_mode"], init["model"]) == ("acceptEdits", OTHER_MODEL)
    assert (await fleet.owner_of(session_id)) is fleet[1]


async def test_cancels_that_race_with_claims_end_every_run_exactly_once(shared: Shared) -> None:
    """In a session that is warm, and in two that nobody owns yet."""
    fleet = shared.fleet
    sessions = [await shared.of(**ASKING), await fleet[1].session(), await fleet[2].session()]
    newest = [(await fleet[0].get(f"/sessions/{session_id}")).json()["last_seq"] for session_id in sessions]
    runs: list[str] = []

    async def submit_and_cancel(number: int) -> int:
        run_id = await fleet[number % 3].prompt(sessions[number // 3 % 3], "stream 20 words every 5 ms")
        runs.append(run_id)
        return (await fleet[(number + 1) % 3].post(f"/runs/{run_id}/cancel")).status_code

    assert set(await asyncio.gather(*(submit_and_cancel(n) for n in range(24)))) <= {200, 409}
    ended: list[str] = []
    for session_id, before in zip(sessions, newest, strict=True):
        async with fleet[0].stream(f"/sessions/{session_id}/events?until=idle&after={before}") as events:
            seen = [event async for event in events]
        ended += [e.data["run_id"] for e in seen if e.event == "done"]
        durable = [int(e.id) for e in seen if e.event != "partial"]
        assert durable == list(range(before + 1, before + 1 + len(durable)))
    assert sorted(ended) == sorted(runs)
    for session_id in sessions:
        assert (await fleet[2].ask(session_id, "say still here"))["result"].endswith("still here")


# --- on_busy and on_disconnect


async def test_on_busy_interrupts_or_rejects(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    active = await fleet[0].prompt(session_id, STREAM)
    await speaking(fleet[1], active)
    other = await elsewhere(fleet, session_id)
    refused = await other.post(f"/sessions/{session_id}/query", {"prompt": "say no", "on_busy": "reject"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")
    answer = await other.ask(session_id, "say me first", on_busy="interrupt")
    assert answer["result"].endswith("me first")
    assert (await other.follow(active))[-1].data["status"] == "interrupted"


async def test_on_busy_interrupts_a_run_that_waits_for_a_person(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    active = await fleet[0].prompt(session_id, COMMAND)
    await asked(fleet[1], active)
    answer = await (await elsewhere(fleet, session_id)).ask(session_id, "say me first", on_busy="interrupt")
    assert answer["result"].endswith("me first")
    assert resolutions(await fleet[1].follow(active)) == [("closed", "interrupted")]


@pytest.mark.parametrize("path", ["/query", "/query/single", "/sessions/{}/query?wait=60"])
@pytest.mark.parametrize("policy", ["interrupt", "continue"])
async def test_a_client_that_leaves_stops_its_run_only_if_it_said_so(shared: Shared, path: str, policy: str) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    other = await elsewhere(fleet, session_id)
    body = {"prompt": "stream 80 words every 20 ms", "on_disconnect": policy}
    if path.startswith("/query"):
        body["session_id"] = session_id
    since = (await fleet[0].get(f"/sessions/{session_id}")).json()["last_seq"]
    request = asyncio.create_task(other.client.post(f"/api/v1{path.format(session_id)}", json=body))
    async with fleet[0].stream(f"/sessions/{session_id}/events?after={since}") as events:
        begun = await anext(
            e async for e in events if e.event == "partial" and "word1" in e.data["delta"].get("text", "")
        )
    request.cancel()
    ended = await fleet[1].follow(begun.data["run_id"])
    assert ended[-1].data["status"] == ("interrupted" if policy == "interrupt" else "succeeded")


@pytest.mark.slow
async def test_a_drain_of_the_instance_that_holds_the_stream_is_not_a_client_that_leaves(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(1, RUNNER_SLOTS="0", SHUTDOWN_GRACE_SECONDS="0")
    await fleet.start(1, RUNNER_SLOTS="2")
    runs: list[str] = []
    requests = []
    for path in ("/query", "/query/single"):
        session_id = await fleet[1].session(**BYPASS)
        body = {"prompt": "say begun then run until test -e go; do sleep 0.05; done", "session_id": session_id}
        body["on_disconnect"] = "interrupt"
        requests.append(asyncio.create_task(fleet[0].client.post(f"/api/v1{path}", json=body)))
        (begun,) = await all_asked(fleet[1], f"/sessions/{session_id}/events", 1, "partial")
        runs.append(begun.data["run_id"])
    fleet[0].signal(signal.SIGTERM)
    await asyncio.wait(requests)
    assert await fleet[0].ended() == 0
    for run_id in runs:
        run = (await fleet[1].get(f"/runs/{run_id}")).json()
        assert run["status"] == "running"
        (fleet.files_of(run["session_id"]) / "go").touch()
        assert (await fleet[1].follow(run_id))[-1].data["status"] == "succeeded"


# --- reset


async def test_a_reset_starts_a_new_process_that_knows_the_conversation_unless_it_is_hard(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**BYPASS)
    old = (await init_of(fleet[0], session_id, "write notes.txt: hello"))["sdk_session_id"]
    owner, other = await fleet.owner_of(session_id), await elsewhere(fleet, session_id)
    waited_for = [
        await fleet[0].prompt(session_id, "stream 50 words every 20 ms"),
        await fleet[1].prompt(session_id, "say second"),
    ]
    await reset(other, session_id, "hard")
    for run_id in waited_for:
        assert (await other.get(f"/runs/{run_id}")).json()["status"] == "succeeded"
    assert "nothing before" in (await other.ask(session_id, "recall"))["result"]
    new = (await init_of(other, session_id))["sdk_session_id"]
    assert new != old
    assert "hello" in (await other.ask(session_id, "read notes.txt"))["result"]
    before = (await other.ask(session_id, "run echo $TMPDIR"))["result"]
    await reset(other, session_id, "soft")
    events = await other.follow(await other.prompt(session_id, "run echo $TMPDIR"))
    assert events[-2].data["result"] != before, "another process"
    assert next(e.data for e in events if e.event == "init")["sdk_session_id"] == new
    known = (await other.ask(session_id, "recall"))["result"]
    assert "read notes.txt" in known
    assert "write notes.txt" not in known
    assert "hello" in (await other.ask(session_id, "read notes.txt"))["result"]
    assert owner.process.poll() is None


async def test_a_reset_with_the_same_idempotency_key_happens_once(fleet: Fleet) -> None:
    session_id = await fleet[0].session()
    path, headers = f"/sessions/{session_id}/reset", {"Idempotency-Key": session_id}
    first, again = [(await i.post(path, {"mode": "hard"}, headers=headers)).json() for i in (fleet[1], fleet[2])]
    assert first == again
    assert len((await fleet[0].get(f"/sessions/{session_id}/runs")).json()["data"]) == 1


# --- tasks, which may tell of their end in turns of their own: the last test of the session that the others share


async def test_a_background_task_is_stopped(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, "run in background for i in 1; do sleep 60; done")
    other = await elsewhere(fleet, session_id)
    await decide(other, await asked(fleet[1], run_id), decision="allow")
    (task,) = await all_asked(fleet[1], f"/runs/{run_id}/events", 1, "task")
    await applied(await control(other, session_id, stop_task=task.data["task_id"]))
    async with other.stream(f"/sessions/{session_id}/events", headers={"Last-Event-ID": task.id}) as events:
        stopped = await anext(
            e async for e in events if e.event == "task" and e.data["status"] in ("stopped", "killed")
        )
    assert stopped.data["task_id"] == task.data["task_id"]
    refused = await control(other, session_id, stop_task="unknown")
    assert refused.json()["error"]["code"] == "control_failed"
    assert refused.json()["error"]["message"] == "No such task is at work."
