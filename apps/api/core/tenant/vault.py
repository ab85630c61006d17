"""Secrets of tenants: kept encrypted, named in configuration as `${NAME}`, and never read back by anybody.

Encryption is Fernet (AES-128-CBC with HMAC-SHA-256), whose keys are ENCRYPTION_KEYS: the first one encrypts, all of
them decrypt, so that a key can be replaced while what the old one has sealed is still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

import asyncpg
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from apps.api import audit
from apps.api.core.codec import timestamp
from apps.api.core.config.names import SECRET_REFS
from apps.api.core.pages import Page
from apps.api.db import Database
from apps.api.errors import NotFound, Unavailable, ValidationError
from apps.api.settings import Settings

TRIED = 200
"""Of each kind of what is sealed."""

_OLDEST = [
    f"SELECT {column} AS sealed FROM {table} WHERE {column} IS NOT NULL ORDER BY updated_at LIMIT $1"  # noqa: S608
    for table, column in (
        ("secrets", "sealed"),
        ("mcp_servers", "sealed"),
        ("model_credentials", "sealed"),
        ("webhooks", "secret"),
        ("credentials", "sealed"),
    )
]


def _box(settings: Settings) -> MultiFernet:
    if not settings.encryption_keys:
        raise Unavailable(
            "This server keeps no secrets, because its operator has not set ENCRYPTION_KEYS.",
            code="encryption_not_configured",
        )
    return MultiFernet([Fernet(key.get_secret_value()) for key in settings.encryption_keys])


def seal(settings: Settings, text: str) -> str:
    """The text, encrypted with the first key. Raises Unavailable `encryption_not_configured`."""
    return _box(settings).encrypt(text.encode()).decode()


def unseal(settings: Settings, sealed: str) -> str:
    """What `seal` was given. Raises Unavailable `encryption_not_configured`, also when no key of ours fits."""
    try:
        return _box(settings).decrypt(sealed).decode()
    except InvalidToken as error:
        raise Unavailable(
            "What is stored was encrypted with a key that is not among the server's ENCRYPTION_KEYS any more.",
            code="encryption_not_configured",
        ) from error


async def unreadable(connection: asyncpg.Connection, settings: Settings) -> tuple[int, int]:
    """How many of what tenants have stored sealed were tried, the oldest of each kind, and how many no key opens.

    Raises:
        asyncpg.PostgresError: the server refuses.
    """
    rows = [row["sealed"] for query in _OLDEST for row in await connection.fetch(query, TRIED)]
    closed = 0
    for sealed in rows:
        try:
            unseal(settings, sealed)
        except Unavailable:
            closed += 1
    return len(rows), closed


def names_in(texts: Iterable[str]) -> set[str]:
    """Names of the secrets that these texts refer to as `${NAME}`."""
    return {name for text in texts for name in SECRET_REFS.findall(text)}


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with every `${NAME}` replaced. Raises KeyError for a name without a value."""
    return SECRET_REFS.sub(lambda found: values[found[1]], text)


async def put(db: Database, settings: Settings, tenant_id: UUID, name: str, value: str) -> bool:
    """Store a secret or replace its value. Returns whether it is new. Raises Unavailable."""
    async with db.transaction() as connection:
        # xmax is 0 in a row that this very statement has inserted.
        new: bool = await connection.fetchval(
            "INSERT INTO secrets (tenant_id, name, sealed) VALUES ($1, $2, $3)"
            " ON CONFLICT (tenant_id, name) DO UPDATE SET sealed = excluded.sealed, updated_at = now()"
            " RETURNING xmax = 0",
            tenant_id,
            name,
            seal(settings, value),
        )
        await audit.note(connection, "secret.put", tenant_id, name, new=new)
    return new


async def list_page(db: Database, tenant_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """Names and times of a tenant's secrets, by name. The cursor is the last name of the page before."""
    rows = await db.pool.fetch(
        "SELECT name, created_at, updated_at FROM secrets WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3",
        tenant_id,
        cursor or "",
        limit + 1,
    )
    data = [
        {
            "name": row["name"],
            "created_at": timestamp(row["created_at"]),
            "updated_at": timestamp(row["updated_at"]),
        }
        for row in rows[:limit]
    ]
    return Page(data, rows[limit - 1]["name"] if len(rows) > limit else None)


async def get(db: Database, tenant_id: UUID, name: str) -> dict[str, str]:
    """Name and times of one secret. Raises NotFound."""
    row = await db.pool.fetchrow(
        "SELECT created_at, updated_at FROM secrets WHERE tenant_id = $1 AND name = $2", tenant_id, name
    )
    if row is None:
        raise NotFound.of("secret")
    return {"name": name, "created_at": timestamp(row["created_at"]), "updated_at": timestamp(row["updated_at"])}


async def delete(db: Database, tenant_id: UUID, name: str) -> None:
    """Remove a secret. What refers to it fails from now on. Raises NotFound."""
    async with db.transaction() as connection:
        status = await connection.execute("DELETE FROM secrets WHERE tenant_id = $1 AND name = $2", tenant_id, name)
        if status != "DELETE 1":
            raise NotFound.of("secret")
        await audit.note(connection, "secret.deleted", tenant_id, name)


async def require(db: Database, tenant_id: UUID, names: Mapping[str, str]) -> None:
    """Check that secrets exist, without opening them.

    Args:
        names: secret → the field of the request that refers to it.

    Raises:
        ValidationError: naming each field and the secret that is missing.
    """
    if not names:
        return
    missing = sorted(names.keys() - await known(db, tenant_id, names))
    if missing:
        errors = [{"field": names[name], "reason": f"there is no secret named {name}"} for name in missing]
        summary = "; ".join(f"{e['field']}: {e['reason']}" for e in errors)
        raise ValidationError(summary, details={"errors": errors})


async def known(db: Database, tenant_id: UUID, names: Iterable[str]) -> set[str]:
    """Those of the names that are secrets of the tenant."""
    rows = await db.pool.fetch(
        "SELECT name FROM secrets WHERE tenant_id = $1 AND name = ANY($2::text[])", tenant_id, list(names)
    )
    return {row["name"] for row in rows}


async def resolve(db: Database, settings: Settings, tenant_id: UUID, names: Iterable[str]) -> dict[str, str]:
    """The values of secrets, by name; for the runner only.

    Raises:
        NotFound: `secret_not_found`; the message and `details.names` name what is missing.
        Unavailable: `encryption_not_configured`.
    """
    wanted = set(names)
    if not wanted:
        return {}
    rows = await db.pool.fetch(
        "SELECT name, sealed FROM secrets WHERE tenant_id = $1 AND name = ANY($2::text[])", tenant_id, list(wanted)
    )
    missing = sorted(wanted - {row["name"] for row in rows})
    if missing:
        raise NotFound(
            f"There is no secret named {', '.join(missing)}.", code="secret_not_found", details={"names": missing}
        )
    return {row["name"]: unseal(settings, row["sealed"]) for row in rows}
