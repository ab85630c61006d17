"""What the tools take and tell."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import EndUser, Name, Text

WAIT_SECONDS = 50.0
"""For which a call waits for its run, unless it says: clients of MCP often give up after a minute."""

MAX_WAIT_SECONDS = 300.0

Prompt = Annotated[Text, Field(min_length=1)]
Preset = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(@[1-9][0-9]{0,8})?$")]


class Arguments(BaseModel):
    """Those of a tool: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid")


class Named(Arguments):
    preset: Preset


class Waiting(Arguments):
    wait_seconds: float = Field(
        WAIT_SECONDS,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long to wait. The run goes on afterwards: ask for it with get_run.",
    )


class PresetArguments(Waiting):
    prompt: Prompt = Field(description="What the agent is to do, in plain words.")


class RunArguments(PresetArguments):
    preset: Preset | None = Field(None, description="The agent to use: a preset's name or id, perhaps with @version.")
    profile: Name | None = Field(None, description="The server's profile that the session runs under.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Other options of the session, as in POST /api/v1/sessions: model, system_prompt_append, …",
    )
    end_user: EndUser | None = Field(None, description="For whom you ask.")

    def config(self) -> AgentConfig:
        """The options. Raises ValidationError of pydantic's, whose places begin with `options`."""
        return _Options.model_validate({"options": self.options}).options


class _Options(BaseModel):
    options: AgentConfig


class NextArguments(PresetArguments):
    session_id: UUID = Field(description="The session, as an earlier call has told it.")


class GetArguments(Waiting):
    run_id: UUID = Field(description="The run, as an earlier call has told it.")
    wait_seconds: float = Field(0, ge=0, le=MAX_WAIT_SECONDS, description="How long to wait for its end.")


class CancelArguments(Arguments):
    run_id: UUID = Field(description="The run, as an earlier call has told it.")


class Asked(BaseModel):
    """What the agent asks a person or a program; whoever decides does so through the API or the console."""

    request_id: UUID
    type: Literal["permission", "question", "client_tool"]
    about: dict[str, Any] = Field(description="What is asked.")


class Told(BaseModel):
    """What has become of a run."""

    session_id: UUID = Field(description="For continue_session.")
    run_id: UUID = Field(description="For get_run.")
    status: Literal["queued", "running", "requires_action", "succeeded", "failed", "interrupted"]
    result: str | None = Field(None, description="The agent's last words, once it has succeeded.")
    structured_output: Any = Field(None, description="Its answer by the preset's schema, where that has one.")
    asked: list[Asked] = Field(default_factory=list, description="With requires_action: what waits for an answer.")
    error: dict[str, Any] | None = Field(None, description="With failed: code and message.")
    advice: str | None = Field(None, description="What to do next, where it is not over.")
