"""Quotas: how much keys and tenants may have at a time, as far as PostgreSQL counts it.

What adds to it looks in the same statement whether it may, by a function that lets one of a tenant look at a time: see
migrations/versions/0010_quotas.py. So two that come at once, on two instances, cannot pass the limit together.
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

_USED = """
SELECT count(*) FILTER (WHERE api_key_id = $2) AS key, count(*) AS tenant
FROM runs WHERE tenant_id = $1 AND status = 'queued'
"""


async def used(db: Database, tenant_id: UUID, key_id: UUID) -> dict[tuple[str, Scope], int]:
    """What a key and its tenant have, by the name of the limit and by whose it is."""
    async with db.turns.reading(tenant_id):
        row = await db.pool.fetchrow(_USED, tenant_id, key_id)
    return {("queued_runs", "key"): row["key"], ("queued_runs", "tenant"): row["tenant"]}


def refusal(quota: Mapping[str, Any]) -> RateLimited:
    """The error for a quota that is used up, as the database gives it."""
    message = f"The {quota['scope']}'s {quota['name']} is used up: {quota['used']} of {quota['limit']}."
    return RateLimited(message, code="quota_exceeded", details=quota, headers={"Retry-After": str(SOON)})
