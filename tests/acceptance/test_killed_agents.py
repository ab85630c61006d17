"""An agent that is killed, at whatever moment, costs its session that run and nothing more."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import product
from typing import Any

import psutil
import pytest

from tests.fleet import Fleet
from tests.world import until

pytestmark = pytest.mark.slow

PROMPT = "run echo one then stream 30 words every 20 ms"
MOMENTS = 8
"""Of a run of PROMPT: its process is there, `init`, the prompt, the call, its result, a delta, the answer, `result`."""


def agent_of(fleet: Fleet, session_id: str) -> list[psutil.Process]:
    return [process for instance in fleet.instances for process in instance.agent_of(session_id)]


def kill_one(processes: list[psutil.Process], *, guard: bool) -> None:
    with suppress(psutil.NoSuchProcess):
        (processes[0] if guard else next((p for p in processes if p.name() == "claude"), processes[0])).kill()


async def killed_at(fleet: Fleet, session_id: str, moment: int, *, guard: bool) -> str:
    """Send PROMPT, and kill its agent when the moment has come. Returns how the run ended."""
    run_id = await fleet[0].prompt(session_id, PROMPT)
    if moment == 0:
        await until(lambda: bool(agent_of(fleet, session_id)))
        kill_one(agent_of(fleet, session_id), guard=guard)
    passed, spoke = 0, False
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "queued" or (event.event == "partial" and spoke):
                continue
            spoke = event.event == "partial"
            passed += 1
            if passed == moment:
                kill_one(agent_of(fleet, session_id), guard=guard)
            if event.event == "done":
                return str(event.data["status"])
    raise AssertionError("no done")


async def test_after_an_agent_was_killed_at_any_event_of_its_first_and_second_turn_the_next_prompt_works(
    fleet: Fleet,
) -> None:
    """In the first of its session, and again in the second of the process that the next prompt was given to."""
    few = asyncio.Semaphore(4)

    async def at(moment: int) -> list[dict[str, Any]]:
        told = []
        async with few:
            session_id = await fleet[moment % 3].session(permission_mode="bypassPermissions")
            for turn, prompt, wanted in ((1, "say before", "before"), (2, "recall", "say before")):
                ended = await killed_at(fleet, session_id, moment, guard=moment % 2 == turn % 2)
                answer = await fleet[2].post("/query/single", {"prompt": prompt, "session_id": session_id})
                well = answer.is_success and wanted in answer.json()["result"]
                told.append({"turn": turn, "moment": moment, "ended": ended, "well": well, "answer": answer.text[:500]})
        return told

    told = [t for each in await asyncio.gather(*map(at, range(MOMENTS))) for t in each]
    assert [t for t in told if not t["well"]] == []
    assert {t["ended"] for t in told if 1 <= t["moment"] <= 6} == {"failed"}  # at 0 another agent is given the prompt


async def test_a_prompt_at_once_after_the_agent_was_killed_is_given_to_another(fleet: Fleet) -> None:
    """What has not begun when the agent dies has lost nothing, however far its prompt has come."""
    session_id = await fleet[0].session(permission_mode="bypassPermissions")
    await fleet[0].ask(session_id, "remember my number is 4711")
    owner = await fleet.owner_of(session_id)
    for milliseconds, guard in product((0, 4, 8, 15), (False, True)):
        kill_one(agent_of(fleet, session_id), guard=guard)
        await asyncio.sleep(milliseconds / 1000)
        answer = await owner.post("/query/single", {"prompt": "recall", "session_id": session_id})
        assert answer.is_success, (milliseconds, guard, answer.text)
        assert "4711" in answer.json()["result"]
