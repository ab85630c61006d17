"""One arena after the other: each test of this directory that takes `arena` runs once in each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from apps.api.dev.embedded import Servers
from tests.conftest import StartFleet, _fleets
from tests.hostile.arena import Arena, opened, prefix_of
from tests.hostile.levels import LEVELS

WIDE = {"RUNNER_SLOTS": "8"}
ARENAS = {f"{level.name}-{user}": (level, user) for level in LEVELS for user in level.users}


def in_arenas(*names: str) -> pytest.MarkDecorator:
    """For a test that runs in some of them."""
    return pytest.mark.parametrize("arena", [ARENAS[name] for name in names], ids=names, indirect=True, scope="session")


@pytest.fixture(scope="session")
async def start_arena_fleet(
    servers: Servers,
    template: str,
    model_url: str,
    catalog: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[StartFleet]:
    """Start fleets that end with their arena."""
    async for start in _fleets(servers, model_url, tmp_path_factory.mktemp("arenas"), catalog):
        yield start


@pytest.fixture(
    scope="session",
    params=list(ARENAS.values()),
    ids=list(ARENAS),
)
async def arena(request: pytest.FixtureRequest, start_arena_fleet: StartFleet) -> AsyncIterator[Arena]:
    """A server at one level of isolation, for all tests there; they leave its two sessions as they were."""
    level, user = request.param
    if not level.possible or prefix_of(user) is None:
        pytest.skip("not to be had on this machine")
    async with opened(start_arena_fleet, level, user, {}, **WIDE) as made:
        yield made
