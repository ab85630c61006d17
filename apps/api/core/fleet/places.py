"""Telling queued runs their place: that among the queued runs of their tenant, 1 being next.

Each telling is an event that is stored, so a long queue must not tell every step of every run: new ones are told
theirs, and those that come to the first 1000, 100, 10, or are next. To look for the latter is to number the queue, so
that is done in turns, so many runs at a time (`Turn`): however long the queue is, a look costs no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.events.frames import Frame
from apps.api.core.events.log import NEXT_GENERATION, Event, append
from apps.api.core.fleet.claims import STARTS_WITHIN
from apps.api.db import Database

TOLD_FROM = 1_000
"""The first place that is told to those that have been told another."""

LOOKED_AT = 1_000
"""Runs that one look numbers, at most."""

AT_ONCE = 200
"""Runs that are told their places after one look: of new ones, and of those that were told another."""

BEGINNING = UUID(int=0)


@dataclass(slots=True)
class Turn:
    """Where the next look at the queue begins: after this tenant."""

    after: UUID = BEGINNING


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued run whose place in the queue has not been told yet."""

    run_id: UUID
    session_id: UUID
    tenant_id: UUID
    position: int
    owner_id: UUID | None


async def waiting(db: Database, instance_id: UUID, turn: Turn | None = None) -> list[Waiting]:
    """Queued runs whose place is to be told by this instance. `turn` is set to where the next look begins.

    None is told how much other tenants have queued, since those take turns. Runs younger than STARTS_WITHIN are left
    out. Of sessions that nobody owns, the eldest living instance tells.
    """
    turn = turn or Turn()
    rows: list[Any] = await db.pool.fetch(_NEW, instance_id)
    looked = await db.pool.fetch(_MOVED, instance_id, turn.after)
    turn.after = looked[0]["next"]
    rows += [row for row in looked if row["run_id"] is not None]
    told = [Waiting(*(row[name] for name in Waiting.__dataclass_fields__)) for row in rows]
    return sorted(told, key=lambda run: run.position)


COUNTED = 10_000
"""Runs in the queue that are counted. More are told as so many."""

# Steps from tenant to tenant in an index, and looks at the first run of each; what is parked has begun before.
_IN_ALL = f"""
WITH RECURSIVE firsts AS (
  (SELECT tenant_id, created_at FROM runs WHERE status = 'queued' AND parked IS NULL
    ORDER BY tenant_id, position LIMIT 1)
  UNION ALL
  SELECT next.* FROM firsts f CROSS JOIN LATERAL (
    SELECT tenant_id, created_at FROM runs
    WHERE status = 'queued' AND parked IS NULL AND tenant_id > f.tenant_id ORDER BY tenant_id, position LIMIT 1
  ) next
)
SELECT (SELECT count(*) FROM (SELECT FROM runs WHERE status = 'queued' LIMIT {COUNTED}) q) AS queued,
  coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_seconds
FROM firsts
"""  # noqa: S608 - ours


@dataclass(frozen=True, slots=True)
class InAll:
    """What waits in the whole fleet: how many runs, COUNTED at most, and for how long the oldest has done so."""

    queued: int
    oldest_seconds: float


async def in_all(db: Database) -> InAll:
    """The queue as it is."""
    return InAll(**dict(await db.pool.fetchrow(_IN_ALL)))


_ELDEST = """
  SELECT id FROM instances WHERE lease_expires_at > now() AND NOT draining ORDER BY started_at, id LIMIT 1
"""

# Places of a tenant are counted up to the first of its new ones, and numbered from there.
_NEW = f"""
WITH found AS MATERIALIZED (
  (SELECT r.id, r.session_id, r.tenant_id, r.position, s.owner_id
    FROM sessions s JOIN runs r ON r.session_id = s.id
    WHERE s.owner_id = $1 AND s.deleted_at IS NULL AND r.status = 'queued' AND r.announced_position IS NULL
      AND r.created_at < now() - interval '{STARTS_WITHIN} s'
    LIMIT {AT_ONCE})
  UNION ALL
  (SELECT r.id, r.session_id, r.tenant_id, r.position, NULL FROM (
      SELECT id, session_id, tenant_id, position, created_at FROM runs
      WHERE status = 'queued' AND announced_position IS NULL AND $1 = ({_ELDEST}) ORDER BY position LIMIT {LOOKED_AT}
    ) r CROSS JOIN LATERAL (
      SELECT 1 FROM sessions WHERE id = r.session_id AND owner_id IS NULL AND deleted_at IS NULL OFFSET 0
    ) s
    WHERE r.created_at < now() - interval '{STARTS_WITHIN} s'
    LIMIT {AT_ONCE})
), ends AS (
  SELECT tenant_id, min(position) AS first, max(position) AS last FROM found GROUP BY tenant_id
), placed AS (
  SELECT q.id, before.runs + row_number() OVER (PARTITION BY e.tenant_id ORDER BY q.position) AS place
  FROM ends e CROSS JOIN LATERAL (
    SELECT count(*) AS runs FROM runs WHERE tenant_id = e.tenant_id AND status = 'queued' AND position < e.first
  ) before CROSS JOIN LATERAL (
    SELECT id, position FROM runs
    WHERE tenant_id = e.tenant_id AND status = 'queued' AND position BETWEEN e.first AND e.last
  ) q
)
SELECT f.id AS run_id, f.session_id, f.tenant_id, p.place AS position, f.owner_id
FROM found f JOIN placed p ON p.id = f.id
"""  # noqa: S608 - ours

# Whole tenants, or so many of their first runs. Sessions, of which there are many more, are looked at one by one, and
# only of runs that are due.
_MOVED = f"""
WITH eldest AS ({_ELDEST}), seen AS MATERIALIZED (
  SELECT id, session_id, tenant_id, announced_position,
    row_number() OVER (PARTITION BY tenant_id ORDER BY position) AS place
  FROM (
    SELECT id, session_id, tenant_id, announced_position, position FROM runs
    WHERE status = 'queued' AND tenant_id > $2 AND (
      $1 = (SELECT id FROM eldest)
      OR EXISTS (SELECT 1 FROM sessions o JOIN runs w ON w.session_id = o.id AND w.status = 'queued'
        WHERE o.owner_id = $1))
    ORDER BY tenant_id, position LIMIT {LOOKED_AT}
  ) q
), ended AS (
  SELECT coalesce((
    SELECT tenant_id FROM seen WHERE (SELECT count(*) FROM seen) = {LOOKED_AT}
    GROUP BY tenant_id HAVING count(*) >= {TOLD_FROM} OR tenant_id < (SELECT max(tenant_id::text)::uuid FROM seen)
    ORDER BY tenant_id DESC LIMIT 1
  ), '{BEGINNING}'::uuid) AS next
), due AS (
  SELECT q.id AS run_id, q.session_id, q.tenant_id, q.place AS position, s.owner_id
  FROM seen q CROSS JOIN LATERAL (
    SELECT owner_id FROM sessions WHERE id = q.session_id AND deleted_at IS NULL OFFSET 0
  ) s
  WHERE q.place <= {TOLD_FROM} AND ceil(log(q.place)) < ceil(log(q.announced_position))
    AND (s.owner_id = $1 OR (s.owner_id IS NULL AND $1 = (SELECT id FROM eldest)))
  ORDER BY q.place LIMIT {AT_ONCE}
)
SELECT ended.next, due.* FROM ended LEFT JOIN due ON true
"""  # noqa: S608 - ours


async def mark_announced(connection: asyncpg.Connection | asyncpg.Pool, run: Waiting) -> bool:
    """Note that a place was told; False when somebody else told it or the run is not queued any more."""
    status = await connection.execute(
        "UPDATE runs SET announced_position = $2"
        " WHERE id = $1 AND status = 'queued' AND announced_position IS DISTINCT FROM $2",
        run.run_id,
        run.position,
    )
    return bool(status == "UPDATE 1")


async def announce_unowned(db: Database, run: Waiting) -> list[Frame]:
    """Append the `queued` event to a session that nobody owns, by owning it for one transaction."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT last_seq FROM sessions WHERE id = $1 AND owner_id IS NULL AND deleted_at IS NULL"
            " FOR NO KEY UPDATE SKIP LOCKED",
            run.session_id,
        )
        if row is None or not await mark_announced(connection, run):
            return []
        generation = await connection.fetchval(
            f"UPDATE sessions SET generation = {NEXT_GENERATION} WHERE id = $1 RETURNING generation",  # noqa: S608
            run.session_id,
        )
        event = Event("queued", {"position": run.position}, run.run_id)
        return await append(connection, run.session_id, generation, row["last_seq"], [event])
