"""What tenants and keys have of the fleet at this moment, by which they take turns (docs/adr/0021-turns.md)."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from apps.api.core.config.limits import Scope
from apps.api.db import Database

_HELD = """
SELECT 'concurrent_runs' AS name, count(*) AS tenant, count(*) FILTER (WHERE api_key_id = $2) AS key
FROM runs WHERE tenant_id = $1 AND status = 'running' AND origin = 'client'
UNION ALL SELECT 'live_sessions', count(*), count(*) FILTER (WHERE taken_by = $2)
FROM sessions WHERE tenant_id = $1 AND owner_id IS NOT NULL
"""


async def held(db: Database, tenant_id: UUID, key_id: UUID) -> dict[tuple[str, Scope], int]:
    """How much a tenant and one of its keys have, by the name of the limit."""
    rows = await db.pool.fetch(_HELD, tenant_id, key_id)
    scopes: tuple[Scope, ...] = ("tenant", "key")
    return {(row["name"], scope): row[scope] for row in rows for scope in scopes}


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
