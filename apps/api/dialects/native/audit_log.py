"""The audit log, for operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from apps.api import audit
from apps.api.core.pages import read_cursor, utc, write_cursor
from apps.api.dialects.native.admin_schemas import TenantName
from apps.api.dialects.native.common import PREFIX, Cursor, Limit, errors
from apps.api.dialects.native.schemas import Page
from apps.api.errors import ValidationError
from apps.api.web.callers import Operator
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=f"{PREFIX}/admin", tags=["administration"])

Moment = Annotated[datetime | None, Query(description="A moment with its time zone.")]


class AuditActor(BaseModel):
    """Who did it."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="The key's id; `cli`: somebody on the server's host; `system`: the server itself.")
    name: str | None = Field(description="The key's name.", examples=["backend"])
    tenant: str | None = Field(description="The key's tenant.", examples=["acme"])
    address: str | None = Field(description="The client's address.", examples=["192.0.2.7"])
    request_id: str | None = Field(description="`X-Request-ID` of the request.")


class AuditLine(BaseModel):
    """What was done, to what, and by whom."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    created_at: datetime
    action: str = Field(examples=["key.revoked"])
    tenant: str | None = Field(description="Whose object it was. The tenant may be gone.", examples=["acme"])
    tenant_id: UUID
    target: str | None = Field(description="The object's id or name; null for a tenant itself.")
    details: dict[str, Any] = Field(description="More about it; never the value of a secret.")
    actor: AuditActor


def _utc(field: str, moment: datetime | None) -> datetime | None:
    try:
        return moment and utc(moment)
    except ValueError as error:
        raise ValidationError.of(field, str(error)) from error


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
    filters = audit.Filters(tenant, action, by, _utc("since", since), _utc("until", until))
    before = read_cursor(cursor) if cursor else None
    found = await audit.list_lines(core.db, filters, limit=limit + 1, before=before)
    last = found[limit - 1] if len(found) > limit else None
    data = [AuditLine.model_validate(line) for line in found[:limit]]
    return Page[AuditLine](data=data, next_cursor=write_cursor(last.created_at, last.id) if last else None)
