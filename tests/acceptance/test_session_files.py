"""What belongs to a session, on an instance that has it and on one that has not."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance

BYPASS = {"permission_mode": "bypassPermissions"}
MISSING = "workspace_missing"


async def replace(fleet: Fleet, instance: Instance, **settings: str) -> Instance:
    """Another instance in the place of this one."""
    await fleet.start(1, **settings)
    instance.signal(signal.SIGTERM)
    await instance.ended()
    return fleet.instances[-1]


async def test_a_session_that_comes_to_a_host_without_its_files_tells_it_once(
    start_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet = await start_fleet(1)
    session = await fleet[0].session(**BYPASS)
    await fleet[0].ask(session, "write a.txt: one")
    other = await replace(fleet, fleet[0], WORKSPACES_DIR=str(tmp_path / "elsewhere"))

    async def told(session: str) -> list[str]:
        run = await other.prompt(session, "run ls")
        events = await other.follow(run)
        assert events[-1].data["status"] == "succeeded"
        return [e.data["status"] for e in events if e.event == "status" and e.data["status"] == MISSING]

    assert await told(session) == [MISSING]
    assert (await other.post(f"/sessions/{session}/reset", {"mode": "soft"})).is_success
    assert await told(session) == []
    new = await other.session(**BYPASS)
    assert [await told(new), await told(new)] == [[], []]
