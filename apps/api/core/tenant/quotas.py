"""Quotas: how much keys and tenants may have at a time, as far as PostgreSQL counts it.

What adds to it looks in the same statement whether it may, by a function that lets one of a tenant look at a time: see
migrations/versions/0015_workspace_bytes.py. So two that come at once, on two instances, cannot pass the limit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from apps.api.core.config.limits import Scope
from apps.api.db import Database
from apps.api.errors import RateLimited

SOON = 5
"""Seconds after which those who were refused may try again, where others end what they have meanwhile."""

FILE_LASTS = "(expires_at IS NULL OR expires_at > now())"
"""SQL of a condition: of rows of `files` that are there, and count."""

_USED = f"""
SELECT 'queued_runs' AS name, count(*) FILTER (WHERE api_key_id = $2) AS key, count(*) AS tenant
FROM runs WHERE tenant_id = $1 AND status = 'queued'
UNION ALL SELECT 'workspace_bytes', coalesce(sum(workspace_bytes) FILTER (WHERE taken_by = $2), 0)::bigint,
  coalesce(sum(workspace_bytes), 0)::bigint
FROM sessions WHERE tenant_id = $1 AND workspace_bytes > 0 AND deleted_at IS NULL
UNION ALL SELECT 'file_bytes', coalesce(sum(size) FILTER (WHERE api_key_id = $2), 0)::bigint,
  coalesce(sum(size), 0)::bigint
FROM files WHERE tenant_id = $1 AND {FILE_LASTS}
UNION ALL SELECT 'concurrent_runs', count(*) FILTER (WHERE api_key_id = $2), count(*)
FROM runs WHERE tenant_id = $1 AND status = 'running' AND origin = 'client'
UNION ALL SELECT 'live_sessions', count(*) FILTER (WHERE taken_by = $2), count(*)
FROM sessions WHERE tenant_id = $1 AND owner_id IS NOT NULL
"""  # noqa: S608 - ours


async def used(db: Database, tenant_id: UUID, key_id: UUID) -> dict[tuple[str, Scope], int]:
    """What a key and its tenant have, by the name of the limit and by whose it is."""
    async with db.turns.reading(tenant_id):
        rows = await db.pool.fetch(_USED, tenant_id, key_id)
    scopes: tuple[Scope, ...] = ("key", "tenant")
    return {(row["name"], scope): row[scope] for row in rows for scope in scopes}


def no_room(room: int, name: str = "workspace_bytes") -> RateLimited:
    """The error for files that would be more than a limit allows. `room`: bytes that are left."""
    message = f"The files would be more than the {name} of the tenant or the key."
    return RateLimited(message, code="quota_exceeded", details={"name": name, "left": max(room, 0)})


def refusal(quota: Mapping[str, Any]) -> RateLimited:
    """The error for a quota that is used up, as the database gives it."""
    message = f"The {quota['scope']}'s {quota['name']} is used up: {quota['used']} of {quota['limit']}."
    # Room on the disk does not come by waiting: sessions are deleted, or the limit is raised.
    headers = {} if quota["name"] == "workspace_bytes" else {"Retry-After": str(SOON)}
    return RateLimited(message, code="quota_exceeded", details=quota, headers=headers)
