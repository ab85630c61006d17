"""What a tenant adds to its agents, written where they read it and cannot write: MCP servers, skills, commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.api.core.config import rules
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.rules import Rule
from apps.api.core.context import Core
from apps.api.core.fleet.claims import Claim
from apps.api.core.tenant import mcp, skills
from apps.api.core.tenant.skills import BODY, PLUGIN, Skill
from apps.api.core.tenant.vaults import Held
from apps.api.errors import ApiError
from apps.api.runner.agent.process import CannotStart, StartFailed


@dataclass(frozen=True, slots=True)
class Extensions:
    """Paths for the CLI, or None where there is nothing to give.

    Attributes:
        plugin: a directory with the tenant's skills and commands.
        subagents: MCP servers of each subagent's own, secrets in them; they reach the CLI over its standard input.
        prompt: a file with the system prompt, or what is added to the CLI's own: a command line takes 128 KiB of it.
        mcp_config: a file with the session's MCP servers, secrets in it: see `forget_secrets`.
    """

    plugin: Path | None
    mcp_config: Path | None
    subagents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompt: Path | None = None

    def forget_secrets(self) -> None:
        """Remove what the CLI reads once, when it starts, and what no tool of the agent may read later."""
        if self.mcp_config is not None:
            self.mcp_config.unlink(missing_ok=True)


async def prepare(core: Core, claim: Claim, given: Path, held: Held) -> Extensions:
    """Write what one agent is given into `given`, an empty directory of its process alone. `held`: in its vaults.

    Raises CannotStart when an MCP server is not allowed, or lacks something; StartFailed when nothing can be written.
    """
    try:
        config = claim.config
        resolved = await mcp.resolve(core, claim.tenant_id, config.servers(), claim.profile, config.env or ())
        for spec in resolved.values():
            held.authorize(spec)
    except ApiError as error:
        raise CannotStart(error.message) from error
    owned = await skills.own(core.db, claim.tenant_id)
    try:
        servers, subagents = _by_owner(resolved)
        written = await core.blocking.starts.run(_write_all, given, owned, servers, _prompt(claim.config))
        return replace(written, subagents=subagents)
    except OSError as error:
        raise StartFailed(f"cannot write what the agent is given: {error}") from error


def _by_owner(resolved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The session's servers, and those of each subagent. Given are all of them, by `AgentConfig.servers`'s fields."""
    servers: dict[str, Any] = {}
    subagents: dict[str, dict[str, Any]] = {}
    for path, spec in resolved.items():
        kind, name, *inner = path.split(".")
        if kind == "agents":
            subagents.setdefault(name, {})[inner[-1]] = _with_headers_as_written(spec)
        else:
            servers[name] = spec
    return servers, subagents


def _prompt(config: AgentConfig) -> str:
    return "\n\n".join(filter(None, (config.system_prompt, config.system_prompt_append)))


def _write_all(given: Path, owned: Sequence[Skill], servers: Mapping[str, Any], prompt: str) -> Extensions:
    if prompt:
        _write(given / "prompt.txt", prompt)
    return Extensions(
        prompt=given / "prompt.txt" if prompt else None,
        plugin=write_plugin(given / "plugin", owned) if owned else None,
        mcp_config=write_mcp_config(given / "mcp.json", servers) if servers else None,
    )


def write_mcp_config(path: Path, servers: Mapping[str, Any]) -> Path:
    """Write the CLI's `--mcp-config`. A file, because command lines can be seen by every user of the host."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(json.dumps({"mcpServers": _as_written(servers)}), encoding="utf-8")
    return path


def _as_written(servers: Mapping[str, Any]) -> dict[str, Any]:
    """The servers so that the CLI gives each text as it is: it expands `${VARIABLE}` in all of them.

    Headers twice: when it reads its configuration, and when it connects (seen with the CLI 2.1.327, http and sse).
    """
    return {name: _with_headers_as_written(_escaped(spec)) for name, spec in servers.items()}


def _with_headers_as_written(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """For the second time, which is the only one for servers of subagents: those come from no configuration."""
    return {**spec, "headers": _escaped(spec["headers"])} if "headers" in spec else spec


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        # A variable that nobody can set, with a default: the only way to write a dollar sign before a brace.
        return value.replace("${", "${CLAUDE_AGENT_API_UNSET:-$}{")
    if isinstance(value, Mapping):
        return {name: _escaped(inner) for name, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_plugin(plugin: Path, owned: Sequence[Skill]) -> Path:
    """Write a tenant's skills and commands as a plugin of the CLI.

    The front matter is ours alone: what tenants write there could define hooks and permissions.
    """
    _write(plugin / ".claude-plugin" / "plugin.json", json.dumps({"name": PLUGIN, "version": "1.0.0"}))
    for skill in owned:
        # A JSON string is also YAML, as long as characters beyond ASCII stay as they are.
        head = f"---\ndescription: {json.dumps(skill.description, ensure_ascii=False)}\n---\n\n"
        if skill.kind == "command":
            _write(plugin / "commands" / f"{skill.name}.md", head + skill.files[BODY])
            continue
        for path, text in skill.files.items():
            _write(plugin / "skills" / skill.name / path, head + text if path == BODY else text)
    return plugin


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_permissions(
    path: Path,
    config: AgentConfig,
    allowed: Sequence[Rule],
    hooks: Mapping[str, Any] | None = None,
    *,
    hosts_are_listed: bool = False,
) -> Path:
    """Write the rules of permission as settings of the CLI, where each stands by itself and the number is no limit.

    As arguments they would be joined by commas, and taken apart by brackets. What was stored is judged once more.

    Args:
        allowed: what may run beside what the configuration says.
        hooks: those that the CLI knows from its start.
        hosts_are_listed: the operator has said which hosts there are, so that WebFetch asks nobody else.
    """
    allow = [*rules.readable(config.allowed_tools or ()), *allowed]
    deny = rules.denials(config.disallowed_tools or ())
    ask = rules.readable(config.ask_tools or ())
    permissions = {kind: [str(rule) for rule in of] for kind, of in (("allow", allow), ("ask", ask), ("deny", deny))}
    more = ({"skipWebFetchPreflight": True} if hosts_are_listed else {}) | ({"hooks": hooks} if hooks else {})
    _write(path, json.dumps({"permissions": permissions, **more}))
    return path
