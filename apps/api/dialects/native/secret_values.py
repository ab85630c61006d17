"""Secrets of the tenant: written, listed by name, removed; never shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query, Response
from pydantic import BaseModel, Field

from apps.api.core.config.names import SecretName, Text
from apps.api.core.tenant import vault
from apps.api.dialects.native.common import PREFIX, Limit, errors
from apps.api.dialects.native.schemas import Closed, Page
from apps.api.web.callers import Configurer, Reader
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["secrets"], route_class=ContentRoute)

Named = Annotated[SecretName, Path(description="Capital letters, digits and `_`; the first one a letter.")]


class SecretBody(Closed):
    """The value of a secret."""

    value: Annotated[Text, Field(min_length=1, max_length=8000)] = Field(
        description="It is encrypted, and no answer ever holds it.", examples=["whsec_c2VjcmV0LW9mLXRoZS1ob29r"]
    )


class SecretState(BaseModel):
    """What is told of a secret: not its value."""

    name: SecretName = Field(examples=["HOOK_SECRET"])
    created_at: datetime = Field(examples=["2026-01-31T12:00:00.000Z"])
    updated_at: datetime = Field(examples=["2026-01-31T12:00:00.000Z"])


@router.put(
    "/secrets/{name}",
    responses={201: {"model": SecretState, "description": "It is new."}, **errors(400, 404, 413)},
)
async def put_secret(
    core: CoreDep, caller: Configurer, response: Response, name: Named, body: SecretBody
) -> SecretState:
    """Store a secret (201) or replace its value (200). Configuration refers to it as `${NAME}`.

    Agents that run already keep the value they were started with. 503 `encryption_not_configured` when the server has
    no ENCRYPTION_KEYS.
    """
    new = await vault.put(core.db, core.settings, caller.tenant_id, name, body.value)
    response.status_code = 201 if new else 200
    return SecretState.model_validate(await vault.get(core.db, caller.tenant_id, name))


@router.get("/secrets", responses=errors())
async def list_secrets(
    core: CoreDep,
    caller: Reader,
    limit: Limit = 50,
    cursor: Annotated[SecretName | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Page[SecretState]:
    """Names of the tenant's secrets, in alphabetical order. Values are never shown."""
    page = await vault.list_page(core.db, caller.tenant_id, limit=limit, cursor=cursor)
    return Page[SecretState].of(page)


@router.delete("/secrets/{name}", status_code=204, responses=errors(404))
async def delete_secret(core: CoreDep, caller: Configurer, name: Named) -> Response:
    """Remove a secret. What refers to it fails from then on, naming it."""
    await vault.delete(core.db, caller.tenant_id, name)
    return Response(status_code=204)
