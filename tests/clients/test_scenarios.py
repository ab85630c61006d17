"""Every scenario with every client, against three instances."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.balancer import balancing
from tests.clients.drivers import DRIVERS, driven
from tests.clients.scenarios import SCENARIOS
from tests.clients.stage import Stage
from tests.conftest import StartFleet
from tests.fleet import Fleet


@pytest.fixture(scope="module")
async def three(start_lasting_fleet: StartFleet) -> Fleet:
    """Instances that scenarios kill."""
    return await start_lasting_fleet(3)


@pytest.fixture
async def stage(three: Fleet, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with balancing(three.instances) as balancer, driven(request.param) as drive:
        stage = Stage(three, balancer, drive)
        yield stage
        await stage.restore()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("stage", DRIVERS, indirect=True)
async def test_a_client_holds(stage: Stage, name: str) -> None:
    await SCENARIOS[name](stage)
