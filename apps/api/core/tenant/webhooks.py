"""Webhooks: endpoints that a tenant is told at when its sessions and runs change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from apps.api import audit
from apps.api.core.codec import timestamp
from apps.api.core.network.outbound import Failed, Outbound, Refused
from apps.api.core.tenant import signing, vault
from apps.api.core.tenant.idempotency import Idempotency, forget, remember, repeated, reused
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound, ValidationError
from apps.api.settings import Settings

WebhookEvent = Literal[
    "run.queued",
    "run.running",
    "run.requires_action",
    "run.succeeded",
    "run.failed",
    "run.interrupted",
    "session.created",
    "session.deleted",
    "schedule.failed",
    "schedule.paused",
]
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)

MAX_WEBHOOKS = 20
"""Endpoints of one tenant. Every change of a run is stored once for each."""

ROTATION_HOURS = 24
"""How long the previous secret goes on signing after a rotation."""

DISABLED_BY_REQUEST = "by request"

_COLUMNS = """
SELECT id, url, description, events, disabled_at, disabled_reason, failing_since, previous_secret_expires_at,
  created_at, updated_at FROM webhooks
"""


def _webhook(row: asyncpg.Record) -> dict[str, Any]:
    def moment(name: str) -> str | None:
        return timestamp(row[name]) if row[name] is not None else None

    return {
        "webhook_id": str(row["id"]),
        "url": row["url"],
        "description": row["description"],
        "events": row["events"],
        "enabled": row["disabled_at"] is None,
        "disabled_at": moment("disabled_at"),
        "disabled_reason": row["disabled_reason"],
        "failing_since": moment("failing_since"),
        "previous_secret_expires_at": moment("previous_secret_expires_at"),
        "created_at": moment("created_at"),
        "updated_at": moment("updated_at"),
    }


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change of a webhook; None leaves it as it is. Enabling it also forgets that it failed."""

    url: str | None = None
    description: str | None = None
    events: Sequence[str] | None = None
    enabled: bool | None = None


async def _check(outbound: Outbound, tenant_id: UUID, url: str | None) -> None:
    if url is None:
        return
    try:
        await outbound.check_url(url, tenant_id)
    except Refused as error:
        raise ValidationError.of("url", str(error)) from error
    except Failed:
        return  # its name may exist by the time of the first message


async def create(
    db: Database,
    settings: Settings,
    outbound: Outbound,
    tenant_id: UUID,
    wanted: Changes,
    idempotency: Idempotency | None,
) -> dict[str, Any]:
    """Register an endpoint. The answer has its `secret`; a repeat with the same key shows it again.

    Raises:
        ValidationError: the URL leads to an address that is not allowed.
        Conflict: `too_many_webhooks`, `idempotency_key_reused`.
        Unavailable: `encryption_not_configured`.
    """
    await _check(outbound, tenant_id, wanted.url)
    async with db.transaction() as connection:
        before = await repeated(connection, tenant_id, idempotency) if idempotency else None
        webhook_id = before.object_id if before else await _insert(connection, settings, tenant_id, wanted)
        if webhook_id is None:  # the key made something else
            raise reused()
        if idempotency and not before:
            await remember(connection, tenant_id, idempotency, object_id=webhook_id)
    made = await get(db, tenant_id, webhook_id)
    sealed = await db.pool.fetchval(
        "SELECT secret FROM webhooks WHERE id = $1 AND tenant_id = $2", webhook_id, tenant_id
    )
    return {**made, "secret": vault.unseal(settings, sealed)}


async def _insert(connection: asyncpg.Connection, settings: Settings, tenant_id: UUID, wanted: Changes) -> UUID:
    # Held until the end of the transaction, so that two at once do not both find the last place free.
    await connection.execute("SELECT 1 FROM tenants WHERE id = $1 FOR NO KEY UPDATE", tenant_id)
    if await connection.fetchval("SELECT count(*) FROM webhooks WHERE tenant_id = $1", tenant_id) >= MAX_WEBHOOKS:
        raise Conflict(f"A tenant has at most {MAX_WEBHOOKS} webhooks.", code="too_many_webhooks")
    webhook_id: UUID = await connection.fetchval(
        "INSERT INTO webhooks (tenant_id, url, description, events, secret) VALUES ($1, $2, $3, $4, $5) RETURNING id",
        tenant_id,
        wanted.url,
        wanted.description,
        list(wanted.events or WEBHOOK_EVENTS),
        vault.seal(settings, signing.new_secret()),
    )
    await audit.note(connection, "webhook.created", tenant_id, webhook_id, host=urlsplit(wanted.url or "").hostname)
    return webhook_id


async def get(db: Database, tenant_id: UUID, webhook_id: UUID) -> dict[str, Any]:
    """One webhook, without its secret. Raises NotFound."""
    row = await db.pool.fetchrow(_COLUMNS + "WHERE id = $1 AND tenant_id = $2", webhook_id, tenant_id)
    if row is None:
        raise NotFound.of("webhook")
    return _webhook(row)


async def list_all(db: Database, tenant_id: UUID) -> list[dict[str, Any]]:
    """All webhooks of a tenant, at most MAX_WEBHOOKS, oldest first."""
    rows = await db.pool.fetch(_COLUMNS + "WHERE tenant_id = $1 ORDER BY created_at, id", tenant_id)
    return [_webhook(row) for row in rows]


async def change(db: Database, outbound: Outbound, tenant_id: UUID, webhook_id: UUID, changes: Changes) -> None:
    """Change a webhook. Raises NotFound, ValidationError."""
    await _check(outbound, tenant_id, changes.url)
    async with db.transaction() as connection:
        status = await connection.execute(
            "UPDATE webhooks SET url = coalesce($3, url), description = coalesce($4, description),"
            " events = coalesce($5, events), updated_at = now() WHERE id = $1 AND tenant_id = $2",
            webhook_id,
            tenant_id,
            changes.url,
            changes.description,
            None if changes.events is None else list(changes.events),
        )
        if status != "UPDATE 1":
            raise NotFound.of("webhook")
        if changes.enabled:
            await connection.execute(
                "UPDATE webhooks SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL"
                " WHERE id = $1 AND tenant_id = $2",
                webhook_id,
                tenant_id,
            )
        elif changes.enabled is False:
            await disable(connection, webhook_id, DISABLED_BY_REQUEST)
        told = {"enabled": changes.enabled, "events": changes.events, "host": urlsplit(changes.url or "").hostname}
        changed = {name: value for name, value in told.items() if value is not None}
        await audit.note(connection, "webhook.changed", tenant_id, webhook_id, **changed)


async def disable(connection: asyncpg.Connection, webhook_id: UUID, reason: str) -> None:
    """Tell an endpoint nothing more, and give up what waits for it."""
    await connection.execute(
        "UPDATE webhooks SET disabled_at = now(), disabled_reason = $2, updated_at = now()"
        " WHERE id = $1 AND disabled_at IS NULL",
        webhook_id,
        reason,
    )
    await connection.execute(
        "UPDATE webhook_deliveries SET status = 'failed', sender_id = NULL,"
        " last_error = coalesce(last_error, 'the webhook was disabled') WHERE webhook_id = $1 AND status = 'pending'",
        webhook_id,
    )


async def rotate(db: Database, settings: Settings, tenant_id: UUID, webhook_id: UUID) -> dict[str, Any]:
    """Give a webhook a new secret, shown in the answer; the one before signs too for ROTATION_HOURS.

    Raises NotFound, Unavailable.
    """
    secret = signing.new_secret()
    async with db.transaction() as connection:
        status = await connection.execute(
            "UPDATE webhooks SET previous_secret = secret, secret = $3, updated_at = now(),"
            " previous_secret_expires_at = now() + make_interval(hours => $4) WHERE id = $1 AND tenant_id = $2",
            webhook_id,
            tenant_id,
            vault.seal(settings, secret),
            ROTATION_HOURS,
        )
        if status != "UPDATE 1":
            raise NotFound.of("webhook")
        await audit.note(connection, "webhook.rotated", tenant_id, webhook_id)
    return {**await get(db, tenant_id, webhook_id), "secret": secret}


async def delete(db: Database, tenant_id: UUID, webhook_id: UUID) -> None:
    """Remove a webhook with its log, and free the idempotency key that made it. Raises NotFound."""
    async with db.transaction() as connection:
        status = await connection.execute(
            "DELETE FROM webhooks WHERE id = $1 AND tenant_id = $2", webhook_id, tenant_id
        )
        if status != "DELETE 1":
            raise NotFound.of("webhook")
        await forget(connection, tenant_id, webhook_id)
        await audit.note(connection, "webhook.deleted", tenant_id, webhook_id)
