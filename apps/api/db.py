"""PostgreSQL: one engine for composed queries, asyncpg pools for the hot, fixed statements.

All are owned by the lifespan. docs/adr/0003-two-ways-into-postgresql.md says why there are two ways: an append
through asyncpg costs a quarter of the CPU that the same statement costs through SQLAlchemy.

Connections have lanes: one that renews the lease (runner/heartbeat.py), a pool for the runner, one for deliveries to
webhooks, and the rest for requests, which wait for them in a line that has an end.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
import orjson
import structlog
from sqlalchemy import ExceptionContext, exc
from sqlalchemy.event import listen
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from apps.api.errors import Busy, LeaseLost, Unavailable
from apps.api.lanes import Line, Turns, stored
from apps.api.pool import CONNECT_TIMEOUT, Pool, dial, unreachable
from apps.api.settings import Settings

T = TypeVar("T")

log = structlog.get_logger(__name__)

STATEMENT_TIMEOUT = 15.0
"""Seconds for one statement. Nothing here is meant to take longer than some milliseconds."""

REQUESTS, COMPOSED, WRITERS, WEBHOOKS = 12, 6, 9, 2
"""Connections of one instance: for fixed statements of requests, for their composed queries, for the runner, and for
deliveries to webhooks, which hold none during an attempt. Those of the first kind are opened at the start: while one is
opened, what takes some round trips, its request waits."""

PER_INSTANCE = REQUESTS + COMPOSED + WRITERS + WEBHOOKS + 1
"""All of them, with that of the lease."""

_BUSY = "All connections of this instance to the database are in use, and too many requests wait for one."

_SETUP = "SET idle_in_transaction_session_timeout = '10s'"
"""A process that vanishes inside a transaction must not hold a session's row until TCP notices, hours later.
A statement, because PgBouncer refuses it among the parameters of a connection."""

SWEEP_LOCK = 0x436C_6175_6465_5357
"""The advisory lock of who deletes what is old: `ClaudeSW` as a number."""

SWEEP_BATCH = 1_000
"""Rows that are deleted in one transaction: some 10 ms, so that nobody waits for it."""

SCHEMA_REVISION = "0029"
"""The newest migration; a test compares it with migrations/versions."""

REVISIONS = "schema_revision"
"""The table with the revision of a database. Before the first release it was Alembic's own `alembic_version`."""

CONNECTION_ERRORS: tuple[type[Exception], ...] = (
    ConnectionError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the first use of a connection that the server has just ended
    asyncpg.exceptions.OperatorInterventionError,  # shutdown, start, a cancelled query
    asyncpg.exceptions.InsufficientResourcesError,  # connections, disk, memory
    asyncpg.exceptions.TransactionRollbackError,  # deadlock
    asyncpg.ReadOnlySQLTransactionError,  # a primary that has just become a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    exc.TimeoutError,  # SQLAlchemy's pool has no connection left
    exc.DisconnectionError,  # nor one that works
    Busy,
)
"""Failures of the connection or the server, not of the statement: it may succeed a moment later.
No other OSError: what a full disk or a used up table of descriptors does elsewhere is no word of the database. Where
one means the connection it is made a ConnectionError, see `pool`."""

PASSING: tuple[type[Exception], ...] = (*CONNECTION_ERRORS, Unavailable)
"""What a loop logs, and tries again in its next round."""

PASSING_OR_LOST: tuple[type[Exception], ...] = (*PASSING, LeaseLost)
"""The same for a loop over many sessions: one that is somebody else's by now does not end it."""


class SchemaMissing(Exception):
    """The database lacks migrations. The message says what to do."""


class SchemaUnreleased(SchemaMissing):
    """The database is from before the first release: its tables have other columns, and no migration changes them."""

    def __init__(self) -> None:
        super().__init__(
            "The database is from before the first release, and no migration leads from there. Name a new, empty"
            " database; in the local mode throw the data directory away, or name another with `--data-dir`."
        )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


async def _keep(_connection: asyncpg.Connection) -> None:
    """Nothing to reset: no statement here changes a connection's state. The default costs a round trip each time."""


def _connecting(settings: Settings) -> dict[str, Any]:
    """What every connection is made with, whoever makes it."""
    options: dict[str, Any] = {"timeout": CONNECT_TIMEOUT, "server_settings": {"application_name": "claude-agent-api"}}
    if not settings.database_statement_cache:
        # asyncpg then uses the unnamed statement only, and sends it again with each execution.
        options["statement_cache_size"] = 0
    asked = parse_qs(urlsplit(settings.asyncpg_dsn).query)
    if "target_session_attrs" not in asked and "PGTARGETSESSIONATTRS" not in os.environ:
        # After a failover an address may still lead to the old primary. Nothing here works on one that only reads.
        options["target_session_attrs"] = "read-write"
    return options


async def _set_up(settings: Settings, connection: asyncpg.Connection) -> None:
    if settings.database_statement_cache:  # else the connection behind the pooler changes with each transaction
        await connection.execute(_SETUP)


async def connect(settings: Settings) -> asyncpg.Connection:
    """One connection outside of the pools, for a command. Works through any pooler that keeps transactions together.

    Raises:
        CONNECTION_ERRORS or another asyncpg.PostgresError: the server is out of reach, read-only, or refuses.
    """
    return await dial(settings.asyncpg_dsn, **_connecting(settings) | {"statement_cache_size": 0})


def create_engine(
    settings: Settings, *, statement_timeout: float | None = STATEMENT_TIMEOUT, **options: Any
) -> AsyncEngine:
    """A SQLAlchemy engine. It connects through asyncpg's own parser of URLs, which knows `sslmode` and its like."""

    async def connect() -> asyncpg.Connection:
        connection = await dial(settings.asyncpg_dsn, command_timeout=statement_timeout, **_connecting(settings))
        try:
            await _set_up(settings, connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    dbapi: dict[str, Any] = {"async_creator_fn": connect}
    if not settings.database_statement_cache:
        # SQLAlchemy prepares by itself, in a transaction: the unnamed statement is its own until the next one.
        dbapi |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args=dbapi, json_serializer=_json, json_deserializer=orjson.loads, **options
    )
    listen(engine.sync_engine, "handle_error", _replace_read_only)
    return engine


def _replace_read_only(context: ExceptionContext) -> None:
    """What SQLAlchemy does when a server is lost, replacing the pool's connections, also for one that only reads."""
    cause = getattr(context.original_exception, "__cause__", None)
    if isinstance(cause, asyncpg.ReadOnlySQLTransactionError):
        context.is_disconnect = True


@dataclass(frozen=True, slots=True)
class Database:
    """The two ways into PostgreSQL, for requests. Open with `Database.open(settings)`.

    Attributes:
        engine: SQLAlchemy, for queries composed from filters.
        pool: asyncpg, for fixed statements; its `jsonb` columns are Python objects.
        line: bounds who waits for a connection of the engine.
        turns: bounds how many costly requests are served at a time, of each tenant and in all.
    """

    engine: AsyncEngine
    pool: asyncpg.Pool
    line: Line
    turns: Turns
    _writers: asyncpg.Pool
    _webhooks: asyncpg.Pool

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Database]:
        """Connect. Raises one of CONNECTION_ERRORS when the server cannot be reached."""
        async with AsyncExitStack() as stack:
            engine = create_engine(
                settings, pool_size=COMPOSED, max_overflow=0, pool_timeout=CONNECT_TIMEOUT, pool_pre_ping=True
            )
            stack.push_async_callback(engine.dispose)
            line = Line(REQUESTS, CONNECT_TIMEOUT, _BUSY, ends_first=True)
            pool = await stack.enter_async_context(_open_pool(settings, engine, line, REQUESTS, at_first=REQUESTS))
            writers = await stack.enter_async_context(_open_pool(settings, engine, None, WRITERS, at_first=0))
            webhooks = await stack.enter_async_context(_open_pool(settings, engine, None, WEBHOOKS, at_first=0))
            composed = Line(COMPOSED, CONNECT_TIMEOUT, _BUSY, ends_first=True)
            yield cls(engine, pool, composed, Turns(), writers, webhooks)

    def for_runner(self) -> Database:
        """The same, by the connections that no request can take: for claims, events, commands, and ends of runs."""
        return replace(self, pool=self._writers)

    def for_webhooks(self) -> Database:
        """The same, by the connections that only deliveries take: for claims of them, and notes of how they ended."""
        return replace(self, pool=self._webhooks)

    def in_use(self) -> dict[str, tuple[int, int]]:
        """How many connections of each pool somebody has, and how many there may be."""
        pools = {"requests": self.pool, "runner": self._writers, "webhooks": self._webhooks}
        used = {name: (pool.get_size() - pool.get_idle_size(), pool.get_max_size()) for name, pool in pools.items()}
        composed: QueuePool = self.engine.pool  # type: ignore[assignment] # which an engine has unless another is asked for
        return used | {"composed": (composed.checkedout(), composed.size())}

    async def check_schema(self) -> None:
        """Raises SchemaMissing unless the migrations up to SCHEMA_REVISION have run."""
        revision = await schema_revision(self.pool)
        if revision is None or revision < SCHEMA_REVISION:  # a newer one is a rolling update under way
            raise SchemaMissing(
                f"The database is at revision {revision or 'none'}, this version needs {SCHEMA_REVISION}:"
                " run `claude-agent-api migrate`."
            )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """One transaction on the asyncpg pool. Who has had one is served before others: see `lanes.stored`."""
        async with self.pool.acquire() as connection, connection.transaction():
            yield connection
        stored()

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection for one statement that stores something, and is its own transaction."""
        async with self.pool.acquire() as connection:
            yield connection
        stored()

    async def sweep(self, delete: str, *arguments: Any, batch: int = SWEEP_BATCH) -> None:
        """Repeat a DELETE until nothing is left, while no other instance sweeps.

        `delete` takes at most so many rows as its last parameter says, which is `batch`.
        """
        while True:
            async with self.transaction() as connection:
                if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", SWEEP_LOCK):
                    return
                status = await connection.execute(delete, *arguments, batch)
            if int(status.removeprefix("DELETE ")) < batch:
                return

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """One transaction on the SQLAlchemy engine."""
        with unreachable():
            async with self.line, self.engine.begin() as connection:
                yield connection


@asynccontextmanager
async def _open_pool(
    settings: Settings, engine: AsyncEngine, line: Line | None, size: int, *, at_first: int
) -> AsyncIterator[asyncpg.Pool]:
    async def prepare(connection: asyncpg.Connection) -> None:
        await _set_up(settings, connection)
        await connection.set_type_codec("jsonb", encoder=_json, decoder=orjson.loads, schema="pg_catalog")

    pool = await Pool(
        engine,
        line,
        settings.asyncpg_dsn,
        min_size=at_first,
        max_size=size,
        command_timeout=STATEMENT_TIMEOUT,
        init=prepare,
        reset=_keep,
        **_connecting(settings),
    )
    try:
        yield pool
    finally:
        try:
            await asyncio.wait_for(pool.close(), CONNECT_TIMEOUT)
        except TimeoutError:
            pool.terminate()


async def schema_revision(on: asyncpg.Connection | asyncpg.Pool) -> str | None:
    """The revision that a database is at; None before the first migration. Raises SchemaUnreleased."""
    ours, former = await on.fetchrow("SELECT to_regclass($1), to_regclass('alembic_version')", REVISIONS)
    if former is not None:
        raise SchemaUnreleased
    revision: str | None = None if ours is None else await on.fetchval(f"SELECT version_num FROM {REVISIONS}")  # noqa: S608
    return revision


def is_connection_error(error: BaseException) -> bool:
    """Whether an error of either driver means that the connection failed, not the statement."""
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or isinstance(cause, CONNECTION_ERRORS)
    return isinstance(error, CONNECTION_ERRORS)


async def retrying(attempt: Callable[[], Awaitable[T]], *, until: Callable[[], bool]) -> T:
    """Repeat `attempt` while it fails with a connection error and `until()` is false, with jittered back-off.
    Only for attempts that are safe to repeat. Raises Unavailable when the time was up.
    """
    delay = 0.02
    while True:
        try:
            return await attempt()
        except CONNECTION_ERRORS as error:
            if until():
                raise Unavailable("The database did not answer in time.") from error
        await asyncio.sleep(delay * random.uniform(0.5, 1.5))
        delay = min(delay * 2, 0.5)
