"""The two ways into PostgreSQL, when the server behind them fails over, and when a pooler stands between."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Literal

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from apps.api import migrate
from apps.api.db import SWEEP_LOCK, Database, connect, is_connection_error
from apps.api.dev.embedded import Servers
from apps.api.settings import Settings
from tests.conftest import TEMPLATE, StartFleet, settings_for
from tests.pgbouncer import pgbouncer
from tests.world import PATIENCE, administrator

# --- a server that only reads --------------------------------------------------------------------------------------

READ_ONLY = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
"""For a connection what the demotion of its server is: it reads, and will never write again."""

WRITE = "INSERT INTO tenants (name) VALUES (gen_random_uuid()::text)"


async def by_pool(db: Database) -> None:
    await db.pool.execute(WRITE)


async def by_transaction(db: Database) -> None:
    async with db.transaction() as connection:
        await connection.execute(WRITE)


async def by_engine(db: Database) -> None:
    async with db.connect() as connection:
        await connection.execute(text(WRITE))


WAYS = pytest.mark.parametrize("write", [by_pool, by_transaction, by_engine])
Write = Callable[[Database], Awaitable[None]]


async def demote(db: Database) -> None:
    """Several connections of each pool, as after a busy time."""
    async with asyncio.TaskGroup() as tasks:
        barrier = asyncio.Barrier(8)
        for _ in range(4):
            tasks.create_task(_demote_pool(db, barrier))
            tasks.create_task(_demote_engine(db, barrier))


async def _demote_pool(db: Database, barrier: asyncio.Barrier) -> None:
    async with db.pool.acquire() as connection:
        await barrier.wait()
        await connection.execute(READ_ONLY)


async def _demote_engine(db: Database, barrier: asyncio.Barrier) -> None:
    async with db.engine.connect() as connection:
        await barrier.wait()
        await connection.execute(text(READ_ONLY))
        await connection.commit()


@WAYS
async def test_one_refused_write_replaces_every_connection_that_only_reads(db: Database, write: Write) -> None:
    await demote(db)
    with pytest.raises((asyncpg.ReadOnlySQLTransactionError, DBAPIError)) as refused:
        await write(db)
    assert is_connection_error(refused.value)
    await asyncio.gather(*(write(db) for _ in range(8)))


async def test_reads_leave_the_old_server_too_once_a_write_was_refused(db: Database) -> None:
    await demote(db)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await by_pool(db)
    async with db.connect() as connection:
        assert (await connection.execute(text("SHOW default_transaction_read_only"))).scalar() == "off"


async def switch(settings: Settings, command: str) -> None:
    async with administrator(settings) as admin:
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute(command)
        await admin.fetchval("SELECT pg_reload_conf()")


async def failure(attempt: Callable[[], Awaitable[object]]) -> Exception | None:
    try:
        await attempt()
    except Exception as error:
        return error
    return None


async def until(attempt: Callable[[], Awaitable[object]], *, works: bool) -> None:
    """Repeat until it works, or until it fails; every failure is one of the connection."""
    async with asyncio.timeout(PATIENCE):
        while ((error := await failure(attempt)) is None) is not works:
            assert error is None or is_connection_error(error), error
            await asyncio.sleep(0.05)
    assert error is None or is_connection_error(error), error


async def test_a_server_that_only_reads_for_a_while_is_written_to_again(own_servers: Servers) -> None:
    settings = settings_for(own_servers, TEMPLATE)
    async with Database.open(settings) as db:
        for write in (by_pool, by_transaction, by_engine):
            await write(db)
        await switch(settings, "ALTER SYSTEM SET default_transaction_read_only = on")
        for write in (by_pool, by_transaction, by_engine):
            await until(partial(write, db), works=False)
        with pytest.raises(asyncpg.InternalClientError, match="target"):
            await connect(settings)  # no new connection to a server that only reads
        await switch(settings, "ALTER SYSTEM RESET default_transaction_read_only")
        for write in (by_pool, by_transaction, by_engine):
            await until(partial(write, db), works=True)


@pytest.mark.parametrize("asked", ["any", "read-only"])
async def test_the_url_may_ask_for_another_kind_of_server(settings: Settings, asked: str) -> None:
    url = f"{settings.database_url.get_secret_value()}&target_session_attrs={asked}"
    given = settings.model_copy(update={"database_url": type(settings.database_url)(url)})
    if asked == "any":
        await (await connect(given)).close()
    else:
        with pytest.raises(asyncpg.InternalClientError, match="target"):
            await connect(given)


# --- a pooler ------------------------------------------------------------------------------------------------------

CACHE = {"session": True, "transaction": False}
Mode = Literal["session", "transaction"]
MODES = pytest.mark.parametrize("mode", ["session", "transaction"])


@MODES
async def test_both_ways_work_through_pgbouncer(settings: Settings, tmp_path: Path, mode: Mode) -> None:
    given = settings.model_copy(update={"database_statement_cache": CACHE[mode]})
    # Fewer connections than clients in transaction mode, so that each transaction gets another one.
    with pgbouncer(given, tmp_path, mode, 30 if mode == "session" else 3) as through:
        async with Database.open(through) as db:
            await db.check_schema()

            async def mixed(number: int) -> None:
                for turn in range(20):
                    assert await db.pool.fetchval("SELECT $1::int + 1", number) == number + 1
                    assert await db.pool.fetchval("SELECT $1::text", f"{number}-{turn}") == f"{number}-{turn}"
                    assert await db.pool.fetchval("SELECT $1::jsonb", {"n": number}) == {"n": number}
                    async with db.transaction() as connection:
                        await connection.execute(WRITE)
                        assert await connection.fetchval("SELECT $1::int * 2", number) == 2 * number
                    async with db.connect() as other:
                        got = await other.execute(
                            text("SELECT CAST(:n AS int) AS n, count(*) FROM tenants"), {"n": number}
                        )
                        assert got.one().n == number

            await asyncio.gather(*(mixed(number) for number in range(8)))
            assert await db.pool.fetchval("SELECT count(*) FROM tenants") == 160


@MODES
async def test_migrations_through_pgbouncer_leave_no_lock_and_no_setting(
    servers: Servers, settings: Settings, tmp_path: Path, mode: Mode
) -> None:
    await servers.create_database(f"empty_{mode}")
    owner = servers.database_owner_url(f"empty_{mode}")
    fresh = settings_for(servers, f"empty_{mode}", database_url=owner, database_owner_url=None)
    with pgbouncer(fresh, tmp_path, mode, size=4) as through:
        await asyncio.gather(*(migrate.upgrade(through) for _ in range(2)))
        assert await migrate.state(through) == "current"
        async with administrator(fresh) as admin:
            left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
            assert await admin.fetchval(f"{left} (SELECT oid FROM pg_database WHERE datname = current_database())") == 0
        await migrate.upgrade(through, wait=0)


async def test_a_fleet_works_behind_pgbouncer_in_transaction_mode(
    settings: Settings, start_fleet: StartFleet, tmp_path: Path
) -> None:
    with pgbouncer(settings, tmp_path, "transaction", size=4) as through:
        more = {"DATABASE_URL": through.database_url.get_secret_value(), "DATABASE_STATEMENT_CACHE": "false"}
        fleet = await start_fleet(1, **more)
        session = await fleet[0].session()
        for prompt in ("say hello", "say more"):
            assert (await fleet[0].ask(session, prompt))["status"] == "succeeded"


async def test_what_is_old_is_deleted_in_batches_until_none_is_left_by_one_at_a_time(db: Database) -> None:
    delete = "DELETE FROM catalog WHERE cli_version IN (SELECT cli_version FROM catalog WHERE data = $1 LIMIT $2)"
    await db.pool.execute("INSERT INTO catalog (cli_version, data) SELECT n::text, n % 2 FROM generate_series(1, 14) n")
    async with db.transaction() as other:
        await other.execute("SELECT pg_advisory_xact_lock($1)", SWEEP_LOCK)
        await db.sweep(delete, "1")
        assert await db.pool.fetchval("SELECT count(*) FROM catalog") == 14
    await db.sweep(delete, "1", batch=3)
    assert await db.pool.fetchval("SELECT array_agg(DISTINCT data) FROM catalog") == ["0"]


async def test_a_connection_that_had_broken_is_replaced_without_a_word(db: Database) -> None:
    """Nobody awaits the end of one that the pool replaces: what it raised would only be found in the log."""
    async with db.pool.acquire() as connection:
        number = connection._con._transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(number)) as same:
        same.shutdown(socket.SHUT_WR)
    await db.pool.expire_connections()
    assert await db.pool.fetchval("SELECT 1") == 1
    gc.collect()
