"""What a client chooses for a session beside its options, and what of that the session is pinned to."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from apps.api.core import profiles
from apps.api.core.config import AgentConfig
from apps.api.core.profiles import UNRESTRICTED, Policy


@dataclass(frozen=True, slots=True)
class Choice:
    """A profile by its name, and what the caller's key may choose from."""

    profile: str | None = None
    policy: Policy = UNRESTRICTED


@dataclass(frozen=True, slots=True)
class Pins:
    """What a session keeps from its creation on, whatever becomes of it elsewhere."""

    profile: str | None = None
    agent_id: UUID | None = None
    agent_version: int | None = None


NO_PINS = Pins()


def pin(choice: Choice, config: AgentConfig, timeout_seconds: float | None = None) -> tuple[AgentConfig, Pins]:
    """The configuration of a new session under the profile that was chosen.

    Args:
        timeout_seconds: the deadline that the client asks for.

    Raises:
        ValidationError: no such profile.
        Forbidden: the key may not use it, or the configuration would widen it.
    """
    name = choice.policy.choose(choice.profile)
    if name is None:
        return config, Pins()
    profile = choice.policy.profiles[name]
    profiles.refuse(profiles.problems(profile, config, timeout_seconds))
    return profiles.clamp(profile, config), Pins(name)
