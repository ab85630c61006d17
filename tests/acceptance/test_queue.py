"""More prompts than slots."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import StartFleet


@pytest.mark.slow
async def test_fifty_prompts_on_two_slots_all_finish_in_order(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, RUNNER_SLOTS="2", MAX_LIVE_SESSIONS="4")
    sessions = [await fleet[0].session() for _ in range(5)]
    runs = await asyncio.gather(
        *(fleet[0].prompt(session, f"say number {n}") for session in sessions for n in range(10))
    )
    streams = await asyncio.gather(*(fleet[0].follow(run_id) for run_id in runs))
    assert [events[-1].data["status"] for events in streams] == ["succeeded"] * 50
    assert len([p for p in fleet[0].descendants() if "claude" in p.name()]) <= 4
    positions = [e.data["position"] for events in streams for e in events if e.event == "queued"]
    assert positions
    assert max(positions) > 10
    for session in sessions:
        async with fleet[0].stream(f"/sessions/{session}/events?until=idle") as events:
            seen = [event async for event in events]
        newest_first = (await fleet[0].get(f"/sessions/{session}/runs")).json()["data"]
        assert [e.data["run_id"] for e in seen if e.event == "done"] == [r["run_id"] for r in reversed(newest_first)]
        durable = [int(e.id) for e in seen if e.event != "partial"]
        assert durable == list(range(1, len(durable) + 1))


async def test_a_free_instance_takes_the_next_run_of_a_full_ones_idle_session(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, RUNNER_SLOTS="1")
    warm = await fleet[0].session()
    await fleet[0].ask(warm, "say my number is 4711")
    first_owner = await fleet.owner_of(warm)
    busy = await fleet[0].session()
    blocking = await fleet[0].prompt(busy, "hang")
    await fleet.start(1, RUNNER_SLOTS="1")
    answer = await fleet[1].ask(warm, "recall")
    assert "4711" in answer["result"]
    assert (await fleet.owner_of(warm)) is not first_owner
    assert (await fleet[1].get(f"/runs/{blocking}")).json()["status"] == "running"
    await fleet[1].post(f"/runs/{blocking}/cancel")
