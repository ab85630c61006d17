"""Wire models of the code server. Fields that it does not know are ignored, as the original did."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from apps.api.dialects.compat.common import ModelName, Prompt, Rules

ID = "550e8400-e29b-41d4-a716-446655440000"
MOMENT = "2025-10-14T10:30:00"


class Options(BaseModel):
    """How the agent of a new session works."""

    model: ModelName | None = Field(
        None,
        description="A model; old names stand for current ones (MODEL_ALIASES).",
        examples=["claude-3-5-sonnet-20241022"],
    )
    allowed_tools: Rules | None = Field(
        None,
        description="Tools that run without permission; the others follow `permission_mode`.",
        examples=[["Read", "Write"]],
    )
    permission_mode: Literal["default", "acceptEdits", "plan", "bypassPermissions"] = Field(
        "default", description="What happens to a tool call that needs permission.", examples=["acceptEdits"]
    )

    @field_validator("permission_mode", mode="before")
    @classmethod
    def _null_is_unset(cls, value: object) -> object:
        return "default" if value is None else value


class NextBody(BaseModel):
    """The next message of a conversation."""

    prompt: Prompt = Field(description="The question or instruction.", examples=["How do I install it?"])
    stream: bool = Field(False, description="Answer as a stream of `data:` lines.")


class QueryBody(Options, NextBody):
    """A question without a history."""


class StartBody(Options):
    """The first message of a conversation."""

    initial_prompt: Prompt = Field(description="The first message.", examples=["What is Docker?"])


class QueryAnswer(BaseModel):
    response: str = Field(description="What the agent says at the end.", examples=["Python is a programming language."])
    duration_ms: int = Field(examples=[1234])
    num_turns: int = Field(examples=[1])
    total_cost_usd: float = Field(examples=[0.001234])


class SessionAnswer(BaseModel):
    session_id: str = Field(examples=[ID])
    response: str = Field(description="What the agent says at the end.", examples=["To install Python, you can..."])
    duration_ms: int = Field(examples=[1234])


class StartAnswer(BaseModel):
    session_id: str = Field(examples=[ID])
    status: Literal["started"]
    initial_response: str = Field(examples=["Docker is a platform for containerization..."])
    created_at: str = Field(description="UTC, without a zone.", examples=[MOMENT])


class SessionChange(BaseModel):
    status: Literal["interrupted", "closed"] = Field(examples=["interrupted"])
    session_id: str = Field(examples=[ID])


class OpenSession(BaseModel):
    session_id: str = Field(examples=[ID])
    created_at: str = Field(description="UTC, without a zone.", examples=[MOMENT])
    active: bool = Field(description="True until it is closed.", examples=[True])
    model: str = Field(description="The model that answers.", examples=["claude-sonnet-5-5"])


class OpenSessions(BaseModel):
    active_sessions: list[str] = Field(description="Ids, newest first, at most 1,000.", examples=[[ID]])
    count: int = Field(examples=[1])


class CodeServerHealth(BaseModel):
    status: Literal["healthy"]
    authenticated: bool = Field(description="Whether a model is configured.")
    active_sessions: int = Field(description="The caller's; 0 without a key.", examples=[2])
    timestamp: str = Field(description="UTC, without a zone.", examples=[MOMENT])


class CodeServerInfo(BaseModel):
    name: str = Field(examples=["Claude Agent API"])
    version: str = Field(examples=["1.0.0"])
    endpoints: list[str] = Field(examples=[["/health", "/query"]])
