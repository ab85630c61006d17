"""Profiles: what the operator lets an agent do. Clients choose one and may narrow it, never widen it.

A rule of permission is `Tool` or `Tool(pattern)`, as the agent's own program reads it. What a rule covers was tried
with that program: `Edit(path)` also allows the other tools that write files, `Bash(git:*)` allows `git` and every
command that begins with `git `.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from apps.api import errors
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Denial, ModelName, Name, Part, Text, ToolName, ToolRule
from apps.api.core.config.parts import McpServer, PermissionMode, RegisteredServer, RemoteServer, Subagent
from apps.api.core.config.reach import Network, Reach, of_server
from apps.api.core.config.rules import Rule, parse
from apps.api.errors import Problem
from apps.api.settings import HOST, Settings

PACKAGED = Path(__file__).parents[2] / "profiles.toml"
"""The profiles of a server that has no PROFILES_FILE."""

Number = TypeVar("Number", int, float)
NOTHING_KNOWN: Mapping[str, str] = {}

_ALIASES = {"Agent": "Task", "KillShell": "TaskStop", "KillBash": "TaskStop"}
_FAMILIES = {"Edit": ("Edit", "Write", "NotebookEdit"), "Read": ("Read", "Glob", "Grep")}
"""A rule with a path for the first tool counts for all of them."""

_SHELL = re.compile(r"[;&|<>`$(){}\\\n]")
"""What could make a second command out of a rule for one."""


class Profile(Part):
    """What one profile allows. A field that is unset restricts nothing.

    Attributes:
        tools: built-in tools that may exist.
        allow: rules that may be allowed in advance, and are when the client names none.
        never: rules of what never runs.
        permission_modes: those that may be chosen; the first is the default.
        timeout_seconds: longest deadline of a run, and its default where the server's is longer.
        mcp: kinds of MCP servers.
        skills: skills, and with `expand_prompt` slash commands and mentions.
        isolation: the weakest layer that will do: no agent starts with less.
        network: what its agents reach at most.
        allowed_hosts: of a `limited` network, as `settings.HOST` says.
    """

    description: Annotated[Text, Field(min_length=1, max_length=500)]
    tools: list[ToolName] | None = None
    allow: list[ToolRule] | None = None
    never: list[Denial] = Field(default_factory=list)
    permission_modes: Annotated[list[PermissionMode], Field(min_length=1)] | None = None
    models: Annotated[list[ModelName], Field(min_length=1)] | None = None
    max_turns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_budget_usd: Annotated[float, Field(gt=0, le=100_000)] | None = None
    max_session_usd: Annotated[float, Field(gt=0, le=100_000)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    mcp: list[Literal["stdio", "http", "sse"]] | None = None
    hooks: bool = True
    subagents: bool = True
    skills: bool = True
    env: bool = True
    isolation: Literal["landlock", "namespaces"] | None = None
    network: Network | None = None
    allowed_hosts: list[Annotated[str, Field(pattern=HOST, max_length=260)]] | None = None

    @model_validator(mode="after")
    def _names_hosts_where_they_count(self) -> Profile:
        if (self.network == "limited") != bool(self.allowed_hosts):
            raise ValueError('network = "limited" and allowed_hosts need each other')
        return self

    @property
    def reach(self) -> Reach:
        """What its agents reach at most, whatever the server allows."""
        return Reach(self.network or "direct", (self.allowed_hosts,) if self.allowed_hosts else ())

    @model_validator(mode="after")
    def _allows_only_what_may_exist(self) -> Profile:
        for rule in self.allow or ():
            if not may_exist(self, _split(rule)[0]):
                raise ValueError(f"allow: {rule} is a rule for a tool that is not in tools")
        return self


class BadProfiles(ValueError):
    """PROFILES_FILE cannot be used. The message names the file and the entry."""


def load(path: Path | None, default: str | None = None) -> dict[str, Profile]:
    """The profiles of a TOML file, by name; those of the package without a path. `default` must be one of them.

    Raises:
        BadProfiles: it cannot be read, is not TOML, an entry is wrong, or the default is missing.
    """
    path = path or PACKAGED
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadProfiles(f"PROFILES_FILE {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        profiles = TypeAdapter(dict[Name, Profile]).validate_python(entries)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise BadProfiles(f"PROFILES_FILE {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    if default is not None and default not in profiles:
        raise BadProfiles(f"DEFAULT_PROFILE {default} is not in {path}, which has: {', '.join(profiles)}")
    return profiles


def _split(rule: str) -> tuple[str, str | None]:
    """Tool and pattern of a rule; None for a rule of the whole tool. Raises ValueError for what is not one rule."""
    return _named(parse(rule))


def _named(rule: Rule) -> tuple[str, str | None]:
    tool = rule.tool
    if re.fullmatch(r"mcp__[^_*]+(?:_[^_*]+)*", tool):
        tool = f"{tool}__*"  # a rule for a server is one for all of its tools
    return _ALIASES.get(tool, tool), rule.content


def may_exist(profile: Profile, tool: str) -> bool:
    """Whether an agent under this profile may have the tool. One of an MCP server: whether it may have any server."""
    tool = _ALIASES.get(tool, tool)
    if tool in (_ALIASES.get(rule, rule) for rule in profile.never):
        return False
    if tool.startswith("mcp__"):
        return profile.mcp is None or bool(profile.mcp)
    return profile.tools is None or tool in (_ALIASES.get(name, name) for name in profile.tools)


def permits(profile: Profile, rule: str | Rule) -> bool:
    """Whether the profile lets this rule be allowed in advance, by a client or by an answer that is remembered."""
    try:
        tool, pattern = _named(rule if isinstance(rule, Rule) else parse(rule))
    except ValueError:
        return False
    if (tool, pattern) in map(_split, profile.never) or not may_exist(profile, tool):
        return False
    if "*" in tool and not tool.startswith("mcp__"):
        return profile.tools is None and profile.allow is None and not profile.never
    if profile.allow is None or (tool, pattern) in map(_split, profile.allow):
        return True
    wanted = _FAMILIES.get(tool, (tool,)) if pattern is not None else (tool,)
    needed = [member for member in wanted if member == tool or may_exist(profile, member)]
    return all(any(_covers(_split(allowed), (name, pattern)) for allowed in profile.allow) for name in needed)


def limits_input(profile: Profile, tool: str) -> bool:
    """Whether the profile forbids some uses of a tool. The agent's program judges the input that it proposed only."""
    tool = _ALIASES.get(tool, tool)
    return any(
        tool in _FAMILIES.get(name, (name,)) for name, pattern in map(_split, profile.never) if pattern is not None
    )


def _covers(allowed: tuple[str, str | None], rule: tuple[str, str | None]) -> bool:
    (tool, pattern), (name, wanted) = allowed, rule
    if tool.startswith("mcp__") and tool.endswith("*"):
        return name.partition("*")[0].startswith(tool.removesuffix("*"))
    if tool != name:
        return False
    if pattern is None or pattern == wanted:
        return True
    prefix = next((pattern.removesuffix(end) for end in (":*", " *") if pattern.endswith(end)), None)
    if tool != "Bash" or wanted is None or prefix is None or "*" in prefix or _SHELL.search(wanted):
        return False
    return wanted in (prefix, f"{prefix}:*", f"{prefix} *") or wanted.partition("*")[0].startswith(f"{prefix} ")


def problems(
    profile: Profile,
    config: AgentConfig,
    timeout_seconds: float | None = None,
    *,
    expand_prompt: bool = False,
    registered: Mapping[str, str] = NOTHING_KNOWN,
) -> list[Problem]:
    """All that a client asks for and that would widen the profile. `registered`: kinds of the tenant's MCP servers."""
    found = [*_tool_problems(profile, config), *_option_problems(profile, config, registered)]
    if reason := _unless_within(timeout_seconds, profile.timeout_seconds):
        found.append(Problem("timeout_seconds", code="option_not_permitted", reason=reason))
    # A command of the image may allow tools while it runs, and a mention reads a file without a tool.
    if reason := _unless_open(expand_prompt, profile.skills):
        found.append(Problem("expand_prompt", code="option_not_permitted", reason=reason))
    return found


def _tool_problems(profile: Profile, config: AgentConfig) -> Iterator[Problem]:
    named = [("tools", config.tools)]
    named += [(f"agents.{name}.tools", agent.tools) for name, agent in (config.agents or {}).items()]
    for field, tools in named:
        for tool in tools or ():
            if not may_exist(profile, tool):
                yield Problem(field, code="tool_not_permitted", reason=f"{tool} is not among the profile's tools")
    yield from rule_problems(profile, config.allowed_tools or (), "allowed_tools")


def rule_problems(profile: Profile | None, rules: Iterable[str | Rule], field: str) -> list[Problem]:
    """Rules, given in `field`, that the profile does not let be allowed in advance."""
    refused = [rule for rule in rules if profile is not None and not permits(profile, rule)]
    return [Problem(field, code="tool_not_permitted", reason=f"{r} is more than the profile allows") for r in refused]


def _option_problems(profile: Profile, config: AgentConfig, registered: Mapping[str, str]) -> Iterator[Problem]:
    for field, reason in (
        ("permission_mode", _unless_among(config.permission_mode, profile.permission_modes)),
        ("model", _unless_among(config.model, profile.models)),
        ("fallback_model", _unless_among(config.fallback_model, profile.models)),
        ("max_turns", _unless_within(config.max_turns, profile.max_turns)),
        ("max_budget_usd", _unless_within(config.max_budget_usd, profile.max_budget_usd)),
        ("max_session_usd", _unless_within(config.max_session_usd, profile.max_session_usd)),
        ("hooks", _unless_open(config.hooks, profile.hooks)),
        ("agents", _unless_open(config.agents, profile.subagents)),
        ("skills", _unless_open(config.skills, profile.skills)),
        ("env", _unless_open(config.env, profile.env)),
        *_inner_options(profile, config, registered),
    ):
        if reason:
            yield Problem(field, code="option_not_permitted", reason=reason)


def _inner_options(
    profile: Profile, config: AgentConfig, registered: Mapping[str, str]
) -> Iterator[tuple[str, str | None]]:
    for name, agent in (config.agents or {}).items():
        yield f"agents.{name}.model", _unless_among(_own_model(agent), profile.models)
        yield f"agents.{name}.max_turns", _unless_within(agent.max_turns, profile.max_turns)
        yield f"agents.{name}.permission_mode", _unless_among(agent.permission_mode, profile.permission_modes)
        yield f"agents.{name}.skills", _unless_open(agent.skills, profile.skills)
    for field, server in config.servers().items():
        kind = registered.get(server.name) if isinstance(server, RegisteredServer) else server.type
        if not permits_kind(profile, kind):
            yield field, f"the profile allows no {kind or server.type} server"
        elif isinstance(server, RemoteServer) and (reason := profile.reach.reason_against(server.url)):
            yield f"{field}.url", reason


def _own_model(agent: Subagent) -> str | None:
    return None if agent.model == "inherit" else agent.model


def reach_of(profile: Profile | None, settings: Settings) -> Reach:
    """What agents of sessions with this profile may reach on this server. Without isolation nothing is held back."""
    if ((profile and profile.isolation) or settings.agent_isolation) == "off":
        return Reach()
    return of_server(settings).within(profile.reach) if profile else of_server(settings)


def permits_server(profile: Profile, server: McpServer) -> bool:
    """Whether this kind of MCP server is allowed. One of the registry: whether any is, until it is known what it is."""
    return permits_kind(profile, None if server.type == "registered" else server.type)


def permits_kind(profile: Profile, kind: str | None) -> bool:
    """Whether MCP servers of this kind are allowed; None: of any."""
    return profile.mcp is None or (bool(profile.mcp) if kind is None else kind in profile.mcp)


def _unless_among(value: str | None, allowed: Iterable[str] | None) -> str | None:
    allows = value is None or allowed is None or value in allowed
    return None if allows else f"{value} is not among the profile's: {', '.join(allowed or ())}"


def _unless_within(value: float | None, limit: float | None) -> str | None:
    return None if value is None or limit is None or value <= limit else f"the profile allows at most {limit:g}"


def _unless_open(value: Any, is_open: bool) -> str | None:
    return "the profile does not allow this" if value and not is_open else None


def clamp(profile: Profile, config: AgentConfig) -> AgentConfig:
    """The configuration with the profile's defaults, and without whatever would widen it."""
    allowed = profile.allow if config.allowed_tools is None else config.allowed_tools
    mode, modes = config.permission_mode, profile.permission_modes
    return config.model_copy(
        update={
            "model": _one_of(config.model, profile.models, default=True),
            "fallback_model": _one_of(config.fallback_model, profile.models),
            "tools": profile.tools if config.tools is None else [t for t in config.tools if may_exist(profile, t)],
            "allowed_tools": None if allowed is None else [rule for rule in allowed if permits(profile, rule)],
            "disallowed_tools": list(dict.fromkeys((*(config.disallowed_tools or ()), *profile.never))) or None,
            "permission_mode": mode if modes is None or mode in modes else modes[0],
            "max_turns": _least(config.max_turns, profile.max_turns),
            "max_budget_usd": _least(config.max_budget_usd, profile.max_budget_usd),
            "max_session_usd": _least(config.max_session_usd, profile.max_session_usd),
            "mcp_servers": _open_servers(profile, config.mcp_servers),
            "agents": _open_agents(profile, config.agents) if profile.subagents else None,
            "hooks": config.hooks if profile.hooks else None,
            "skills": config.skills if profile.skills else [],
            "env": config.env if profile.env else None,
        }
    )


def _one_of(value: str | None, allowed: Sequence[str] | None, *, default: bool = False) -> str | None:
    if allowed is None or value in allowed:
        return value
    return allowed[0] if default else None


def _least(value: Number | None, limit: Number | None) -> Number | None:
    return min((number for number in (value, limit) if number is not None), default=None)


def _open_servers(profile: Profile, servers: dict[str, McpServer] | None) -> dict[str, McpServer] | None:
    return servers and {
        name: server
        for name, server in servers.items()
        if permits_server(profile, server)
        and not (isinstance(server, RemoteServer) and profile.reach.reason_against(server.url))
    }


def _open_agents(profile: Profile, agents: dict[str, Subagent] | None) -> dict[str, Subagent] | None:
    return agents and {
        name: agent.model_copy(
            update={
                "tools": agent.tools and [tool for tool in agent.tools if may_exist(profile, tool)],
                "model": agent.model if agent.model == "inherit" else _one_of(agent.model, profile.models),
                "max_turns": _least(agent.max_turns, profile.max_turns),
                "permission_mode": _one_of(agent.permission_mode, profile.permission_modes),
                "skills": agent.skills if profile.skills else agent.skills and [],
                "mcp_servers": _open_servers(profile, agent.mcp_servers),
            }
        )
        for name, agent in agents.items()
    }


@dataclass(frozen=True, slots=True)
class Policy:
    """Which profiles there are, and which of them a caller may use.

    Attributes:
        bound: names of those that the caller's key is bound to; None: it may use any, or none.
        default: DEFAULT_PROFILE, for keys that are bound to none.
        models: lists of patterns, of the caller's tenant and key as far as they have one: each must have a model.
        default_model: of sessions that name none.
    """

    profiles: Mapping[str, Profile]
    bound: tuple[str, ...] | None = None
    default: str | None = None
    models: tuple[tuple[str, ...], ...] = ()
    default_model: str = ""

    def named(self, name: str) -> Profile:
        """A profile that a session or a preset is pinned to. Raises ValidationError when it is no more."""
        if name not in self.profiles:
            raise errors.ValidationError.of("profile", f"no profile {name}; there are: {', '.join(self.profiles)}")
        return self.profiles[name]

    @property
    def usual(self) -> str | None:
        """The profile of a new session whose request names none."""
        return self.bound[0] if self.bound else self.default

    def may_use(self, name: str | None) -> bool:
        """Whether the caller may use sessions of this profile (None: of none)."""
        return self.bound is None or name in self.bound

    def choose(self, asked: str | None) -> str | None:
        """The profile of a new session.

        Raises:
            ValidationError: no such profile.
            Forbidden: `profile_not_permitted`.
        """
        name = asked or self.usual
        if name is not None:
            self.named(name)
        self.require(name)
        return name

    def require(self, name: str | None) -> None:
        """Raises Forbidden `profile_not_permitted` when the caller's key may not use sessions of this profile."""
        if not self.may_use(name):
            bound, whose = ", ".join(self.bound or ()), f"the profile {name}" if name else "no profile"
            raise errors.Forbidden(f"This key is bound to: {bound}. Not to {whose}.", code="profile_not_permitted")

    def timeouts(self) -> dict[str, float]:
        """The longest deadline of a run, of those profiles that have one."""
        return {name: p.timeout_seconds for name, p in self.profiles.items() if p.timeout_seconds is not None}


UNRESTRICTED = Policy({})
