"""The start of an agent process: what is left of one that did not start."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest

from apps.api.core.events.batches import Batches
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.errors import LeaseLost
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.host import Host
from apps.api.runner.session.launch import Launch, Means, StartGate
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.turn import Turn, Turns
from tests.core.conftest import neighbourhood, world
from tests.world import World, until, ways_of

__all__ = ["neighbourhood", "world"]


async def test_processes_that_do_not_start_leave_no_directories(world: World, tmp_path: Path) -> None:
    lease, claim, writer = await world.owned()
    (tmp_path / "file").touch()
    core = world.core(workspaces_dir=tmp_path / "file")
    scratch = Scratch()
    store = Transcripts(core.db, lease, claim.session_id, claim.generation, claim.sdk_session_id)
    host = Host(core.settings, scratch)
    gate, ways, turns = StartGate(1, lambda: None), ways_of(core, scratch), Turns(lambda: None)
    launch = Launch(
        core,
        Means(lease, host, gate, ways, Batches(world.db)),
        turns,
        writer,
        store,
        Storing(core, writer),
        *[Mock()] * 4,
    )
    try:
        before = set(scratch.root.iterdir())
        for _ in range(3):
            with pytest.raises(LeaseLost):
                await launch.start(claim, Turn(claim.run_id, claim))
        launch.clear()

        async def gone() -> bool:
            return set(scratch.root.iterdir()) == before

        await until(gone)
    finally:
        scratch.close()


async def test_a_start_that_waits_for_something_gives_its_place_to_another() -> None:
    gate = StartGate(2, lambda: None, seconds=0.01)
    async with asyncio.timeout(30), AsyncExitStack() as stuck:
        for _ in range(7):
            await stuck.enter_async_context(gate.place())
    for _ in range(2):  # those that were given back are not given back once more
        await gate.place().__aenter__()
    third = asyncio.create_task(gate.place().__aenter__())
    assert not (await asyncio.wait({third}, timeout=0))[0]
    await third


async def test_a_gate_is_crowded_while_as_many_wait_as_have_a_place_and_says_when_it_is_not() -> None:
    told: list[int] = []
    gate = StartGate(1, lambda: told.append(gate.waiting))
    async with gate.place():
        waiting = asyncio.create_task(gate.place().__aenter__())
        await until(lambda: gate.is_crowded)
        assert told == []
    await waiting
    assert (gate.is_crowded, told) == (False, [0])
