"""The caller."""

from __future__ import annotations

from datetime import datetime

from fastapi import Request
from pydantic import BaseModel, Field

from apps.api.auth import Principal
from apps.api.core.config.limits import Limits, Scope, of_every_key
from apps.api.core.tenant import budgets, quotas
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import MAX_LIMIT, PREFIX, Cursor, Limit, errors, paged
from apps.api.dialects.native.schemas import Usd
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
    limit: int | list[str] | None = Field(None, description="Null of money.", examples=[60])
    used: int | None = Field(None, description="So much of it, as far as it is known.", examples=[3])
    limit_usd: Usd | None = Field(None, description="Of money.")
    used_usd: Usd | None = Field(None, description="So much of it.")
    resets_at: datetime | None = Field(description="When what was used first is free again, where time does that.")


@router.get("/limits", tags=["account"], responses=errors())
async def list_limits(
    request: Request, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None
) -> wire.Page[LimitState]:
    """What binds this key, and how much of it is used: its own limits, or the server's where it has none, and its
    tenant's."""
    instance = instance_of(request)
    of_key = caller.limits.over(of_every_key(instance.core.settings))
    of_both: dict[Scope, Limits] = {"key": of_key, "tenant": caller.tenant_limits}
    found = [
        LimitState(name=name, scope=scope, resets_at=None, **{f"limit{_unit(name)}": most})
        for scope, limits in of_both.items()
        for name, most in limits.given().items()
    ]
    known = await _used(instance, caller)
    for state in found:
        used, state.resets_at = known.get((state.name, state.scope), (None, None))
        setattr(state, f"used{_unit(state.name)}", used)
    return paged(found, limit, cursor)


def _unit(name: str) -> str:
    return "_usd" if "usd" in name else ""


async def _used(instance: Instance, caller: Principal) -> dict[tuple[str, Scope], tuple[int | str, datetime | None]]:
    who = (instance.core.db, caller.tenant_id, caller.key_id)
    streams = instance.shares["streams"].taken
    found: dict[tuple[str, Scope], tuple[int | str, datetime | None]] = {
        ("streams", "key"): (streams["key", caller.key_id], None),
        ("streams", "tenant"): (streams["tenant", caller.tenant_id], None),
    }
    for window in await instance.prompt_limits.windows(caller):
        found["runs_per_minute", window.rate.scope] = window.used, window.resets_at
    for budget in await budgets.of(*who):
        found[budget["name"], budget["scope"]] = budget[f"used{_unit(budget['name'])}"], budget["resets_at"]
    found.update({limit: (number, None) for limit, number in (await quotas.used(*who)).items()})
    return found


class Model(BaseModel):
    """A model that the operator offers."""

    model: str = Field(examples=["claude-sonnet-5-5"])
    default: bool = Field(description="Whether sessions that name none use it.")


class ModelList(BaseModel):
    default: str = Field(examples=["claude-sonnet-5-5"])
    data: list[Model]
    next_cursor: str | None


@router.get("/models", tags=["account"], responses=errors())
async def list_models(core: CoreDep, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None) -> ModelList:
    """The server's default model, and the others that its operator lists (MODELS). Profiles may allow fewer."""
    default = core.settings.default_model
    names = dict.fromkeys((default, *core.settings.models))
    page = paged([Model(model=name, default=name == default) for name in names], limit, cursor)
    return ModelList(default=default, data=page.data, next_cursor=page.next_cursor)
