"""What an agent has begun ends with its session, however that ends."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.conftest import StartFleet
from tests.hostile import lasting
from tests.hostile.arena import BYPASS, HERE, command
from tests.hostile.levels import UNCONFINED
from tests.watch import until

LASTING = Path(lasting.__file__)
QUIET_SECONDS = 0.5
"""Each of them writes every 50 ms."""


class Beats:
    """What they write, also when their directory is gone."""

    def __init__(self, directory: Path) -> None:
        self._files = [file.open() for file in directory.iterdir()]

    def read(self) -> list[str]:
        for file in self._files:
            file.seek(0)
        return [file.read() for file in self._files]

    async def have_ended(self) -> bool:
        before = await asyncio.to_thread(self.read)
        await asyncio.sleep(QUIET_SECONDS)
        return await asyncio.to_thread(self.read) == before

    def close(self) -> None:
        for file in self._files:
            file.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("isolation", ["namespaces", "landlock", "off"])
@pytest.mark.parametrize("ending", ["deleted", "idle", "SIGTERM", "SIGKILL"])
async def test_nothing_goes_on(start_fleet: StartFleet, ending: str, isolation: str) -> None:
    idle = "3" if ending == "idle" else "600"
    given = {**UNCONFINED, "AGENT_ISOLATION": isolation, "AGENT_READ_PATHS": str(HERE), "SESSION_IDLE_SECONDS": idle}
    fleet = await start_fleet(1, **given)
    session_id = await fleet[0].session(**BYPASS)
    said = (await fleet[0].ask(session_id, f"run {command(LASTING, 'beats')}"))["result"]
    assert f"left {len(lasting.KINDS)}" in said
    beats = await asyncio.to_thread(Beats, fleet.files_of(session_id) / "beats")
    try:
        assert not await beats.have_ended()
        if ending == "deleted":
            assert (await fleet[0].client.delete(f"/api/v1/sessions/{session_id}")).is_success
        elif ending.startswith("SIG"):
            fleet[0].signal(signal.Signals[ending])
            await fleet[0].ended()
        await until(beats.have_ended, seconds=lasting.SECONDS / 2)
    finally:
        beats.close()
