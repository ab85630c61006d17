"""Parts of an agent's configuration: thinking, output format, MCP servers, subagents, hooks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import re2
from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator

from apps.api.core.config import json_schema
from apps.api.core.config.names import (
    STORED,
    Document,
    EnvName,
    ModelName,
    Name,
    Part,
    SecretRef,
    SkillName,
    Text,
    ToolName,
    storable,
    unless_stored,
)

Effort = Literal["low", "medium", "high", "xhigh", "max"]
PermissionMode = Literal["default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"]
SubagentMode = Literal["default", "acceptEdits", "plan", "dontAsk", "auto"]
"""Without bypassPermissions: of a subagent the CLI ignores it, and asks."""

Beta = Literal["context-1m-2025-08-07"]
"""What the CLI sends of `betas`; it drops every other one."""


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user or a password")
    try:
        parts.port  # noqa: B018 - the check is in the property
    except ValueError as error:
        raise ValueError("has a port that is no port") from error
    return value


Url = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,2000}$"), AfterValidator(_url)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,8000}$")]


_REPOSITORY_PATH = re.compile(r"/[A-Za-z0-9._~%+/-]+")
_LOOPBACK = ("127.0.0.1", "localhost")


def _repository_url(value: str) -> str:
    """Where git fetches it from. `git://` is neither encrypted nor signed, so that https takes its place."""
    parts = urlsplit(re.sub(r"^git://", "https://", value))
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError("must be an https:// URL of a git repository")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user or a password: store the secret GIT_TOKEN")
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?", parts.netloc):
        raise ValueError("has a host that is no name")
    if parts.query or parts.fragment or not _REPOSITORY_PATH.fullmatch(parts.path):
        raise ValueError("must have a path, and nothing behind it")
    return _url(parts.geturl())


RepositoryUrl = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,2000}$"), AfterValidator(_repository_url)]


_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(?:^|/)\.|\.lock(?:/|$)|\.$|^[/-]|/$|^@$")


def _ref(value: str) -> str:
    """A branch or tag by the rules of git-check-ref-format(1), `--allow-onelevel`; one with `-` first is an option."""
    if _NO_REF.search(storable(value)):
        raise ValueError("is no name of a branch or tag: see git check-ref-format")
    return value


Ref = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(unless_stored(_ref))]


class Repository(Part):
    """A git repository that the workspace begins with: one branch or tag, without its history."""

    url: RepositoryUrl
    ref: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(unless_stored(_ref))] | None = (
        None
    )


class Thinking(Part):
    """How the model thinks: `adaptive`, `enabled` with a budget of tokens, or `disabled`."""

    type: Literal["adaptive", "enabled", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1024, le=128_000)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @field_validator("budget_tokens")
    @classmethod
    def _only_when_enabled(cls, value: int | None, info: Any) -> int | None:
        if value is not None and info.data.get("type") != "enabled":
            raise ValueError("goes with type 'enabled' only")
        return value

    def model_post_init(self, _context: Any) -> None:
        if self.type == "enabled" and self.budget_tokens is None:
            raise ValueError("type 'enabled' needs budget_tokens")
        if self.type == "disabled" and self.display is not None:
            raise ValueError("display goes with thinking that is not disabled")


class TaskBudget(Part):
    """Tokens that the model is told it may use for a prompt, so that it paces itself; not enforced."""

    total: Annotated[int, Field(ge=1, le=100_000_000)]


class OutputFormat(Part):
    """The JSON schema (draft 07) that the final answer must match. Its top level is an object."""

    type: Literal["json_schema"]
    schema_: Document = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.context != STORED:  # else it was judged when it came, and the agent's program does so when it starts
            json_schema.check(value)
        return value


class StdioServer(Part):
    """An MCP server that is started inside the agent's confinement. The operator allows its command."""

    type: Literal["stdio"]
    command: Annotated[Text, Field(min_length=1, max_length=1000)]
    args: Annotated[list[Annotated[Text, Field(max_length=4000)]], Field(max_length=100)] = Field(default_factory=list)
    env: Annotated[dict[EnvName, Annotated[Text, Field(max_length=8000)]], Field(max_length=50)] = Field(
        default_factory=dict
    )


class RemoteServer(Part):
    """An MCP server that is reached over HTTP, streamable or with server-sent events."""

    type: Literal["http", "sse"]
    url: Url
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=50)] = Field(default_factory=dict)


class RegisteredServer(Part):
    """An MCP server of the tenant's registry."""

    type: Literal["registered"]
    name: Name


McpServer = Annotated[StdioServer | RemoteServer | RegisteredServer, Field(discriminator="type")]
OwnServer = Annotated[StdioServer | RemoteServer, Field(discriminator="type")]
"""A server that says itself what it is."""


class Subagent(Part):
    """A custom subagent, which the agent may delegate to by its name.

    Attributes:
        skills: their texts are in its context from the start.
        mcp_servers: of this subagent alone, beside the session's.
        permission_mode: instead of the session's, unless that is acceptEdits or bypassPermissions.
    """

    description: Annotated[Text, Field(min_length=1, max_length=4000)]
    prompt: Annotated[Text, Field(min_length=1, max_length=100_000)]
    tools: Annotated[list[ToolName], Field(max_length=200)] | None = None
    disallowed_tools: Annotated[list[ToolName], Field(max_length=200)] | None = None
    model: ModelName | None = None
    max_turns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    effort: Effort | None = None
    background: bool | None = None
    skills: Annotated[list[SkillName], Field(max_length=100)] | None = None
    mcp_servers: Annotated[dict[Name, McpServer], Field(max_length=20)] | None = None
    permission_mode: SubagentMode | None = None


HookEvent = Literal[
    "PreToolUse",
    "PostToolUse",
    "PostToolUseFailure",
    "UserPromptSubmit",
    "Stop",
    "SubagentStart",
    "SubagentStop",
    "PreCompact",
    "Notification",
    "PermissionRequest",
]


TOOL_EVENTS = frozenset({"PreToolUse", "PostToolUse", "PostToolUseFailure", "PermissionRequest"})
"""Hook events about a tool call: those with a matcher."""

DENIABLE_EVENTS = frozenset({"PreToolUse", "PermissionRequest", "UserPromptSubmit", "PostToolUse"})
"""Hook events whose failing webhook may count as a denial. To deny a Stop would be to go on, again and again."""

_UNSUPPORTED = re.compile(r"\(\?|[*+?]\+|\[\^?\]")
"""What regular expression engines read differently, inside the characters that a matcher may have."""

_RE2 = re2.Options()
_RE2.log_errors = False


def matches(matcher: str | None, tool: str) -> bool:
    """Whether a matcher is about this tool. RE2 reads it, in time linear in both texts, whatever the pattern.

    Raises ValueError when the matcher is no regular expression.
    """
    if matcher in (None, "*"):
        return True
    try:
        return re2.compile(matcher, _RE2).fullmatch(tool) is not None
    except re2.error as error:
        raise ValueError(f"is no regular expression: {error.args[0].decode(errors='replace')}") from error


def _matcher(value: str) -> str:
    if _UNSUPPORTED.search(value):
        raise ValueError("must not contain '(?', a possessive quantifier or an empty class")
    matches(value, "")
    return value


Matcher = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*+?|()\[\]^$-]{1,500}$"), AfterValidator(_matcher)]


class Hook(Part):
    """A webhook that is asked before or told after something happens inside the agent.

    Attributes:
        matcher: a regular expression (RE2) that must match the whole name of the tool, for example `Edit|Write` or
            `mcp__.*`; unset for all tools. Only events about tools have one.
        secret: `${NAME}` of the tenant's secret that signs the requests (Standard Webhooks).
        on_failure: what a failing webhook means; `deny` for PreToolUse and PermissionRequest unless set, else `allow`.
    """

    url: Url
    secret: SecretRef
    matcher: Matcher | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5
    on_failure: Literal["allow", "deny"] | None = None
