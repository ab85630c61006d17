"""What sessions begin with, whether a client or a deployment begins them: an agent in a version, and a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from apps.api.core.config.agent import DEFAULT_TOOLS
from apps.api.core.config.names import Text
from apps.api.core.context import Core
from apps.api.core.tenant import presets
from apps.api.dialects.managed import agents, ids, toolsets
from apps.api.dialects.managed.common import Closed, unsupported
from apps.api.errors import NotFound, ValidationError

PERSONAL = ("AskUserQuestion", "ExitPlanMode")
"""Tools that ask a person what this API has no words for."""


class AgentRef(Closed):
    """An agent, in one version."""

    type: Literal["agent"]
    id: str
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None


class AgentOverrides(Closed):
    """An agent, with what is different in this session. What is given replaces the agent's own as a whole."""

    type: Literal["agent_with_overrides"]
    id: str
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    model: agents.Model | None = None
    system: Annotated[Text, Field(max_length=100_000)] | None = None
    tools: toolsets.Tools | None = None
    mcp_servers: toolsets.Servers | None = None
    skills: Annotated[list[dict[str, Any]], Field(max_length=64)] | None = None


class Money(Closed):
    """An amount of money."""

    amount: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,12})?$")]
    currency: Literal["USD"]


class SpendLimit(Closed):
    """What a session may cost."""

    type: Literal["limit"]
    max_list_cost: Money


async def preset_of(core: Core, tenant_id: UUID, ref: str | AgentRef | AgentOverrides) -> dict[str, Any]:
    """The agent that is meant, in its version. Raises NotFound; ValidationError: it is archived."""
    id_, version = (ref, None) if isinstance(ref, str) else (ref.id, ref.version)
    reference = str(ids.read("agent", id_)) + (f"@{version}" if version else "")
    preset = await presets.get(core.db, tenant_id, reference)
    if preset["archived_at"] is not None:
        raise ValidationError.of("agent", "is archived: no session begins with it")
    return preset


def pinned(preset: Mapping[str, Any]) -> str:
    """How the core is told of an agent in this version."""
    return f"{preset['agent_id']}@{preset['version']}"


async def reference_of(core: Core, tenant_id: UUID, reference: str | None) -> dict[str, Any]:
    """The agent that a schedule names. Without a version, as the native API may have named it, the newest."""
    agent_id, _, version = presets.parse_reference(reference or "")
    if reference and (agent_id is None or version is None):
        try:
            found = await presets.get(core.db, tenant_id, reference)
            agent_id, version = UUID(found["agent_id"]), found["version"]
        except NotFound:
            pass
    return {"type": "agent", "id": ids.write("agent", agent_id or ids.NOBODY), "version": version or 1}


def own_tools(config: Mapping[str, Any]) -> dict[str, Any]:
    """The core's options for the tools of an agent's sessions, where they have fewer than the agent."""
    named = config.get("tools")
    kept = [tool for tool in (DEFAULT_TOOLS if named is None else named) if tool not in PERSONAL]
    return {} if kept == named else {"tools": kept}


def usd(budget: SpendLimit | None, field: str = "budget") -> float | None:
    """What it is in the core. Raises ValidationError."""
    if budget is None:
        return None
    if (amount := float(budget.max_list_cost.amount)) <= 0:
        raise ValidationError.of(f"{field}.max_list_cost.amount", "must be more than 0")
    return amount


def budget_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The budget that a configuration has, as these clients know it."""
    most = config.get("max_session_usd")
    return {"type": "limit", "max_list_cost": {"amount": f"{most:f}", "currency": "USD"}} if most else None


def overrides(given: AgentOverrides, before: Mapping[str, Any]) -> dict[str, Any]:
    """What a session has otherwise than its agent. `before`: the agent's. Raises BadRequest, ValidationError."""
    if given.skills:
        raise unsupported("agent.skills", "are not supported yet")
    changes = agents.model_options(given.model, "agent.model")
    if "system" in given.model_fields_set:
        changes["system_prompt"] = given.system or None
    if {"tools", "mcp_servers"} & given.model_fields_set:
        fields = {name: getattr(given, name) for name in ("tools", "mcp_servers") if name in given.model_fields_set}
        changes |= agents.retooled(agents.Fields.model_construct(set(fields), **fields), before)
    return changes
