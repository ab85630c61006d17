"""API keys: who is asking, and for which tenant.

A key is `cak_` and 256 random bits; the database holds its SHA-256, Redis caches hash → principal for a short
time. A plain hash is enough for a secret of that size: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from apps.api.db import Database
from apps.api.errors import Forbidden, NotFound, Unauthorized
from apps.api.redis import KEY_CACHE_TTL, REDIS_ERRORS, Redis

SCOPES = ("admin", "write", "read")
"""`admin` includes `write`, which includes `read`. It is the operator's: for keys and tenants of the whole server."""

USUAL_SCOPES = ("write", "read")
"""Of a key that is made without saying which."""

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        profiles: those that the key is bound to, the first being its default; None: not bound.
        prompts_per_minute: the key's own limit, 0 being none; None: the server's.
    """

    tenant_id: UUID
    tenant: str
    key_id: UUID
    key_name: str
    prefix: str
    scopes: tuple[str, ...]
    expires_at: datetime | None
    profiles: tuple[str, ...] | None = None
    prompts_per_minute: int | None = None

    def require_unbound(self) -> None:
        """Raises Forbidden `key_is_bound` for a key that is bound to profiles: it may not change what all keys of its
        tenant use, since it would decide there what agents of others do."""
        if self.profiles is not None:
            bound = ", ".join(self.profiles)
            raise Forbidden(
                f"This key is bound to profiles ({bound}): it works in their sessions, and changes nothing else.",
                code="key_is_bound",
            )

    def require(self, scope: str) -> None:
        """Raises Forbidden `insufficient_scope` unless this key has `scope` or a wider one."""
        wide_enough = SCOPES[: SCOPES.index(scope) + 1]
        if not any(s in wide_enough for s in self.scopes):
            raise Forbidden(f"This key lacks the scope {scope!r}.")


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
    prompts_per_minute: int | None
    previous_expires_at: datetime | None


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    # A key that comes in JSON may hold half of a surrogate pair; that is a wrong key, not an error.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


_LOOK_UP = """
SELECT k.id AS key_id, k.name AS key_name, k.prefix, k.scopes, k.profiles, k.prompts_per_minute,
  CASE WHEN k.secret_hash = $1 THEN k.expires_at ELSE least(k.expires_at, k.previous_expires_at) END AS expires_at,
  t.id AS tenant_id, t.name AS tenant
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE (k.secret_hash = $1 OR k.previous_hash = $1) AND k.revoked_at IS NULL
"""


async def authenticate(db: Database, redis: Redis, secret: str | None) -> Principal:
    """The principal of a key.

    Raises:
        Unauthorized: `authentication_required` without a key, `invalid_api_key` for one that is unknown,
            revoked or expired.
    """
    if not secret:
        raise Unauthorized("Send your key as X-API-Key or as Authorization: Bearer.")
    return await _principal_of(db, redis, hash_of(secret))


async def _principal_of(db: Database, redis: Redis, secret_hash: str) -> Principal:
    principal = await _cached(redis, secret_hash)
    if principal is None:
        row = await db.pool.fetchrow(_LOOK_UP, secret_hash)
        if row is None:
            raise Unauthorized("This API key is not valid.", code="invalid_api_key")
        principal = _principal(dict(row))
        await _remember(db, redis, secret_hash, principal)
    if principal.expires_at is not None and principal.expires_at <= datetime.now(UTC):
        raise Unauthorized("This API key is not valid.", code="invalid_api_key")
    return principal


def _principal(fields: dict[str, object]) -> Principal:
    # An entry that an older release cached has no profiles.
    expires, profiles = fields["expires_at"], fields.get("profiles")
    return Principal(
        tenant_id=UUID(str(fields["tenant_id"])),
        tenant=str(fields["tenant"]),
        key_id=UUID(str(fields["key_id"])),
        key_name=str(fields["key_name"]),
        prefix=str(fields["prefix"]),
        scopes=tuple(fields["scopes"]),  # type: ignore[arg-type]
        expires_at=datetime.fromisoformat(expires) if isinstance(expires, str) else expires,  # type: ignore[arg-type]
        profiles=None if profiles is None else tuple(profiles),  # type: ignore[arg-type]
        prompts_per_minute=fields.get("prompts_per_minute"),  # type: ignore[arg-type]
    )


async def _cached(redis: Redis, secret_hash: str) -> Principal | None:
    cached = await redis.attempt(lambda: redis.client.get(redis.keys.api_key(secret_hash)))
    return _principal(orjson.loads(cached)) if cached else None


async def _remember(db: Database, redis: Redis, secret_hash: str, principal: Principal) -> None:
    # The cache is filled about twice a minute per key: often enough to note its use.
    await db.pool.execute("UPDATE api_keys SET last_used_at = now() WHERE id = $1", principal.key_id)
    fields = {name: getattr(principal, name) for name in Principal.__slots__}
    cached = orjson.dumps(fields, default=str)
    await redis.attempt(lambda: redis.client.set(redis.keys.api_key(secret_hash), cached, ex=KEY_CACHE_TTL, nx=True))


def new_secret() -> str:
    """A secret that nobody has."""
    return f"cak_{secrets.token_urlsafe(32)}"


def prefix_of(secret: str) -> str:
    """What is shown of a secret."""
    return secret[: min(8, len(secret) // 4)]


_TENANT = "INSERT INTO tenants (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id"


async def create_key(
    db: Database,
    *,
    tenant: str,
    name: str,
    scopes: Sequence[str] = SCOPES,
    expires_in_days: int | None = None,
    expires_at: datetime | None = None,
    profiles: Sequence[str] | None = None,
    prompts_per_minute: int | None = None,
    secret: str | None = None,
) -> CreatedKey:
    """Make a key, and its tenant if it is new.

    Raises:
        ValueError: an unknown scope, a tenant name that the table refuses, or a secret that is a key already.
    """
    unknown = set(scopes) - set(SCOPES)
    if unknown or not scopes:
        raise ValueError(f"scopes must be some of {', '.join(SCOPES)}")
    secret, key_id = secret or new_secret(), uuid4()
    prefix = prefix_of(secret)
    if expires_in_days is not None:
        expires_at = datetime.now(UTC) + timedelta(days=expires_in_days)
    try:
        async with db.transaction() as connection:
            tenant_id = await connection.fetchval(_TENANT, tenant)
            await connection.execute(
                "INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, scopes, expires_at, profiles,"
                " prompts_per_minute) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                key_id,
                tenant_id,
                name,
                prefix,
                hash_of(secret),
                list(scopes),
                expires_at,
                list(profiles) if profiles else None,
                prompts_per_minute,
            )
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
        return await create_key(db, tenant=DEFAULT_TENANT, name="first key", secret=secret)
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
        tenant_id = await connection.fetchval(_TENANT, tenant)
        no_hash = f"anonymous:{tenant_id}".ljust(64, ":")
        await connection.execute(
            "INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, scopes)"
            " VALUES ($1, $2, 'anonymous', '-', $3, $4) ON CONFLICT (secret_hash) DO NOTHING",
            uuid4(),
            tenant_id,
            no_hash,
            list(USUAL_SCOPES),
        )
    return no_hash


async def anonymous(db: Database, redis: Redis, no_hash: str) -> Principal:
    """Who a caller without a key is; `no_hash` is from `ensure_anonymous_key`. Raises Unauthorized once revoked."""
    return await _principal_of(db, redis, no_hash)


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
        " k.revoked_at, k.profiles, k.prompts_per_minute, k.previous_expires_at"
        f" FROM api_keys k JOIN tenants t ON t.id = k.tenant_id WHERE {condition}",
        *arguments,
    )
    return [_info(dict(row)) for row in rows]


def _info(fields: dict[str, Any]) -> KeyInfo:
    profiles = fields["profiles"]
    lists = {"scopes": tuple(fields["scopes"]), "profiles": None if profiles is None else tuple(profiles)}
    return KeyInfo(**{**fields, **lists})


async def revoke_key(db: Database, redis: Redis, key_id: UUID) -> bool:
    """Make a key invalid, at once where Redis can be reached, else within KEY_CACHE_TTL. False when unknown."""
    row = await db.pool.fetchrow(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1"
        " RETURNING secret_hash, previous_hash",
        key_id,
    )
    if row is None:
        return False
    await forget_cached(redis, *row.values())
    return True


async def forget_cached(redis: Redis, *hashes: str | None) -> None:
    """Let the next request with these secrets ask the database."""
    for secret_hash in filter(None, hashes):
        with suppress(*REDIS_ERRORS):
            # An empty entry keeps a reader that looked before the change from caching what it saw.
            await redis.client.set(redis.keys.api_key(secret_hash), b"", ex=KEY_CACHE_TTL)
