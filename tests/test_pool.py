"""What a connection asks PostgreSQL before its first statement with an array."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from apps.api.pool import dial
from apps.api.settings import Settings
from tests.world import administrator

ARRAYS = "SELECT $1::uuid[] AS ids, $2::text[] AS words, $3::jsonb[] AS documents"


async def asked(connection: asyncpg.Connection, query: str, *arguments: Any) -> tuple[asyncpg.Record, list[str]]:
    """The row of a query, and all that the server was asked for it."""
    queries: list[str] = []
    with connection.query_logger(lambda record: queries.append(record.query)):
        row = await connection.fetchrow(query, *arguments)
        await asyncio.sleep(0)  # loggers are called by the loop
    return row, queries


@pytest.mark.parametrize("cached", [100, 0], ids=["statements are kept", "behind a pooler"])
async def test_a_connection_learns_of_the_servers_own_types_from_another(settings: Settings, cached: int) -> None:
    given = ([uuid4()], ["a", None], ['{"a": 1}'])
    for turn in range(2):
        connection = await dial(settings.asyncpg_dsn, statement_cache_size=cached)
        try:
            for _ in range(2):
                row, queries = await asked(connection, ARRAYS, *given)
                assert tuple(row) == given
                assert turn == 0 or queries == [ARRAYS]
        finally:
            await connection.close()


async def test_types_of_a_database_are_asked_for_by_each_connection(settings: Settings) -> None:
    """Such a type may be changed, or be another one in the next database."""
    async with administrator(settings) as admin:
        await admin.execute("CREATE TYPE pair AS (a int)")
        await _takes(settings, {"a": 1})
        await admin.execute("ALTER TYPE pair ADD ATTRIBUTE b text")
        await _takes(settings, {"a": 1, "b": "x"})


async def _takes(settings: Settings, pair: dict[str, Any]) -> None:
    connection = await dial(settings.asyncpg_dsn)
    try:
        [found] = await connection.fetchval("SELECT $1::pair[]", [tuple(pair.values())])
        assert dict(found) == pair
    finally:
        await connection.close()
