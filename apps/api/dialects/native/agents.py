"""Presets: named, versioned configurations that sessions begin with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apps.api.auth import Principal
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Name, Text
from apps.api.core.context import Core
from apps.api.core.sessions import admission
from apps.api.core.tenant import presets
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.presets import Draft, Judge
from apps.api.dialects.native.common import PREFIX, IdempotencyKey, Limit, config, errors
from apps.api.dialects.native.schemas import Options, Page, described
from apps.api.web.callers import LOOKS_UP, Configurer, Reader, policy_of
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.errors import from_validation
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["agents"], route_class=ContentRoute)

_CONFIG = {"system_prompt_append": "You review code.", "tools": ["Glob", "Grep", "Read"], "max_turns": 20}


class PresetFields(AgentConfig):
    """All of a preset but its name: configuration in the SDK's own option names, profile, description."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=described({**_CONFIG, "profile": "readonly"}))

    description: Annotated[Text, Field(max_length=2000)] | None = Field(
        None, description="For people.", examples=["Reviews a change and says what is wrong."]
    )
    profile: Name | None = Field(
        None, description="Profile of sessions that begin with it and name none.", examples=["readonly"]
    )


class PresetBody(PresetFields):
    """A new preset."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra=described({"name": "reviewer", **_CONFIG, "profile": "readonly"})
    )

    name: Name = Field(description="Unique among the tenant's presets.", examples=["reviewer"])


class PresetState(BaseModel):
    """A preset in one version. `config` shows names, not values, of `env` and headers."""

    agent_id: str = Field(examples=["b1f0c8de-6c0c-4a0e-9a41-0a9f3a0f7c55"])
    name: str = Field(examples=["reviewer"])
    description: str | None = Field(examples=["Reviews a change and says what is wrong."])
    version: int
    newest_version: int
    profile: str | None = Field(examples=["readonly"])
    config: Options = Field(examples=[_CONFIG])
    created_at: datetime = Field(description="Of the preset.")
    updated_at: datetime = Field(description="When this version was made.")


AgentId = Annotated[Name, Path(description="The preset's name or id.", examples=["reviewer"])]


async def _state(core: Core, caller: Principal, agent: str) -> PresetState:
    return PresetState.model_validate(await presets.get(core.db, caller.tenant_id, agent))


def _judge(core: Core, caller: Principal) -> Judge:
    return lambda draft: admission.judge_preset(core, caller.tenant_id, draft, policy_of(core, caller))


@router.post("/agents", status_code=201, dependencies=[LOOKS_UP], responses=errors(400, 409, 413, 429))
async def create_agent(
    request: Request, core: CoreDep, caller: Configurer, body: PresetBody, idempotency_key: IdempotencyKey = None
) -> PresetState:
    """Create a preset, version 1. 409 `name_in_use`; 403 when it would widen its profile."""
    asked = body.model_dump(mode="json", exclude_unset=True)
    repeat = Idempotency.given(idempotency_key, request.scope["path"], asked)
    draft = Draft(body.description, body.profile, config(body))
    agent_id = await presets.create(core.db, caller.tenant_id, body.name, draft, _judge(core, caller), repeat)
    return await _state(core, caller, str(agent_id))


@router.get("/agents", responses=errors())
async def list_agents(
    core: CoreDep,
    caller: Reader,
    search: Annotated[Text | None, Query(max_length=200, description="Part of name or description, any case.")] = None,
    limit: Limit = 50,
    cursor: Annotated[Name | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Page[PresetState]:
    """The tenant's presets in their newest versions, by name."""
    page = await presets.list_page(core.db, caller.tenant_id, search, limit=limit, cursor=cursor)
    return Page[PresetState].of(page)


@router.get("/agents/{agent}", responses=errors(404))
async def get_agent(
    core: CoreDep,
    caller: Reader,
    agent: AgentId,
    version: Annotated[int | None, Query(ge=1, le=999_999_999, description="The newest if left out.")] = None,
) -> PresetState:
    """A preset in its newest version, or in `version`."""
    return await _state(core, caller, agent if version is None else f"{agent}@{version}")


@router.put("/agents/{agent}", dependencies=[LOOKS_UP], responses=errors(400, 404, 413, 429))
async def replace_agent(core: CoreDep, caller: Configurer, agent: AgentId, body: PresetFields) -> PresetState:
    """Add a version that is nothing but this. Sessions that exist keep theirs."""
    return await _revise(core, caller, agent, body, whole=True)


@router.patch("/agents/{agent}", dependencies=[LOOKS_UP], responses=errors(400, 404, 413, 429))
async def update_agent(core: CoreDep, caller: Configurer, agent: AgentId, body: PresetFields) -> PresetState:
    """Add a version: the newest with these fields changed, each as a whole; null takes one away."""
    return await _revise(core, caller, agent, body, whole=False)


async def _revise(core: Core, caller: Principal, agent: str, body: PresetFields, *, whole: bool) -> PresetState:
    changes = body.model_dump(exclude_unset=True, by_alias=True)
    try:
        await presets.revise(core.db, caller.tenant_id, agent, changes, _judge(core, caller), whole=whole)
    except ValidationError as error:
        raise from_validation(error) from error
    return await _state(core, caller, agent)


@router.delete("/agents/{agent}", status_code=204, responses=errors(404))
async def delete_agent(core: CoreDep, caller: Configurer, agent: AgentId) -> Response:
    """Remove a preset. Its name is free again; sessions that began with it keep what they have."""
    await presets.delete(core.db, caller.tenant_id, agent)
    return Response(status_code=204)


@router.get("/agents/{agent}/versions", responses=errors(404))
async def list_agent_versions(
    core: CoreDep,
    caller: Reader,
    agent: AgentId,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> Page[PresetState]:
    """All versions of a preset, newest first."""
    page = await presets.versions(core.db, caller.tenant_id, agent, limit=limit, cursor=cursor)
    return Page[PresetState].of(page)
