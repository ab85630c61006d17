"""Every scenario with every client, against three instances."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.balancer import balancing
from tests.clients.drivers import DRIVERS, driven
from tests.clients.scenarios import SCENARIOS
from tests.clients.stage import Stage
from tests.conftest import StartFleet
from tests.fleet import Fleet


@pytest.fixture(scope="module")
async def three(start_lasting_fleet: StartFleet) -> Fleet:
    """Instances that scenarios kill. A browser's page asks them from another origin."""
    return await start_lasting_fleet(3, ALLOWED_ORIGINS="*")


@pytest.fixture
async def stage(three: Fleet, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with balancing(three.instances) as balancer, driven(request.param) as drive:
        stage = Stage(three, balancer, drive)
        yield stage
        await stage.restore()


IN_A_BROWSER = {"stream_cut", "told_to_wait", "files"}
"""What a browser does otherwise than Node: streams, headers of answers from another origin, bodies."""


def plays() -> Iterator[object]:
    """Each scenario with each driver; the others of a browser before a release only."""
    for driver in DRIVERS:
        for name in SCENARIOS:
            later = driver == "chromium" and name not in IN_A_BROWSER
            yield pytest.param(driver, name, marks=[pytest.mark.slow] if later else [], id=f"{driver}-{name}")


@pytest.mark.parametrize(("stage", "name"), list(plays()), indirect=["stage"])
async def test_a_client_holds(stage: Stage, name: str) -> None:
    await SCENARIOS[name](stage)
