"""Instances: one row and one lease per server process, and what happens to the sessions of a dead one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api import clock
from apps.api.core.lease import Lease, now
from apps.api.db import PASSING, Database
from apps.api.errors import LeaseLost
from apps.api.invalidations import TOLD_FOR, Invalid
from apps.api.redis import MAX_TOMBSTONES
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

GOODBYE_SECONDS = 5.0
"""For telling the fleet that this instance ends, which it finds out by itself once the lease has run out."""


def own_url(settings: Settings) -> str | None:
    """Where other instances reach this one; None when that is unknown. May ask the resolver for this host's name."""
    if settings.advertise_url or not settings.port:
        return settings.advertise_url and settings.advertise_url.rstrip("/")
    host = settings.host
    if host in ("", "0.0.0.0", "::"):  # noqa: S104
        try:
            host = socket.gethostbyname(settings.hostname)
        except OSError:
            return None
        if host.startswith("127."):  # of use on this host only
            return None
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


_REGISTER = """
INSERT INTO instances AS i (id, hostname, version, slots, lease_expires_at, url)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5), $6)
ON CONFLICT (id) DO UPDATE SET lease_expires_at = excluded.lease_expires_at
WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE owner_id = i.id)
RETURNING now()
"""


async def register(
    db: Database, lease: Lease, *, hostname: str, version: str, slots: int, url: str | None = None
) -> None:
    """Insert this instance's row and start its lease.

    After a lost lease it starts a new one under the same id, once no session is left that belonged to the old one.
    """
    sent_at = now()
    told = await db.pool.fetchval(_REGISTER, lease.instance_id, hostname, version, slots, lease.seconds, url)
    if told is not None:
        lease.renewed(sent_at)
        clock.heard(told, sent_at)


@dataclass(frozen=True, slots=True)
class Owned:
    """A session as the database says this instance owns it."""

    session_id: UUID
    generation: int


MAX_COUNTED = 1_000
"""Instances: enough to know that there are many."""

_RENEW = """
WITH me AS (
  UPDATE instances SET lease_expires_at = now() + make_interval(secs => $2)
  WHERE id = $1 AND lease_expires_at > now() RETURNING id
), mine AS (
  SELECT s.id, s.generation FROM me JOIN sessions s ON s.owner_id = me.id
), told AS (
  SELECT id, name, ttl_ms FROM invalidations WHERE created_at > now() - make_interval(secs => $3)
  ORDER BY created_at DESC LIMIT $4
)
SELECT now() AS told_at,
  (SELECT count(*) FROM (
    SELECT FROM instances WHERE slots > 0 AND NOT draining AND lease_expires_at > now() LIMIT $5) i) AS fleet,
  ARRAY(SELECT id FROM mine ORDER BY id) AS sessions,
  ARRAY(SELECT generation FROM mine ORDER BY id) AS generations,
  ARRAY(SELECT id FROM told ORDER BY id) AS told, ARRAY(SELECT name FROM told ORDER BY id) AS names,
  ARRAY(SELECT ttl_ms FROM told ORDER BY id) AS ttls
FROM me
"""


@dataclass(frozen=True, slots=True)
class Renewed:
    """What the database said at a renewal: the sessions that this instance owns, what is no longer true of what
    Redis has cached, and how many instances take runs (MAX_COUNTED at most)."""

    owned: list[Owned]
    invalid: list[Invalid]
    fleet: int = 1


async def renew(connection: asyncpg.Connection | asyncpg.Pool, lease: Lease) -> Renewed:
    """Extend the lease.

    Raises:
        LeaseLost: the lease had run out, so the sessions may have been given to others.
    """
    sent_at = now()
    row = await connection.fetchrow(_RENEW, lease.instance_id, lease.seconds, TOLD_FOR, MAX_TOMBSTONES, MAX_COUNTED)
    if row is None:
        lease.give_up()
        raise LeaseLost(f"instance {lease.instance_id}: the database says that the lease has run out")
    lease.renewed(sent_at)
    clock.heard(row["told_at"], sent_at)
    owned = [Owned(*session) for session in zip(row["sessions"], row["generations"], strict=True)]
    invalid = [Invalid(*entry) for entry in zip(row["told"], row["names"], row["ttls"], strict=True)]
    return Renewed(owned, invalid, row["fleet"])


async def set_draining(db: Database, instance_id: UUID) -> None:
    """Say that this instance takes no more runs. What keeps it from saying so is logged."""
    with _goodbye():
        async with asyncio.timeout(GOODBYE_SECONDS):
            await db.pool.execute("UPDATE instances SET draining = true WHERE id = $1", instance_id)


async def unregister(db: Database, instance_id: UUID) -> None:
    """Remove the row. Sessions that it still owns, if any, are left for a reaper: the lease ends at once.

    What keeps it from that is logged.
    """
    with _goodbye():
        async with asyncio.timeout(GOODBYE_SECONDS):
            await db.pool.execute("UPDATE instances SET lease_expires_at = now() WHERE id = $1", instance_id)
            await db.pool.execute(
                "DELETE FROM instances WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE owner_id = $1)",
                instance_id,
            )


@contextmanager
def _goodbye() -> Iterator[None]:
    try:
        yield
    except PASSING as error:
        log.warning("instances.goodbye_unheard", error=type(error).__name__)


async def forget_dead(db: Database) -> None:
    """Remove rows of instances that died more than an hour ago and own nothing."""
    await db.pool.execute(
        "DELETE FROM instances i WHERE lease_expires_at < now() - interval '1 hour'"
        " AND NOT EXISTS (SELECT 1 FROM sessions WHERE owner_id = i.id)"
    )


async def list_all(db: Database) -> list[dict[str, Any]]:
    """All members of the fleet, dead ones that still have a row included, with what each owns and executes."""
    rows = await db.pool.fetch(
        "SELECT i.id, i.hostname, i.version, i.slots, i.draining, i.started_at, i.lease_expires_at,"
        " i.lease_expires_at > now() AS alive, count(s.id) AS sessions,"
        " count(r.id) AS running FROM instances i LEFT JOIN sessions s ON s.owner_id = i.id"
        " LEFT JOIN runs r ON r.session_id = s.id AND r.status IN ('running','requires_action')"
        " GROUP BY i.id ORDER BY i.started_at, i.id"
    )
    return [dict(row) for row in rows]
