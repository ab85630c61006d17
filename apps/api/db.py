"""PostgreSQL: one engine for composed queries, one asyncpg pool for the hot, fixed statements.

Both are owned by the lifespan. docs/adr/0003-two-ways-into-postgresql.md says why there are two: an append
through asyncpg costs a quarter of the CPU that the same statement costs through SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import orjson
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from apps.api.errors import Unavailable
from apps.api.settings import Settings

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
"""Seconds for one connection attempt or for a free connection of the pool."""

STATEMENT_TIMEOUT = 15.0
"""Seconds for one statement. Nothing here is meant to take longer than some milliseconds."""

_SERVER_SETTINGS = {
    "application_name": "claude-agent-api",
    # A process that vanishes inside a transaction must not hold a session's row until TCP notices, hours later.
    "idle_in_transaction_session_timeout": "10000",
}

SCHEMA_REVISION = "0002"
"""The newest migration; a test compares it with migrations/versions."""

CONNECTION_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the first use of a connection that the server has just ended
    asyncpg.exceptions.OperatorInterventionError,  # shutdown, start, a cancelled query
    asyncpg.exceptions.InsufficientResourcesError,  # connections, disk, memory
    asyncpg.exceptions.TransactionRollbackError,  # deadlock
    asyncpg.ReadOnlySQLTransactionError,  # a primary that has just become a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""Failures of the connection or the server, not of the statement: it may succeed a moment later."""


class SchemaMissing(Exception):
    """The database lacks migrations."""


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=_json, decoder=orjson.loads, schema="pg_catalog")


async def _keep(_connection: asyncpg.Connection) -> None:
    """Nothing to reset: no statement here changes a connection's state. The default costs a round trip each time."""


def create_engine(
    settings: Settings, *, statement_timeout: float | None = STATEMENT_TIMEOUT, **options: Any
) -> AsyncEngine:
    """A SQLAlchemy engine. It connects through asyncpg's own parser of URLs, which knows `sslmode` and its like."""

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(
            settings.asyncpg_dsn,
            timeout=CONNECT_TIMEOUT,
            command_timeout=statement_timeout,
            server_settings=_SERVER_SETTINGS,
        )

    return create_async_engine(
        "postgresql+asyncpg://", async_creator=connect, json_serializer=_json, json_deserializer=orjson.loads, **options
    )


@dataclass(frozen=True, slots=True)
class Database:
    """The two ways into PostgreSQL. Open with `Database.open(settings)`.

    Attributes:
        engine: SQLAlchemy, for queries composed from filters.
        pool: asyncpg, for fixed statements; its `jsonb` columns are Python objects.
    """

    engine: AsyncEngine
    pool: asyncpg.Pool

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Database]:
        """Connect. Raises one of CONNECTION_ERRORS when the server cannot be reached."""
        engine = create_engine(settings, pool_size=5, max_overflow=5, pool_timeout=CONNECT_TIMEOUT, pool_pre_ping=True)
        pool = await asyncpg.create_pool(
            settings.asyncpg_dsn,
            min_size=1,
            max_size=20,
            timeout=CONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT,
            init=_prepare,
            reset=_keep,
            server_settings=_SERVER_SETTINGS,
        )
        try:
            yield cls(engine, pool)
        finally:
            try:
                await asyncio.wait_for(pool.close(), CONNECT_TIMEOUT)
            except TimeoutError:
                pool.terminate()
            await engine.dispose()

    async def check_schema(self) -> None:
        """Raises SchemaMissing unless the migrations up to SCHEMA_REVISION have run."""
        try:
            revision = await self.pool.fetchval("SELECT version_num FROM alembic_version")
        except asyncpg.UndefinedTableError:
            revision = None
        if revision is None or revision < SCHEMA_REVISION:  # a newer one is a rolling update under way
            raise SchemaMissing(
                f"The database is at revision {revision or 'none'}, this version needs {SCHEMA_REVISION}:"
                " run `claude-agent-api migrate`."
            )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """One transaction on the asyncpg pool."""
        async with self.pool.acquire(timeout=CONNECT_TIMEOUT) as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """One transaction on the SQLAlchemy engine."""
        async with self.engine.begin() as connection:
            yield connection


def is_connection_error(error: BaseException) -> bool:
    """Whether an error of either driver means that the connection failed, not the statement."""
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or isinstance(cause, CONNECTION_ERRORS)
    return isinstance(error, CONNECTION_ERRORS)


async def retrying(attempt: Callable[[], Awaitable[T]], *, until: Callable[[], bool]) -> T:
    """Repeat `attempt` while it fails with a connection error and `until()` is false, with jittered back-off.

    Only for attempts that are safe to repeat.

    Raises:
        Unavailable: the time was up.
    """
    delay = 0.02
    while True:
        try:
            return await attempt()
        except CONNECTION_ERRORS as error:
            if until():
                raise Unavailable("The database did not answer in time.") from error
        await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        delay = min(delay * 2, 0.5)
