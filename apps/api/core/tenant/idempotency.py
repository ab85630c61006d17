"""Idempotency keys: the same key and request, within a day, mean the same object."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.codec import encode
from apps.api.db import Database
from apps.api.errors import Conflict

HOURS = 24
"""How long a key is remembered."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """An `Idempotency-Key` and the SHA-256 of what was asked with it."""

    key: str
    fingerprint: str

    @classmethod
    def of(cls, key: str, *parts: Any) -> Idempotency:
        return cls(key, hashlib.sha256(encode(parts)).hexdigest())

    @classmethod
    def given(cls, key: str | None, *parts: Any) -> Idempotency | None:
        """None for a request that has no key."""
        return cls.of(key, *parts) if key else None


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a key stands for: a session, perhaps with a run, or an object of another kind."""

    session_id: UUID | None
    run_id: UUID | None
    object_id: UUID | None


def reused() -> Conflict:
    """409 `idempotency_key_reused`."""
    return Conflict("This Idempotency-Key was used with another request.", code="idempotency_key_reused")


async def repeated(connection: asyncpg.Connection, tenant_id: UUID, idempotency: Idempotency) -> Earlier | None:
    """What the key stands for, if it was used before. Holds others with this key back until the transaction ends.

    Raises:
        Conflict: `idempotency_key_reused`, the request was another one.
    """
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"idempotency:{tenant_id}:{idempotency.key}"
    )
    row = await connection.fetchrow(
        "SELECT fingerprint, session_id, run_id, object_id FROM idempotency_keys"
        " WHERE tenant_id = $1 AND key = $2 AND created_at > now() - make_interval(hours => $3)",
        tenant_id,
        idempotency.key,
        HOURS,
    )
    if row is None:
        return None
    if row["fingerprint"] != idempotency.fingerprint:
        raise reused()
    return Earlier(row["session_id"], row["run_id"], row["object_id"])


async def find(db: Database, tenant_id: UUID, key: str) -> Earlier | None:
    """What a key stands for, whatever was asked with it."""
    row = await db.pool.fetchrow(
        "SELECT session_id, run_id, object_id FROM idempotency_keys WHERE tenant_id = $1 AND key = $2", tenant_id, key
    )
    return None if row is None else Earlier(**dict(row))


async def remember(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    idempotency: Idempotency,
    *,
    session_id: UUID | None = None,
    run_id: UUID | None = None,
    object_id: UUID | None = None,
) -> None:
    """Store what the key stands for, in the transaction that made it."""
    await connection.execute(
        "INSERT INTO idempotency_keys (tenant_id, key, fingerprint, session_id, run_id, object_id)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id, key) DO UPDATE"
        " SET fingerprint = excluded.fingerprint, session_id = excluded.session_id, run_id = excluded.run_id,"
        " object_id = excluded.object_id, created_at = now()",
        tenant_id,
        idempotency.key,
        idempotency.fingerprint,
        session_id,
        run_id,
        object_id,
    )


async def forget(connection: asyncpg.Connection, tenant_id: UUID, object_id: UUID) -> None:
    """Free the key that made an object which is being removed."""
    await connection.execute(
        "DELETE FROM idempotency_keys WHERE tenant_id = $1 AND object_id = $2", tenant_id, object_id
    )


async def forget_old(db: Database) -> None:
    """Remove keys whose time is over."""
    await db.sweep(
        "DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (SELECT tenant_id, key FROM idempotency_keys"
        " WHERE created_at < now() - make_interval(hours => $1) ORDER BY created_at LIMIT $2)",
        HOURS,
    )
