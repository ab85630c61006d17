"""The models there are: those of the server, and the tenant's presets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import Response
from pydantic import BaseModel, Field

from apps.api.core.codec import timestamp
from apps.api.core.config import models
from apps.api.core.tenant import presets
from apps.api.dialects.openai.common import id_path, router
from apps.api.dialects.openai.errors import documented
from apps.api.dialects.openai.options import PRESET, aliases, chosen
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, policy_of
from apps.api.web.route import CoreDep

routes = router()

MAX_LISTED = 1_000
"""Presets in the list, the first ones by name."""


class ModelObject(BaseModel):
    """A model, or a preset."""

    id: str = Field(examples=["claude-sonnet-5-5"])
    object: str = Field(examples=["model"])
    created: int = Field(description="Seconds since 1970; 0 where that is not known.", examples=[0])
    owned_by: str = Field(examples=["anthropic"])


class ModelList(BaseModel):
    """All of them."""

    object: str = Field(examples=["list"])
    data: list[ModelObject]


def _model(id_: str, created: int = 0, owner: str = "anthropic") -> dict[str, Any]:
    return {"id": id_, "object": "model", "created": created, "owned_by": owner}


@routes.get("/models", response_model=ModelList, responses=documented())
async def list_models(core: CoreDep, caller: Reader) -> Response:
    """Every name that `model` can have: models of this server and their aliases, and `preset:NAME` for each preset of
    the tenant. Names that fit a pattern of MODEL_ALIASES work, too."""
    policy = policy_of(core, caller)
    found = [_model(name) for name in aliases(core) if models.permitted(policy.models, name)]
    cursor: str | None = None
    while len(found) < MAX_LISTED:
        page = await presets.list_page(core.db, caller.tenant_id, None, limit=200, cursor=cursor)
        found += [_model(PRESET + one["name"], _seconds(one["created_at"]), "you") for one in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    return Json({"object": "list", "data": found[:MAX_LISTED]})


@routes.get("/models/{model:path}", response_model=ModelObject, responses=documented(404))
async def get_model(core: CoreDep, caller: Reader, model: str = id_path("model")) -> Response:
    """A model, by any name that works as `model`."""
    preset, _ = await chosen(core, caller, model)
    if preset is None:
        return Json(_model(model))
    found = await presets.find(core.db.pool, caller.tenant_id, preset)
    return Json(_model(model, _seconds(timestamp(found["created_at"])), "you"))


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())
