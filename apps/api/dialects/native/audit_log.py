"""The audit log, for operators."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from apps.api import audit
from apps.api.core.pages import read_cursor, write_cursor
from apps.api.dialects.native.admin_schemas import TenantName
from apps.api.dialects.native.common import PREFIX, Cursor, Limit, Moment, errors, moment
from apps.api.dialects.native.schemas import Page
from apps.api.web.callers import Operator
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=f"{PREFIX}/admin", tags=["administration"])


class AuditActor(BaseModel):
    """Who did it."""

    type: Literal["key", "cli", "system"] = Field(
        description="`cli`: somebody on the server's host; `system`: the server itself."
    )
    key_id: UUID | None = Field(description="Of a key.")
    key_name: str | None = Field(description="Of a key.", examples=["backend"])
    tenant: str | None = Field(description="The key's tenant.", examples=["acme"])
    address: str | None = Field(description="The client's address.", examples=["192.0.2.7"])
    request_id: str | None = Field(description="`X-Request-ID` of the request.")


class AuditLine(BaseModel):
    """What was done, to what, and by whom."""

    line_id: UUID
    created_at: datetime
    action: str = Field(examples=["key.revoked"])
    tenant: str | None = Field(description="Whose object it was. The tenant may be gone.", examples=["acme"])
    tenant_id: UUID
    target: str | None = Field(description="The object's id or name; null for a tenant itself.")
    details: dict[str, Any] = Field(description="More about it; never the value of a secret.")
    actor: AuditActor

    @classmethod
    def of(cls, line: audit.Line) -> AuditLine:
        """A line as it is stored."""
        by, is_key = line.actor, line.actor.id not in ("cli", "system")
        return cls.model_validate(
            {
                **asdict(line),
                "line_id": line.id,
                "actor": {
                    **asdict(by),
                    "type": "key" if is_key else by.id,
                    "key_id": by.id if is_key else None,
                    "key_name": by.name,
                },
            }
        )


@router.get("/audit", responses=errors())
async def list_audit_lines(
    core: CoreDep,
    caller: Operator,
    tenant: Annotated[TenantName | None, Query(description="Of what is, or was, this tenant's.")] = None,
    action: Annotated[audit.Action | None, Query(description="Of this kind.")] = None,
    actor: Annotated[UUID | Literal["cli", "system"] | None, Query(description="By this key, or not by a key.")] = None,
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AuditLine]:
    """Who changed keys, tenants, secrets and what agents go by, deleted sessions, and answered requests; newest first.

    `since` is part of the time that is meant, `until` is not.
    """
    by = None if actor is None else str(actor)
    filters = audit.Filters(tenant, action, by, moment("since", since), moment("until", until))
    before = read_cursor(cursor) if cursor else None
    found = await audit.list_lines(core.db, filters, limit=limit + 1, before=before)
    last = found[limit - 1] if len(found) > limit else None
    data = [AuditLine.of(line) for line in found[:limit]]
    return Page[AuditLine](data=data, next_cursor=write_cursor(last.created_at, last.id) if last else None)
