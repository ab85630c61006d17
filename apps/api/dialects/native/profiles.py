"""Profiles: what the operator lets agents do. Clients read and choose them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from apps.api.auth import Principal
from apps.api.core.config.names import Name
from apps.api.core.config.parts import PermissionMode
from apps.api.core.context import Core
from apps.api.dialects.native.common import MAX_LIMIT, PREFIX, Cursor, Limit, errors, paged
from apps.api.dialects.native.schemas import Page, Usd
from apps.api.errors import NotFound
from apps.api.web.callers import Reader, policy_of
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["profiles"])


class ProfileState(BaseModel):
    """A profile. Null means: not restricted."""

    name: str = Field(examples=["readonly"])
    description: str = Field(examples=["Reads the files of its workspace. No changes, no commands, no network."])
    usable: bool = Field(description="Whether this key may use it.")
    default: bool = Field(description="Whether a session of this key runs under it when the request names none.")
    tools: list[str] | None = Field(description="Built-in tools that may exist; all of them unless `tools` says less.")
    allow: list[str] | None = Field(description="Rules that may be in `allowed_tools`; all of them unless it is given.")
    never: list[str] = Field(description="Rules of what never runs.")
    permission_modes: list[PermissionMode] | None = Field(description="Those to choose from, the default first.")
    models: list[str] | None = Field(description="Those to choose from, the default first.")
    max_turns: int | None = Field(description="The most that `max_turns` may be, and its default.")
    max_budget_usd: Usd | None = Field(description="The most that `max_budget_usd` may be, and its default.")
    max_session_usd: Usd | None = Field(description="The most that `max_session_usd` may be, and its default.")
    timeout_seconds: float | None = Field(description="The most that `timeout_seconds` may be.")
    mcp: list[Literal["stdio", "http", "sse"]] | None = Field(description="Kinds of MCP servers.")
    hooks: bool = Field(description="Whether requests may bring webhooks.")
    subagents: bool = Field(description="Whether requests may define subagents (`agents`).")
    skills: bool = Field(description="Whether requests may enable skills.")
    env: bool = Field(description="Whether requests may set variables of the environment.")
    isolation: Literal["landlock", "namespaces"] | None = Field(
        description="No agent starts with less: `landlock` confines it to its files, `namespaces` does so in a view of"
        " the machine of its own."
    )
    network: Literal["open", "limited", "model_only"] | None = Field(
        description="What its agents reach at most; of this and the server's AGENT_NETWORK the stricter holds."
    )
    allowed_hosts: list[str] | None = Field(description="What `limited` agents reach, by name.")


def _state(core: Core, caller: Principal, name: str) -> ProfileState:
    policy, profile = policy_of(core, caller), core.profiles[name]
    state = {"name": name, "usable": policy.may_use(name), "default": policy.usual == name, **profile.model_dump()}
    return ProfileState.model_validate(state)


@router.get("/profiles", responses=errors())
async def list_profiles(
    core: CoreDep, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None
) -> Page[ProfileState]:
    """Profiles of this server: what each allows, and whether this key may use it."""
    return paged([_state(core, caller, name) for name in core.profiles], limit, cursor)


@router.get("/profiles/{name}", responses=errors(404))
async def get_profile(
    core: CoreDep, caller: Reader, name: Annotated[Name, Path(description="The profile's name.")]
) -> ProfileState:
    """One profile: what it allows, and whether this key may use it."""
    if name not in core.profiles:
        raise NotFound.of("profile")
    return _state(core, caller, name)
