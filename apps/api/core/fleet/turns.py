"""What is running, by which tenants take turns (docs/adr/0021-turns.md), as callers see it."""

from __future__ import annotations

from uuid import UUID

from apps.api.core.config.limits import Scope
from apps.api.db import Database

_RUNNING = """
SELECT count(*) AS tenant, count(*) FILTER (WHERE api_key_id = $2) AS key
FROM runs WHERE tenant_id = $1 AND status = 'running' AND origin = 'client'
"""


async def running(db: Database, tenant_id: UUID, key_id: UUID) -> dict[Scope, int]:
    """How much of `concurrent_runs` a tenant and one of its keys use."""
    row = await db.pool.fetchrow(_RUNNING, tenant_id, key_id)
    return {"tenant": row["tenant"], "key": row["key"]}
