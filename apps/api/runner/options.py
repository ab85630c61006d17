"""From a session's configuration to the SDK's options, and the directories that an agent lives in."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast
from uuid import UUID

from claude_agent_sdk import AgentDefinition, CanUseTool, ClaudeAgentOptions, SessionStore
from claude_agent_sdk.types import SystemPromptCustom, SystemPromptPreset, ThinkingConfig

from apps.api.core.config import AgentConfig, tools_of
from apps.api.core.parts import Subagent, Thinking
from apps.api.core.profiles import Profile
from apps.api.core.workspaces import Workspace
from apps.api.runner.extensions import Extensions
from apps.api.runner.guard import bundled_cli, guard_environment, install_guard
from apps.api.runner.hooks import HookMatchers
from apps.api.runner.transcripts import Transcripts
from apps.api.settings import Settings

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest line that the CLI may write: a tool result of some megabytes is one line."""

SWEEP_AGE = 60.0
"""Seconds after which a directory without a living owner is removed."""

_QUIET_CLI = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    # Bounds on the model: without them the CLI retries an overloaded one for minutes.
    "CLAUDE_CODE_MAX_RETRIES": "3",
    "API_TIMEOUT_MS": "120000",
    "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": "60000",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
}


class Scratch:
    """This instance's private directory for what agents leave behind: config, temporary files, the launcher.

    The lock file lets the next start on this host remove what a killed instance left.
    """

    def __init__(self, instance_id: UUID) -> None:
        tempfile.tempdir = None
        base = Path(tempfile.gettempdir()) / f"claude-agent-api-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise PermissionError(f"{base} belongs to somebody else")
        self._sweep(base)
        self.root = base / str(instance_id)
        self.root.mkdir(mode=0o700)
        self._lock = self._try_lock(self.root)
        self.launcher = install_guard(self.root)
        # The SDK puts the history of a resumed conversation into a temporary directory; a killed process leaves it.
        tempfile.tempdir = str(self.root)

    @staticmethod
    def _try_lock(directory: Path) -> IO[str] | None:
        handle = (directory / "lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            return None
        return handle

    @classmethod
    def _sweep(cls, base: Path) -> None:
        for directory in base.iterdir():
            # A young one may belong to an instance that is starting and has not locked it yet.
            if time.time() - directory.stat().st_mtime < SWEEP_AGE:
                continue
            if directory.is_dir() and (handle := cls._try_lock(directory)):
                shutil.rmtree(directory, ignore_errors=True)
                handle.close()

    def of(self, session_id: UUID, generation: int) -> Path:
        """The directory of one session as long as it is owned under this generation, created."""
        path = self.root / f"{session_id}-{generation}"
        for part in ("config", "tmp", "given"):
            (path / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def forget(self, session_id: UUID, generation: int) -> None:
        """Remove one session's directory."""
        shutil.rmtree(self.root / f"{session_id}-{generation}", ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock:
            self._lock.close()


def _system_prompt(config: AgentConfig) -> SystemPromptCustom | SystemPromptPreset:
    """`snapshot` off: else the CLI keeps the first prompt of a conversation in its transcript, and later changes of it
    never reach the model."""
    if config.system_prompt is not None:
        text = "\n\n".join(filter(None, (config.system_prompt, config.system_prompt_append)))
        return {"type": "custom", "prompt": text, "snapshot": False}
    preset: SystemPromptPreset = {"type": "preset", "preset": "claude_code", "snapshot": False}
    if config.system_prompt_append:
        preset["append"] = config.system_prompt_append
    return preset


def _thinking(thinking: Thinking | None) -> ThinkingConfig | None:
    return None if thinking is None else cast(ThinkingConfig, thinking.model_dump(exclude_none=True))


def _subagents(given: Mapping[str, Subagent] | None) -> dict[str, AgentDefinition] | None:
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
        )
        for name, agent in given.items()
    }


def keeps_checkpoints(settings: Settings, config: AgentConfig) -> bool:
    """Whether the agent keeps copies of the files that it changes, to rewind to."""
    own = config.enable_file_checkpointing
    return settings.enable_file_checkpointing if own is None else own


def environment(
    settings: Settings, config: AgentConfig, workspace: Workspace, scratch: Path, profile: Profile | None = None
) -> dict[str, str]:
    """What the agent process is given on top of the guard's allow-list."""
    isolation = (profile and profile.isolation) or settings.agent_isolation
    env = dict(_QUIET_CLI)
    if settings.anthropic_base_url:
        env["ANTHROPIC_BASE_URL"] = settings.anthropic_base_url
    if settings.anthropic_api_key:
        env["ANTHROPIC_API_KEY"] = settings.anthropic_api_key.get_secret_value()
    if settings.claude_code_oauth_token:
        env["CLAUDE_CODE_OAUTH_TOKEN"] = settings.claude_code_oauth_token.get_secret_value()
    if os.geteuid() == 0:
        env["IS_SANDBOX"] = "1"  # the CLI refuses bypassPermissions to root otherwise
    if keeps_checkpoints(settings, config):
        # The option of that name refuses to work with a session store; the variable behind it does not.
        env["CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING"] = "true"
    env.update(
        guard_environment(
            workspace=workspace.root,
            file_history=workspace.history,
            config_dir=scratch / "config",
            tmp_dir=scratch / "tmp",
            isolation=isolation,
            seccomp=settings.agent_seccomp,
            read_paths=(*settings.agent_read_paths, scratch / "given"),
            cli=bundled_cli(),
            session_env=config.env or {},
        )
    )
    return env


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one CLI process is given beside its session's configuration.

    Attributes:
        remembered: tool rules that persons have allowed meanwhile.
        stderr: collects its last lines, for the message of a failed start.
    """

    workspace: Workspace
    extensions: Extensions
    scratch: Path
    launcher: Path
    store: Transcripts
    sdk_session_id: UUID
    resume: bool
    hooks: HookMatchers | None
    can_use_tool: CanUseTool
    remembered: Sequence[str]
    profile: Profile | None
    stderr: list[str] = field(default_factory=list)

    def keep(self, line: str) -> None:
        """Take a line that the CLI wrote to its standard error."""
        self.stderr.append(line[:500])
        del self.stderr[:-20]


def build(settings: Settings, config: AgentConfig, process: Process) -> ClaudeAgentOptions:
    """Options for one CLI process."""
    plugin = process.extensions.plugin
    return ClaudeAgentOptions(
        model=config.model or settings.default_model,
        fallback_model=config.fallback_model,
        system_prompt=_system_prompt(config),
        tools=tools_of(config),
        skills=config.skills,
        plugins=[{"type": "local", "path": str(plugin)}] if plugin else [],
        allowed_tools=[*(config.allowed_tools or ()), *process.remembered],
        disallowed_tools=list(config.disallowed_tools or ()),
        permission_mode=config.permission_mode,
        max_turns=config.max_turns,
        max_budget_usd=config.max_budget_usd,
        thinking=_thinking(config.thinking),
        effort=config.effort,
        output_format=config.output_format.model_dump(by_alias=True) if config.output_format else None,
        agents=_subagents(config.agents),
        hooks=process.hooks,
        # Without it the CLI itself refuses what needs a person, and offers the agent no way to ask one.
        can_use_tool=None if config.unattended else process.can_use_tool,
        # Without it nobody could switch to bypassPermissions later.
        extra_args={"allow-dangerously-skip-permissions": None},
        cwd=process.workspace.cwd,
        env=environment(settings, config, process.workspace, process.scratch, process.profile),
        cli_path=process.launcher,
        stderr=process.keep,
        setting_sources=[],
        mcp_servers=process.extensions.mcp_config or {},
        strict_mcp_config=True,
        include_partial_messages=True,
        forward_subagent_text=True,
        max_buffer_size=MAX_MESSAGE_BYTES,
        session_store=cast(SessionStore, process.store),  # the optional methods are left out, as the SDK allows
        session_store_flush="eager",
        session_id=None if process.resume else str(process.sdk_session_id),
        resume=str(process.sdk_session_id) if process.resume else None,
    )
