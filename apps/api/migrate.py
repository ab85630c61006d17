"""Database migrations as a call: safe when several instances start at once, patient while PostgreSQL starts."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import asyncpg
from alembic import command, op
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from apps.api import roles
from apps.api.db import (
    CONNECTION_ERRORS,
    SCHEMA_REVISION,
    SchemaUnreleased,
    connect,
    create_engine,
    schema_revision,
)
from apps.api.pool import CONNECT_TIMEOUT
from apps.api.settings import Settings

WAIT = 60.0
"""Seconds to wait for PostgreSQL to answer, again for another migration to end, and again for tables in use."""

LOCK = 0x436C_6175_6465_4150
"""The advisory lock of migrations: `ClaudeAP` as a number, so that it collides with nobody else's."""

LOCK_TIMEOUT_MS = 300
"""Milliseconds for which a migration stands in line for a table. Behind it stands everybody else who wants it."""

PAUSE = 1.0, 2.0
"""Seconds, at least and at most, for which it then lets them go first: they stand for a sixth of the time."""

ERRORS: tuple[type[Exception], ...] = (
    TimeoutError,
    OSError,
    asyncpg.PostgresError,
    SQLAlchemyError,
    CommandError,
    SchemaUnreleased,
    roles.RoleUnavailable,
)
"""What the functions here raise: the database is out of reach or refuses, or a migration does not apply."""

State = Literal["current", "empty", "unreleased", "behind", "ahead"]

logger = logging.getLogger(__name__)


def _scripts() -> Path:
    packed, here = Path(__file__).with_name("_migrations"), Path(__file__).parents[2] / "migrations"
    return packed if packed.is_dir() else here  # in a wheel, in a checkout


SCRIPTS = _scripts()


async def upgrade(settings: Settings, wait: float = WAIT, scripts: Path = SCRIPTS) -> None:
    """Bring the schema to the newest revision. Any number of processes may call this at the same time.

    As the role of DATABASE_OWNER_URL, where it is set, which then lets the role of DATABASE_URL serve.

    A table's lock is asked for again and again, for a moment each time: whoever waits for it holds up all who come
    later, heartbeats of instances among them.

    Args:
        settings: where the database is.
        wait: seconds to wait for the database, again for somebody else's migration, and again for locks of tables.
        scripts: the folder of the migrations.

    Raises:
        ERRORS: `TimeoutError` when the database did not answer, another migration did not end or a table was in use for
            so long; `SchemaUnreleased` when no migration leads from what it holds; else its refusal. `reason()` has it
            in one line.
    """
    owner = settings.as_owner
    async with AsyncExitStack() as stack:
        guard = await stack.enter_async_context(_connected(owner, wait))
        await schema_revision(guard)  # before the lock: what is read in its transaction leaves a snapshot open there
        await stack.enter_async_context(_locked(guard, wait))
        # A connection of its own for Alembic: its commits and failures must not touch the lock.
        alone = owner.model_copy(update={"database_statement_cache": False})
        engine = create_engine(alone, statement_timeout=None, poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                await _when_free(lambda: connection.run_sync(_upgrade, scripts), wait)
        finally:
            await engine.dispose()
        if settings.database_owner_url is not None:
            await roles.provide(guard, settings)


@contextmanager
def slow_builds() -> Iterator[None]:
    """For a migration, in an autocommit block: what builds or drops indexes while others read and write may stand in
    line for longer than others do, as nobody waits behind it."""
    op.execute("SET lock_timeout = '60s'")
    yield
    op.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'")


def build_index(name: str, on: str) -> None:
    """For a migration, within `slow_builds`: build an index, unless it is there. What was broken off is of no use."""
    if not op.get_context().as_sql:
        known = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        if op.get_bind().execute(known, {"name": name}).scalar():
            return
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {on}")


async def state(settings: Settings, wait: float = WAIT) -> State:
    """How the schema relates to this code.

    `ahead`: a newer release has migrated it already. `unreleased`: it is from before the first release.

    Raises:
        ERRORS: as `upgrade`.
    """
    async with _connected(settings, wait) as connection:
        try:
            revision = await schema_revision(connection)
        except SchemaUnreleased:
            return "unreleased"
    if revision is None:
        return "empty"
    if revision == SCHEMA_REVISION:
        return "current"
    return "behind" if revision < SCHEMA_REVISION else "ahead"


async def _when_free(migrate: Callable[[], Awaitable[None]], wait: float) -> None:
    started = time.monotonic()
    while True:
        try:
            await migrate()
            return
        except DBAPIError as error:
            if not isinstance(error.orig.__cause__ if error.orig else None, asyncpg.LockNotAvailableError):
                raise
            if time.monotonic() - started > wait:
                raise TimeoutError(f"A table was in use for {wait:.0f} s. Try again when it is not.") from error
            logger.warning("a table is in use: the migration is tried again")
        await asyncio.sleep(random.uniform(*PAUSE))


def _upgrade(connection: Connection, scripts: Path) -> None:
    connection.exec_driver_sql(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    connection.commit()
    config = Config()  # without alembic.ini: that one is for developers, who run `alembic` at the root of a checkout
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
        connection.commit()
    finally:
        connection.rollback()


@asynccontextmanager
async def _connected(settings: Settings, wait: float) -> AsyncIterator[asyncpg.Connection]:
    started, delay = time.monotonic(), 0.05
    while True:
        try:
            connection = await connect(settings)
            break
        except CONNECTION_ERRORS as error:
            if time.monotonic() - started > wait:
                raise TimeoutError(f"PostgreSQL did not answer within {wait:.0f} s ({reason(error)}).") from error
            logger.debug("waiting for PostgreSQL: %s", reason(error))
        await asyncio.sleep(delay * random.uniform(0.5, 1.5))
        delay = min(delay * 2, 2.0)
    try:
        yield connection
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT)


@asynccontextmanager
async def _locked(connection: asyncpg.Connection, wait: float) -> AsyncIterator[None]:
    """Hold the lock of migrations. It ends with its transaction, so that no pooler can keep it for somebody else.

    The transaction holds no snapshot, for which a CREATE INDEX CONCURRENTLY would wait.
    """
    started = time.monotonic()
    while True:
        # A transaction for each try: one that waits would keep a connection from the one who has the lock.
        async with connection.transaction():
            if await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK):
                await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                yield
                return
        if time.monotonic() - started > wait:
            raise TimeoutError(f"Another migration did not end within {wait:.0f} s.")
        await asyncio.sleep(random.uniform(0.1, 0.3))


def reason(error: BaseException) -> str:
    """An error in one line, for an operator."""
    return str(error).split("\n", 1)[0] or type(error).__name__
