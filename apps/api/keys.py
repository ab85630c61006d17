"""What operators do with tenants and their keys. Not bound to a tenant: the scope `admin` is the server's."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from apps.api import audit
from apps.api.auth import SCOPES, forget_cached, hash_of, listed, prefix_of
from apps.api.auth import USUAL_SCOPES as USUAL_SCOPES
from apps.api.core.config.limits import NO_LIMITS, Limits, read
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound
from apps.api.redis import Redis
from apps.api.settings import TENANT_NAME as TENANT_NAME

DEFAULT_TENANT = "default"

_COLUMNS = ("name", "scopes", "profiles", "networks", "limits", "expires_at")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, and how many keys of it are valid."""

    id: UUID
    name: str
    created_at: datetime
    keys: int
    suspended_at: datetime | None = None
    deleting_at: datetime | None = None


_TENANTS = """
SELECT t.id, t.name, t.created_at, t.suspended_at, t.deleting_at, (SELECT count(*) FROM api_keys WHERE tenant_id = t.id
  AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS keys FROM tenants t
"""


async def list_tenants(db: Database, *, limit: int, after: str | None) -> list[Tenant]:
    """Tenants by name, those after the name `after`."""
    rows = await db.pool.fetch(
        _TENANTS + 'WHERE $1::text IS NULL OR name COLLATE "C" > $1 ORDER BY name COLLATE "C" LIMIT $2', after, limit
    )
    return [Tenant(**dict(row)) for row in rows]


async def create_tenant(db: Database, name: str) -> Tenant:
    """Make a tenant without keys. Raises Conflict `name_in_use`."""
    try:
        async with db.transaction() as connection:
            row = await connection.fetchrow(
                "INSERT INTO tenants (name) VALUES ($1) RETURNING id, name, created_at", name
            )
            await audit.note(connection, "tenant.created", row["id"])
    except asyncpg.UniqueViolationError as error:
        raise Conflict(f"A tenant of the name {name} exists.", code="name_in_use") from error
    return Tenant(**dict(row), keys=0)


async def get_tenant(db: Database, name: str) -> Tenant:
    """One tenant. Raises NotFound `tenant_not_found`."""
    rows = await db.pool.fetch(_TENANTS + "WHERE name = $1", name)
    if not rows:
        raise NotFound.of("tenant")
    return Tenant(**dict(rows[0]))


async def require_tenant(db: Database, name: str) -> None:
    """Raises NotFound `tenant_not_found`."""
    if not await db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM tenants WHERE name = $1)", name):
        raise NotFound.of("tenant")


async def tenant_limits(db: Database, name: str) -> Limits:
    """What a tenant is limited to. Raises NotFound `tenant_not_found`."""
    row = await db.pool.fetchrow("SELECT limits FROM tenants WHERE name = $1", name)
    if row is None:
        raise NotFound.of("tenant")
    return read(row["limits"])


async def limit_tenant(db: Database, redis: Redis, name: str, limits: Limits) -> None:
    """Replace what a tenant is limited to, for all its keys: as soon as `revoke_key` works. Raises NotFound."""
    async with db.transaction() as connection:
        tenant_id = await connection.fetchval(
            "UPDATE tenants SET limits = $2 WHERE name = $1 RETURNING id", name, limits.given()
        )
        if tenant_id is None:
            raise NotFound.of("tenant")
        await audit.note(connection, "tenant.limited", tenant_id, limits=limits.given())
    rows = await db.pool.fetch(
        "SELECT secret_hash, previous_hash FROM api_keys WHERE tenant_id = $1 AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now())",
        tenant_id,
    )
    await forget_cached(db, redis, *(secret_hash for row in rows for secret_hash in row.values()))


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key, or a new secret of one. `secret` is shown once and kept nowhere."""

    id: UUID
    tenant: str
    prefix: str
    secret: str


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key as operators may see it."""

    id: UUID
    tenant: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    profiles: tuple[str, ...] | None
    networks: tuple[str, ...] | None
    limits: Limits
    previous_expires_at: datetime | None


def new_secret() -> str:
    """A secret that nobody has."""
    return f"cak_{secrets.token_urlsafe(32)}"


# xmax is 0 in a row that this very statement has inserted.
_TENANT = """
INSERT INTO tenants (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING id, xmax = 0 AS new
"""


async def _ensure_tenant(connection: asyncpg.Connection, name: str) -> UUID:
    row = await connection.fetchrow(_TENANT, name)
    tenant_id: UUID = row["id"]
    if row["new"]:
        await audit.note(connection, "tenant.created", tenant_id)
    return tenant_id


async def create_key(
    db: Database,
    *,
    tenant: str,
    name: str,
    scopes: Sequence[str],
    expires_in_days: int | None = None,
    expires_at: datetime | None = None,
    profiles: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    limits: Limits = NO_LIMITS,
    secret: str | None = None,
) -> CreatedKey:
    """Make a key, and its tenant if it is new.

    Raises:
        ValueError: an unknown scope, a tenant name that the table refuses, or a secret that is a key already.
        Conflict: `tenant_deleted`, being deleted.
    """
    unknown = set(scopes) - set(SCOPES)
    if unknown or not scopes:
        raise ValueError(f"scopes must be some of {', '.join(SCOPES)}")
    secret, key_id = secret or new_secret(), uuid4()
    prefix = prefix_of(secret)
    if expires_in_days is not None:
        # By the database's clock: a command has heard no heartbeat.
        expires_at = await db.pool.fetchval("SELECT now() + make_interval(days => $1)", expires_in_days)
    try:
        async with db.transaction() as connection:
            tenant_id = await _ensure_tenant(connection, tenant)
            if await connection.fetchval("SELECT deleting_at IS NOT NULL FROM tenants WHERE id = $1", tenant_id):
                raise Conflict("This tenant is being deleted.", code="tenant_deleted")
            bound = (list(of) if of else None for of in (profiles, networks))
            given = (name, list(scopes), *bound, limits.given(), expires_at)
            await connection.execute(
                f"INSERT INTO api_keys (id, tenant_id, secret_hash, prefix, {', '.join(_COLUMNS)})"  # noqa: S608 - ours
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                key_id,
                tenant_id,
                hash_of(secret),
                prefix,
                *given,
            )
            told = dict(zip(_COLUMNS, _told(given), strict=True))
            await audit.note(connection, "key.created", tenant_id, key_id, prefix=prefix, **told)
    except asyncpg.CheckViolationError as error:
        raise ValueError("a tenant's name is 1 to 63 letters, digits, dots, dashes or underscores") from error
    except asyncpg.UniqueViolationError as error:
        raise ValueError("this secret is a key already") from error
    return CreatedKey(key_id, tenant, prefix, secret)


async def ensure_first_key(db: Database, secret: str | None) -> CreatedKey | None:
    """With `secret` (API_KEY): make sure that it is a key. Without: mint one if there is no key at all yet."""
    if secret is not None:
        known = await db.pool.fetchval("SELECT 1 FROM api_keys WHERE secret_hash = $1", hash_of(secret))
        if known:
            return None
    elif await db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM api_keys)"):
        return None
    try:
        return await create_key(db, tenant=DEFAULT_TENANT, name="first key", scopes=SCOPES, secret=secret)
    except ValueError:
        if secret is None:
            raise
        return None  # another instance was faster


async def ensure_anonymous_key(db: Database, tenant: str) -> str:
    """The key of callers without a key, made when it is not there, with its tenant. Returns what stands for its secret.

    Nobody can present it: what is stored as the hash of its secret is no hash. It is revoked and bound to profiles and
    limits like every key.
    """
    async with db.transaction() as connection:
        tenant_id = await _ensure_tenant(connection, tenant)
        no_hash = f"anonymous:{tenant_id}".ljust(64, ":")
        key_id = await connection.fetchval(
            "INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, scopes)"
            " VALUES ($1, $2, 'anonymous', '-', $3, $4) ON CONFLICT (secret_hash) DO NOTHING RETURNING id",
            uuid4(),
            tenant_id,
            no_hash,
            list(USUAL_SCOPES),
        )
        if key_id is not None:
            await audit.note(connection, "key.created", tenant_id, key_id, name="anonymous", scopes=USUAL_SCOPES)
    return no_hash


async def list_keys(
    db: Database, tenant: str | None = None, *, limit: int | None = None, after: UUID | None = None
) -> list[KeyInfo]:
    """Keys of one tenant or of all, oldest first, those after the key `after`."""
    return await _keys(
        db,
        "($1::text IS NULL OR t.name = $1) AND ($2::uuid IS NULL OR"
        " (k.created_at, k.id) > (SELECT created_at, id FROM api_keys WHERE id = $2))"
        " ORDER BY k.created_at, k.id LIMIT $3",
        tenant,
        after,
        limit,
    )


async def get_key(db: Database, key_id: UUID) -> KeyInfo:
    """One key. Raises NotFound `key_not_found`."""
    found = await _keys(db, "k.id = $1", key_id)
    if not found:
        raise NotFound.of("key")
    return found[0]


async def _keys(db: Database, condition: str, *arguments: object) -> list[KeyInfo]:
    rows = await db.pool.fetch(
        "SELECT k.id, t.name AS tenant, k.name, k.prefix, k.scopes, k.created_at, k.expires_at, k.last_used_at,"  # noqa: S608 - ours
        " k.revoked_at, k.profiles, k.networks, k.limits, k.previous_expires_at"
        f" FROM api_keys k JOIN tenants t ON t.id = k.tenant_id WHERE {condition}",
        *arguments,
    )
    return [_info(dict(row)) for row in rows]


def _info(fields: dict[str, Any]) -> KeyInfo:
    lists = {name: listed(fields[name]) for name in ("scopes", "profiles", "networks")}
    return KeyInfo(**{**fields, **lists, "limits": read(fields["limits"])})


async def revoke_key(db: Database, redis: Redis, key_id: UUID) -> bool:
    """Make a key invalid: at once where Redis can be reached, else within a quarter of a lease. False when unknown."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT tenant_id, name, revoked_at, secret_hash, previous_hash FROM api_keys WHERE id = $1 FOR UPDATE",
            key_id,
        )
        if row is None:
            return False
        if row["revoked_at"] is None:
            await connection.execute("UPDATE api_keys SET revoked_at = now() WHERE id = $1", key_id)
            await audit.note(connection, "key.revoked", row["tenant_id"], key_id, name=row["name"])
    await forget_cached(db, redis, row["secret_hash"], row["previous_hash"])
    return True


async def change_key(db: Database, redis: Redis, key_id: UUID, changes: Mapping[str, Any]) -> None:
    """Change some, at least one, of name, scopes, profiles, networks, limits and expires_at of a key that is not
    revoked.

    Raises:
        NotFound: `key_not_found`.
        Conflict: `key_revoked`.
    """
    fields = [name for name in _COLUMNS if name in changes]
    sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(fields, 2))
    values = [changes[name] for name in fields]
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            f"UPDATE api_keys SET {sets} WHERE id = $1 AND revoked_at IS NULL"  # noqa: S608 - our names
            " RETURNING tenant_id, secret_hash, previous_hash",
            key_id,
            *values,
        )
        if row is not None:
            told = dict(zip(fields, _told(values), strict=True))
            await audit.note(connection, "key.changed", row["tenant_id"], key_id, **told)
    if row is None:
        raise await _missing(db, key_id)
    await forget_cached(db, redis, row["secret_hash"], row["previous_hash"])


def _told(values: Iterable[Any]) -> list[Any]:
    return [value.isoformat() if isinstance(value, datetime) else value for value in values]


async def rotate_key(db: Database, redis: Redis, key_id: UUID, overlap_seconds: float) -> CreatedKey:
    """Give a key a new secret; the one before stays valid for `overlap_seconds`, one before that ends now.

    With none it is gone at once: an end by the clock would be later on an instance whose clock is a moment behind.

    Raises:
        NotFound: `key_not_found`.
        Conflict: `key_revoked`.
    """
    secret = new_secret()
    async with db.transaction() as connection:
        before = await connection.fetchrow(
            "SELECT tenant_id, secret_hash, previous_hash FROM api_keys"
            " WHERE id = $1 AND revoked_at IS NULL FOR UPDATE",
            key_id,
        )
        if before is not None:
            tenant = await connection.fetchval(
                "UPDATE api_keys SET secret_hash = $2, prefix = $3,"
                " previous_hash = CASE WHEN $4::float8 > 0 THEN secret_hash END,"
                " previous_expires_at = CASE WHEN $4 > 0 THEN now() + make_interval(secs => $4) END WHERE id = $1"
                " RETURNING (SELECT name FROM tenants WHERE id = tenant_id)",
                key_id,
                hash_of(secret),
                prefix_of(secret),
                overlap_seconds,
            )
            told = {"prefix": prefix_of(secret), "overlap_seconds": overlap_seconds}
            await audit.note(connection, "key.rotated", before["tenant_id"], key_id, **told)
    if before is None:
        raise await _missing(db, key_id)
    await forget_cached(db, redis, before["secret_hash"], before["previous_hash"])
    return CreatedKey(key_id, tenant, prefix_of(secret), secret)


async def _missing(db: Database, key_id: UUID) -> Exception:
    if await db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM api_keys WHERE id = $1)", key_id):
        return Conflict("This key has been revoked.", code="key_revoked")
    return NotFound.of("key")
