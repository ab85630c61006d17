"""Wire models of the execute server. Fields that it does not know are ignored, as the original did."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from apps.api.core.config.names import Text, confined
from apps.api.core.config.parts import PermissionMode
from apps.api.dialects.compat.common import ModelName, Prompt, Rules

ID = "123e4567-e89b-12d3-a456-426614174000"
MOMENT = "2024-01-01T12:00:00.000Z"
Status = Literal["pending", "running", "completed", "error", "cancelled"]


class ExecuteBody(BaseModel):
    """What an agent is to do."""

    prompt: Prompt = Field(
        description="What the agent is to do.", examples=["Please explain Claude Agent SDK in detail"]
    )
    system_prompt: Annotated[Text, Field(max_length=100_000)] | None = Field(
        None,
        description="Replaces the agent's own system prompt.",
        examples=["You are an excellent system engineer"],
    )
    permission_mode: PermissionMode | None = Field(
        None, description="What happens to a tool call that needs permission.", examples=["acceptEdits"]
    )
    model: ModelName | None = Field(
        None, description="A model; short and old names stand for current ones (MODEL_ALIASES).", examples=["sonnet"]
    )
    cwd: Annotated[str, Field(max_length=1000)] | None = Field(
        None,
        description="Working directory inside the session's workspace; a leading `/` is the workspace itself.",
        examples=["/path/to/working/directory"],
    )
    allowed_tools: Rules | None = Field(
        None, description="Tools that run without permission.", examples=[["Read", "Write", "Bash"]]
    )

    @field_validator("cwd")
    @classmethod
    def _inside_the_workspace(cls, value: str | None) -> str | None:
        return confined(value.lstrip("/") or ".") if value else None


class Execution(BaseModel):
    session_id: str = Field(examples=[ID])
    status: Status = Field(examples=["pending"])
    message: str = Field(examples=[f"Session {ID} started successfully"])


class ExecutionMessage(BaseModel):
    type: Literal["UserMessage", "AssistantMessage", "SystemMessage", "ResultMessage"] = Field(examples=["UserMessage"])
    content: str = Field(description="Text; other content blocks as JSON, one a line.", examples=["..."])
    timestamp: str = Field(examples=[MOMENT])


class ExecutionStatus(BaseModel):
    session_id: str = Field(examples=[ID])
    status: Status = Field(examples=["running"])
    messages: list[ExecutionMessage] = Field(description="Oldest first; the newest 5,000, or 4 MB.")
    result: str | None = Field(description="What the agent says at the end.", examples=["Done."])
    error: str | None = Field(description="Why it failed.", examples=["The run took longer than its timeout."])
    duration_ms: int | None = Field(description="So far, or in all; null before it begins.", examples=[1000])
    total_cost_usd: float | None = Field(description="Null before it begins.", examples=[0.01])


class ListedExecution(BaseModel):
    session_id: str = Field(examples=[ID])
    status: Status = Field(examples=["running"])
    prompt: str = Field(examples=["Create a Hello World program in Python"])
    created_at: str = Field(examples=[MOMENT])
    start_time: str | None = Field(examples=[MOMENT])
    end_time: str | None = Field(examples=[MOMENT])
    error: str | None = Field(description="Why it failed.", examples=["The run took longer than its timeout."])
    result: str | None = Field(description="What the agent said at the end.", examples=["Done."])
    message_count: int = Field(examples=[5])


class CleanedUp(BaseModel):
    removed: int = Field(examples=[5])
    message: str = Field(examples=["Cleaned up 5 old sessions"])


class ExecuteServerInfo(BaseModel):
    name: str = Field(examples=["Claude Agent API"])
    version: str = Field(examples=["1.0.0"])
    endpoints: dict[str, str] = Field(
        description="Path → what it does.", examples=[{"/execute/": "POST: start a session"}]
    )
