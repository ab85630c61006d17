"""The caller."""

from __future__ import annotations

from fastapi import APIRouter

from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, errors
from apps.api.http.route import Reader

router = APIRouter(prefix=PREFIX)


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
            "prompts_per_minute": caller.prompts_per_minute,
        }
    )
