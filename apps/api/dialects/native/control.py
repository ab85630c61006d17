"""What can be done to a session while it lives: interrupt, reset, change its agent, look into it."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from apps.api.core.config import models, profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import ModelName, Name
from apps.api.core.config.parts import PermissionMode
from apps.api.core.fleet import cancellation, commands, control
from apps.api.core.fleet.commands import Sent
from apps.api.core.sessions import admission, runs
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import NO_BODY, PREFIX, IdempotencyKey, RunId, SessionId, errors, send_change
from apps.api.errors import Unavailable, refuse
from apps.api.web.callers import Reader, SessionStopper, Writer, policy_of
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.following import finished, outcome_or_error
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, route_class=ContentRoute)

RESET_WAIT = 10.0
"""Seconds that a reset is waited for; it stands in the queue behind the runs before it."""


class Toggle(wire.Closed):
    """An MCP server of the session, to be used or not."""

    name: Name = Field(description="The server's name in `mcp_servers`.")
    enabled: bool = Field(description="Whether its tools may be used.")


class ControlBody(wire.Closed):
    """What to change; at least one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"permission_mode": "acceptEdits"}]})

    permission_mode: PermissionMode | None = Field(None, description="The permission mode from now on.")
    model: ModelName | None = Field(None, description="The model from the next request to it on.")
    stop_task: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="`task_id` of a subagent or background command to stop."
    )
    mcp_reconnect: Name | None = Field(None, description="Name of an MCP server to connect to again.")
    mcp_toggle: Toggle | None = Field(None, description="An MCP server to enable or disable.")

    @model_validator(mode="after")
    def _not_empty(self) -> ControlBody:
        if not self.model_dump(exclude_none=True):
            raise ValueError("name something to change")
        return self


class InterruptBody(wire.Closed):
    """What to interrupt, where it matters that it is no other run."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"run_id": "7d444840-9dc0-41d1-b245-5ffdce74fad2"}]}
    )

    run_id: UUID | None = Field(
        None, description="The run that is meant; when another one is current: 409 `no_live_run`."
    )


WHATEVER_RUNS = InterruptBody.model_validate({})


class ResetBody(wire.Closed):
    """How to reset a session."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"mode": "soft"}]})

    mode: Literal["soft", "hard"] = Field(
        description="`soft`: a new agent process, the same history. `hard`: a new conversation, the same files."
    )


class Applied(wire.Closed):
    """`applied`: it has happened. `accepted`: the owner has been told and did not answer yet."""

    session_id: UUID
    run_id: UUID | None
    status: Literal["applied", "accepted"] = Field(examples=["applied"])


class ContextUse(BaseModel):
    """How full the context window is: the SDK's own figures, by category."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"totalTokens": 17_807, "maxTokens": 200_000, "percentage": 9}]}
    )


class McpStatus(wire.Closed):
    """Status of the session's MCP servers, as the live agent reports it."""

    mcp_servers: list[dict[str, Any]] = Field(examples=[[{"name": "github", "status": "connected", "tools": []}]])


def _applied(session_id: UUID, sent: Sent) -> Applied:
    return Applied.model_validate({"session_id": session_id, "run_id": sent.run_id, "status": sent.status})


def _told(sent: Sent) -> Any:
    """What a live agent told of itself. Raises Unavailable when it has not in time."""
    if sent.status == "accepted":
        raise Unavailable("The agent is busy and did not answer in time. Try again.", code="agent_busy")
    return sent.result


@router.post("/sessions/{session_id}/interrupt", tags=["sessions"], responses=errors(400, 404, 409, 413))
async def interrupt_session(
    core: CoreDep, caller: SessionStopper, session_id: SessionId, body: InterruptBody = WHATEVER_RUNS
) -> Applied:
    """Stop the current run, whichever instance executes it. The session stays and takes the next prompt.

    That is the active run; where none is active, the one that is queued first, which then never begins. `run_id` says
    which it was. 409 `no_live_run` when there is none, it ended by itself meanwhile, or another one was meant.
    """
    return _applied(session_id, await cancellation.interrupt(core, caller.tenant_id, session_id, body.run_id))


@router.post("/runs/{run_id}/cancel", tags=["runs"], dependencies=[NO_BODY], responses=errors(404, 409))
async def cancel_run(core: CoreDep, caller: SessionStopper, run_id: RunId) -> Applied:
    """Cancel a run: a queued one never begins, an active one is interrupted. 409 `no_live_run` when it is over."""
    state = await runs.get(core.db, caller.tenant_id, run_id)
    return _applied(UUID(state["session_id"]), await cancellation.cancel(core, caller.tenant_id, run_id))


@router.post("/sessions/{session_id}/control", tags=["sessions"], responses=errors(400, 404, 409, 413))
async def control_session(core: CoreDep, caller: Writer, session_id: SessionId, body: ControlBody) -> Applied:
    """Change the session's agent while it runs.

    `permission_mode` and `model` must be within the session's profile (403). They hold from now on, and also where no
    agent is live. The others need a live agent (409 `no_live_run`); what it refuses is 409 `control_failed`.
    """
    policy = policy_of(core, caller)
    profile = await admission.profile_of(core.db, caller.tenant_id, session_id, policy)
    asked = body.model_dump(exclude_none=True)
    changes: dict[str, Any] = {name: asked.pop(name) for name in ("permission_mode", "model") if name in asked}
    if "model" in changes:
        refuse(models.problems(policy, AgentConfig.model_validate(changes)))
    if profile is not None:
        refuse(profiles.problems(profile, AgentConfig.model_validate(changes)))
    sent = Sent("applied", None, {})
    if changes:
        sent = await control.reconfigure(core, caller.tenant_id, session_id, changes)
    if asked:
        sent = await commands.send(core, caller.tenant_id, session_id, "control", asked, any_run=True)
    return _applied(session_id, sent)


@router.post("/sessions/{session_id}/reset", tags=["sessions"], responses=errors(400, 404, 409, 413))
async def reset_session(
    request: Request,
    core: CoreDep,
    caller: Writer,
    session_id: SessionId,
    body: ResetBody,
    idempotency_key: IdempotencyKey = None,
) -> Applied:
    """Start the agent anew, with its history or without. Waits its turn behind runs that are queued before it.

    Events, files and totals stay. `accepted` when its turn has not come within 10 seconds.
    """
    idempotency = Idempotency.given(idempotency_key, request.scope["path"], body.model_dump())
    run = await send_change(core, caller, session_id, "reset", body.model_dump(), idempotency)
    state = await finished(request, core, caller, run, RESET_WAIT)
    if state is not None:
        outcome_or_error(state)
    return _applied(session_id, Sent("accepted" if state is None else "applied", run.run_id, {}))


@router.get("/sessions/{session_id}/context", tags=["sessions"], responses=errors(404, 409))
async def get_context(core: CoreDep, caller: Reader, session_id: SessionId) -> ContextUse:
    """How full the context window is, and with what, in the SDK's own figures. Needs a live agent."""
    sent = await commands.send(core, caller.tenant_id, session_id, "context", any_run=True)
    return ContextUse.model_validate(_told(sent))


@router.get("/sessions/{session_id}/mcp", tags=["sessions"], responses=errors(404, 409))
async def get_mcp_status(core: CoreDep, caller: Reader, session_id: SessionId) -> McpStatus:
    """The session's MCP servers: status, version and tools. Needs a live agent; each `init` event tells it, too."""
    sent = await commands.send(core, caller.tenant_id, session_id, "mcp", any_run=True)
    return McpStatus.model_validate(_told(sent))
