"""API keys: who is asking, and for which tenant.

A key is `cak_` and 256 random bits; the database holds its SHA-256, Redis caches hash → principal for a short
time. A plain hash is enough for a secret of that size: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from uuid import UUID

from pydantic import TypeAdapter

from apps.api import addresses, clock, invalidations
from apps.api.addresses import Address
from apps.api.core.config.grants import Grant
from apps.api.core.config.limits import NO_LIMITS, Stored
from apps.api.db import Database
from apps.api.errors import Forbidden, Unauthorized
from apps.api.lanes import ASKING
from apps.api.redis import KEY_CACHE_TTL, Redis

SCOPES = ("admin", "write", "read")
"""`admin` includes `write`, which includes `read`. It is the operator's: for keys and tenants of the whole server."""

USUAL_SCOPES = ("write", "read")
"""Of a key that is made without saying which."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        networks: those that the key is bound to; None: not bound. No default, so that what an older release has cached
            is not taken for a key without networks.
        profiles: those that the key is bound to, the first being its default; None: not bound.
        limits: the key's own; the server's hold where there is none.
        tenant_limits: those of the tenant, which all its keys have together.
        secret_hash: of the secret that was shown, since a key may have two for a while.
        grant: what the client token that was shown allows of what its key may do; None: the key itself was shown.
    """

    tenant_id: UUID
    tenant: str
    key_id: UUID
    key_name: str
    prefix: str
    scopes: tuple[str, ...]
    expires_at: datetime | None
    networks: tuple[str, ...] | None
    profiles: tuple[str, ...] | None = None
    limits: Stored = NO_LIMITS
    tenant_limits: Stored = NO_LIMITS
    secret_hash: str = field(default="", repr=False)
    grant: Grant | None = None

    @property
    def end_user(self) -> str | None:
        """For whom a client token asks."""
        return self.grant.end_user if self.grant else None

    def within(self, grant: Grant) -> Principal:
        """The holder of a client token of this key. Raises Unauthorized `client_token_expired`."""
        if grant.expires_at <= clock.now():
            raise Unauthorized("This client token has expired.", code="client_token_expired")
        scopes = tuple(scope for scope in USUAL_SCOPES if covers(self.scopes, scope))
        return replace(self, grant=grant, scopes=scopes, expires_at=grant.expires_at)

    def require_unbound(self) -> None:
        """Raises Forbidden `key_is_bound` for a key that is bound to profiles: it may not change what all keys of its
        tenant use, since it would decide there what agents of others do, nor read what names sessions of others."""
        if self.profiles is not None:
            bound = ", ".join(self.profiles)
            raise Forbidden(
                f"This key is bound to profiles ({bound}): it works in their sessions, and changes nothing else.",
                code="key_is_bound",
            )

    def require_network(self, address: Address | None) -> None:
        """Raises Forbidden `address_not_permitted` for a key that is bound to networks, unless the address is known and
        in one of them."""
        if self.networks is not None and not addresses.inside(address, self.networks):
            raise Forbidden("This key may not be used from this address.", code="address_not_permitted")

    def require(self, scope: str) -> None:
        """Raises Forbidden `insufficient_scope` unless this key has `scope` or a wider one."""
        if not covers(self.scopes, scope):
            raise Forbidden(f"This key lacks the scope {scope!r}.")


def covers(scopes: Iterable[str], wanted: str) -> bool:
    """Whether one of the scopes is `wanted` or a wider one."""
    return not set(scopes).isdisjoint(SCOPES[: SCOPES.index(wanted) + 1])


class UnknownKey(Unauthorized):
    """No key has this secret, or none that was not revoked."""

    def __init__(self) -> None:
        super().__init__("This API key is not valid.", code="invalid_api_key")


def suspended() -> Forbidden:
    """What is told to keys of a tenant that is suspended."""
    return Forbidden("The operator has suspended this tenant.", code="tenant_suspended")


def no_key() -> Unauthorized:
    """What is told to whom shows none."""
    return Unauthorized("Send your key as X-API-Key or as Authorization: Bearer.")


def prefix_of(secret: str) -> str:
    """What is shown of a secret."""
    return secret[: min(8, len(secret) // 4)]


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    # A key that comes in JSON may hold half of a surrogate pair; that is a wrong key, not an error.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


_PRINCIPAL = TypeAdapter(Principal)


@lru_cache(maxsize=1_000)
def _read(entry: bytes) -> Principal:
    # Once for all requests of a key, and one object for all that it holds open.
    return _PRINCIPAL.validate_json(entry)


# Redis forgets a principal about twice a minute: often enough to note the key's use, and in one round trip.
_LOOK_UP = """
WITH found AS (
  SELECT k.id AS key_id, k.name AS key_name, k.prefix, k.scopes, k.networks, k.profiles, k.limits,
    CASE WHEN k.secret_hash = $1 THEN k.expires_at ELSE least(k.expires_at, k.previous_expires_at) END AS expires_at,
    t.id AS tenant_id, t.name AS tenant, t.limits AS tenant_limits, $1::text AS secret_hash,
    t.suspended_at IS NOT NULL AS suspended
  FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
  WHERE (k.secret_hash = $1 OR k.previous_hash = $1) AND k.revoked_at IS NULL
), used AS (
  UPDATE api_keys SET last_used_at = now() WHERE id IN (SELECT key_id FROM found)
)
SELECT * FROM found
"""


async def authenticate(db: Database, redis: Redis, secret: str | None, address: Address | None = None) -> Principal:
    """The principal of a key. From then on the task works for its tenant: see `lanes.ASKING`.

    Args:
        address: the client's, as far as it is known.

    Raises:
        Unauthorized: `authentication_required` without a key, `invalid_api_key` for one that is unknown,
            revoked or expired.
        Forbidden: `address_not_permitted`, `tenant_suspended`.
    """
    if not secret:
        raise no_key()
    return await of_hash(db, redis, hash_of(secret), address)


async def of_hash(db: Database, redis: Redis, secret_hash: str, address: Address | None) -> Principal:
    """The principal of the key whose secret has this hash. Raises as `authenticate`; UnknownKey when there is none."""
    ASKING.set(secret_hash)
    principal = await redis.cached(redis.keys.api_key(secret_hash), _read)
    if principal is None:
        row = await db.pool.fetchrow(_LOOK_UP, secret_hash)
        if row is None:
            raise UnknownKey
        fields = dict(row)
        if fields.pop("suspended"):
            raise suspended()
        principal = _PRINCIPAL.validate_python(fields)
        cached = _PRINCIPAL.dump_json(principal)
        key = redis.keys.api_key(secret_hash)
        await redis.attempt(lambda: redis.client.set(key, cached, ex=KEY_CACHE_TTL, nx=True))
    if principal.expires_at is not None and principal.expires_at <= clock.now():
        raise Unauthorized("This API key is not valid.", code="invalid_api_key")
    principal.require_network(address)
    ASKING.set(principal.tenant_id)
    return principal


@dataclass(frozen=True, slots=True)
class Standing:
    """A key that is valid: the hashes of its secrets that are, what it may do, and whether its tenant is suspended."""

    secret_hashes: frozenset[str]
    scopes: tuple[str, ...]
    profiles: tuple[str, ...] | None
    networks: tuple[str, ...] | None
    suspended: bool


_STANDING = """
SELECT k.id, scopes, profiles, networks, secret_hash, suspended_at IS NOT NULL AS suspended,
  CASE WHEN previous_expires_at > now() THEN previous_hash END AS previous
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.id = ANY($1::uuid[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""


async def standing(db: Database, key_ids: Iterable[UUID]) -> dict[UUID, Standing]:
    """Those of the keys that are valid, by the database's word and clock."""
    rows = await db.pool.fetch(_STANDING, list(key_ids))
    return {
        row["id"]: Standing(
            frozenset(filter(None, (row["secret_hash"], row["previous"]))),
            tuple(row["scopes"]),
            listed(row["profiles"]),
            listed(row["networks"]),
            row["suspended"],
        )
        for row in rows
    }


def listed(column: list[str] | None) -> tuple[str, ...] | None:
    """A column of texts, which may be null, as a tuple."""
    return None if column is None else tuple(column)


async def anonymous(db: Database, redis: Redis, no_hash: str, address: Address | None) -> Principal:
    """Who a caller without a key is; `no_hash` is from `ensure_anonymous_key`.

    Raises:
        Unauthorized: once it is revoked.
        Forbidden: `address_not_permitted`.
    """
    return await of_hash(db, redis, no_hash, address)


async def existing(db: Database, secret_hashes: Iterable[str]) -> set[str]:
    """Those of the hashes that some key has, valid or not."""
    asked = list(secret_hashes)
    rows = await db.pool.fetch(
        "SELECT secret_hash, previous_hash FROM api_keys"
        " WHERE secret_hash = ANY ($1::text[]) OR previous_hash = ANY ($1::text[])",
        asked,
    )
    return {secret_hash for row in rows for secret_hash in row.values()} & set(asked)


async def forget_cached(db: Database, redis: Redis, *hashes: str | None) -> None:
    """Let the next request with these secrets ask the database, on every instance; also where Redis is away, see
    `invalidations`."""
    await redis.forget_all(map(redis.keys.api_key, filter(None, hashes)), KEY_CACHE_TTL * 1000)
    await invalidations.tell(db, redis)
