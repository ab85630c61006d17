"""Wire models of the native API. Unknown fields are refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from apps.api.codes import ErrorCode, RunCode
from apps.api.core import pages
from apps.api.core.codec import usd
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.content import Content
from apps.api.core.config.names import EndUser, Name, Text
from apps.api.dialects.native import examples
from apps.api.web import figures

Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f,]{1,64}$")]
MetadataKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MetadataValue = Annotated[Text, Field(max_length=512)]
Title = Annotated[Text, Field(min_length=1, max_length=200)]
RunStatus = Literal["queued", "running", "requires_action", "succeeded", "failed", "interrupted"]

Usd = Annotated[str, BeforeValidator(usd), Field(pattern=r"^[0-9]+(\.[0-9]+)?$", examples=["0.0123"])]
"""Money, as it is told: USD as a decimal, without an exponent."""

Options = Annotated[dict[str, Any], AfterValidator(figures.config)]
"""Options of an agent, as they are shown."""

AgentRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(@[1-9][0-9]{0,8})?$")]

MAX_TIMEOUT_SECONDS = 86_400


def described(example: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """What adds an example, and the descriptions of the options, to a body's schema."""

    def extend(schema: dict[str, Any]) -> None:
        schema["examples"] = [example]
        for name, described in schema["properties"].items():
            if name in examples.OPTIONS:
                described["description"] = examples.OPTIONS[name]

    return extend


class Closed(BaseModel):
    """A body that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list. `next_cursor` is null where there is no further one."""

    data: list[T]
    next_cursor: str | None

    @classmethod
    def of(cls, page: pages.Page) -> Self:
        """A page as the core found it."""
        return cls.model_validate({"data": page.data, "next_cursor": page.next_cursor})


class LabelFields(Closed):
    """What a client may hang on a session for its own use."""

    title: Title | None = Field(None, description="For people; found by `search`.", examples=["Weekly report"])
    tags: Annotated[list[Tag], Field(max_length=32)] | None = Field(
        None, description="Words to filter sessions by.", examples=[["reports"]]
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=32)] | None = Field(
        None, description="Text values by name, to filter sessions by.", examples=[{"customer": "42"}]
    )


class SessionBody(AgentConfig, LabelFields):
    """Configuration and labels of a new session, in the SDK's own option names."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=described({"title": "Weekly report", "permission_mode": "acceptEdits"}),
    )

    agent: AgentRef | None = Field(
        None,
        description="A preset to begin with: its name or id, or `name@version`; what the request gives wins over it."
        " For an existing session: the same, or nothing.",
        examples=["reviewer", "reviewer@3"],
    )
    profile: Name | None = Field(
        None,
        description="The operator's profile that the session runs under, from its creation on; `GET /profiles` lists"
        " them. For an existing session: the same, or nothing.",
        examples=["readonly"],
    )
    end_user: EndUser | None = Field(
        None,
        description="For whom you ask: a name or id of yours, by which sessions, runs and usage are found. Of a session"
        " it is fixed when that is created; a prompt's run has its own, or its session's.",
        examples=["customer-42"],
    )


class RunBody(SessionBody):
    """How a prompt is to be run."""

    include_partial_messages: bool = Field(True, description="Send `partial` events (token deltas) on this stream.")
    timeout_seconds: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT_SECONDS, description="Deadline of the run; the server's REQUEST_TIMEOUT if unset."
    )
    on_busy: Literal["enqueue", "reject", "interrupt", "steer"] = Field(
        "enqueue",
        description="When a run of the session is queued or active: wait behind it, answer 409, or interrupt it (the"
        " active one; where none has begun, the one queued first) and wait behind the others. `steer`: go into the turn"
        " that runs, at the end of its next tool call; what the turn has not taken runs after it. Not with options,"
        " `resources` or `expand_prompt`.",
    )
    on_disconnect: Literal["continue", "interrupt"] = Field(
        "continue", description="When the client leaves before the run is over: let it go on, or cancel it."
    )
    expand_prompt: bool = Field(
        False, description="Let slash commands and `@file` mentions in the prompt act; else it is taken word for word."
    )


class NextPromptBody(RunBody):
    """A prompt for a session that exists. Configuration given here holds for this run and those after it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=described({"prompt": "And now as a table, please."}),
    )

    prompt: Content = Field(
        description="What the user says: text, or a list of blocks: text, images (base64), documents (PDF as base64, or"
        " plain text). Events show images and documents without their data.",
        examples=["say hello"],
    )


class PromptBody(NextPromptBody):
    """A prompt for a new session, or for an existing one when `session_id` is given."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=described({"prompt": "List the Python files here.", "allowed_tools": ["Glob", "Read"]}),
    )

    session_id: UUID | None = Field(None, description="Continue this session.")
    fork_session: bool = Field(False, description="Run the prompt in a fork of the session that `session_id` names.")
    resume_session_at: UUID | None = Field(
        None, description="With `fork_session`: fork what was up to and with the message of this uuid."
    )

    @model_validator(mode="after")
    def _something_to_fork(self) -> PromptBody:
        if self.fork_session and self.session_id is None:
            raise ValueError("fork_session needs a session_id")
        if self.resume_session_at is not None and not self.fork_session:
            raise ValueError("resume_session_at needs fork_session: what a session has said is never cut short")
        return self


class ForkBody(RunBody):
    """What to fork, and what to change in the fork; the rest is the parent's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=described({"message_uuid": "5f3c1de0-52e5-4bb5-9a63-6c2c4f6b9b3f", "title": "Another way"}),
    )

    at_seq: int | None = Field(
        None, ge=0, le=2**62, description="Fork what was up to this event; all of it if neither is given."
    )
    message_uuid: UUID | None = Field(None, description="Fork what was up to and with this message.")
    prompt: Content | None = Field(
        None, description="Begin the fork with this prompt, and stream its run.", examples=["say hello"]
    )

    @model_validator(mode="after")
    def _one_cut(self) -> ForkBody:
        if self.at_seq is not None and self.message_uuid is not None:
            raise ValueError("give at_seq or message_uuid, not both")
        if self.resources and self.prompt is None:
            raise ValueError("resources go with a prompt: the fork has the parent's files")
        return self


class PatchBody(LabelFields):
    """What to change; what is left out stays. Lists and maps are replaced whole."""


class Usage(BaseModel):
    """What was used, as the SDK counted it."""

    model_config = ConfigDict(extra="allow")

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    web_search_requests: int = 0


class ModelUsage(Usage):
    """What was used of one model."""

    cost_usd: Usd


class PinnedAgent(BaseModel):
    """The preset that a session began with, in the version of then."""

    agent_id: UUID
    name: str
    version: int


class SessionState(BaseModel):
    """A session as it is now. `config.env` shows names only."""

    session_id: UUID
    status: Literal["idle", "queued", "running", "requires_action"]
    active: bool = Field(description="Whether an instance keeps an agent process for it.")
    active_run_id: UUID | None
    queued_runs: int
    title: str | None = Field(examples=["Weekly report"])
    tags: list[str] = Field(examples=[["reports"]])
    metadata: dict[str, str] = Field(examples=[{"customer": "42"}])
    model: str = Field(examples=["claude-sonnet-5-5"])
    permission_mode: str = Field(examples=["acceptEdits"])
    tools: list[str] | None = Field(description="Tools of the agent; null before the first run.", examples=[["Read"]])
    agent: PinnedAgent | None
    profile: str | None = Field(description="The profile that it was created under.", examples=["dev"])
    surface: str = Field(description="What it was made through: `native`, or one of the dialects of older servers.")
    end_user: str | None = Field(description="For whom its client asked when it was created.", examples=["customer-42"])
    config: Options = Field(description="Its options, with the profile's defaults.")
    num_turns: int
    total_cost_usd: Usd = Field(description="So far, as the SDK counted it.")
    usage: Usage = Field(description="So far, as the SDK counted it.")
    last_seq: int = Field(description="Number of the newest event.")
    parent_session_id: UUID | None
    owner: UUID | None = Field(description="The instance that owns it, while it is active.")
    ports: list[int] = Field(description="Ports that its agent's programs listen on; see `GET /sessions/{id}/ports`.")
    created_at: datetime
    updated_at: datetime
    last_active_at: datetime


class RunError(BaseModel):
    code: RunCode = Field(examples=["owner_lost"])
    message: str
    retryable: bool
    retry_after_seconds: int | None = Field(
        None, description="Seconds that the model API asked to wait, where it did; also the `Retry-After` of an answer."
    )
    details: dict[str, Any] | None = Field(
        None, description="Of `budget_reached`: `scope`, `name`, `limit`, `used`, `resets_at`."
    )


class OpenPort(BaseModel):
    """A port that the agent's programs listen on."""

    port: int = Field(examples=[8000])
    url: str = Field(
        description="A preview: what is served there, without a key, for 12 hours or until the session ends.",
        examples=["https://api.example.com/preview/6975080a-2ab1-4c32-b91d-3c7dd095a62a/8000/~aXc5Qm…/"],
    )


class RunState(BaseModel):
    """A run: the execution of one prompt."""

    run_id: UUID
    session_id: UUID
    kind: Literal["prompt", "rewind", "reset"]
    status: RunStatus
    origin: Literal["client", "background"]
    end_user: str | None = Field(description="For whom its client asked.", examples=["customer-42"])
    error: RunError | None
    result: dict[str, Any] | None = Field(
        description="The fields of its `result` event, once it has one; of a rewind what it changed.",
        examples=[{"status": "failed", "is_error": True, "terminal_reason": "max_turns"}],
    )
    total_cost_usd: Usd | None = Field(description="As the SDK counted it; null until it has told any.")
    usage: Usage = Field(description="What it used; nothing until it is over.")
    model_usage: dict[str, ModelUsage] = Field(description="The same, by model.")
    timeout_seconds: float
    first_seq: int | None
    last_seq: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Result(BaseModel):
    """The outcome of a run that succeeded. Figures are the SDK's own."""

    session_id: UUID
    run_id: UUID
    status: Literal["succeeded"]
    result: str | None = Field(examples=["Here are the Python files: app.py, test_app.py."])
    structured_output: Any | None = Field(examples=[{"files": ["app.py", "test_app.py"]}])
    is_error: bool
    stop_reason: str | None = Field(examples=["end_turn"])
    terminal_reason: str | None = Field(None, examples=["completed"])
    num_turns: int
    duration_ms: int
    duration_api_ms: int
    total_cost_usd: Usd | None
    usage: Usage | None = Field(examples=[{"input_tokens": 5200, "output_tokens": 96}])
    model_usage: dict[str, ModelUsage] = Field(
        examples=[{"claude-sonnet-5-5": {"input_tokens": 5200, "output_tokens": 96, "cost_usd": "0.0231"}}]
    )
    permission_denials: list[Any]
    steered_into: UUID | None = Field(
        None, description="The run whose turn has taken this prompt, of one with `on_busy: steer`: its answer is there."
    )


class Accepted(BaseModel):
    """The run is queued; follow its events or ask for it by id."""

    session_id: UUID
    run_id: UUID
    status: Literal["accepted"] = Field("accepted", examples=["accepted"])


class Whoami(BaseModel):
    """The key that asks, and its tenant."""

    tenant: str = Field(examples=["default"])
    tenant_id: UUID
    key_id: UUID
    key_name: str
    key_prefix: str = Field(examples=["cak_x1y2"])
    scopes: list[Literal["admin", "write", "read"]]
    expires_at: datetime | None
    profiles: list[str] | None = Field(
        description="Profiles that the key is bound to, its default first; null: any.", examples=[["readonly"]]
    )
    networks: list[str] | None = Field(
        description="Networks from which the key may be used; null: any.", examples=[["203.0.113.0/24"]]
    )


class ErrorBody(BaseModel):
    code: ErrorCode = Field(examples=["session_not_found"])
    message: str = Field(examples=["No such session."])
    details: dict[str, Any] = Field(examples=[{}])


class ErrorAnswer(BaseModel):
    """Every error looks like this."""

    error: ErrorBody
    request_id: str = Field(description="The same as the header X-Request-ID; logs have it too.")
