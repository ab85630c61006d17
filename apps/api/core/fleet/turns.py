"""Where there is room elsewhere, and idle sessions that give their place to what waits (docs/adr/0021-turns.md)."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from apps.api.db import Database

_IN_THE_WAY = """
SELECT DISTINCT ON (s.tenant_id) s.id
FROM sessions s JOIN tenants t ON t.id = s.tenant_id LEFT JOIN api_keys k ON k.id = s.taken_by
WHERE s.id = ANY($1::uuid[]) AND CASE
  WHEN (t.limits ->> 'live_sessions')::int <= (
      SELECT count(*) FROM sessions o WHERE o.tenant_id = t.id AND o.owner_id IS NOT NULL)
    THEN EXISTS (SELECT FROM runs r WHERE r.tenant_id = t.id AND r.startable AND r.status = 'queued')
  WHEN (k.limits ->> 'live_sessions')::int <= (
      SELECT count(*) FROM sessions o WHERE o.tenant_id = t.id AND o.taken_by = k.id AND o.owner_id IS NOT NULL)
    THEN EXISTS (
      SELECT FROM runs r WHERE r.tenant_id = t.id AND r.api_key_id = k.id AND r.startable AND r.status = 'queued')
  END
ORDER BY s.tenant_id, s.last_active_at
"""


async def in_the_way(db: Database, idle: Sequence[UUID]) -> list[UUID]:
    """Which of these sessions are to be given up, because their tenant or key has as many as it may, and a run of it
    waits for a place: of each tenant the one that was used longest ago."""
    return [row["id"] for row in await db.pool.fetch(_IN_THE_WAY, idle)]


async def free_slot_elsewhere(db: Database, instance_id: UUID) -> bool:
    """Whether another live instance has a free slot."""
    free: bool = await db.pool.fetchval(
        """
        SELECT EXISTS (
          SELECT 1 FROM instances i WHERE i.id <> $1 AND i.lease_expires_at > now() AND NOT i.draining AND i.slots > (
            SELECT count(*) FROM sessions s JOIN runs r ON r.session_id = s.id
            WHERE s.owner_id = i.id AND r.status = 'running' AND r.origin = 'client'))
        """,
        instance_id,
    )
    return free
