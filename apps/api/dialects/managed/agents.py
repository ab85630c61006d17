"""Agents: the core's presets, by id. Their names are for people, so that two may have the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import Query, Request, Response
from pydantic import Field, ValidationError

from apps.api.auth import Principal
from apps.api.core.config.agent import DEFAULT_TOOLS, AgentConfig
from apps.api.core.config.names import ModelName, Text
from apps.api.core.config.parts import Effort
from apps.api.core.context import Core
from apps.api.core.sessions import admission
from apps.api.core.tenant import presets
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.presets import Draft, Judge
from apps.api.dialects.managed import examples, ids, toolsets
from apps.api.dialects.managed.common import (
    Archived,
    Closed,
    IdempotencyKey,
    Limit,
    ManagedObject,
    ManagedPage,
    Metadata,
    MetadataPatch,
    PageOf,
    answer,
    errors,
    explained,
    id_path,
    moment,
    page,
    patched,
    router,
    unsupported,
)
from apps.api.errors import Conflict
from apps.api.web.callers import LOOKS_UP, Configurer, Reader, policy_of
from apps.api.web.errors import from_validation
from apps.api.web.route import CoreDep

routes = router()

AgentId = Annotated[UUID, id_path("agent")]


class EffortLevel(Closed):
    """How much the model thinks."""

    type: Effort


class ModelChoice(Closed):
    """A model, and how it is used."""

    id: ModelName
    effort: Effort | EffortLevel | None = None
    speed: Literal["standard", "fast"] | None = None
    inference_geo: str | None = None


Model = ModelName | ModelChoice


class ExecutionIdentity(Closed):
    """Whose identity runs have."""

    type: str
    role_arn: str | None = None


class Fields(Closed):
    """What an agent is made of, beside its name and model."""

    system: Annotated[Text, Field(max_length=100_000)] | None = None
    description: Annotated[Text, Field(max_length=2000)] | None = None
    tools: toolsets.Tools | None = None
    mcp_servers: toolsets.Servers | None = None
    skills: Annotated[list[dict[str, Any]], Field(max_length=64)] | None = None
    multiagent: dict[str, Any] | None = None
    execution_identity: ExecutionIdentity | None = None


AgentName = Annotated[Text, Field(min_length=1, max_length=256)]


class AgentCreate(Fields):
    """A new agent."""

    model_config = explained()

    name: AgentName
    model: Model
    metadata: Metadata = Field(default_factory=dict)


class AgentUpdate(Fields):
    """What changes of an agent: a field that is left out stays, null clears it."""

    model_config = explained()

    name: AgentName | None = None
    model: Model | None = None
    metadata: MetadataPatch | None = None
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None


def model_options(model: str | ModelChoice | None, field: str = "model") -> dict[str, Any]:
    """The core's options for a model. Raises BadRequest."""
    if model is None:
        return {}
    if isinstance(model, str):
        return {"model": model}
    if model.speed == "fast":
        raise unsupported(f"{field}.speed", "there is one speed: 'standard'")
    if model.inference_geo is not None:
        raise unsupported(f"{field}.inference_geo", "where models run is the operator's choice")
    effort = model.effort.type if isinstance(model.effort, EffortLevel) else model.effort
    return {"model": model.id, **({"effort": effort} if "effort" in model.model_fields_set else {})}


def check(body: Fields) -> None:
    """Raises BadRequest for what is asked for and not supported."""
    if body.skills:
        raise unsupported("skills", "are not supported yet")
    if body.multiagent is not None:
        raise unsupported("multiagent", "is not supported yet")
    if body.execution_identity is not None and body.execution_identity.type != "service_account":
        raise unsupported("execution_identity.type", "runs have the server's identity: 'service_account'")


def _changes(body: AgentCreate | AgentUpdate) -> dict[str, Any]:
    """What a body changes of the core's options. Raises BadRequest."""
    check(body)
    changes = model_options(body.model)
    if "system" in body.model_fields_set:
        changes["system_prompt"] = body.system or None
    if "description" in body.model_fields_set:
        changes["description"] = body.description or None
    return changes


def shown_config(config: Mapping[str, Any], default_model: str) -> dict[str, Any]:
    """What agents and sessions tell of a configuration."""
    effort = config.get("effort")
    return {
        "model": {
            "id": config.get("model") or default_model,
            "effort": effort and {"type": effort},
            "speed": "standard",
            "inference_geo": None,
        },
        "system": config.get("system_prompt"),
        "tools": list(toolsets.shown(config, DEFAULT_TOOLS)),
        "mcp_servers": [{"type": "url", "name": n, "url": url} for n, url in toolsets.servers_of(config).items()],
        "skills": [],
        "multiagent": None,
        "execution_identity": {"type": "service_account"},
    }


def shown(state: Mapping[str, Any], default_model: str) -> dict[str, Any]:
    """A preset as these clients know it."""
    return {
        "id": ids.write("agent", state["agent_id"]),
        "type": "agent",
        "version": state["version"],
        "name": state["title"] or state["name"],
        "description": state["description"],
        **shown_config(state["config"], default_model),
        "metadata": state["metadata"],
        "created_at": state["created_at"],
        "updated_at": state["updated_at"],
        "archived_at": state["archived_at"],
    }


def _judge(core: Core, caller: Principal) -> Judge:
    return lambda draft: admission.judge_preset(core, caller.tenant_id, draft, policy_of(core, caller))


def configured(options: Mapping[str, Any]) -> AgentConfig:
    """The core's configuration. Raises ValidationError with the fields of it."""
    try:
        return AgentConfig.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error) from error


async def _state(core: Core, caller: Principal, agent: str) -> Response:
    return answer(shown(await presets.get(core.db, caller.tenant_id, agent), core.settings.default_model))


@routes.post(
    "/agents", dependencies=[LOOKS_UP], response_model=ManagedObject, responses=errors(409, 413, shows=examples.AGENT)
)
async def create_managed_agent(
    request: Request, core: CoreDep, caller: Configurer, body: AgentCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create an agent, version 1."""
    options = {**_changes(body), **toolsets.options(body.tools or (), body.mcp_servers or ())}
    description = options.pop("description", None)
    draft = Draft(description, None, configured(options), body.name, body.metadata)
    repeat = Idempotency.given(idempotency_key, request.scope["path"], body.model_dump(mode="json"))
    # The core's names are unique; here people give names, and two may give the same.
    name = f"{re.sub('[^A-Za-z0-9]+', '-', body.name)[:40].strip('-') or 'agent'}-{uuid4().hex[:16]}"
    agent_id = await presets.create(core.db, caller.tenant_id, name, draft, _judge(core, caller), repeat)
    return await _state(core, caller, str(agent_id))


_Moment = Annotated[datetime | None, Query(description="A moment with its time zone.")]


@routes.get("/agents", response_model=ManagedPage, responses=errors(shows=examples.page_of(examples.AGENT)))
async def list_managed_agents(
    core: CoreDep,
    caller: Reader,
    limit: Limit = 20,
    page_of: PageOf = None,
    include_archived: Archived = False,
    since: Annotated[datetime | None, Query(alias="created_at[gte]", description="Made then or later.")] = None,
    until: Annotated[datetime | None, Query(alias="created_at[lte]", description="Made then or earlier.")] = None,
) -> Response:
    """The tenant's agents in their newest versions, newest first."""
    found = await presets.list_by_time(
        core.db,
        caller.tenant_id,
        archived=include_archived,
        since=moment("created_at[gte]", since),
        until=moment("created_at[lte]", until),
        limit=limit,
        cursor=page_of,
    )
    return page([shown(state, core.settings.default_model) for state in found.data], found.next_cursor)


@routes.get("/agents/{agent_id}", response_model=ManagedObject, responses=errors(404, shows=examples.AGENT))
async def get_managed_agent(
    core: CoreDep,
    caller: Reader,
    agent_id: AgentId,
    version: Annotated[int | None, Query(ge=1, le=999_999_999, description="The newest if left out.")] = None,
) -> Response:
    """An agent in its newest version, or in `version`."""
    return await _state(core, caller, str(agent_id) if version is None else f"{agent_id}@{version}")


@routes.post(
    "/agents/{agent_id}",
    dependencies=[LOOKS_UP],
    response_model=ManagedObject,
    responses=errors(404, 409, 413, shows=examples.AGENT),
)
async def update_managed_agent(core: CoreDep, caller: Configurer, agent_id: AgentId, body: AgentUpdate) -> Response:
    """Add a version with these changes; what changes nothing adds none. 409 when `version` is not the newest one."""
    reference, judge = str(agent_id), _judge(core, caller)
    for left in reversed(range(presets.ATTEMPTS)):
        before = await presets.get(core.db, caller.tenant_id, reference)
        changes, expected = _revised(body, before), body.version or before["version"]
        try:
            await presets.revise(
                core.db, caller.tenant_id, reference, changes, judge, whole=False, expected=expected, only_news=True
            )
            break
        except Conflict as conflict:
            # Who names no version has it changed whatever others do at the same time.
            if conflict.code != "preset_changed" or body.version is not None or not left:
                raise
    return await _state(core, caller, reference)


def _revised(body: AgentUpdate, before: Mapping[str, Any]) -> dict[str, Any]:
    """What an update changes of a preset. Raises BadRequest, ValidationError."""
    changes = _changes(body)
    if {"tools", "mcp_servers"} & body.model_fields_set:
        changes |= retooled(body, before["config"])
    if body.name is not None:
        changes["title"] = body.name
    if body.metadata is not None:
        changes["metadata"] = patched(before["metadata"], body.metadata)
    configured({name: value for name, value in changes.items() if name in AgentConfig.model_fields})
    return changes


class _Tools(Closed):
    tools: toolsets.Tools
    mcp_servers: toolsets.Servers


def retooled(body: Fields, before: Mapping[str, Any]) -> dict[str, Any]:
    """The options for tools and servers where one of both changes: they are judged together. Raises ValidationError."""
    kept = _Tools.model_validate({name: shown_config(before, "")[name] for name in ("tools", "mcp_servers")})
    asked = body.tools if "tools" in body.model_fields_set else kept.tools
    servers = body.mcp_servers if "mcp_servers" in body.model_fields_set else kept.mcp_servers
    return toolsets.options(asked or (), servers or ())


@routes.post("/agents/{agent_id}/archive", response_model=ManagedObject, responses=errors(404, shows=examples.AGENT))
async def archive_managed_agent(core: CoreDep, caller: Configurer, agent_id: AgentId) -> Response:
    """Let no session begin with an agent any more. Those that exist go on."""
    await presets.archive(core.db, caller.tenant_id, str(agent_id))
    return await _state(core, caller, str(agent_id))


@routes.get(
    "/agents/{agent_id}/versions",
    response_model=ManagedPage,
    responses=errors(404, shows=examples.page_of(examples.AGENT)),
)
async def list_managed_agent_versions(
    core: CoreDep, caller: Reader, agent_id: AgentId, limit: Limit = 20, page_of: PageOf = None
) -> Response:
    """All versions of an agent, newest first."""
    found = await presets.versions(core.db, caller.tenant_id, str(agent_id), limit=limit, cursor=page_of)
    return page([shown(state, core.settings.default_model) for state in found.data], found.next_cursor)
