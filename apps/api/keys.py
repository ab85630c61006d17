"""What operators do with tenants and their keys. Not bound to a tenant: the scope `admin` is the server's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import auth
from apps.api.auth import CreatedKey
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound
from apps.api.redis import Redis

MAX_OVERLAP_SECONDS = 30 * 86_400

_COLUMNS = ("name", "scopes", "profiles", "prompts_per_minute", "expires_at")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, and how many keys of it are valid."""

    id: UUID
    name: str
    created_at: datetime
    keys: int


async def list_tenants(db: Database, *, limit: int, after: str | None) -> list[Tenant]:
    """Tenants by name, those after the name `after`."""
    rows = await db.pool.fetch(
        "SELECT t.id, t.name, t.created_at, (SELECT count(*) FROM api_keys WHERE tenant_id = t.id"
        " AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS keys"
        ' FROM tenants t WHERE $1::text IS NULL OR name COLLATE "C" > $1 ORDER BY name COLLATE "C" LIMIT $2',
        after,
        limit,
    )
    return [Tenant(**dict(row)) for row in rows]


async def create_tenant(db: Database, name: str) -> Tenant:
    """Make a tenant without keys. Raises Conflict `name_in_use`."""
    try:
        row = await db.pool.fetchrow("INSERT INTO tenants (name) VALUES ($1) RETURNING id, name, created_at", name)
    except asyncpg.UniqueViolationError as error:
        raise Conflict(f"A tenant of the name {name} exists.", code="name_in_use") from error
    return Tenant(**dict(row), keys=0)


async def require_tenant(db: Database, name: str) -> None:
    """Raises NotFound `tenant_not_found`."""
    if not await db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM tenants WHERE name = $1)", name):
        raise NotFound.of("tenant")


async def change_key(db: Database, redis: Redis, key_id: UUID, changes: Mapping[str, Any]) -> None:
    """Change some of name, scopes, profiles, prompts_per_minute and expires_at of a key that is not revoked.

    Raises:
        NotFound: `key_not_found`.
        Conflict: `key_revoked`.
    """
    fields = [name for name in _COLUMNS if name in changes]
    sets = "".join(f", {name} = ${number}" for number, name in enumerate(fields, 2))
    row = await db.pool.fetchrow(
        f"UPDATE api_keys SET id = id{sets} WHERE id = $1 AND revoked_at IS NULL"  # noqa: S608 - our names
        " RETURNING secret_hash, previous_hash",
        key_id,
        *(changes[name] for name in fields),
    )
    if row is None:
        raise await _missing(db, key_id)
    await auth.forget_cached(redis, *row.values())


async def rotate_key(db: Database, redis: Redis, key_id: UUID, overlap_seconds: float) -> CreatedKey:
    """Give a key a new secret; the one before stays valid for `overlap_seconds`, one before that ends now.

    Raises:
        NotFound: `key_not_found`.
        Conflict: `key_revoked`.
    """
    secret = auth.new_secret()
    async with db.transaction() as connection:
        before = await connection.fetchrow(
            "SELECT secret_hash, previous_hash FROM api_keys WHERE id = $1 AND revoked_at IS NULL FOR UPDATE", key_id
        )
        if before is not None:
            tenant = await connection.fetchval(
                "UPDATE api_keys SET previous_hash = secret_hash, secret_hash = $2, prefix = $3,"
                " previous_expires_at = now() + make_interval(secs => $4) WHERE id = $1"
                " RETURNING (SELECT name FROM tenants WHERE id = tenant_id)",
                key_id,
                auth.hash_of(secret),
                auth.prefix_of(secret),
                overlap_seconds,
            )
    if before is None:
        raise await _missing(db, key_id)
    await auth.forget_cached(redis, *before.values())
    return CreatedKey(key_id, tenant, auth.prefix_of(secret), secret)


async def _missing(db: Database, key_id: UUID) -> Exception:
    if await db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM api_keys WHERE id = $1)", key_id):
        return Conflict("This key has been revoked.", code="key_revoked")
    return NotFound.of("key")
