"""The audit log: who changed what others go by, or decided for an agent, and from where.

A line is written by `note`, on the connection of the act and so in its transaction: neither is ever stored without the
other. The role that serves adds lines and reads them, and can change or remove none (see `roles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg

from apps.api.db import Database

Action = Literal[
    "tenant.created",
    "tenant.suspended",
    "tenant.resumed",
    "tenant.limited",
    "tenant.retention",
    "tenant.exported",
    "tenant.imported",
    "tenant.deleted",
    "tenant.removed",
    "key.created",
    "key.changed",
    "key.rotated",
    "key.revoked",
    "model_credential.put",
    "model_credential.deleted",
    "secret.put",
    "secret.deleted",
    "mcp_server.put",
    "mcp_server.deleted",
    "preset.created",
    "preset.changed",
    "preset.deleted",
    "preset.archived",
    "environment.created",
    "environment.changed",
    "environment.archived",
    "environment.deleted",
    "vault.created",
    "vault.changed",
    "vault.archived",
    "vault.deleted",
    "credential.put",
    "credential.archived",
    "credential.deleted",
    "session.archived",
    "skill.put",
    "skill.deleted",
    "command.put",
    "command.deleted",
    "webhook.created",
    "webhook.changed",
    "webhook.rotated",
    "webhook.deleted",
    "schedule.created",
    "schedule.changed",
    "schedule.paused",
    "schedule.resumed",
    "schedule.archived",
    "schedule.deleted",
    "request.answered",
    "run.repaired",
    "session.deleted",
    "session.exported",
    "session.imported",
    "client_token.created",
]
"""What is written down: a noun and what was done to it."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts.

    Attributes:
        id: of the key; `cli` for who has a shell of the server's, `system` for the server itself.
        name, tenant: of the key.
        address: the client's.
        request_id: of the request, or of the handshake of a WebSocket.
        end_user: for whom a client token of the key is; in the details of a line.
    """

    id: str
    name: str | None = None
    tenant: str | None = None
    address: str | None = None
    request_id: str | None = None
    end_user: str | None = None


SYSTEM, CLI = Actor("system"), Actor("cli")

ACTING: ContextVar[Actor] = ContextVar("acting", default=SYSTEM)
"""For whom this task works. Whoever lets a caller in sets it, once it is known who that is."""


def inserting(first: int = 1, where: str = "") -> str:
    """SQL that writes a line, with `values` as its parameters from number `first` on; for what a statement does itself.

    `where`: what follows the row that it makes, such as `FROM` something that has one row if the line is due.
    """
    action, tenant, *others = (f"${n}" for n in range(first, first + 9))
    return f"""
    INSERT INTO audit_log
      (action, tenant_id, tenant, target, details, actor, actor_name, actor_tenant, address, request_id)
    SELECT {action}, {tenant}, (SELECT name FROM tenants WHERE id = {tenant}), {", ".join(others)} {where}
    """  # noqa: S608 - ours


def values(action: Action, tenant_id: UUID, target: UUID | str | None = None, **details: Any) -> tuple[Any, ...]:
    """The parameters of `inserting`; see `note`."""
    by = ACTING.get()
    about = None if target is None else str(target)
    if by.end_user is not None:
        details["end_user"] = by.end_user
    return action, tenant_id, about, details, by.id, by.name, by.tenant, by.address, by.request_id


_NOTE = inserting()


async def note(
    connection: asyncpg.Connection, action: Action, tenant_id: UUID, target: UUID | str | None = None, **details: Any
) -> None:
    """Write a line about what this transaction does.

    Args:
        connection: in the transaction of the act.
        tenant_id: whose object it is.
        target: the object's id or name; of a tenant none.
        details: JSON-safe, and never the value of a secret.
    """
    await connection.execute(_NOTE, *values(action, tenant_id, target, **details))


@dataclass(frozen=True, slots=True)
class Filters:
    """Which lines. None means any. `since` is part of the time, `until` is not."""

    tenant: str | None = None
    action: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log. The tenant may not exist any more."""

    id: UUID
    created_at: datetime
    action: Action
    tenant: str | None
    tenant_id: UUID
    target: str | None
    details: dict[str, Any]
    actor: Actor


_LIST = """
SELECT id, created_at, action, tenant, tenant_id, target, details, actor, actor_name, actor_tenant, address, request_id
FROM audit_log
WHERE ($1::text IS NULL OR tenant = $1) AND ($2::text IS NULL OR action = $2) AND ($3::text IS NULL OR actor = $3)
  AND ($4::timestamptz IS NULL OR created_at >= $4) AND ($5::timestamptz IS NULL OR created_at < $5)
  AND ($6::timestamptz IS NULL OR (created_at, id) < ($6, $7::uuid))
ORDER BY created_at DESC, id DESC LIMIT $8
"""


async def list_lines(
    db: Database, filters: Filters, *, limit: int, before: tuple[datetime, UUID] | None
) -> Sequence[Line]:
    """Lines, newest first: those before the line of this time and id."""
    wanted = (filters.tenant, filters.action, filters.actor, filters.since, filters.until)
    rows = await db.pool.fetch(_LIST, *wanted, *(before or (None, None)), limit)
    return [_line(dict(row)) for row in rows]


def _line(row: dict[str, Any]) -> Line:
    by = [row.pop(name) for name in ("actor", "actor_name", "actor_tenant", "address", "request_id")]
    return Line(**row, actor=Actor(*by))
