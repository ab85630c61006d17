"""What events tell, by kind. For the document and the tests: events are sent as they are stored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from apps.api.codes import ErrorCode
from apps.api.dialects.native.content_blocks import ContentBlock, Delta, Ours, Theirs
from apps.api.dialects.native.schemas import ModelUsage, Usage, Usd
from apps.api.dialects.native.status_events import EventData

RunEnd = Literal["succeeded", "failed", "interrupted"]


class MessageUsage(Theirs):
    """Tokens, as the model's API counted them."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class QueuedData(EventData):
    """The run waits."""

    position: int = Field(description="Its place among the tenant's queued runs; 1 is next.")


class McpServerSeen(Theirs):
    """An MCP server as the agent's program sees it."""

    name: str
    status: str = Field(examples=["connected"])


class SteeredData(EventData):
    """What became of a prompt with `on_busy: steer`. `taken`: the turn of the run in `run_id` has it; its own run has
    ended. `next_run`: it begins a turn of its own."""

    message_id: UUID = Field(description="The id of the prompt's own run.")
    state: Literal["taken", "next_run"]


class InitData(EventData):
    """The run has started."""

    model: str | None = Field(examples=["claude-sonnet-5-5"])
    tools: list[str]
    mcp_servers: list[McpServerSeen]
    permission_mode: str | None = Field(examples=["acceptEdits"])
    cwd: str | None = Field(description="As the agent sees it.")
    skills: list[str]
    commands: list[str]
    agents: list[str]
    sdk_session_id: str | None = Field(description="The conversation's id in the SDK.")
    isolation: Literal["off", "landlock", "namespaces"]


class MessageData(EventData):
    """A whole message. The first one of a run is the prompt; its `uuid` is the run's id."""

    role: Literal["user", "assistant"]
    content: list[ContentBlock]
    parent_tool_use_id: str | None = Field(description="Of a subagent: the call that it works for.")
    uuid: str | None
    message_id: str | None = Field(None, description="Of the assistant's: its id at the model's API.")
    model: str | None = Field(None, description="Of the assistant's.")
    usage: MessageUsage | None = Field(None, description="Of the assistant's.")


class PartialData(EventData):
    """A piece of a message. It is not stored: the message that it builds replaces it."""

    index: int = Field(description="Of the content block in its message.")
    delta: Delta
    parent_tool_use_id: str | None


class PermissionRequestData(EventData):
    """A tool call waits for a person."""

    request_id: UUID
    tool_name: str = Field(examples=["Bash"])
    input: dict[str, Any]
    suggestions: list[dict[str, Any]] = Field(description="Rules that the agent's program suggests, in its own words.")
    title: str | None
    description: str | None
    reason: str | None
    blocked_path: str | None
    tool_use_id: str | None
    agent_id: str | None = Field(description="The subagent that asks; null: the main one.")
    expires_at: datetime


class QuestionOption(Theirs):
    """An answer to choose."""

    label: str
    description: str | None = None


class Question(Theirs):
    """A question, as the agent wrote it."""

    question: str
    header: str | None = None
    options: list[QuestionOption] | None = None
    multiSelect: bool | None = None  # noqa: N815 - the agent's own word


class QuestionData(EventData):
    """The agent asks."""

    request_id: UUID
    questions: list[Question]
    tool_use_id: str | None
    agent_id: str | None
    expires_at: datetime


class ClientToolCallData(EventData):
    """The agent calls a tool of the client's program."""

    request_id: UUID
    tool_name: str
    input: dict[str, Any]
    tool_use_id: str | None
    agent_id: str | None
    expires_at: datetime


class ByKey(Ours):
    """Somebody with this key."""

    type: Literal["key"]
    key_id: UUID
    key_name: str | None
    end_user: str | None = Field(None, description="For whom its client token was, where one was shown.")


class BySystem(Ours):
    """The server."""

    type: Literal["system"]
    reason: str = Field(examples=["expired"])


Resolver = Annotated[ByKey | BySystem, Field(discriminator="type")]


class ActionResolvedData(EventData):
    """A request was answered, or closed."""

    request_id: UUID
    decision: Literal["allow", "deny", "answered", "closed"]
    by: Resolver
    message: str | None = Field(None, description="Of `deny`: what the agent was told.")
    answers: dict[str, str] | None = Field(None, description="Of a question.")
    rules: list[str] | None = Field(None, description="What is allowed for the rest of the session.")


class TaskUsage(Theirs):
    """What a task has used, as the SDK counts it."""

    total_tokens: int | None = None
    tool_uses: int | None = None
    duration_ms: float | None = None


class TaskData(EventData):
    """Progress of a subagent, or of a background task."""

    task_id: str
    status: str = Field(description="`started`, `progress`, `completed`, `failed`, `stopped`, …", examples=["started"])
    description: str | None
    summary: str | None
    tool_use_id: str | None
    subagent_type: str | None
    usage: TaskUsage | None
    reason: str | None = Field(None, description="Why it has ended without its own doing.")


class CheckpointData(EventData):
    """Files can be brought back to what they were before this prompt."""

    checkpoint_id: UUID
    user_message_uuid: UUID
    prompt: str = Field(description="Its first 200 characters.")


class HookData(EventData):
    """A hook has answered, or failed."""

    hook_event: str = Field(examples=["PreToolUse"])
    decision: Literal["allow", "deny", "ask", "stop", "none", "failed"]
    duration_ms: int
    host: str | None
    tool_name: str | None
    tool_use_id: str | None
    reason: str | None
    error: str | None


class NetworkDeniedData(EventData):
    """A program of the agent asked for a host that the session may not reach."""

    host: str
    port: int
    reason: Literal["host_not_allowed", "address_not_allowed", "not_of_this_session"]


class FileCounts(Ours):
    """How many files."""

    created: int
    changed: int
    deleted: int


class FilesData(EventData):
    """The run has changed files of the workspace."""

    created: list[str] = Field(description="The first of them, as of the other lists.")
    changed: list[str]
    deleted: list[str]
    counts: FileCounts


class ResultData(EventData):
    """The outcome of the turn. Figures are the SDK's own."""

    status: RunEnd
    result: str | None
    structured_output: Any
    is_error: bool
    stop_reason: str | None
    terminal_reason: str | None
    num_turns: int
    duration_ms: int
    duration_api_ms: int
    total_cost_usd: Usd | None
    usage: Usage | None
    model_usage: dict[str, ModelUsage]
    permission_denials: list[dict[str, Any]]
    user_message_uuids: list[str]
    steered_into: UUID | None = Field(
        None, description="The run whose turn has taken this prompt, of one with `on_busy: steer`: its answer is there."
    )


class ErrorData(EventData):
    """The run failed. Without an `id`: the stream ends here, for this reason, and the run goes on."""

    code: ErrorCode
    message: str
    retryable: bool
    retry_after_seconds: int | None = None
    details: dict[str, Any] | None = None


class DoneData(EventData):
    """The last event of the run."""

    status: RunEnd


class ResyncData(EventData):
    """What the client holds is not what the session has. What follows comes after `seq`."""

    reason: Literal["lost", "expired"]
