"""The fleet that the experiments of a module share, and a storm for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import pytest

from apps.api.settings import Settings
from tests.acceptance.storms.storm import Place, Storm, owned_by
from tests.conftest import StartFleet, database_of, make_key
from tests.proxy import postgres_proxy, redis_proxy

Host = tuple[Sequence[str], dict[str, str]]
"""Of an instance: the words before its command, such as make its machine a small one, and more settings."""


@pytest.fixture(scope="module")
def hosts() -> list[Host]:
    """With the usual lease: what this process does is between the servers and their database, too."""
    return [((), {"INSTANCE_LEASE_SECONDS": "10"})] * 3


@pytest.fixture(scope="module")
async def place(start_lasting_fleet: StartFleet, hosts: list[Host]) -> AsyncIterator[Place]:
    fleet = await start_lasting_fleet(0)
    direct = Settings(_env_file=None, database_url=fleet.env["DATABASE_URL"], redis_url=fleet.env["REDIS_URL"])
    async with (
        postgres_proxy(direct) as (postgres, through_postgres),
        redis_proxy(direct) as (redis, through_redis),
        database_of(fleet) as db,
    ):
        for fleet.prefix, settings in hosts:
            await fleet.start(
                1,
                DATABASE_URL=through_postgres.database_url.get_secret_value(),
                REDIS_URL=through_redis.redis_url.get_secret_value(),
                **settings,
            )
        try:
            other = await make_key(db, f"probed-{uuid4().hex}")
            wanted = [*((instance, {}) for instance in fleet.instances), (fleet[0], other)]
            *busy, probed = await asyncio.gather(*(owned_by(instance, headers) for instance, headers in wanted))
            yield Place(fleet, postgres, redis, db, busy, probed, other)
        finally:
            await fleet.stop()  # before its proxies


@pytest.fixture
async def storm(place: Place, request: pytest.FixtureRequest) -> AsyncIterator[Storm]:
    """Traffic is under way when the test begins; after it, everything works again, and what has to hold is checked."""

    def tell(name: str, value: object) -> None:
        request.node.user_properties.append((name, value))
        print(f"{name}: {value}")

    async with Storm.over(place, tell) as storm:
        yield storm
