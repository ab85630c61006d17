"""The caller."""

from __future__ import annotations

from pydantic import BaseModel, Field

from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, errors
from apps.api.web.callers import Reader
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX)


@router.get("/whoami", tags=["account"], responses=errors())
async def whoami(caller: Reader) -> wire.Whoami:
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
            "prompts_per_minute": caller.prompts_per_minute,
        }
    )


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
