"""Administration, for operators: tenants and keys of the whole server, instances, stuck runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Response

from apps.api import keys
from apps.api.core.config.limits import Limits
from apps.api.core.config.retention import Retention, of_server
from apps.api.core.context import Core
from apps.api.core.fleet import erasure, instances, ownership, places, repair, suspension
from apps.api.core.sessions import retention, runs
from apps.api.core.tenant import model_credentials
from apps.api.dialects.native import admin_schemas as wire
from apps.api.dialects.native.common import MAX_LIMIT, NO_BODY, PREFIX, Cursor, Limit, RunId, errors, paged
from apps.api.dialects.native.removed import TenantRemoved, later_of, rows_of
from apps.api.dialects.native.schemas import Page
from apps.api.errors import NotFound, ValidationError
from apps.api.web.callers import Operator
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=f"{PREFIX}/admin", tags=["administration"])

KeyId = Annotated[UUID, Path(description="The key's id.")]
Tenant = Annotated[wire.TenantName, Path(description="The tenant's name.", examples=["acme"])]
After = Annotated[UUID | None, Query(description="`next_cursor` of the page before.")]


@router.get("/tenants", responses=errors())
async def list_tenants(
    core: CoreDep,
    caller: Operator,
    limit: Limit = 50,
    cursor: Annotated[wire.TenantName | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Page[wire.TenantState]:
    """All tenants, by name."""
    found = [asdict(tenant) for tenant in await keys.list_tenants(core.db, limit=limit + 1, after=cursor)]
    more = found[limit - 1]["name"] if len(found) > limit else None
    return Page[wire.TenantState].model_validate({"data": found[:limit], "next_cursor": more})


@router.post("/tenants", status_code=201, responses=errors(400, 409, 413))
async def create_tenant(core: CoreDep, caller: Operator, body: wire.TenantBody) -> wire.TenantState:
    """Create a tenant, without keys. 409 `name_in_use`."""
    return wire.TenantState.model_validate(asdict(await keys.create_tenant(core.db, body.name)))


@router.get("/tenants/{tenant}", responses=errors(404))
async def get_tenant(core: CoreDep, caller: Operator, tenant: Tenant) -> wire.TenantState:
    """One tenant, and whether it is suspended."""
    return await _tenant(core, tenant)


async def _tenant(core: Core, name: str) -> wire.TenantState:
    return wire.TenantState.model_validate(asdict(await keys.get_tenant(core.db, name)))


@router.post("/tenants/{tenant}/suspend", dependencies=[NO_BODY], responses=errors(404, 409))
async def suspend_tenant(core: CoreDep, caller: Operator, tenant: Tenant) -> wire.TenantState:
    """Refuse a tenant's keys on all instances within 15 s (403 `tenant_suspended`), also where Redis is away, and end
    what it does.

    What is open ends, runs fail with `tenant_suspended`, what is queued never begins, and webhooks wait. Nothing is
    removed. 409 `own_tenant`: it is the tenant of the key that asks. May be repeated.
    """
    await suspension.suspend(core, tenant, caller.tenant_id)
    return await _tenant(core, tenant)


@router.post("/tenants/{tenant}/resume", dependencies=[NO_BODY], responses=errors(404))
async def resume_tenant(core: CoreDep, caller: Operator, tenant: Tenant) -> wire.TenantState:
    """Accept a suspended tenant's keys again, at once. Runs that were ended stay ended. May be repeated."""
    await suspension.resume(core, tenant)
    return await _tenant(core, tenant)


@router.get("/tenants/{tenant}/limits", responses=errors(404))
async def get_tenant_limits(core: CoreDep, caller: Operator, tenant: Tenant) -> wire.TenantLimits:
    """What a tenant is limited to, all its keys together. A key may have limits of its own beside."""
    return wire.TenantLimits(tenant=tenant, limits=await keys.tenant_limits(core.db, tenant))


@router.put("/tenants/{tenant}/limits", responses=errors(400, 404, 413))
async def put_tenant_limits(core: CoreDep, caller: Operator, tenant: Tenant, body: Limits) -> wire.TenantLimits:
    """Replace a tenant's limits, all of them: what is left out is not limited any more. It holds on all instances at
    once; with Redis away within 30 s."""
    await keys.limit_tenant(core.db, core.redis, tenant, body)
    return wire.TenantLimits(tenant=tenant, limits=body)


@router.get("/tenants/{tenant}/retention", responses=errors(404))
async def get_tenant_retention(core: CoreDep, caller: Operator, tenant: Tenant) -> wire.TenantRetention:
    """How long what a tenant has is kept: what was set for it, and what holds, with the server's own settings."""
    return _kept(core, tenant, await retention.get(core.db, tenant))


@router.put("/tenants/{tenant}/retention", responses=errors(400, 404, 413))
async def put_tenant_retention(
    core: CoreDep, caller: Operator, tenant: Tenant, body: Retention
) -> wire.TenantRetention:
    """Replace what was set for a tenant, all of it: what is left out is as the server has it, null is never. What is
    too old goes within some minutes, and then once an hour; a session that runs or waits is left alone."""
    await retention.put(core.db, tenant, body)
    return _kept(core, tenant, body)


def _kept(core: Core, tenant: str, own: Retention) -> wire.TenantRetention:
    return wire.TenantRetention.model_validate(
        {"tenant": tenant, "retention": own.given(), "effective": own.over(of_server(core.settings)).model_dump()}
    )


@router.delete(
    "/tenants/{tenant}",
    responses={202: {"model": TenantRemoved, "description": "There is so much that it goes on."}, **errors(404, 409)},
)
async def delete_tenant(core: CoreDep, caller: Operator, response: Response, tenant: Tenant) -> TenantRemoved:
    """Refuse a tenant's keys for good, end what it does, and remove all that it has. There is no way back.

    200 when nothing is left of it. 202 after some seconds: the fleet goes on by itself, whichever instance dies; ask
    again to see how far it has come, until it is 404. 409 `own_tenant`: it is the tenant of the key that asks.
    """
    tenant_id = await erasure.begin(core, tenant, caller.tenant_id)
    gone = await erasure.erase(core, tenant_id)
    response.status_code = 200 if gone.whole else 202
    removed, later = rows_of(gone.removed), later_of(gone)
    return TenantRemoved(
        tenant=tenant,
        tenant_id=tenant_id,
        status="deleted" if gone.whole else "deleting",
        removed=removed,
        later=later,
    )


@router.put("/tenants/{tenant}/model-credential", responses=errors(400, 404, 409, 413))
async def put_model_credential(
    core: CoreDep, caller: Operator, tenant: Tenant, body: wire.ModelCredentialBody
) -> wire.ModelCredentialState:
    """Give a tenant a model credential of its own, in place of the server's: its calls are made, and paid, by that.

    It is encrypted, and no answer ever holds it; agents never have it. Within 10 seconds all calls of the tenant use
    it, those of live agents too. 503 `encryption_not_configured` when the server has no ENCRYPTION_KEYS.
    """
    kind: model_credentials.Kind = "auth_token" if body.api_key is None else "api_key"
    secret = body.api_key or body.auth_token or ""
    return _credential(await model_credentials.put(core.db, core.settings, tenant, kind, secret))


@router.get("/tenants/{tenant}/model-credential", responses=errors(404))
async def get_model_credential(core: CoreDep, caller: Operator, tenant: Tenant) -> wire.ModelCredentialState:
    """Whether a tenant has a model credential of its own. 404 `model_credential_not_found` when it has none."""
    return _credential(await model_credentials.get(core.db, tenant))


@router.delete("/tenants/{tenant}/model-credential", status_code=204, responses=errors(404))
async def delete_model_credential(core: CoreDep, caller: Operator, tenant: Tenant) -> Response:
    """Take it away, within 10 seconds. The tenant's calls are made by the server's credential from then on, or, with
    TENANT_MODEL_CREDENTIALS=required, not at all."""
    await model_credentials.delete(core.db, tenant)
    return Response(status_code=204)


def _credential(given: model_credentials.Given) -> wire.ModelCredentialState:
    return wire.ModelCredentialState.model_validate(asdict(given))


@router.get("/keys", responses=errors())
async def list_keys(
    core: CoreDep,
    caller: Operator,
    tenant: Annotated[wire.TenantName | None, Query(description="Only this tenant's.")] = None,
    limit: Limit = 50,
    cursor: After = None,
) -> Page[wire.KeyState]:
    """Keys of all tenants, or of one, oldest first; revoked ones included. Never their secrets."""
    found = await keys.list_keys(core.db, tenant, limit=limit + 1, after=cursor)
    data = [wire.KeyState.model_validate(key) for key in found[:limit]]
    return Page[wire.KeyState](data=data, next_cursor=str(found[limit - 1].id) if len(found) > limit else None)


@router.post("/keys", status_code=201, responses=errors(400, 404, 413))
async def create_key(core: CoreDep, caller: Operator, body: wire.KeyBody) -> wire.KeySecret:
    """Create a key. Its secret is in this answer only, so there is no Idempotency-Key: if the answer is lost, revoke
    the key. 404 `tenant_not_found`."""
    _check_profiles(core, body)
    await keys.require_tenant(core.db, body.tenant)
    made = await keys.create_key(
        core.db,
        tenant=body.tenant,
        name=body.name,
        scopes=body.scopes or keys.USUAL_SCOPES,
        expires_at=body.expires_at,
        profiles=body.profiles,
        networks=body.networks,
        limits=body.limits,
    )
    return await _with_secret(core, made)


def _check_profiles(core: Core, body: wire.KeyFields) -> None:
    for name in body.profiles or ():
        if name not in core.profiles:
            raise ValidationError.of("profiles", f"no profile {name}; there are: {', '.join(core.profiles)}")


async def _with_secret(core: Core, made: keys.CreatedKey) -> wire.KeySecret:
    state = wire.KeyState.model_validate(await keys.get_key(core.db, made.id))
    return wire.KeySecret(**state.model_dump(), secret=made.secret)


@router.get("/keys/{key_id}", responses=errors(404))
async def get_key(core: CoreDep, caller: Operator, key_id: KeyId) -> wire.KeyState:
    """One key, without its secret."""
    return wire.KeyState.model_validate(await keys.get_key(core.db, key_id))


@router.patch("/keys/{key_id}", responses=errors(400, 404, 409, 413))
async def update_key(core: CoreDep, caller: Operator, key_id: KeyId, body: wire.KeyPatch) -> wire.KeyState:
    """Change a key, on all instances at once; with Redis away within 30 s. 409 `key_revoked`."""
    if not body.model_fields_set:
        raise ValidationError.of("body", "must change something")
    _check_profiles(core, body)
    changes = body.model_dump(exclude_unset=True)
    if "limits" in changes:
        changes["limits"] = body.limits.given()
    await keys.change_key(core.db, core.redis, key_id, changes)
    return wire.KeyState.model_validate(await keys.get_key(core.db, key_id))


@router.post("/keys/{key_id}/rotate", responses=errors(400, 404, 409, 413))
async def rotate_key(core: CoreDep, caller: Operator, key_id: KeyId, body: wire.RotateBody) -> wire.KeySecret:
    """Give the key a new secret, shown once. The old one stays valid for `overlap_seconds`. 409 `key_revoked`."""
    return await _with_secret(core, await keys.rotate_key(core.db, core.redis, key_id, body.overlap_seconds))


@router.post("/keys/{key_id}/revoke", dependencies=[NO_BODY], responses=errors(404))
async def revoke_key(core: CoreDep, caller: Operator, key_id: KeyId) -> wire.KeyState:
    """Make a key invalid for good, on all instances at once; with Redis away within 30 s. Its runs go on."""
    if not await keys.revoke_key(core.db, core.redis, key_id):
        raise NotFound.of("key")
    return wire.KeyState.model_validate(await keys.get_key(core.db, key_id))


@router.get("/instances", responses=errors())
async def list_instances(
    core: CoreDep, caller: Operator, limit: Limit = MAX_LIMIT, cursor: Cursor = None
) -> Page[wire.InstanceState]:
    """Server processes, with their leases and what they execute; dead ones for up to an hour."""
    found = await instances.list_all(core.db)
    return paged([wire.InstanceState.model_validate(one) for one in found], limit, cursor)


@router.get("/queue", responses=errors())
async def get_queue(core: CoreDep, caller: Operator) -> wire.QueueState:
    """What waits for a free slot, of all tenants together."""
    return wire.QueueState.model_validate(asdict(await places.in_all(core.db)))


@router.post("/runs/{run_id}/repair", dependencies=[NO_BODY], responses=errors(404, 409))
async def repair_run(core: CoreDep, caller: Operator, run_id: RunId) -> wire.RepairedRun:
    """End a run that nobody executes and that still counts as running, and free its session.

    409 `nothing_to_repair` says why the run is as it should be; nothing was changed then.
    """
    done = await repair.repair(core.db, run_id)
    ownership.announce(core, done.orphan)
    state = await runs.get(core.db, done.orphan.tenant_id, run_id)
    return wire.RepairedRun.model_validate(
        {"run_id": run_id, "session_id": done.session_id, "status": state["status"], "action": done.action}
    )
