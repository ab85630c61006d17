"""Deployments: the core's schedules that were made through this surface. Each begins a new session every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query, Request, Response
from pydantic import Field

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.codec import timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.cron import Cron, Times, TimeZone
from apps.api.core.config.names import Text
from apps.api.core.context import Core
from apps.api.core.fleet import firing, schedules
from apps.api.core.fleet.drafts import Draft
from apps.api.core.fleet.schedules import By
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.managed import agents, beginning, deployment_runs, examples, ids, mounts
from apps.api.dialects.managed.beginning import AgentRef, SpendLimit
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
from apps.api.dialects.managed.messages import REASONS, Refused, UserMessage
from apps.api.dialects.managed.sessions import SURFACE
from apps.api.errors import NotFound, ValidationError
from apps.api.web.callers import LOOKS_UP, Prompter, Reader, Writer, policy_of
from apps.api.web.route import CoreDep

routes = router()

DeploymentId = Annotated[UUID, id_path("deployment")]
Name = Annotated[Text, Field(min_length=1, max_length=256)]
Description = Annotated[Text, Field(max_length=2048)]
Id = Annotated[str, Field(max_length=80)]
First = Annotated[UserMessage | Refused, Field(discriminator="type")]
Events = Annotated[list[First], Field(min_length=1, max_length=50)]
Vaults = Annotated[list[Id], Field(max_length=10)]


class CronSchedule(Closed):
    """Times of a clock."""

    type: Literal["cron"]
    expression: Cron
    timezone: TimeZone


class DeploymentCreate(Closed):
    """A new deployment."""

    model_config = explained(
        agent="An agent's id, whose newest version is meant; or an object with `type`, `id` and `version`.",
        initial_events="One `user.message`, which each of its sessions begins with.",
    )

    name: Name
    agent: Id | AgentRef
    environment_id: Id
    initial_events: Events
    description: Description | None = None
    metadata: Metadata = Field(default_factory=dict)
    schedule: CronSchedule | None = None
    budget: SpendLimit | None = None
    resources: mounts.Mounts = Field(default_factory=list)
    vault_ids: Vaults = Field(default_factory=list)


class DeploymentUpdate(Closed):
    """What changes of a deployment: a field that is left out stays, null clears it where there may be none."""

    model_config = explained(
        agent="As when it is made; an id alone means the version that is the newest now.",
        initial_events="One `user.message`, which each of its sessions begins with.",
    )

    name: Name | None = None
    agent: Id | AgentRef | None = None
    environment_id: Id | None = None
    initial_events: Events | None = None
    description: Description | None = None
    metadata: MetadataPatch | None = None
    schedule: CronSchedule | None = None
    budget: SpendLimit | None = None
    resources: mounts.Mounts | None = None
    vault_ids: Vaults | None = None


def by(core: Core, caller: Principal) -> By:
    """Who acts."""
    return By(caller.tenant_id, caller.key_id, policy_of(core, caller))


async def state_of(core: Core, caller: Principal, deployment_id: UUID) -> dict[str, Any]:
    """A schedule of this surface. Raises NotFound, also for one of another; Forbidden."""
    state = await schedules.get(core, by(core, caller), deployment_id)
    if state["surface"] != SURFACE:
        raise NotFound.of("schedule")
    return state


def _prompt(events: Sequence[First]) -> list[dict[str, Any]]:
    """As the core takes it. Raises BadRequest, ValidationError."""
    for number, event in enumerate(events):
        if isinstance(event, Refused):
            raise unsupported(f"initial_events.{number}.type", REASONS[event.type])
    if len(events) > 1:
        raise unsupported("initial_events", "a deployment begins a session with one message: put all into its content")
    [event] = events
    assert isinstance(event, UserMessage)  # noqa: S101 - for the type checker
    return event.prompt("initial_events.0")


async def _options(core: Core, caller: Principal, body: DeploymentCreate | DeploymentUpdate) -> dict[str, Any]:
    """What a body says of the core's options, None where it takes one away; and of `agent`. Raises BadRequest,
    NotFound, ValidationError."""
    options: dict[str, Any] = {}
    if body.agent is not None:
        preset = await beginning.preset_of(core, caller.tenant_id, body.agent)
        options |= {"agent": beginning.pinned(preset), "tools": None, **beginning.own_tools(preset["config"])}
    if "budget" in body.model_fields_set:
        options["max_session_usd"] = beginning.usd(body.budget)
    if "resources" in body.model_fields_set:
        given = await mounts.of_session(core, caller.tenant_id, body.resources or [])
        options["resources"] = [one.given() for one in given] or None
    return options


def _changed(draft: Draft, body: DeploymentCreate | DeploymentUpdate, options: Mapping[str, Any]) -> Draft:
    """The draft with what a body gives of it. Raises BadRequest, ValidationError."""
    own, given = dict(options), body.model_fields_set
    changes: dict[str, Any] = {"agent": own.pop("agent")} if "agent" in own else {}
    if own:
        changes["config"] = agents.configured({**draft.config.given(), **own})
    if body.name is not None:
        changes["name"] = body.name
    if body.environment_id is not None:
        changes["environment"] = ids.read("env", body.environment_id)
    if body.initial_events is not None:
        changes["prompt"] = _prompt(body.initial_events)
    if "schedule" in given:
        when = body.schedule
        changes |= {"cron": when and when.expression, "time_zone": when.timezone if when else "UTC"}
    if "vault_ids" in given:
        changes["vaults"] = tuple(dict.fromkeys(ids.read("vlt", id_) for id_ in body.vault_ids or ()))
    data = dict(draft.data)
    if "description" in given:
        data["description"] = body.description or None
    if body.metadata is not None:
        data["metadata"] = patched(data.get("metadata", {}), body.metadata)
    return replace(draft, data=data, **changes)


def _schedule(state: Mapping[str, Any], *, archived: bool) -> dict[str, Any] | None:
    if state["cron"] is None:
        return None
    times = Times.of(state["cron"], state["time_zone"])
    first = state["next_at"] and datetime.fromisoformat(state["next_at"])
    more = times.after(first or datetime.fromtimestamp(clock.timestamp(), UTC))
    count = schedules.UPCOMING
    upcoming = [first, *islice(more, count - 1)] if first else [*islice(more, count)]
    return {
        "type": "cron",
        "expression": state["cron"],
        "timezone": state["time_zone"],
        "last_run_at": state["fired_at"],
        "upcoming_runs_at": [] if archived else [timestamp(time) for time in upcoming],
    }


def _paused(state: Mapping[str, Any]) -> dict[str, Any] | None:
    if state["paused_reason"] in (None, schedules.ARCHIVED):
        return None
    if state["paused_reason"] == schedules.BY_REQUEST:
        return {"type": "manual"}
    error = (state["last"] or {}).get("error") or {}
    return {"type": "error", "error": {"type": deployment_runs.paused_by(error)}}


async def shown(core: Core, tenant_id: UUID, state: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule as these clients know it."""
    archived, paused = state["paused_reason"] == schedules.ARCHIVED, _paused(state)
    prompt = state["prompt"]
    content = [{"type": "text", "text": prompt}] if isinstance(prompt, str) else prompt
    return {
        "id": ids.write("depl", state["schedule_id"]),
        "type": "deployment",
        "name": state["name"] or "",
        "description": state["data"].get("description"),
        "metadata": state["data"].get("metadata", {}),
        "agent": await beginning.reference_of(core, tenant_id, state["agent"]),
        "environment_id": ids.write("env", state["environment"] or ids.NOBODY),
        "initial_events": [{"type": "user.message", "content": content}],
        "resources": [told for _, told in mounts.of_config(state["config"])],
        "vault_ids": [ids.write("vlt", id_) for id_ in state["vaults"]],
        "schedule": _schedule(state, archived=archived),
        "budget": beginning.budget_of(state["config"]),
        "status": "paused" if paused else "active",
        "paused_reason": paused,
        "created_at": state["created_at"],
        "updated_at": state["updated_at"],
        "archived_at": state["paused_at"] if archived else None,
    }


async def _told(core: Core, caller: Principal, deployment_id: UUID) -> Response:
    return answer(await shown(core, caller.tenant_id, await state_of(core, caller, deployment_id)))


_MADE = errors(404, 409, 413, shows=examples.DEPLOYMENT)


@routes.post("/deployments", dependencies=[LOOKS_UP], response_model=ManagedObject, responses=_MADE)
async def create_managed_deployment(
    request: Request, core: CoreDep, caller: Writer, body: DeploymentCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a deployment: an agent with all that its sessions begin with. It acts for the key that makes it."""
    repeat = Idempotency.given(idempotency_key, request.scope["path"], body.model_dump(mode="json"))
    empty = Draft(None, "UTC", "", config=AgentConfig(), overlap="queue", surface=SURFACE)
    draft = _changed(empty, body, await _options(core, caller, body))
    return await _told(core, caller, await schedules.create(core, by(core, caller), draft, repeat))


@routes.get("/deployments", response_model=ManagedPage, responses=errors(shows=examples.page_of(examples.DEPLOYMENT)))
async def list_managed_deployments(
    core: CoreDep,
    caller: Reader,
    limit: Limit = 20,
    page_of: PageOf = None,
    agent_id: Annotated[str | None, Query(max_length=80, description="Of this agent.")] = None,
    status: Annotated[Literal["active", "paused"] | None, Query(description="Not with `include_archived`.")] = None,
    include_archived: Archived = False,
    since: Annotated[datetime | None, Query(alias="created_at[gte]", description="Made then or later.")] = None,
    until: Annotated[datetime | None, Query(alias="created_at[lte]", description="Made then or earlier.")] = None,
) -> Response:
    """Deployments, newest first."""
    if status is not None and include_archived:
        raise ValidationError.of("status", "does not go with include_archived")
    sought = schedules.Sought(
        SURFACE,
        include_archived,
        None if status is None else status == "paused",
        None if agent_id is None else ids.read("agent", agent_id),
        moment("created_at[gte]", since),
        moment("created_at[lte]", until),
    )
    found = await schedules.list_page(core, by(core, caller), limit=limit, cursor=page_of, sought=sought)
    return page([await shown(core, caller.tenant_id, state) for state in found.data], found.next_cursor)


@routes.get(
    "/deployments/{deployment_id}", response_model=ManagedObject, responses=errors(404, shows=examples.DEPLOYMENT)
)
async def get_managed_deployment(core: CoreDep, caller: Reader, deployment_id: DeploymentId) -> Response:
    """One deployment, also an archived one."""
    return await _told(core, caller, deployment_id)


@routes.post("/deployments/{deployment_id}", dependencies=[LOOKS_UP], response_model=ManagedObject, responses=_MADE)
async def update_managed_deployment(
    core: CoreDep, caller: Writer, deployment_id: DeploymentId, body: DeploymentUpdate
) -> Response:
    """Change a deployment, for sessions that it begins from now on. It acts for the key that changed it last."""
    await state_of(core, caller, deployment_id)
    for name in ("name", "agent", "environment_id", "initial_events"):
        if name in body.model_fields_set and getattr(body, name) is None:
            raise ValidationError.of(name, "cannot be cleared")
    if body.model_fields_set:
        options, fields = await _options(core, caller, body), sorted(body.model_fields_set)
        await schedules.update(
            core, by(core, caller), deployment_id, fields, lambda draft: _changed(draft, body, options)
        )
    return await _told(core, caller, deployment_id)


_ACTED = errors(404, 409, shows=examples.DEPLOYMENT)


@routes.post("/deployments/{deployment_id}/archive", response_model=ManagedObject, responses=_ACTED)
async def archive_managed_deployment(core: CoreDep, caller: Writer, deployment_id: DeploymentId) -> Response:
    """Let a deployment begin no session any more, for good. Sessions that it has begun go on."""
    await state_of(core, caller, deployment_id)
    await schedules.archive(core, by(core, caller), deployment_id)
    return await _told(core, caller, deployment_id)


@routes.post("/deployments/{deployment_id}/pause", response_model=ManagedObject, responses=_ACTED)
async def pause_managed_deployment(core: CoreDep, caller: Writer, deployment_id: DeploymentId) -> Response:
    """Let its schedule rest. It can be run all the same."""
    await state_of(core, caller, deployment_id)
    await schedules.pause(core, by(core, caller), deployment_id)
    return await _told(core, caller, deployment_id)


@routes.post("/deployments/{deployment_id}/unpause", response_model=ManagedObject, responses=_ACTED)
async def unpause_managed_deployment(core: CoreDep, caller: Writer, deployment_id: DeploymentId) -> Response:
    """Let its schedule go on, from the next time on: those meanwhile are not made up for."""
    await state_of(core, caller, deployment_id)
    await schedules.resume(core, by(core, caller), deployment_id)
    return await _told(core, caller, deployment_id)


_RUN = errors(404, 409, shows=examples.DEPLOYMENT_RUN)


@routes.post("/deployments/{deployment_id}/run", response_model=ManagedObject, responses=_RUN)
async def run_managed_deployment(
    request: Request,
    core: CoreDep,
    caller: Prompter,
    deployment_id: DeploymentId,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Begin a session now, also of a deployment that is paused. What no session can begin with is the answer."""
    await state_of(core, caller, deployment_id)
    repeat = Idempotency.given(idempotency_key, request.scope["path"])
    fired = await firing.run(core, by(core, caller), deployment_id, repeat)
    return answer(await deployment_runs.shown(core, caller.tenant_id, fired))
