"""An instance that stands still: others own what it had, and its agents have ended before."""

from __future__ import annotations

import signal
from contextlib import suppress

import psutil
import pytest

from tests.conftest import StartFleet
from tests.world import until


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # whose parent is stopped, and cannot take note of it
    return False


@pytest.mark.slow
async def test_the_agents_of_a_frozen_instance_have_ended_before_their_session_is_given_away(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(1, INSTANCE_LEASE_SECONDS="4")
    owner = fleet[0]
    session_id = await owner.session(permission_mode="bypassPermissions")
    run_id = await owner.prompt(session_id, "run while :; do date >> effects; sleep 0.05; done")
    await until(lambda: len(owner.agent_of(session_id)) > 2)  # the guard, the CLI, and its tool
    await fleet.start(1, INSTANCE_LEASE_SECONDS="4")
    mine, left = owner.agent_of(session_id), [True]
    owner.signal(signal.SIGSTOP)
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "error":
                assert event.data["code"] == "owner_lost"
                left = [lives(process) for process in mine]
    assert not any(left)
    assert (await fleet[1].ask(session_id, "say mine now"))["result"].endswith("mine now")
    owner.signal(signal.SIGCONT)
    other = await owner.session()
    assert (await owner.ask(other, "say here again"))["result"].endswith("here again")
