"""Which hosts and ports are the fleet's databases."""

from __future__ import annotations

import pytest

from apps.api.core.network import own
from apps.api.settings import Settings


@pytest.mark.parametrize(
    ("database", "found"),
    [
        ("postgresql://u:p@db.example:6543/d", {("db.example", 6543)}),
        ("postgresql+asyncpg://u:p%40@db.example/d", {("db.example", 5432)}),
        ("postgresql://u:p@one,two:6000,[::1]:7000/d", {("one", 5432), ("two", 6000), ("::1", 7000)}),
        ("postgresql://u:p@one,two/d?port=1,2", {("one", 1), ("two", 2)}),
        ("postgresql://u:p@/d?host=one&port=5", {("one", 5)}),
        ("postgresql:///d", {("localhost", 5432)}),
        ("postgresql://u:p@/d?host=/run/postgresql", set()),
        ("postgresql://%2Frun%2Fpostgresql/d", set()),
        ("postgresql://[fd00::1]/d", {("fd00::1", 5432)}),
    ],
)
def test_databases_are_found_in_every_form_of_their_url(database: str, found: set[tuple[str, int]]) -> None:
    settings = Settings(_env_file=None, database_url=database, redis_url="unix:///run/redis.sock")
    assert own.databases(settings) == found


@pytest.mark.parametrize(
    ("redis", "found"),
    [
        ("redis://:p@cache.example:7000/0", ("cache.example", 7000)),
        ("rediss://cache.example", ("cache.example", 6379)),
        ("redis://[::1]", ("::1", 6379)),
    ],
)
def test_redis_is_one_of_them_and_so_is_the_owners_way(redis: str, found: tuple[str, int]) -> None:
    owner = "postgresql://owner:p@direct.example:5433/d"
    settings = Settings(_env_file=None, redis_url=redis, database_url="postgresql://pool/d", database_owner_url=owner)
    assert own.databases(settings) == {found, ("pool", 5432), ("direct.example", 5433)}
