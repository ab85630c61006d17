"""The caller."""

from __future__ import annotations

from datetime import datetime

from fastapi import Request
from pydantic import BaseModel, Field

from apps.api.auth import Principal
from apps.api.core.config.limits import Limits, Scope, of_every_key
from apps.api.core.tenant import budgets, quotas
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, errors
from apps.api.web.callers import Reader
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep, Instance, instance_of

router = Router(prefix=PREFIX)


@router.get("/whoami", tags=["account"], responses=errors())
async def get_whoami(caller: Reader) -> wire.Whoami:
    """Which key this is, and whose."""
    return wire.Whoami.model_validate(
        {
            "tenant": caller.tenant,
            "tenant_id": caller.tenant_id,
            "key_id": caller.key_id,
            "key_name": caller.key_name,
            "key_prefix": caller.prefix,
            "scopes": caller.scopes,
            "expires_at": caller.expires_at,
            "profiles": caller.profiles,
            "networks": caller.networks,
        }
    )


class LimitState(BaseModel):
    """One limit that binds the caller."""

    name: str = Field(examples=["runs_per_minute"])
    scope: Scope = Field(description="Whose it is: all keys of a tenant have the tenant's together.")
    limit: int | float | list[str] = Field(examples=[60])
    used: int | float | None = Field(description="So much of it, as far as it is known.", examples=[3])
    resets_at: datetime | None = Field(description="When what was used first is free again, where time does that.")


@router.get("/limits", tags=["account"], responses=errors())
async def list_limits(request: Request, caller: Reader) -> wire.Page[LimitState]:
    """What binds this key, and how much of it is used: its own limits, or the server's where it has none, and its
    tenant's."""
    instance = instance_of(request)
    of_key = caller.limits.over(of_every_key(instance.core.settings))
    of_both: dict[Scope, Limits] = {"key": of_key, "tenant": caller.tenant_limits}
    found = [
        LimitState(name=name, scope=scope, limit=limit, used=None, resets_at=None)
        for scope, limits in of_both.items()
        for name, limit in limits.given().items()
    ]
    known = await _used(instance, caller)
    for state in found:
        state.used, state.resets_at = known.get((state.name, state.scope), (None, None))
    return wire.Page[LimitState](data=found, next_cursor=None)


async def _used(instance: Instance, caller: Principal) -> dict[tuple[str, Scope], tuple[float, datetime | None]]:
    who = (instance.core.db, caller.tenant_id, caller.key_id)
    streams = instance.shares["streams"].taken
    found: dict[tuple[str, Scope], tuple[float, datetime | None]] = {
        ("streams", "key"): (streams["key", caller.key_id], None),
        ("streams", "tenant"): (streams["tenant", caller.tenant_id], None),
    }
    for window in await instance.prompt_limits.windows(caller):
        found["runs_per_minute", window.rate.scope] = window.used, window.resets_at
    for budget in await budgets.of(*who):
        found[budget["name"], budget["scope"]] = budget["used"], budget["resets_at"]
    found.update({limit: (number, None) for limit, number in (await quotas.used(*who)).items()})
    return found


class Model(BaseModel):
    """A model that the operator offers."""

    id: str = Field(examples=["claude-sonnet-5-5"])
    default: bool = Field(description="Whether sessions that name none use it.")


class ModelList(BaseModel):
    default: str = Field(examples=["claude-sonnet-5-5"])
    data: list[Model]
    next_cursor: str | None


@router.get("/models", tags=["account"], responses=errors())
async def list_models(core: CoreDep, caller: Reader) -> ModelList:
    """The server's default model, and the others that its operator lists (MODELS). Profiles may allow fewer."""
    default = core.settings.default_model
    names = dict.fromkeys((default, *core.settings.models))
    return ModelList(
        default=default, data=[Model(id=name, default=name == default) for name in names], next_cursor=None
    )
