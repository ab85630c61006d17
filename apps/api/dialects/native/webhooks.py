"""Webhooks: endpoints of the tenant, and the log of what they were told."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path, Request, Response
from pydantic import BaseModel, Field

from apps.api.core.config.names import Text
from apps.api.core.config.parts import Url
from apps.api.core.tenant import deliveries, webhooks
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.webhooks import Changes, WebhookEvent
from apps.api.dialects.native.common import MAX_LIMIT, NO_BODY, PREFIX, Cursor, IdempotencyKey, Limit, errors, paged
from apps.api.dialects.native.schemas import Closed, Page
from apps.api.errors import ValidationError
from apps.api.web.callers import LOOKS_UP, Configurer, Reader
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["webhooks"])

WebhookId = Annotated[UUID, Path(description="The webhook's id.")]
DeliveryId = Annotated[UUID, Path(description="The delivery's id, which is the message's `webhook-id`.")]
Description = Annotated[Text, Field(max_length=500)]
Events = Annotated[list[WebhookEvent], Field(min_length=1, max_length=20)]


class WebhookBody(Closed):
    """A webhook to register."""

    url: Url = Field(
        description="Where messages are POSTed to. A public address, or one that the operator allows.",
        examples=["https://example.com/webhooks"],
    )
    events: Events | None = Field(
        None, description="Types of the messages to be sent; all of them if left out.", examples=[["run.succeeded"]]
    )
    description: Description | None = Field(None, description="For people.", examples=["Tells the billing service."])


class WebhookPatch(Closed):
    """What to change of a webhook."""

    url: Url | None = Field(None, description="The new address.", examples=["https://example.com/webhooks"])
    events: Events | None = Field(None, description="Replaces the list.", examples=[["run.failed"]])
    description: Description | None = Field(None, description="For people.", examples=["Tells the billing service."])
    enabled: bool | None = Field(
        None,
        description="`false` stops it and gives up what waits for it; `true` starts it again, also after it was"
        " disabled for failing.",
    )


class WebhookState(BaseModel):
    """A webhook. Its secret is shown when it is made, and when it is rotated."""

    webhook_id: UUID
    url: str = Field(examples=["https://example.com/webhooks"])
    description: str | None = Field(examples=["Tells the billing service."])
    events: list[WebhookEvent]
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None = Field(examples=["it answered 410"])
    failing_since: datetime | None = Field(description="Since when it has done nothing but fail.")
    previous_secret_expires_at: datetime | None = Field(description="Until when the previous secret signs too.")
    created_at: datetime
    updated_at: datetime


class WebhookWithSecret(WebhookState):
    """A webhook, and the secret that signs its messages."""

    secret: str = Field(description="Keep it: it is not shown again.", examples=["whsec_C2FVsBQIhrscChlQIMV+b5sS"])


class Delivery(BaseModel):
    """One message to one webhook, and how its delivery went."""

    delivery_id: UUID
    webhook_id: UUID
    type: WebhookEvent | Literal["webhook.test"]
    data: dict[str, Any] = Field(examples=[{"session_id": "6975080a-…", "run_id": "74fc4ab6-…", "status": "failed"}])
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: datetime | None
    last_status: int | None = Field(description="HTTP status of the last answer, if there was one.")
    last_error: str | None = Field(examples=["it answered 500"])
    created_at: datetime
    delivered_at: datetime | None


@router.post("/webhooks", status_code=201, dependencies=[LOOKS_UP], responses=errors(400, 409, 413, 429))
async def create_webhook(
    request: Request, core: CoreDep, caller: Configurer, body: WebhookBody, idempotency_key: IdempotencyKey = None
) -> WebhookWithSecret:
    """Register an endpoint that is told what happens to the tenant's sessions and runs.

    The answer has the secret that signs the messages (Standard Webhooks); a repeat with the same Idempotency-Key shows
    it again. 409 `too_many_webhooks` when there are 20.
    """
    asked = body.model_dump(mode="json", exclude_unset=True)
    idempotency = Idempotency.given(idempotency_key, request.scope["path"], asked)
    wanted = Changes(body.url, body.description, body.events)
    made = await webhooks.create(core.db, core.settings, core.outbound, caller.tenant_id, wanted, idempotency)
    return WebhookWithSecret.model_validate(made)


@router.get("/webhooks", responses=errors())
async def list_webhooks(
    core: CoreDep, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None
) -> Page[WebhookState]:
    """Webhooks of the tenant, oldest first."""
    found = await webhooks.list_all(core.db, caller.tenant_id)
    return paged([WebhookState.model_validate(one) for one in found], limit, cursor)


@router.get("/webhooks/{webhook_id}", responses=errors(404))
async def get_webhook(core: CoreDep, caller: Reader, webhook_id: WebhookId) -> WebhookState:
    """One webhook, without its secret: where it leads, what it is told, and whether it works."""
    return WebhookState.model_validate(await webhooks.get(core.db, caller.tenant_id, webhook_id))


@router.patch("/webhooks/{webhook_id}", dependencies=[LOOKS_UP], responses=errors(400, 404, 413, 429))
async def update_webhook(core: CoreDep, caller: Configurer, webhook_id: WebhookId, body: WebhookPatch) -> WebhookState:
    """Change address, types or description, or stop and start it."""
    if not body.model_fields_set:
        raise ValidationError.of("body", "must change something")
    changes = Changes(body.url, body.description, body.events, body.enabled)
    await webhooks.change(core.db, core.outbound, caller.tenant_id, webhook_id, changes)
    return WebhookState.model_validate(await webhooks.get(core.db, caller.tenant_id, webhook_id))


@router.delete("/webhooks/{webhook_id}", status_code=204, responses=errors(404))
async def delete_webhook(core: CoreDep, caller: Configurer, webhook_id: WebhookId) -> Response:
    """Remove a webhook with its log. What waits for it is not sent."""
    await webhooks.delete(core.db, caller.tenant_id, webhook_id)
    return Response(status_code=204)


@router.post("/webhooks/{webhook_id}/rotate", dependencies=[NO_BODY], responses=errors(404))
async def rotate_webhook_secret(core: CoreDep, caller: Configurer, webhook_id: WebhookId) -> WebhookWithSecret:
    """Make a new secret, shown once. For 24 hours messages carry a signature of the previous one too."""
    made = await webhooks.rotate(core.db, core.settings, caller.tenant_id, webhook_id)
    return WebhookWithSecret.model_validate(made)


@router.post("/webhooks/{webhook_id}/test", dependencies=[NO_BODY], status_code=202, responses=errors(404, 409))
async def test_webhook(core: CoreDep, caller: Configurer, webhook_id: WebhookId) -> Delivery:
    """Send a message of type `webhook.test`. The log says what became of it."""
    return Delivery.model_validate(await deliveries.ping(core.db, caller.tenant_id, webhook_id))


@router.get("/webhooks/{webhook_id}/deliveries", responses=errors(404))
async def list_deliveries(
    core: CoreDep, caller: Reader, webhook_id: WebhookId, limit: Limit = 50, cursor: Cursor = None
) -> Page[Delivery]:
    """What the webhook was told in the last seven days, newest first, and how that went.

    It names sessions of every profile: 403 `key_is_bound` for a key that is bound to some.
    """
    caller.require_unbound()
    page = await deliveries.list_page(core.db, caller.tenant_id, webhook_id, limit=limit, cursor=cursor)
    return Page[Delivery].of(page)


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
    dependencies=[NO_BODY],
    status_code=202,
    responses=errors(404, 409),
)
async def redeliver(core: CoreDep, caller: Configurer, webhook_id: WebhookId, delivery_id: DeliveryId) -> Delivery:
    """Send a message again, with the same `webhook-id` and from the first attempt on."""
    return Delivery.model_validate(await deliveries.redeliver(core.db, caller.tenant_id, webhook_id, delivery_id))
