"""The one gate: may this caller run this? Submitting refuses what the dry run lists; presets pass it as well.

Problems come in this order, and the first decides the status: the preset and the profile that are named, the prompt,
what options name (skills, MCP servers, the repository, secrets), variables, and what the profile allows.

What is judged outside of a transaction may ask the network for names. A session's own row is judged inside the one that
changes it, see `judge_change`. Nothing else has to be seen twice: a preset's version never changes, and a session that
begins a moment after its preset was removed is one whose request came a moment before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.config import client_tools, content, expansion, models, profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.environment import permit
from apps.api.core.config.limits import Limits
from apps.api.core.config.parts import RegisteredServer
from apps.api.core.config.profiles import UNRESTRICTED, Policy, Profile
from apps.api.core.config.resources import Resource
from apps.api.core.context import Core
from apps.api.core.tenant import environments, mcp, presets, provisioning, repositories, skills, vault, vaults
from apps.api.core.tenant.presets import Draft
from apps.api.db import Database
from apps.api.errors import Problem, ValidationError, noting, refuse

Prompt = str | list[dict[str, Any]] | dict[str, Any]
"""Text, content blocks, or what a reset or rewind asks for."""

NO_CHANGES = AgentConfig()


@dataclass(frozen=True, slots=True)
class Choice:
    """What a client chose for a session beside its options, and what its key may choose from.

    Attributes:
        agent: a preset: its name or id, perhaps with `@version`.
        environment: where its agents work, see core/tenant/environments.py; never of an existing session.
        vaults: whose secrets its agents have, see core/tenant/vaults.py; never of an existing session.
    """

    profile: str | None = None
    policy: Policy = UNRESTRICTED
    agent: str | None = None
    environment: UUID | None = None
    vaults: tuple[UUID, ...] = ()


NO_CHOICE = Choice()


@dataclass(frozen=True, slots=True)
class Pins:
    """What a session keeps from its creation on, whatever becomes of it elsewhere."""

    profile: str | None = None
    agent_id: UUID | None = None
    agent_version: int | None = None
    environment_id: UUID | None = None
    network: Mapping[str, Any] | None = None
    vault_ids: tuple[UUID, ...] = ()

    @property
    def are_of_its_own(self) -> bool:
        """Whether its agents are given what those of other sessions are not."""
        return self.network is not None or bool(self.vault_ids)


NO_PINS = Pins()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller wants to run.

    Attributes:
        config: of a new session; for an existing one what changes.
        prompt: None without one.
        timeout_seconds: the deadline, if the client named it.
        resources: of the prompt.
    """

    config: AgentConfig = NO_CHANGES
    choice: Choice = NO_CHOICE
    prompt: Prompt | None = None
    timeout_seconds: float | None = None
    expand_prompt: bool = False
    resources: Sequence[Resource] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """What would run.

    Attributes:
        config: with the preset's options and under the profile, as far as the problems leave it.
        asked: the same before the profile took away what it does not allow.
    """

    config: AgentConfig
    asked: AgentConfig
    pins: Pins = NO_PINS
    problems: list[Problem] = field(default_factory=list)


def policy(core: Core, bound: tuple[str, ...] | None, *limits: Limits) -> Policy:
    """Which profiles and models a caller may use. `bound`: profiles of its key; `limits`: of its tenant and key."""
    models = tuple(tuple(those.models) for those in limits if those.models is not None)
    settings = core.settings
    return Policy(core.profiles, bound, settings.default_profile, models, settings.default_model)


async def judge(core: Core, tenant_id: UUID, wanted: Wanted) -> Judged:
    """Judge what a new session would be. Nothing is stored or started."""
    found = list[Problem]()
    config, pins, named = wanted.config, NO_PINS, wanted.choice.profile
    if wanted.choice.agent is not None:
        with noting(found, "agent"):
            row = await presets.find(core.db.pool, tenant_id, wanted.choice.agent)
            config, named = config.over(row["config"]), named or row["profile"]
            pins = Pins(None, row["id"], row["version"])
            if row["archived_at"] is not None:
                raise ValidationError.of("agent", "is archived: no session begins with it")
    profile = None
    with noting(found, "profile"):
        if name := wanted.choice.policy.choose(named):
            profile, pins = wanted.choice.policy.profiles[name], replace(pins, profile=name)
    if wanted.choice.environment is not None:
        with noting(found, "environment_id"):
            network = await environments.network_of(core, tenant_id, wanted.choice.environment, profile, config)
            pins = replace(pins, environment_id=wanted.choice.environment, network=network)
    if wanted.choice.vaults:
        with noting(found, "vault_ids"):
            await vaults.require(core.db, tenant_id, wanted.choice.vaults)
            pins = replace(pins, vault_ids=wanted.choice.vaults)
    found += await _of_prompt(core, tenant_id, wanted)
    found += await _of_all(core, tenant_id, config, profile, wanted)
    return Judged(profiles.clamp(profile, config) if profile else config, config, pins, found)


async def judge_preset(core: Core, tenant_id: UUID, draft: Draft, policy: Policy) -> None:
    """Judge a preset before it is stored. Raises ValidationError, Forbidden."""
    found = list[Problem]()
    profile = None
    if draft.profile is not None:
        with noting(found, "profile"):
            profile = policy.named(draft.profile)
            policy.require(draft.profile)
    found += await _of_all(core, tenant_id, draft.config, profile, Wanted())
    refuse(found)


async def problems_of_change(core: Core, tenant_id: UUID, wanted: Wanted) -> list[Problem]:
    """What is wrong with changes of an existing session whatever it is now: the part that may ask the network."""
    found = await _of_prompt(core, tenant_id, wanted)
    if wanted.config.model_fields_set:
        kinds = await mcp.kinds(core.db.pool, tenant_id, wanted.config.servers())
        found += await _of_names(core, tenant_id, wanted.config, kinds)
    return found


async def judge_change(
    connection: asyncpg.Connection, tenant_id: UUID, wanted: Wanted, row: Mapping[str, Any], found: list[Problem]
) -> AgentConfig:
    """The configuration of an existing session with what changes.

    Args:
        row: `config`, `profile`, `agent_id` and `agent_version` of the session, which the transaction has locked.
        found: as `problems_of_change` returned it.

    Raises:
        ValidationError: a change is not possible for an existing session, or something in `found` is wrong.
        Forbidden: the key may not use the session's profile, or the request would widen it.
    """
    pinned, policy, changes = (
        Pins(row["profile"], row["agent_id"], row["agent_version"]),
        wanted.choice.policy,
        wanted.config,
    )
    policy.require(pinned.profile)
    before = list[Problem]()
    if wanted.choice.agent is not None:
        with noting(before, "agent"):
            await _require_same(connection, wanted.choice.agent, pinned)
    if wanted.choice.profile not in (None, pinned.profile):
        reason = f"is fixed when the session is created: {pinned.profile or 'none'}"
        before.append(Problem("profile", "validation_error", reason))
    for name in ("cwd", "repository", "resources"):
        if name in changes.model_fields_set and changes.given().get(name) != row["config"].get(name):
            before.append(Problem(name, "validation_error", "is fixed when the session is created"))
    profile = policy.named(pinned.profile) if pinned.profile else None
    config = changes.over(row["config"])
    kinds = await mcp.kinds(connection, tenant_id, config.servers())
    refuse([*before, *found, *_of_options(config, changes, profile, wanted, kinds)])
    return config if profile is None else profiles.clamp(profile, config)


async def _require_same(connection: asyncpg.Connection, reference: str, pinned: Pins) -> None:
    id_, name, version = presets.parse_reference(reference)
    known = await connection.fetchval("SELECT name FROM agents WHERE id = $1", pinned.agent_id)
    same = known is not None and (id_ == pinned.agent_id or (id_ is None and name == known))
    if not same or version not in (None, pinned.agent_version):
        what = f"{known}@{pinned.agent_version}" if known else "none"
        raise ValidationError.of("agent", f"is fixed when the session is created: {what}")


async def _of_prompt(core: Core, tenant_id: UUID, wanted: Wanted) -> list[Problem]:
    found = await provisioning.problems(core, tenant_id, wanted.resources)
    prompt, limit = wanted.prompt, core.settings.max_prompt_chars
    if prompt is None or isinstance(prompt, dict):
        return found
    if sum(map(len, content.texts(prompt))) > limit:
        found.append(Problem("prompt", "validation_error", f"longer than {limit} characters"))
    elif wanted.expand_prompt:
        with noting(found, "prompt"):
            expansion.check(prompt)
    return found


async def _of_all(
    core: Core, tenant_id: UUID, config: AgentConfig, profile: Profile | None, wanted: Wanted
) -> list[Problem]:
    """Of a configuration that no session has yet."""
    kinds = await mcp.kinds(core.db.pool, tenant_id, config.servers())
    found = await _of_names(core, tenant_id, config, kinds)
    return [*found, *_of_options(config, config, profile, wanted, kinds)]


async def _of_names(core: Core, tenant_id: UUID, config: AgentConfig, kinds: Mapping[str, str]) -> list[Problem]:
    """What options name must be there and allowed. `kinds`: of the registered MCP servers among them."""
    found = await skills.problems(core.db, tenant_id, config)
    found += await mcp.problems(core, tenant_id, config.servers(), kinds)
    with noting(found, "repository"):
        repositories.check(core.settings, config.repository)
    found += await provisioning.problems(core, tenant_id, config.resources or ())
    with noting(found, "hooks"):
        await vault.require(core.db, tenant_id, config.hook_secrets())
    return found


def _of_options(
    config: AgentConfig,
    given: AgentConfig,
    profile: Profile | None,
    wanted: Wanted,
    kinds: Mapping[str, str],
) -> list[Problem]:
    """What depends on the whole configuration or on the profile. `given`: what the profile is asked about; `kinds`: of
    the registered MCP servers."""
    own = {server.type for server in config.servers().values() if not isinstance(server, RegisteredServer)}
    found = list[Problem]()
    taken = [field for field in config.servers() if field.rpartition(".")[2] == client_tools.SERVER]
    if config.client_tools and taken:
        found.append(Problem(taken[0], "validation_error", "this name is that of client_tools"))
    with noting(found, "env"):
        permit(config.env or {}, {*own, *kinds.values()})
    narrowed = profiles.clamp(profile, config) if profile else config  # a profile has a default model of its own
    found += models.problems(wanted.choice.policy, narrowed)
    if profile is not None:
        timeout, expand = wanted.timeout_seconds, wanted.expand_prompt
        found += profiles.problems(profile, given, timeout, expand_prompt=expand, registered=kinds)
    return found


# --- sessions that exist -------------------------------------------------------------------------------------------


_PROFILES = """
SELECT profile FROM sessions
WHERE tenant_id = $1 AND id IN ($2, (SELECT session_id FROM runs WHERE id = $3 AND tenant_id = $1))
"""


async def may_touch(
    connection: asyncpg.Connection | asyncpg.Pool,
    tenant_id: UUID,
    policy: Policy,
    *,
    session_id: UUID | None = None,
    run_id: UUID | None = None,
) -> None:
    """The one check of a key that is bound to profiles, for whatever it wants to do with a session or a run.

    Nothing is said of one that does not exist: others will.

    Raises:
        Forbidden: `profile_not_permitted`, the session has another profile, or none.
    """
    if policy.bound is None or (session_id is None and run_id is None):
        return
    for row in await connection.fetch(_PROFILES, tenant_id, session_id, run_id):
        policy.require(row["profile"])


async def profile_of(db: Database, tenant_id: UUID, session_id: UUID, policy: Policy) -> Profile | None:
    """The profile that binds a session; None also for a session that is unknown, which others will say.

    Raises:
        Forbidden: `profile_not_permitted`, the caller's key may not use sessions of this profile.
        ValidationError: the profile is no more.
    """
    row = await db.pool.fetchrow("SELECT profile FROM sessions WHERE id = $1 AND tenant_id = $2", session_id, tenant_id)
    return None if row is None else within(policy, row["profile"])


def within(policy: Policy, name: str | None) -> Profile | None:
    """The profile of this name, which binds a session, if any does. Raises as `profile_of`."""
    policy.require(name)
    return policy.named(name) if name else None
