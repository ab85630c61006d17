"""What an import needs, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import ValidationError

from apps.api.core.config import profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import Policy
from apps.api.core.files.objects import Objects
from apps.api.core.files.tarball import BadArchive
from apps.api.core.sessions import archive_lines as wire
from apps.api.settings import Settings
from apps.api.threads import Threads


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset that was imported: its new id, its newest version, and those that were there."""

    id: UUID
    newest: int
    versions: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Imported:
    """What came of an import.

    Attributes:
        sessions: old id → new id.
        runs, presets: the same, for those that are referred to.
        lacking: what has to be done by hand, since no archive holds it.
    """

    tenant: str
    sessions: dict[UUID, UUID] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    presets: dict[UUID, Preset] = field(default_factory=dict)
    rows: int = 0
    files: int = 0
    links_left_out: int = 0
    lacking: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Importer:
    """What imports need: a connection in a transaction, whose jsonb are Python objects, the profiles here, and the
    store of files."""

    connection: asyncpg.Connection
    settings: Settings
    policy: Policy
    objects: Objects
    threads: Threads


class Refused(Exception):
    """The import is not possible here. The message says why."""


def config_of(
    given: Mapping[str, Any], profile: str | None, policy: Policy, where: str
) -> tuple[AgentConfig, list[str]]:
    """A configuration, as if a client had sent it for an agent under `profile`, and what of it no archive holds.

    Raises BadArchive, Refused.
    """
    config, lacks = dict(given), []
    if config.pop("env", None):
        lacks.append("env is not there")
    try:
        shown = AgentConfig.model_validate(config).given()
    except ValidationError as error:
        raise BadArchive(f"{where}: config.{wire.misfit(error)}") from None
    for part in (shown, *shown.get("agents", {}).values()):
        for name, server in list(part.get("mcp_servers", {}).items()):
            if server.get("env") or server.get("headers"):
                del part["mcp_servers"][name]
                lacks.append(f"MCP server {name} is not there")
    kept = AgentConfig.model_validate(shown)
    if profile is None:
        return kept, lacks
    if profile not in policy.profiles:
        raise Refused(f"{where}: there is no profile {profile} here; there are: {', '.join(policy.profiles)}.")
    for problem in profiles.problems(policy.profiles[profile], kept):
        raise Refused(f"{where}: config.{problem.field}: {problem.reason} (profile {profile}).")
    return profiles.clamp(policy.profiles[profile], kept), lacks
