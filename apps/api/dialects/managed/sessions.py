"""Sessions of this surface: those that were made through it. Others of the tenant's are the native API's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends, Query, Request, Response
from pydantic import Field

from apps.api.auth import Principal
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Text
from apps.api.core.context import Core
from apps.api.core.fleet import dispatch
from apps.api.core.sessions import browsing, deletion, prompts, sessions
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant import presets
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.managed import agents, beginning, ids, mounts, toolsets
from apps.api.dialects.managed.beginning import AgentOverrides, AgentRef, SpendLimit
from apps.api.dialects.managed.common import (
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
    listed,
    moment,
    patched,
    router,
    unsupported,
)
from apps.api.dialects.managed.examples import SESSION, gone, page_of
from apps.api.dialects.managed.messages import UserMessage
from apps.api.errors import NotFound, ValidationError
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, Writer, count_prompt, policy_of
from apps.api.web.route import CoreDep

routes = router()

SURFACE = "managed_agents"
SessionId = Annotated[UUID, id_path("session")]


Ref = Annotated[AgentRef | AgentOverrides, Field(discriminator="type")]
Title = Annotated[Text, Field(max_length=500)]


class SessionCreate(Closed):
    """A new session."""

    model_config = explained()

    agent: str | Ref
    environment_id: str
    title: Title | None = None
    metadata: Metadata = Field(default_factory=dict)
    budget: SpendLimit | None = None
    initial_events: Annotated[list[UserMessage], Field(max_length=50)] = Field(default_factory=list)
    resources: mounts.Mounts = Field(default_factory=list)
    vault_ids: Annotated[list[str], Field(max_length=10)] = Field(default_factory=list)


class AgentChange(Closed):
    """What of a session's agent changes."""

    tools: toolsets.Tools | None = None
    mcp_servers: toolsets.Servers | None = None


class SessionUpdate(Closed):
    """What changes of a session: a field that is left out stays."""

    model_config = explained()

    title: Title | None = None
    metadata: MetadataPatch | None = None
    agent: AgentChange | None = None
    budget: SpendLimit | None = None
    vault_ids: list[str] | None = None


def _usage(state: Mapping[str, Any]) -> dict[str, Any]:
    used = state["usage"] or {}
    creation = used.get("cache_creation") or {}
    made = used.get("cache_creation_input_tokens") or 0
    hour = creation.get("ephemeral_1h_input_tokens") or 0
    return {
        "input_tokens": used.get("input_tokens") or 0,
        "output_tokens": used.get("output_tokens") or 0,
        "cache_read_input_tokens": used.get("cache_read_input_tokens") or 0,
        "cache_creation": {"ephemeral_5m_input_tokens": max(made - hour, 0), "ephemeral_1h_input_tokens": hour},
        "list_cost": {"amount": f"{state['total_cost_usd']:.6f}", "currency": "USD"},
    }


STATUSES = {"idle": "idle", "requires_action": "idle", "queued": "running", "running": "running"}


def snapshot(state: Mapping[str, Any], preset: Mapping[str, Any] | None, model: str) -> dict[str, Any]:
    """The agent of a session. `preset`: the version that it began with, if that is known still."""
    ref = state["agent"] or {"agent_id": str(ids.NOBODY), "name": None, "version": 1}
    return {
        "type": "agent",
        "id": ids.write("agent", ref["agent_id"]),
        "version": ref["version"],
        "name": (preset and preset["title"]) or ref["name"] or "agent",
        "description": preset["description"] if preset else None,
        **agents.shown_config(state["config"], model),
    }


def shown(state: Mapping[str, Any], preset: Mapping[str, Any] | None, model: str) -> dict[str, Any]:
    """A session as these clients know it."""
    return {
        "id": ids.write("sesn", state["session_id"]),
        "type": "session",
        "status": STATUSES[state["status"]],
        "title": state["title"],
        "metadata": state["metadata"],
        "agent": snapshot(state, preset, model),
        "environment_id": ids.write("env", state["environment_id"] or ids.NOBODY),
        "resources": mounts.shown(state),
        "vault_ids": [ids.write("vlt", id_) for id_ in state.get("vault_ids") or ()],
        "outcome_evaluations": [],
        "stats": {},
        "usage": _usage(state),
        "budget": beginning.budget_of(state["config"]),
        "deployment_id": state["schedule_id"] and ids.write("depl", state["schedule_id"]),
        "created_at": state["created_at"],
        "updated_at": state["updated_at"],
        "archived_at": state["archived_at"],
    }


async def _preset(core: Core, caller: Principal, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    ref = state["agent"]
    if ref is None:
        return None
    return await presets.version(core.db, caller.tenant_id, UUID(ref["agent_id"]), ref["version"])


async def state_of(core: Core, caller: Principal, session_id: UUID) -> dict[str, Any]:
    """A session of this surface. Raises NotFound, also for one of another."""
    state = await sessions.get(core.db, core.redis, caller.tenant_id, session_id, core.settings.default_model)
    if state["surface"] != SURFACE:
        raise NotFound.of("session")
    return state


async def _told(core: Core, caller: Principal, state: Mapping[str, Any]) -> dict[str, Any]:
    return shown(state, await _preset(core, caller, state), core.settings.default_model)


async def _config(core: Core, caller: Principal, body: SessionCreate) -> tuple[AgentConfig, str]:
    """What a session has that its agent has not, and the agent's version. Raises NotFound, ValidationError."""
    ref = body.agent
    preset = await beginning.preset_of(core, caller.tenant_id, ref)
    own = beginning.overrides(ref, preset["config"]) if isinstance(ref, AgentOverrides) else {}
    if "tools" not in own:
        own |= beginning.own_tools(preset["config"])
    if (budget := beginning.usd(body.budget)) is not None:
        own["max_session_usd"] = budget
    if body.resources:
        own["resources"] = [one.given() for one in await mounts.of_session(core, caller.tenant_id, body.resources)]
    given = agents.configured(own)
    taken = {name: None for name, value in own.items() if value is None}
    config = AgentConfig.model_construct({*own}, **{**dict(given), **taken})
    return config, beginning.pinned(preset)


@routes.post("/sessions", response_model=ManagedObject, responses=errors(404, 409, 413, shows=SESSION))
async def create_managed_session(
    request: Request, core: CoreDep, caller: Writer, body: SessionCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a session, and send it `initial_events` if there are any. It is idle without them."""
    if len(body.initial_events) > core.settings.max_queued_runs_per_session:
        most = core.settings.max_queued_runs_per_session
        raise ValidationError.of("initial_events", f"at most {most} prompts wait in a session")
    config, reference = await _config(core, caller, body)
    labels = Labels(body.title, None, body.metadata)
    vaults = tuple(dict.fromkeys(ids.read("vlt", id_) for id_ in body.vault_ids))
    choice = Choice(None, policy_of(core, caller), reference, ids.read("env", body.environment_id), vaults)
    asked = body.model_dump(mode="json")
    repeat = Idempotency.given(idempotency_key, request.scope["path"], asked)
    if not body.initial_events:
        made = await prompts.create_session(core, caller.tenant_id, config, labels, repeat, choice, SURFACE)
        return answer(await _told(core, caller, await state_of(core, caller, made)))
    session_id: UUID | None = None
    for number, event in enumerate(body.initial_events):
        await count_prompt(request, caller)
        begins: dict[str, Any] = {"config": config, "labels": labels, "choice": choice} if not number else {}
        own = repeat and Idempotency(f"{repeat.key}/{number}" if number else repeat.key, repeat.fingerprint)
        submission = prompts.Submission(
            prompt=event.prompt(f"initial_events.{number}"),
            timeout_seconds=core.settings.request_timeout,
            session_id=session_id,
            surface=SURFACE,
            idempotency=own,
            **begins or {"choice": Choice(policy=policy_of(core, caller))},
        )
        session_id = (await dispatch.send(core, caller.tenant_id, caller.key_id, submission)).session_id
    assert session_id is not None  # noqa: S101 - for the type checker
    return answer(await _told(core, caller, await state_of(core, caller, session_id)))


Status = Literal["rescheduling", "running", "idle", "terminated"]


@routes.get("/sessions", response_model=ManagedPage, responses=errors(shows=page_of(SESSION)))
async def list_managed_sessions(
    core: CoreDep,
    caller: Reader,
    statuses: Annotated[list[Status], Depends(listed("statuses", Status))],
    agent_id: Annotated[str | None, Query(max_length=80, description="Of this agent.")] = None,
    agent_version: Annotated[int | None, Query(ge=1, le=999_999_999, description="And this version of it.")] = None,
    deployment_id: Annotated[str | None, Query(max_length=80, description="Of this deployment.")] = None,
    memory_store_id: Annotated[str | None, Query(max_length=80, description="Not supported.")] = None,
    include_archived: Annotated[bool, Query(description="Archived ones, too.")] = False,
    after: Annotated[datetime | None, Query(alias="created_at[gt]", description="Made later.")] = None,
    since: Annotated[datetime | None, Query(alias="created_at[gte]", description="Made then or later.")] = None,
    before: Annotated[datetime | None, Query(alias="created_at[lt]", description="Made earlier.")] = None,
    until: Annotated[datetime | None, Query(alias="created_at[lte]", description="Made then or earlier.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time they were made.")] = "desc",
    limit: Limit = 20,
    page_of: PageOf = None,
) -> Response:
    """Sessions of this surface, newest first; `prev_page` turns back."""
    if memory_store_id is not None:
        raise unsupported("memory_store_id", "there are no memory stores")
    wanted = {"idle", "running"} & {*statuses}
    if statuses and not wanted:  # those statuses no session has here
        return Json({"data": [], "next_page": None, "prev_page": None})
    sought = browsing.Sought(
        SURFACE,
        include_archived,
        None if agent_id is None else ids.read("agent", agent_id),
        agent_version,
        None if len(wanted) != 1 else wanted == {"running"},
        {
            ">": moment("created_at[gt]", after),
            ">=": moment("created_at[gte]", since),
            "<": moment("created_at[lt]", before),
            "<=": moment("created_at[lte]", until),
        },
        caller.profiles,
        None if deployment_id is None else ids.read("depl", deployment_id),
    )
    newest_first, model = order == "desc", core.settings.default_model
    found = await browsing.list_page(
        core.db, caller.tenant_id, sought, newest_first=newest_first, limit=limit, cursor=page_of, model=model
    )
    versions: dict[str, Any] = {}
    for state in found.data:
        if str(state["agent"]) not in versions:
            versions[str(state["agent"])] = await _preset(core, caller, state)
    data = [shown(state, versions[str(state["agent"])], model) for state in found.data]
    return Json({"data": data, "next_page": found.next_cursor, "prev_page": found.previous_cursor})


@routes.get("/sessions/{session_id}", response_model=ManagedObject, responses=errors(404, shows=SESSION))
async def get_managed_session(core: CoreDep, caller: Reader, session_id: SessionId) -> Response:
    """A session as it is now."""
    return answer(await _told(core, caller, await state_of(core, caller, session_id)))


@routes.post("/sessions/{session_id}", response_model=ManagedObject, responses=errors(404, 409, 413, shows=SESSION))
async def update_managed_session(core: CoreDep, caller: Writer, session_id: SessionId, body: SessionUpdate) -> Response:
    """Change title, metadata, tools, MCP servers or budget. Tools and servers need a session that is idle."""
    state = await state_of(core, caller, session_id)
    if body.vault_ids is not None:
        raise unsupported("vault_ids", "are fixed when the session is created")
    if state["archived_at"] is not None:
        raise prompts.archived()
    choice = Choice(policy=policy_of(core, caller))
    if body.agent is not None and body.agent.model_fields_set:
        fields = {name: getattr(body.agent, name) for name in body.agent.model_fields_set}
        changes = agents.retooled(agents.Fields.model_construct(set(fields), **fields), state["config"])
        await _change(core, caller, session_id, changes, choice, while_busy=False)
    if "budget" in body.model_fields_set:
        before = state["config"].get("max_session_usd")
        if body.budget is not None and before is None:
            raise unsupported("budget", "budget_create_only: a budget is given when a session is created")
        most = beginning.usd(body.budget)
        if most is not None and most <= state["total_cost_usd"]:
            raise unsupported("budget", "budget_not_raised: the session has cost that much already")
        if most != before:
            await _change(core, caller, session_id, {"max_session_usd": most}, choice, while_busy=True)
    if {"title", "metadata"} & body.model_fields_set:
        metadata = None if body.metadata is None else patched(state["metadata"], body.metadata)
        untitled = "title" in body.model_fields_set and body.title is None
        labels = Labels(body.title, None, metadata)
        await sessions.patch(core.db, core.redis, caller.tenant_id, session_id, labels, untitled=untitled)
    return answer(await _told(core, caller, await state_of(core, caller, session_id)))


async def _change(
    core: Core, caller: Principal, session_id: UUID, changes: Mapping[str, Any], choice: Choice, *, while_busy: bool
) -> None:
    given = agents.configured(changes)
    wanted = AgentConfig.model_construct(
        {*changes}, **{**dict(given), **{n: None for n, v in changes.items() if v is None}}
    )
    await prompts.change(core, caller.tenant_id, session_id, wanted, choice, while_busy=while_busy)


@routes.post("/sessions/{session_id}/archive", response_model=ManagedObject, responses=errors(404, 409, shows=SESSION))
async def archive_managed_session(core: CoreDep, caller: Writer, session_id: SessionId) -> Response:
    """Let an idle session be read, and take no events any more."""
    await state_of(core, caller, session_id)
    await deletion.archive(core.db, core.redis, caller.tenant_id, session_id)
    return answer(await _told(core, caller, await state_of(core, caller, session_id)))


_GONE = errors(404, 409, shows=gone(SESSION))


@routes.delete("/sessions/{session_id}", response_model=ManagedObject, responses=_GONE)
async def delete_managed_session(core: CoreDep, caller: Writer, session_id: SessionId) -> Response:
    """Stop a session, and remove all that it has."""
    await state_of(core, caller, session_id)
    await deletion.delete(core.db, caller.tenant_id, session_id)
    core.forget(caller.tenant_id, session_id)
    return answer({"id": ids.write("sesn", session_id), "type": "session_deleted"})
