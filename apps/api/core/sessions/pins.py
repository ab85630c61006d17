"""What a client chooses for a session beside its options, and what of that the session is pinned to."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import asyncpg

from apps.api.core.config import profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import UNRESTRICTED, Policy, Profile
from apps.api.core.tenant import variables
from apps.api.core.tenant.presets import find, split
from apps.api.db import Database
from apps.api.errors import ValidationError


@dataclass(frozen=True, slots=True)
class Choice:
    """What a client chose for a session beside its options, and what its key may choose from.

    Attributes:
        agent: a preset: its name or id, perhaps with `@version`.
    """

    profile: str | None = None
    policy: Policy = UNRESTRICTED
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class Pins:
    """What a session keeps from its creation on, whatever becomes of it elsewhere."""

    profile: str | None = None
    agent_id: UUID | None = None
    agent_version: int | None = None


NO_PINS = Pins()


async def pin(
    connection: asyncpg.Connection | asyncpg.Pool,
    tenant_id: UUID,
    choice: Choice,
    config: AgentConfig,
    timeout_seconds: float | None = None,
    *,
    expand_prompt: bool = False,
) -> tuple[AgentConfig, Pins]:
    """The configuration of a new session: the preset's, overlaid with what is given, under the profile.

    Args:
        timeout_seconds: the deadline that the client asks for.

    Raises:
        NotFound: no such preset.
        ValidationError: no such profile, or variables that its stdio servers may not inherit.
        Forbidden: the key may not use the profile, or the configuration would widen it.
    """
    pins, wanted = NO_PINS, choice.profile
    if choice.agent is not None:
        found = await find(connection, tenant_id, choice.agent)
        config = config.over(found["config"])
        pins, wanted = Pins(None, found["id"], found["version"]), wanted or found["profile"]
    await variables.check(connection, tenant_id, config)
    name = choice.policy.choose(wanted)
    if name is None:
        return config, pins
    profile = choice.policy.profiles[name]
    profiles.refuse(profiles.problems(profile, config, timeout_seconds, expand_prompt=expand_prompt))
    return profiles.clamp(profile, config), Pins(name, pins.agent_id, pins.agent_version)


async def require_same(connection: asyncpg.Connection, reference: str, pinned: Pins) -> None:
    """Raises ValidationError unless the reference is to what a session is pinned to."""
    id_, name, version = split(reference)
    known = await connection.fetchval("SELECT name FROM agents WHERE id = $1", pinned.agent_id)
    same = known is not None and (id_ == pinned.agent_id or (id_ is None and name == known))
    if not same or version not in (None, pinned.agent_version):
        what = f"{known}@{pinned.agent_version}" if known else "none"
        raise ValidationError.of("agent", f"is fixed when the session is created: {what}")


_PROFILE = """
SELECT profile FROM sessions
WHERE tenant_id = $1 AND id = coalesce($2, (SELECT session_id FROM runs WHERE id = $3 AND tenant_id = $1))
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
    row = await connection.fetchrow(_PROFILE, tenant_id, session_id, run_id)
    if row is not None:
        policy.require(row["profile"])


async def profile_of(db: Database, tenant_id: UUID, session_id: UUID, policy: Policy) -> Profile | None:
    """The profile that binds a session; None also for a session that is unknown, which others will say.

    Raises:
        Forbidden: `profile_not_permitted`, the caller's key may not use sessions of this profile.
        ValidationError: the profile is no more.
    """
    row = await db.pool.fetchrow("SELECT profile FROM sessions WHERE id = $1 AND tenant_id = $2", session_id, tenant_id)
    if row is None:
        return None
    policy.require(row["profile"])
    return policy.named(row["profile"]) if row["profile"] else None
