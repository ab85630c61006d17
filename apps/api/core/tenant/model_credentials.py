"""The model credentials of tenants: given by operators, kept encrypted like secrets, and used by the gateway alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from apps.api import audit
from apps.api.core.network import model_api
from apps.api.core.network.model_api import ModelApi
from apps.api.core.tenant import vault
from apps.api.db import Database, connect
from apps.api.errors import Conflict, NotFound, Unavailable
from apps.api.settings import Settings

Kind = Literal["api_key", "auth_token"]
"""Sent as `x-api-key`, or as a bearer token."""

KEEP_SECONDS = 10.0
"""For which an instance goes by what it has looked up: as long as it takes a changed credential to be used."""

MAX_KEPT = 10_000
"""Tenants of which an instance remembers it."""


@dataclass(frozen=True, slots=True)
class Given:
    """That a tenant has a credential of its own; never which."""

    tenant: str
    kind: Kind
    updated_at: datetime


_PUT = """
INSERT INTO model_credentials (tenant_id, kind, sealed) SELECT id, $2, $3 FROM tenants WHERE name = $1
ON CONFLICT (tenant_id) DO UPDATE SET kind = excluded.kind, sealed = excluded.sealed, updated_at = now()
RETURNING tenant_id, updated_at
"""

_GET = """
SELECT c.kind, c.updated_at FROM tenants t LEFT JOIN model_credentials c ON c.tenant_id = t.id WHERE t.name = $1
"""

_DELETE = "DELETE FROM model_credentials c USING tenants t WHERE t.id = c.tenant_id AND t.name = $1 RETURNING t.id"


async def put(db: Database, settings: Settings, tenant: str, kind: Kind, secret: str) -> Given:
    """Give a tenant a credential, in place of the one it has.

    Raises:
        NotFound: `tenant_not_found`.
        Conflict: `model_credential_unused`, where it would never be.
        Unavailable: `encryption_not_configured`.
    """
    if settings.agents_hold_the_credential:
        text = "With CLAUDE_CODE_OAUTH_TOKEN alone agents go past the gateway, and by no other credential."
        raise Conflict(text, code="model_credential_unused")
    async with db.transaction() as connection:
        row = await connection.fetchrow(_PUT, tenant, kind, vault.seal(settings, secret))
        if row is None:
            raise NotFound.of("tenant")
        await audit.note(connection, "model_credential.put", row["tenant_id"], kind=kind)
    return Given(tenant, kind, row["updated_at"])


async def get(db: Database, tenant: str) -> Given:
    """What a tenant was given. Raises NotFound: no such tenant, or it has none."""
    row = await db.pool.fetchrow(_GET, tenant)
    if row is None:
        raise NotFound.of("tenant")
    if row["kind"] is None:
        raise NotFound.of("model_credential")
    return Given(tenant, row["kind"], row["updated_at"])


async def delete(db: Database, tenant: str) -> None:
    """Take it away. Raises NotFound, as `get`."""
    async with db.transaction() as connection:
        tenant_id = await connection.fetchval(_DELETE, tenant)
        if tenant_id is not None:
            await audit.note(connection, "model_credential.deleted", tenant_id)
            return
    await get(db, tenant)


async def refusal(settings: Settings) -> str | None:
    """Why a server with these settings may not serve those whom it knows. Raises what `connect` does."""
    if not settings.agents_hold_the_credential:
        return None
    connection = await connect(settings)
    try:
        tenants = await connection.fetchval("SELECT count(*) FROM tenants")
    finally:
        await connection.close()
    if tenants < 2:
        return None
    return (
        f"CLAUDE_CODE_OAUTH_TOKEN is for a server that serves nobody but the token's owner, and this one has {tenants}"
        " tenants: set ANTHROPIC_API_KEY"
    )


class ModelApis:
    """By which credential each tenant's calls are made, as one instance knows it."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db, self._settings = db, settings
        self._endpoint = model_api.of(settings)
        self._kept: dict[UUID, tuple[float, ModelApi | None]] = {}

    async def of(self, tenant_id: UUID) -> ModelApi | None:
        """The tenant's own, or the operator's where that may stand in; None: the operator's, in the cloud.

        Raises:
            Unavailable: `model_credential_missing`; `encryption_not_configured`.
            Exception: what a database that is away raises.
        """
        own = await self._own(tenant_id)
        if own is not None:
            return own
        if self._settings.tenant_model_credentials == "required":
            raise Unavailable("This tenant has no model credential, and needs one.", code="model_credential_missing")
        return None if self._settings.cloud else self._endpoint

    async def _own(self, tenant_id: UUID) -> ModelApi | None:
        now = time.monotonic()
        until, own = self._kept.get(tenant_id, (0.0, None))
        if until > now:
            return own
        row = await self._db.pool.fetchrow("SELECT kind, sealed FROM model_credentials WHERE tenant_id = $1", tenant_id)
        own = None
        if row is not None:
            own = self._endpoint.known_by(row["kind"], vault.unseal(self._settings, row["sealed"]))
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[tenant_id] = now + KEEP_SECONDS, own
        return own
