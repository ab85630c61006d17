"""A live session, seen from outside: what its runs leave for those who come later."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fleet import Fleet, Shared, Sse
from tests.world import PATIENCE, until

HALF_A_PAIR = "\ud83d"
BYPASS = {"permission_mode": "bypassPermissions"}


async def nothing_left(fleet: Fleet, path: str, position: str | None = None) -> bool:
    """Whether the answer is the one upon which an EventSource stops to reconnect."""
    answer = await fleet[1].get(path, headers={"Last-Event-ID": position} if position else {})
    assert answer.content == b""
    return answer.status_code == 204


async def stream(fleet: Fleet, path: str, **more: Any) -> list[Sse]:
    """All of a stream that ends by itself."""
    async with asyncio.timeout(PATIENCE), fleet[1].stream(path, **more) as events:
        return [event async for event in events]


async def newest(fleet: Fleet, session_id: str) -> int:
    """The position of a session's newest event."""
    return int((await fleet[2].get(f"/sessions/{session_id}")).json()["last_seq"])


@pytest.mark.parametrize("of", ["runs/{run}/events", "sessions/{session}/events?run_id={run}"])
async def test_a_stream_of_a_run_that_was_read_to_its_end_is_no_content(shared: Shared, of: str) -> None:
    """Browsers reconnect by themselves, with the id of the `done` that they have just seen."""
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    first = await fleet[0].prompt(session_id, "say one")
    path = "/" + of.format(run=first, session=session_id)
    events = await stream(fleet, path)
    assert events[-1].event == "done"
    assert await nothing_left(fleet, path, events[-1].id)
    await fleet[0].ask(session_id, "say two")
    assert await nothing_left(fleet, path, events[-1].id)
    assert await stream(fleet, path, headers={"Last-Event-ID": events[-2].id}) == events[-1:]
    [resync] = await stream(fleet, path, headers={"Last-Event-ID": "999999"})
    assert resync.event == "resync"


async def test_a_stream_until_idle_of_an_idle_session_that_was_read_is_no_content(shared: Shared) -> None:
    fleet = shared.fleet
    assert await nothing_left(fleet, f"/sessions/{await fleet[0].session()}/events?until=idle")
    session_id = await shared.of(**BYPASS)
    await fleet[0].ask(session_id, "say one")
    events = await stream(fleet, f"/sessions/{session_id}/events?until=idle")
    assert events[-1].event == "done"
    assert await nothing_left(fleet, f"/sessions/{session_id}/events?until=idle&after={events[-1].id}")
    assert await nothing_left(fleet, f"/sessions/{session_id}/events?until=idle", events[-1].id)


async def test_streams_until_idle_that_come_at_any_moment_of_a_run_see_its_done(shared: Shared) -> None:
    """To find the session idle and to have seen everything are two things, and both are needed."""
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    for _ in range(3):
        run_id = await fleet[0].prompt(session_id, "stream 20 words every 5 ms")
        running, streams = asyncio.create_task(fleet[0].follow(run_id)), []
        while not running.done():
            seen = await newest(fleet, session_id)
            after = f"/sessions/{session_id}/events?until=idle&after={seen}"
            streams.append((seen, asyncio.create_task(stream(fleet, after))))
        done = int((await running)[-1].id)
        for seen, streaming in streams:
            durable = [int(event.id) for event in await streaming if event.event != "partial"]
            assert durable == list(range(seen + 1, done + 1))


async def test_clients_that_leave_in_the_middle_leave_no_stream_behind(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    before = await newest(fleet, session_id)
    run_id = await fleet[0].prompt(session_id, "stream 200 words every 5 ms")

    async def look(seconds: float) -> None:
        async with fleet[1].stream(f"/sessions/{session_id}/events?after={before}") as events:
            async for event in events:
                if event.event == "partial":
                    break
            await asyncio.sleep(seconds)

    await asyncio.gather(*(look(n * 0.01) for n in range(60)))
    await until(lambda: no_stream_is_open(fleet), every=0.1)
    assert (await fleet[2].follow(run_id))[-1].data["status"] == "succeeded"


async def no_stream_is_open(fleet: Fleet) -> bool:
    return "\nclaude_agent_api_event_streams_open 0.0\n" in (await fleet[1].client.get("/metrics")).text


async def test_a_prompt_with_half_a_pair_runs_and_can_be_read_everywhere(shared: Shared) -> None:
    """What an agent is told or prints need not be encodable: it must neither end an instance nor a request. The last
    test of the session: what parses JSON strictly does not read its events."""
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    before = await newest(fleet, session_id)
    command = '{"command": "printf hi # \\ud83d"}'
    body = {"session_id": session_id, "prompt": f"use tool Bash {command} then say {HALF_A_PAIR}"}
    answer = await fleet[0].client.post(
        "/api/v1/query/single", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["run_id"]
    for path in ("messages", f"events?after={before}", "runs"):
        page = await fleet[1].get(f"/sessions/{session_id}/{path}", headers={"Accept": "application/json"})
        assert page.status_code == 200, (path, page.text)
    messages = (await fleet[1].get(f"/sessions/{session_id}/messages")).json()["data"]
    assert any(HALF_A_PAIR in block.get("text", "") for m in messages for block in m["content"] if m["role"] == "user")
    assert (await fleet[2].get(f"/runs/{run_id}")).json()["status"] == "succeeded"
    for instance in fleet.instances:
        assert instance.process.poll() is None
