"""Tools of agents: toolsets and custom tools, and the core's options that mean the same. Pure functions.

Each tool is either allowed at once or asked for: `allowed_tools` and `ask_tools` have every tool that there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from apps.api.core.config import client_tools
from apps.api.core.config.names import Document, Name, Text
from apps.api.core.config.parts import Url
from apps.api.dialects.managed.common import Closed, unsupported
from apps.api.errors import ValidationError

BUILT_IN = {
    "bash": "Bash",
    "edit": "Edit",
    "read": "Read",
    "write": "Write",
    "glob": "Glob",
    "grep": "Grep",
    "web_fetch": "WebFetch",
    "web_search": "WebSearch",
}
"""Their names here → the agent's own."""

THEIRS = {name: theirs for theirs, name in BUILT_IN.items()}
TOOLSET = "agent_toolset_20260401"
OPTIONS = ("tools", "allowed_tools", "ask_tools", "disallowed_tools", "client_tools", "mcp_servers")
"""Those that are made of `tools` and `mcp_servers`."""


class PermissionPolicy(Closed):
    """Whether a call runs at once or waits for a person."""

    type: Literal["always_allow", "always_ask", "auto"]


class ToolDefault(Closed):
    """Of tools that are not named."""

    enabled: bool | None = None
    permission_policy: PermissionPolicy | None = None


class BuiltInTool(ToolDefault):
    """A built-in tool, where it differs from the default."""

    name: Literal["bash", "edit", "read", "write", "glob", "grep", "web_fetch", "web_search"]
    type: str | None = None
    allowed_domains: list[str] | None = None
    blocked_domains: list[str] | None = None
    max_content_tokens: int | None = None
    url_sources: Any = None
    user_location: Any = None


class AgentToolset(Closed):
    """The built-in tools."""

    type: Literal["agent_toolset_20260401"]
    default_config: ToolDefault | None = None
    configs: Annotated[list[BuiltInTool], Field(max_length=256)] | None = None


McpToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class McpTool(ToolDefault):
    """A tool of an MCP server, where it differs from the default."""

    name: McpToolName


class McpToolset(Closed):
    """The tools of an MCP server."""

    type: Literal["mcp_toolset"]
    mcp_server_name: Name
    default_config: ToolDefault | None = None
    configs: Annotated[list[McpTool], Field(max_length=256)] | None = None


class CustomTool(Closed):
    """A tool that the caller's program executes."""

    type: Literal["custom"]
    name: client_tools.ToolName
    description: Annotated[Text, Field(min_length=1, max_length=10_000)]
    input_schema: Document


class UrlServer(Closed):
    """An MCP server."""

    type: Literal["url"]
    name: Name
    url: Url


Tool = Annotated[AgentToolset | McpToolset | CustomTool, Field(discriminator="type")]
Tools = Annotated[list[Tool], Field(max_length=256)]
Servers = Annotated[list[UrlServer], Field(max_length=20)]


def _asks(field: str, own: ToolDefault, default: str) -> bool:
    policy = own.permission_policy.type if own.permission_policy else default
    if policy == "auto":
        raise unsupported(f"{field}.permission_policy", "no model judges calls here: 'always_allow' or 'always_ask'")
    return policy == "always_ask"


def _own(own: ToolDefault, default: ToolDefault | None) -> ToolDefault:
    given = default or ToolDefault()
    return ToolDefault(
        enabled=given.enabled if own.enabled is None else own.enabled,
        permission_policy=own.permission_policy or given.permission_policy,
    )


_UNNAMED = BuiltInTool(name="bash")
"""What a tool that the list does not name has: nothing that differs from the default."""

_LIMITS = ("allowed_domains", "blocked_domains", "max_content_tokens", "url_sources", "user_location")


def _built_in(field: str, toolset: AgentToolset, found: dict[str, Any]) -> None:
    named: dict[str, Any] = {config.name: (number, config) for number, config in enumerate(toolset.configs or ())}
    for theirs, ours in BUILT_IN.items():
        number, config = named.get(theirs, (0, _UNNAMED))
        where = f"{field}.configs.{number}" if theirs in named else f"{field}.default_config"
        for limit in _LIMITS:
            if getattr(config, limit) is not None:
                raise unsupported(f"{where}.{limit}", "the network is limited by the environment, not by the tool")
        own = _own(config, toolset.default_config)
        if own.enabled is not False:
            found["tools"].append(ours)
            found["ask_tools" if _asks(where, own, "always_allow") else "allowed_tools"].append(ours)


def _of_server(field: str, toolset: McpToolset, found: dict[str, Any]) -> None:
    server, default = f"mcp__{toolset.mcp_server_name}", toolset.default_config or ToolDefault()
    if default.enabled is False:
        raise unsupported(f"{field}.default_config.enabled", "name the tools that are not to be used instead")
    asks = _asks(f"{field}.default_config", default, "always_ask")
    found["ask_tools" if asks else "allowed_tools"].append(server)
    for number, config in enumerate(toolset.configs or ()):
        own, tool, where = _own(config, default), f"{server}__{config.name}", f"{field}.configs.{number}"
        if own.enabled is False:
            found["disallowed_tools"].append(tool)
        elif (mine := _asks(where, own, "always_ask")) and not asks:
            found["ask_tools"].append(tool)
        elif not mine and asks:
            raise unsupported(
                f"{where}.permission_policy", "a tool of a server that is always asked for is asked for, too"
            )


def options(tools: Sequence[AgentToolset | McpToolset | CustomTool], servers: Sequence[UrlServer]) -> dict[str, Any]:
    """The core's options, by name. Raises BadRequest, ValidationError."""
    found: dict[str, Any] = {name: [] for name in ("tools", "allowed_tools", "ask_tools", "disallowed_tools")}
    custom, seen = [], set[str]()
    for number, tool in enumerate(tools):
        field = f"tools.{number}"
        match tool:
            case AgentToolset():
                if TOOLSET in seen:
                    raise ValidationError.of(field, "there is a toolset of this type already")
                seen.add(TOOLSET)
                _built_in(field, tool, found)
            case McpToolset(mcp_server_name=name):
                if name in seen or name not in {server.name for server in servers}:
                    reason = "has a toolset already" if name in seen else f"no server {name} in mcp_servers"
                    raise ValidationError.of(f"{field}.mcp_server_name", reason)
                seen.add(name)
                _of_server(field, tool, found)
            case CustomTool():
                if tool.input_schema.get("type") != "object":
                    raise ValidationError.of(f"{field}.input_schema.type", "must be 'object'")
                custom.append(tool.model_dump(include={"name", "description", "input_schema"}))
    mcp: dict[str, Any] = {}
    for number, server in enumerate(servers):
        if server.name in mcp:
            raise ValidationError.of(f"mcp_servers.{number}.name", "is there already")
        if server.name not in seen:
            raise ValidationError.of(f"mcp_servers.{number}.name", "no mcp_toolset in tools refers to it")
        mcp[server.name] = {"type": "http", "url": server.url}
    return {
        **found,
        "disallowed_tools": found["disallowed_tools"] or None,
        "client_tools": custom or None,
        "mcp_servers": mcp or None,
    }


# --- and back ------------------------------------------------------------------------------------------------------


def asks(config: Mapping[str, Any], tool: str) -> bool | None:
    """Whether a call of this tool waits for a person; None: the agent's own program decides that."""
    if config.get("permission_mode") == "bypassPermissions":
        return False
    server = tool.split("__")[1] if tool.startswith("mcp__") else ""
    names = {tool, f"mcp__{server}", f"mcp__{server}__*"}
    if names & {*(config.get("ask_tools") or ())}:
        return True
    if server == client_tools.SERVER or names & {*(config.get("allowed_tools") or ())}:
        return False
    return None


def _config(enabled: bool, asked: bool | None) -> dict[str, Any]:
    return {"enabled": enabled, "permission_policy": {"type": "always_allow" if asked is False else "always_ask"}}


def servers_of(config: Mapping[str, Any]) -> dict[str, str]:
    """MCP servers that have a URL."""
    return {name: server["url"] for name, server in (config.get("mcp_servers") or {}).items() if "url" in server}


def shown(config: Mapping[str, Any], usual: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a stored configuration has of tools, as these clients know it. `usual`: the tools of one that names none."""
    named = config.get("tools")
    enabled = set(usual if named is None else named)
    if enabled & set(THEIRS):
        configs = [
            {"type": theirs, "name": theirs, **_config(ours in enabled, asks(config, ours))}
            for theirs, ours in BUILT_IN.items()
        ]
        yield {"type": TOOLSET, "default_config": _config(True, False), "configs": configs}
    for name in servers_of(config):
        server, asked = f"mcp__{name}", asks(config, f"mcp__{name}")
        own = {rule: asks(config, rule) for rule in config.get("ask_tools") or () if rule.startswith(f"{server}__")}
        denied = [rule for rule in config.get("disallowed_tools") or () if rule.startswith(f"{server}__")]
        configs = [
            {"name": rule.removeprefix(f"{server}__"), **_config(rule not in denied, own.get(rule, asked))}
            for rule in dict.fromkeys((*own, *denied))
            if not rule.endswith("*")
        ]
        yield {
            "type": "mcp_toolset",
            "mcp_server_name": name,
            "default_config": _config(True, asked),
            "configs": configs,
        }
    for tool in config.get("client_tools") or ():
        yield {"type": "custom", **{name: tool[name] for name in ("name", "description", "input_schema")}}
