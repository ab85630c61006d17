"""What an agent does in the background keeps it alive for a while, has an end for clients, and is in nobody's way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance

pytestmark = pytest.mark.slow

SETTINGS = {"SESSION_IDLE_SECONDS": "1", "BACKGROUND_PATIENCE_SECONDS": "1"}
HANGS = "run in background true then hang at the news"
BYPASS = {"permission_mode": "bypassPermissions"}


async def last_of_task(instance: Instance, session_id: str) -> dict[str, Any]:
    """The last event of the session's task."""
    async with asyncio.timeout(60), instance.stream(f"/sessions/{session_id}/events") as events:
        async for event in events:
            if event.event == "task" and ("reason" in event.data or event.data["summary"]):
                return event.data
    raise AssertionError("the stream has ended")


async def in_background(instance: Instance, session_id: str, status: str) -> dict[str, Any]:
    """The run that the session's agent has begun by itself, once it is in that state."""
    async with asyncio.timeout(60):
        while True:
            runs = (await instance.get(f"/sessions/{session_id}/runs")).json()["data"]
            found = [run for run in runs if run["origin"] == "background"]
            if found and found[0]["status"] == status:
                return dict(found[0])
            await asyncio.sleep(0.1)


async def test_tasks_keep_their_agent_for_a_while_and_are_told_to_have_ended(start_fleet: StartFleet) -> None:
    # What is to happen before the time is over must do so on a busy machine, too: one instance waits for nothing long.
    patient, impatient = [
        (await start_fleet(1, BACKGROUND_TASK_SECONDS=seconds, BACKGROUND_TURN_SECONDS=seconds, **SETTINGS))[0]
        for seconds in ("90", "6")
    ]

    async def session(instance: Instance, prompt: str) -> str:
        session_id = await instance.session(**BYPASS)
        await instance.ask(session_id, prompt)
        return session_id

    async def finishes() -> None:
        session_id = await session(patient, "run in background sleep 3")
        assert (await last_of_task(patient, session_id))["status"] == "completed"
        await in_background(patient, session_id, "succeeded")

    async def ends(expected: str, how: Any, instance: Instance = patient) -> None:
        session_id = await session(instance, "run in background sleep 100")
        await how(session_id)
        last = await last_of_task(instance, session_id)
        assert (last["status"], last["reason"]) == ("stopped", expected), last

    async def nothing(_: str) -> None:
        """The session becomes idle, and the time of its task is over."""

    async def reconfigure(session_id: str) -> None:
        await patient.ask(session_id, "say hello", max_turns=7)

    async def reset(session_id: str) -> None:
        await patient.post(f"/sessions/{session_id}/reset", {"mode": "soft"})

    async def crash(session_id: str) -> None:
        patient.agent_of(session_id)[0].kill()

    async def hang_and_ask(prompt: str) -> None:
        session_id = await session(patient, HANGS)
        hanging = await in_background(patient, session_id, "running")
        assert hanging["timeout_seconds"] == 90
        assert (await patient.ask(session_id, prompt))["result"].endswith("next")
        assert (await patient.get(f"/runs/{hanging['run_id']}")).json()["status"] == "interrupted"

    async def hang() -> None:
        session_id = await session(impatient, HANGS)
        assert (await in_background(impatient, session_id, "failed"))["error"]["code"] == "timeout"

    await asyncio.gather(
        finishes(),
        ends("idle", nothing, impatient),
        ends("reconfigured", reconfigure),
        ends("reset", reset),
        ends("agent_ended", crash),
        hang_and_ask("say next"),
        hang(),
    )


@pytest.mark.parametrize("reason", ["evicted", "shutdown"])
async def test_a_task_does_not_outlast_its_agent_unseen(start_fleet: StartFleet, reason: str) -> None:
    if reason == "shutdown":
        fleet: Fleet = await start_fleet(2, SHUTDOWN_GRACE_SECONDS="1")
        session_id = await fleet[0].session(**BYPASS)
        await fleet[0].ask(session_id, "run in background sleep 100")
        owner = await fleet.owner_of(session_id)
        [other] = await fleet.others(owner)
        owner.process.terminate()
        await owner.ended()
    else:
        fleet = await start_fleet(1, MAX_LIVE_SESSIONS="1", RUNNER_SLOTS="1", BACKGROUND_TASK_SECONDS="2")
        other = fleet[0]
        session_id = await other.session(**BYPASS)
        await other.ask(session_id, "run in background sleep 100")
        await other.ask(await other.session(), "say hello")
    last = await last_of_task(other, session_id)
    assert (last["status"], last["reason"]) == ("stopped", reason)
