"""Connections to PostgreSQL through asyncpg, and a pool of them: what asyncpg's own do not do for a service of tenants.

Every failure of the network is a ConnectionError; a new connection asks nothing about types that are the same in every
database; who waits for one stands in a line.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import asyncpg
import structlog
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy
from sqlalchemy.ext.asyncio import AsyncEngine

from apps.api.lanes import Line, stored

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT = 5.0
"""Seconds for one connection attempt or for a free connection of the pool."""

RENEWAL_PAUSE = 1.0
"""Seconds between two replacements of all connections, so that a server that stays read-only is not stormed."""

_NETWORK = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENOTCONN}
"""What a connection that stood may end with, beside what Python has a class for (ip(7))."""

_FIRST_UNPINNED_OID = 12_000
"""PostgreSQL's own types have lower numbers, which no release changes (FirstUnpinnedObjectId in access/transam.h)."""


class Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection that learns of PostgreSQL's own types, of which arrays are, from one that has asked before.

    asyncpg asks for them anew on each connection, in six round trips before the first statement that has an array.
    """

    _known: ClassVar[dict[frozenset[int], Any]] = {}

    async def _introspect_types(self, oids: Iterable[int], timeout: float | None) -> tuple[Any, Any]:
        asked = frozenset(oids)
        if max(asked) >= _FIRST_UNPINNED_OID:
            return await super()._introspect_types(oids, timeout)  # type: ignore[no-any-return]
        if asked not in self._known:
            self._known[asked], statement = await super()._introspect_types(oids, timeout)
            return self._known[asked], statement
        return self._known[asked], SimpleNamespace(name="none: the unnamed statement is still the caller's")

    async def close(self, *, timeout: float | None = None) -> None:
        """Raises no OSError: it had broken, and the pool closes those that it replaces in tasks that nobody awaits."""
        with suppress(OSError):
            await super().close(timeout=timeout)


async def dial(*arguments: Any, **options: Any) -> asyncpg.Connection:
    """`asyncpg.connect`, of which every OSError is a ConnectionError: no such host, no socket, no descriptor left."""
    try:
        return await asyncpg.connect(*arguments, **{"connection_class": Connection, **options})
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        raise ConnectionError(str(error)) from error


@contextmanager
def unreachable() -> Iterator[None]:
    """Make a ConnectionError of what a connection that stood ends with."""
    try:
        yield
    except OSError as error:
        if error.errno in _NETWORK:
            raise ConnectionError(str(error)) from error
        raise


class Pool(asyncpg.Pool):  # type: ignore[misc]
    """A pool with a line before it, if any, and a bound of the wait for a connection, whoever asks.

    It replaces its connections, and the engine's, when the server behind one has become read-only: a connection
    outlives the failover that made its server a standby. A new one goes to where the address leads now.
    """

    def __init__(self, engine: AsyncEngine, line: Line | None, dsn: str, **options: Any) -> None:
        # What asyncpg.create_pool() fills in.
        usual = {"loop": None, "connection_class": Connection, "record_class": asyncpg.Record}
        usual |= {"max_queries": 50_000, "max_inactive_connection_lifetime": 300.0}
        super().__init__(dsn, connect=dial, **usual, **options)
        self._engine, self.line, self._renewed_at = engine, line or nullcontext(), 0.0

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext:
        """A connection for an `async with`. Raises TimeoutError after CONNECT_TIMEOUT, Busy from the line."""
        return _Acquired(self, timeout or CONNECT_TIMEOUT)

    async def execute(self, *arguments: Any, **options: Any) -> str:
        """One statement that stores something: others are served after who has done so, see `lanes.stored`."""
        status: str = await super().execute(*arguments, **options)
        stored()
        return status

    async def release(self, connection: PoolConnectionProxy, *, timeout: float | None = None) -> None:
        """Give it back without the task that asyncpg makes for each, half of what an acquisition costs.

        That keeps whoever is cancelled from leaving a connection half reset; a holder that is cancelled ends its
        connection, and opens another.
        """
        if connection._con is not None:
            connection._con._on_release()
            await connection._holder.release(timeout)

    async def renew(self) -> None:
        """Replace all connections, of the engine too, but not more often than every RENEWAL_PAUSE."""
        if time.monotonic() - self._renewed_at < RENEWAL_PAUSE:
            return
        self._renewed_at = time.monotonic()
        log.warning("database.read_only", action="connections are replaced")
        await self.expire_connections()
        await self._engine.dispose()


class _Acquired(PoolAcquireContext):  # type: ignore[misc]
    async def __aenter__(self) -> asyncpg.Connection:
        await self.pool.line.__aenter__()
        try:
            # Not by the timeout of asyncpg, which makes a task for each.
            async with asyncio.timeout(self.timeout):
                self.connection = await self.pool._acquire(None)
        except BaseException:
            await self.pool.line.__aexit__(None, None, None)
            raise
        return self.connection

    async def __aexit__(self, kind: Any = None, error: BaseException | None = None, trace: Any = None) -> None:
        try:
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                await self.pool.renew()
            await super().__aexit__(kind, error, trace)
            if isinstance(error, OSError) and error.errno in _NETWORK:
                raise ConnectionError(str(error)) from error
        finally:
            await self.pool.line.__aexit__(None, None, None)
