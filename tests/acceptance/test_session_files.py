"""What belongs to a session lives with it: in a later process, on another instance."""

from __future__ import annotations

import re
import signal

import pytest

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


@pytest.mark.slow
async def test_home_and_what_tools_have_put_out_are_there_in_later_processes_and_on_another_instance(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(1)
    first = fleet[0]
    session = await first.session(allowed_tools=["Bash"])
    make = (
        "mkdir -p ~/.local/bin && printf '#!/bin/sh\\necho it works' > ~/.local/bin/tool && chmod +x ~/.local/bin/tool"
    )
    await first.ask(session, f"run git config --global user.name Somebody && {make}")

    async def put_out(instance: Instance, numbers: str) -> str:
        said = (await instance.ask(session, f"run seq {numbers}"))["result"]
        found = re.search(r"saved to: (/\S+/tool-results/\S+\.txt)", said)
        assert found, said
        return found[1]

    async def all_there(instance: Instance, saved: str, number: str) -> None:
        there = (await instance.ask(session, "run git config --global user.name; ~/.local/bin/tool"))["result"]
        assert "Somebody" in there
        assert "it works" in there
        assert number in (await instance.ask(session, f"read {saved}"))["result"]

    saved = await put_out(first, "100000 120000")
    await all_there(first, saved, "100001")
    assert (await first.post(f"/sessions/{session}/reset", {"mode": "soft"})).is_success
    await all_there(first, saved, "100001")
    second = await replace(fleet, first)
    await all_there(second, saved, "100001")
    await second.follow(await second.prompt(session, "/clear", expand_prompt=True))
    saved = await put_out(second, "200000 220000")
    third = await replace(fleet, second)
    await all_there(third, saved, "200001")


async def test_a_session_whose_files_the_store_does_not_have_tells_it_once(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    session = await fleet[0].session(**BYPASS)
    await fleet[0].ask(session, "write a.txt: one")
    (elsewhere := fleet.directory / "elsewhere").mkdir()
    fleet[0].signal(signal.SIGTERM)
    await fleet[0].ended()  # while it lives no other store is taken for that of the fleet
    await fleet.start(1, WORKSPACE_STORE_URL=f"file://{elsewhere}")
    other = fleet.instances[-1]

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
