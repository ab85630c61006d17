"""The start of an agent process: what is left of one that did not start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import Mock

import pytest

from apps.api.core.sessions.transcripts import Transcripts
from apps.api.runner.agent.process import StartFailed
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.session.launch import Launch
from tests.core.conftest import neighbourhood, world
from tests.world import World, until

__all__ = ["neighbourhood", "world"]


async def test_processes_that_do_not_start_leave_no_directories(world: World, tmp_path: Path) -> None:
    lease, claim, writer = await world.owned()
    (tmp_path / "file").touch()
    core = world.core(workspaces_dir=tmp_path / "file")
    scratch = Scratch()
    store = Transcripts(core.db, lease, claim.session_id, claim.generation, claim.sdk_session_id)
    launch = Launch(core, scratch, asyncio.Semaphore(), writer, store, Mock(), Mock())
    try:
        before = set(scratch.root.iterdir())
        for _ in range(3):
            with pytest.raises(StartFailed):
                await launch.start(claim, 60, lambda: False)
        launch.clear()

        async def gone() -> bool:
            return set(scratch.root.iterdir()) == before

        await until(gone)
    finally:
        scratch.close()
