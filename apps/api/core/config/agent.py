"""What an agent is configured with, in the SDK's own option names. Every dialect translates into this."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from apps.api.core.config import environment
from apps.api.core.config.client_tools import ClientTools
from apps.api.core.config.names import (
    STORED,
    Denial,
    EnvName,
    ModelName,
    Name,
    Part,
    SkillName,
    Text,
    ToolName,
    ToolRule,
    Usd,
    confined,
)
from apps.api.core.config.parts import (
    DENIABLE_EVENTS,
    TOOL_EVENTS,
    Beta,
    Effort,
    Hook,
    HookEvent,
    McpServer,
    OutputFormat,
    PermissionMode,
    Repository,
    Subagent,
    TaskBudget,
    Thinking,
)
from apps.api.core.config.resources import Resources

DEFAULT_TOOLS = (
    "AskUserQuestion",
    "Bash",
    "Edit",
    "ExitPlanMode",
    "Glob",
    "Grep",
    "NotebookEdit",
    "Read",
    "Task",
    "TaskOutput",
    "TaskStop",
    "WebFetch",
    "WebSearch",
    "Write",
)
"""Tools of a session that names none. Being there is not being allowed: see `allowed_tools` and `permission_mode`."""

MAX_ENV_BYTES, MAX_ARGUMENT_BYTES = 1_000_000, 120_000
"""Of all variables together, with 9 bytes for each, and of one schema as the agent's program gets it. Linux takes 128
KiB for one argument (MAX_ARG_STRLEN) and a quarter of the stack for all."""


Directory = Annotated[str, Field(max_length=1000), AfterValidator(confined)]
"""Relative to the workspace, and inside it."""


class AgentConfig(Part):
    """Configuration of a session's agent. Unset fields (None) leave the choice to the server's defaults.

    In a change of what is stored, None that was given takes an option away, and what was not given stays.
    """

    model: ModelName | None = None
    fallback_model: ModelName | None = None
    system_prompt: Annotated[Text, Field(max_length=100_000)] | None = None
    system_prompt_append: Annotated[Text, Field(max_length=100_000)] | None = None
    tools: Annotated[list[ToolName], Field(max_length=200)] | None = None
    allowed_tools: Annotated[list[ToolRule], Field(max_length=200)] | None = None
    ask_tools: Annotated[list[ToolRule], Field(max_length=200)] | None = None
    disallowed_tools: Annotated[list[Denial], Field(max_length=200)] | None = None
    permission_mode: PermissionMode | None = None
    unattended: bool | None = None
    max_turns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_budget_usd: Annotated[Usd, Field(gt=0, le=100_000)] | None = None
    max_session_usd: Annotated[Usd, Field(gt=0, le=100_000)] | None = None
    task_budget: TaskBudget | None = None
    betas: Annotated[list[Beta], Field(max_length=10)] | None = None
    thinking: Thinking | None = None
    effort: Effort | None = None
    output_format: OutputFormat | None = None
    mcp_servers: Annotated[dict[Name, McpServer], Field(max_length=20)] | None = None
    client_tools: ClientTools | None = None
    agents: Annotated[dict[Name, Subagent], Field(max_length=50)] | None = None
    skills: Annotated[list[SkillName], Field(max_length=100)] | Literal["all"] | None = None
    hooks: Annotated[dict[HookEvent, Annotated[list[Hook], Field(max_length=10)]], Field(max_length=10)] | None = None
    enable_file_checkpointing: bool | None = None
    cwd: Directory | None = None
    add_dirs: Annotated[list[Directory], Field(max_length=20)] | None = None
    repository: Repository | None = None
    resources: Resources | None = None
    env: Annotated[dict[EnvName, Annotated[Text, Field(max_length=32_000)]], Field(max_length=100)] | None = None

    @field_validator("env")
    @classmethod
    def _not_reserved(cls, value: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        reserved = environment.reserved(value or {})
        if reserved and info.context == STORED:
            return {name: text for name, text in (value or {}).items() if name not in reserved}
        if reserved:
            raise ValueError(f"reserved by the server: {', '.join(reserved)}")
        # Linux gives a process some 2 MB of arguments and variables in all, and the agent's program needs some of it.
        size = sum(len(f"{name}={text}".encode()) + 9 for name, text in (value or {}).items())
        if size > MAX_ENV_BYTES:
            raise ValueError(f"{size} bytes in all, and a process can be given {MAX_ENV_BYTES}")
        return value

    @field_validator("output_format")
    @classmethod
    def _fits_an_argument(cls, value: OutputFormat | None) -> OutputFormat | None:
        if value is not None and (size := len(json.dumps(value.schema_).encode())) > MAX_ARGUMENT_BYTES:
            raise ValueError(f"{size} bytes, and a process can be given {MAX_ARGUMENT_BYTES}")
        return value

    @field_validator("hooks")
    @classmethod
    def _hooks_that_mean_something(
        cls, value: dict[HookEvent, list[Hook]] | None
    ) -> dict[HookEvent, list[Hook]] | None:
        for event, hooks in (value or {}).items():
            if event not in TOOL_EVENTS and any(hook.matcher is not None for hook in hooks):
                raise ValueError(f"{event} is not about a tool and has no matcher")
            if event not in DENIABLE_EVENTS and any(hook.on_failure == "deny" for hook in hooks):
                raise ValueError(f"{event} cannot be denied: on_failure must be 'allow'")
        return value

    def hook_secrets(self) -> dict[str, str]:
        """Secrets that hooks sign with → the field that names them."""
        return {
            hook.secret[2:-1]: f"hooks.{event}.{number}.secret"
            for event, hooks in (self.hooks or {}).items()
            for number, hook in enumerate(hooks)
        }

    def servers(self) -> dict[str, McpServer]:
        """Every MCP server, the subagents' own too, by the field that names it."""
        return dict(self._servers())

    def _servers(self) -> Iterator[tuple[str, McpServer]]:
        for name, server in (self.mcp_servers or {}).items():
            yield f"mcp_servers.{name}", server
        for agent, subagent in (self.agents or {}).items():
            for name, server in (subagent.mcp_servers or {}).items():
                yield f"agents.{agent}.mcp_servers.{name}", server

    def skill_names(self) -> dict[str, list[SkillName]]:
        """Every skill that is named, also for a subagent, by the field that names it."""
        named = {f"agents.{name}.skills": agent.skills or [] for name, agent in (self.agents or {}).items()}
        return named if self.skills is None or self.skills == "all" else {"skills": self.skills, **named}

    @classmethod
    def stored(cls, data: Mapping[str, Any]) -> AgentConfig:
        """What was stored, also where it could not be set today. Raises ValueError for what no release has stored."""
        return cls.model_validate(data, context=STORED)

    def given(self) -> dict[str, Any]:
        """Only what was set, JSON-safe: the form that is stored."""
        return self.model_dump(exclude_none=True, by_alias=True)

    def over(self, base: Mapping[str, Any]) -> AgentConfig:
        """Stored options, changed by these: one that was given as None is taken away. Raises ValueError."""
        kept = {name: value for name, value in base.items() if name not in self.model_fields_set}
        return AgentConfig.stored({**kept, **self.given()})

    def public(self) -> dict[str, Any]:
        """What a client may read back: values of `env` and `headers` are withheld, since they may be secrets."""
        shown = self.given()
        described = (shown, *shown.get("agents", {}).values())
        for holder in (shown, *(server for part in described for server in part.get("mcp_servers", {}).values())):
            for name in ("env", "headers"):
                if name in holder:
                    holder[name] = dict.fromkeys(holder[name], "***")
        return shown


def tools_of(config: AgentConfig) -> list[str]:
    """The built-in tools of an agent."""
    tools = list(DEFAULT_TOOLS if config.tools is None else config.tools)
    return [*tools, "Skill"] if config.skills and "Skill" not in tools else tools
