"""The second way by which instances hear that something cached is not true any more: PostgreSQL.

The first is to write a tombstone into Redis. An instance that cannot reach Redis stores the names instead, and every
other one reads them with the renewal of its lease (`core.fleet.instances.renew`) and writes the tombstones itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import structlog

from apps.api.db import CONNECTION_ERRORS, Database
from apps.api.redis import Redis

log = structlog.get_logger(__name__)

TOLD_FOR = 60.0
"""Seconds for which a name is told; longer than anything is cached, and than two renewals are apart."""

UNSAID_AFTER = 1.0
"""Seconds for which Redis could not be told what to forget, after which other instances are told by PostgreSQL."""

_TELL = f"""
WITH old AS (DELETE FROM invalidations WHERE created_at < now() - interval '{2 * TOLD_FOR:.0f} seconds')
INSERT INTO invalidations (name, ttl_ms) SELECT * FROM unnest($1::text[], $2::int[])
"""  # noqa: S608 - of a constant


@dataclass(frozen=True, slots=True)
class Invalid:
    """An entry that some instance could not remove, and for how many milliseconds nobody may write it again."""

    id: UUID
    name: str
    ttl_ms: int


async def store(connection: asyncpg.Connection, names: Sequence[str], ttl_ms: int) -> list[Invalid]:
    """Tell all instances by PostgreSQL alone, in the transaction of what makes the entries wrong: they hear of it even
    when this one does not live to write its tombstones. Returns what the caller is to obey once it is committed."""
    rows = await connection.fetch(
        "INSERT INTO invalidations (name, ttl_ms) SELECT name, $2 FROM unnest($1::text[]) AS given(name)"
        " RETURNING id, name",
        list(names),
        ttl_ms,
    )
    return [Invalid(row["id"], row["name"], ttl_ms) for row in rows]


async def tell(db: Database, redis: Redis, *, older_than: float = 0.0) -> None:
    """Store what Redis was not told, and has been waiting for so many seconds. Nothing, usually."""
    if not redis.tombstones:
        return
    before = time.monotonic() - older_than
    new = {name: t for name, t in redis.tombstones.all().items() if not t.told and t.since <= before}
    if not new:
        return
    try:
        await db.pool.execute(_TELL, list(new), [tombstone.ttl_ms for tombstone in new.values()])
    except CONNECTION_ERRORS as error:  # what made them is stored, and they are told with the next renewal of the lease
        log.warning("invalidations.not_told", count=len(new), error=type(error).__name__)
        return
    for tombstone in new.values():
        tombstone.told = True


def obey(redis: Redis, told: Sequence[Invalid]) -> None:
    """Have the tombstones written that others could not. They may be thousands: the publisher sends them all at once,
    and nobody waits for it."""
    for entry in told:
        redis.tombstones.add(entry.name, entry.ttl_ms, told=True)


class Exchange:
    """What an instance does about it at each renewal of its lease."""

    def __init__(self, db: Database, redis: Redis) -> None:
        self._db, self._redis = db, redis
        self._obeyed: set[UUID] = set()

    async def exchange(self, told: Sequence[Invalid]) -> None:
        """Tell the others what Redis was not told here, and obey what they have told, once."""
        await tell(self._db, self._redis, older_than=UNSAID_AFTER)
        new = [entry for entry in told if entry.id not in self._obeyed]
        self._obeyed = {entry.id for entry in told}
        obey(self._redis, new)
