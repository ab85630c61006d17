"""From a session's configuration to the SDK's options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from claude_agent_sdk import AgentDefinition, CanUseTool, ClaudeAgentOptions, McpSdkServerConfig, SessionStore
from claude_agent_sdk.types import SystemPromptCustom, SystemPromptFile, SystemPromptPreset, ThinkingConfig

from apps.api.core.config import client_tools
from apps.api.core.config.agent import AgentConfig, tools_of
from apps.api.core.config.parts import Subagent, Thinking
from apps.api.core.config.profiles import Profile
from apps.api.core.config.rules import Rule
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.core.sessions.workspaces import Workspace
from apps.api.runner.agent.extensions import Extensions
from apps.api.runner.agent.process import CannotStart, HookMatchers
from apps.api.runner.agent.scratch import Place
from apps.api.runner.guard.launcher import Directories, Network, Wall, bundled_cli, guard_environment
from apps.api.settings import Settings

_GLOB_CHARACTERS = frozenset("[]{}*?!\\")
"""What a path may not hold to be named in a rule as it is."""

_QUIET_CLI = {
    # A call that a run was parked with, of a tool that is not there any more, gets a result that says so.
    "CLAUDE_CODE_DROP_UNAVAILABLE_DEFERRED_TOOL": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    # Else a file in the workspace, which a clone or an earlier agent may have left, has it prompt itself.
    "CLAUDE_CODE_DISABLE_CRON": "1",
    # Bounds on the model: without them the CLI retries an overloaded one for minutes.
    "CLAUDE_CODE_MAX_RETRIES": "3",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
}


_SILENCE = (
    "API_TIMEOUT_MS",
    "CLAUDE_STREAM_FIRST_BYTE_TIMEOUT_MS",
    "CLAUDE_STREAM_IDLE_TIMEOUT_MS",
    "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS",
)
"""What bounds a silent model, before its answer and in it. A run's own timeout ends it sooner, where it is shorter."""


def _system_prompt(
    config: AgentConfig, prompt: Path | None
) -> SystemPromptFile | SystemPromptCustom | SystemPromptPreset:
    """`snapshot` off, here and in `_more_arguments`: else the CLI keeps the first prompt of a conversation in its
    transcript, and later changes of it never reach the model."""
    if config.system_prompt is None:
        return {"type": "preset", "preset": "claude_code", "snapshot": False}
    return {"type": "file", "path": str(prompt)} if prompt else {"type": "custom", "prompt": "", "snapshot": False}


def _thinking(thinking: Thinking | None) -> ThinkingConfig | None:
    return None if thinking is None else cast(ThinkingConfig, thinking.model_dump(exclude_none=True))


def _subagents(
    given: Mapping[str, Subagent] | None, servers: Mapping[str, Mapping[str, Any]]
) -> dict[str, AgentDefinition] | None:
    if given is None:
        return None
    return {
        name: AgentDefinition(
            description=agent.description,
            prompt=agent.prompt,
            tools=agent.tools,
            disallowedTools=agent.disallowed_tools,
            model=agent.model,
            maxTurns=agent.max_turns,
            effort=agent.effort,
            background=agent.background,
            skills=agent.skills,
            mcpServers=[{key: spec} for key, spec in servers.get(name, {}).items()] or None,
            permissionMode=agent.permission_mode,
        )
        for name, agent in given.items()
    }


def keeps_checkpoints(settings: Settings, config: AgentConfig) -> bool:
    """Whether the agent keeps copies of the files that it changes, to rewind to."""
    own = config.enable_file_checkpointing
    return settings.enable_file_checkpointing if own is None else own


def model_of(settings: Settings, config: AgentConfig) -> str | None:
    """The model's name, as the model API has it; None for a short one, which only the CLI understands."""
    name = (config.model or settings.default_model).partition("[")[0]
    return name if "-" in name else None


def to_the_model(settings: Settings, url: str, token: str) -> dict[str, str]:
    """What leads the CLI to a model: the gateway at `url`, where `token` lets its process in."""
    if settings.agents_hold_the_credential and settings.claude_code_oauth_token:
        base = {"ANTHROPIC_BASE_URL": settings.anthropic_base_url} if settings.anthropic_base_url else {}
        return base | {"CLAUDE_CODE_OAUTH_TOKEN": settings.claude_code_oauth_token.get_secret_value()}
    # A proxy of the server's is for what is elsewhere. Bun and curl read the second name.
    direct = ",".join(filter(None, ("127.0.0.1", os.environ.get("NO_PROXY") or os.environ.get("no_proxy"))))
    # Clouds refuse what is new in the Messages API. By the gateway's address the CLI cannot tell that it asks one.
    plain = {"CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1"} if settings.cloud else {}
    return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": token, "NO_PROXY": direct, "no_proxy": direct, **plain}


def proxies(proxy: str, only_port: int | None) -> dict[str, str]:
    """What leads programs of an agent whose network is limited to the proxy, and not past it.

    Args:
        proxy: its URL; empty where there is none for this agent.
        only_port: the one of this machine that is reached without it, the gateway's; of the others the proxy asks whose
            they are. None: all are, as rules of ports allow, or in a network of the agent's own.
    """
    direct = "localhost,127.0.0.1,::1" if only_port is None else f"127.0.0.1:{only_port}"
    env = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": direct}
    return env | {name.lower(): value for name, value in env.items()} | {"NODE_USE_ENV_PROXY": "1"}


def wall_of(settings: Settings, profile: Profile | None, group: Path | None = None) -> Wall:
    """What stands between an agent of a profile and this machine. `group`: its control group, if it has one."""
    least = profile.isolation if profile and profile.isolation else "off"
    return Wall.of(settings).but(at_least=least, group=group)


def environment(
    settings: Settings,
    config: AgentConfig,
    workspace: Workspace,
    place: Place,
    config_dir: Path,
    profile: Profile | None = None,
    lease: Path | None = None,
    *,
    model: Mapping[str, str],
    network: Network = Network(),  # noqa: B008 - it never changes
) -> dict[str, str]:
    """What the agent process is given on top of the guard's allow-list.

    Args:
        config_dir: a path that leads to `place.config`.
        lease: see `guard_environment`.
        model: what leads the CLI to a model, see `to_the_model`, and its programs elsewhere, see `proxies`.
        network: see `launcher.Network`.
    """
    env = {**_QUIET_CLI, **dict.fromkeys(_SILENCE, str(settings.model_silence_seconds * 1000))}
    env |= model
    if os.geteuid() == 0:
        env["IS_SANDBOX"] = "1"  # the CLI refuses bypassPermissions to root otherwise
    if keeps_checkpoints(settings, config):
        # The option of that name refuses to work with a session store; the variable behind it does not.
        env["CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING"] = "true"
    directories = Directories(
        workspace=workspace.root,
        home=workspace.home,
        output=workspace.output,
        file_history=workspace.history,
        config=config_dir,
        tmp=place.tmp,
        given=place.given,
    )
    wall = wall_of(settings, profile, place.group.path if place.group else None)
    env |= guard_environment(directories, wall, lease=lease, cli=bundled_cli(), session_env=config.env or {})
    return env | network.variables()


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one CLI process is given beside its session's configuration.

    Attributes:
        config_dir: a path that leads to `place.config`, and stays the same for all processes of the session.
        resume: whether `place.config` holds the conversation so far.
        permissions: a file that holds the rules of permission, see `write_permissions`.
        model, network: see `environment`.
        client_tools: the MCP server whose tools the client's program executes, if there are any.
        stderr: collects its last lines, for the message of a failed start.
    """

    workspace: Workspace
    extensions: Extensions
    place: Place
    config_dir: Path
    launcher: Path
    lease: Path | None
    store: Transcripts
    sdk_session_id: UUID
    resume: bool
    hooks: HookMatchers | None
    can_use_tool: CanUseTool
    permissions: Path
    profile: Profile | None
    model: Mapping[str, str]
    network: Network = field(default_factory=Network)
    client_tools: McpSdkServerConfig | None = None
    stderr: list[str] = field(default_factory=list)

    def keep(self, line: str) -> None:
        """Take a line that the CLI wrote to its standard error."""
        self.stderr.append(line[:500])
        del self.stderr[:-20]


def _more_arguments(config: AgentConfig, process: Process) -> dict[str, str | None]:
    # Without it nobody could switch to bypassPermissions later.
    more: dict[str, str | None] = {"allow-dangerously-skip-permissions": None}
    if process.extensions.prompt and config.system_prompt is not None:
        more["system-prompt-snapshot"] = "off"
    elif process.extensions.prompt:
        more["append-system-prompt-file"] = str(process.extensions.prompt)
    if process.resume:
        # Not the SDK's own option: with a store it would make a configuration of its own, of what is in the one that it
        # is given, and read and remove both in the event loop. See `history`.
        more["resume"] = str(process.sdk_session_id)
    if process.client_tools and process.extensions.mcp_config:
        more["mcp-config"] = str(process.extensions.mcp_config)  # the option of that name has theirs
    return more


def own_outputs(config_dir: Path, workspace: Workspace) -> list[Rule]:
    """Rules by which an agent may read again what its tools have put out: the CLI grants that only where it lies in the
    configuration itself, not where a link there leads."""
    readable = (config_dir / "projects", workspace.output)
    if any(set(str(path)) & _GLOB_CHARACTERS for path in readable):
        return []
    return [Rule("Read", f"/{path}/**") for path in readable]


def left_of(claim: Claim) -> AgentConfig:
    """The configuration for a process of this run: where it was parked, what is left of the bounds of one run."""
    config, parked = claim.config, claim.parked
    if parked is None:
        return config
    left: dict[str, Any] = {}
    if config.max_turns is not None:
        left["max_turns"] = max(config.max_turns - parked.num_turns, 1)  # see `Conversation.is_at_its_bound`
    if config.max_budget_usd is not None:
        left["max_budget_usd"] = max(config.max_budget_usd - (parked.cost_usd or 0.0), 1e-6)
    return config.model_copy(update=left)


def build(settings: Settings, config: AgentConfig, process: Process) -> ClaudeAgentOptions:
    """Options for one CLI process."""
    plugin, mcp_config = process.extensions.plugin, process.extensions.mcp_config
    return ClaudeAgentOptions(
        model=config.model or settings.default_model,
        fallback_model=config.fallback_model,
        system_prompt=_system_prompt(config, process.extensions.prompt),
        tools=tools_of(config),
        skills=config.skills,
        plugins=[{"type": "local", "path": str(plugin)}] if plugin else [],
        settings=str(process.permissions),
        permission_mode=config.permission_mode,
        max_turns=config.max_turns,
        max_budget_usd=config.max_budget_usd,
        task_budget={"total": config.task_budget.total} if config.task_budget else None,
        betas=list(config.betas or ()),
        thinking=_thinking(config.thinking),
        effort=config.effort,
        output_format=config.output_format.model_dump(by_alias=True) if config.output_format else None,
        agents=_subagents(config.agents, process.extensions.subagents),
        hooks=process.hooks,
        # Without it the CLI itself refuses what needs a person, and offers the agent no way to ask one.
        can_use_tool=None if config.unattended else process.can_use_tool,
        extra_args=_more_arguments(config, process),
        cwd=process.workspace.cwd,
        add_dirs=list(process.workspace.more),
        env=environment(
            settings,
            config,
            process.workspace,
            process.place,
            process.config_dir,
            process.profile,
            process.lease,
            model=process.model,
            network=process.network,
        ),
        cli_path=process.launcher,
        stderr=process.keep,
        setting_sources=[],
        mcp_servers={client_tools.SERVER: process.client_tools} if process.client_tools else (mcp_config or {}),
        strict_mcp_config=True,
        include_partial_messages=True,
        forward_subagent_text=True,
        # What a client sends comes back in lines of the CLI, escaped anew and in places twice.
        max_buffer_size=max(settings.max_agent_message_bytes, 4 * settings.max_body_bytes),
        session_store=cast(SessionStore, process.store),  # the optional methods are left out, as the SDK allows
        session_store_flush="eager",
        session_id=None if process.resume else str(process.sdk_session_id),
    )


MAX_STRING_BYTES, MAX_BYTES = 131_071, 1_900_000
"""What Linux takes of one argument or variable (MAX_ARG_STRLEN, with a NUL at its end), and of all together (a quarter
of the usual stack of 8 MiB) with something left for pointers and for what the guard adds."""


def check_size(options: ClaudeAgentOptions) -> None:
    """Raises CannotStart, which names the field, for what the kernel would not hand over to a process."""
    strings = {
        "tools": ",".join(options.tools if isinstance(options.tools, list) else ()),
        "output_format": json.dumps(options.output_format),
        **{f"env.{key}": f"{key}={value}" for key, value in options.env.items()},
    }
    sizes = {name: len(text.encode()) for name, text in strings.items()}
    for name, size in sizes.items():
        if size > MAX_STRING_BYTES:
            raise CannotStart(f"{name}: {size} bytes, and a process can be given {MAX_STRING_BYTES}")
    if sum(sizes.values()) > MAX_BYTES:
        most = max(sizes, key=lambda name: sizes[name])
        raise CannotStart(f"{most}: too long, with the rest: {sum(sizes.values())} bytes of {MAX_BYTES}")
