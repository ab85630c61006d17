"""Wire models of the chat server. Fields that it does not know are ignored, as the original did."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator

from apps.api.core.config.parts import RepositoryUrl
from apps.api.dialects.compat.common import Prompt


class NextChat(BaseModel):
    """The next message of a conversation."""

    prompt: Prompt = Field(description="A follow-up question or instruction.", examples=["add tests to this project"])


class Chat(NextChat):
    """The first message of a conversation."""

    repo: RepositoryUrl | None = Field(
        None,
        description="A git repository to clone into the workspace first; the operator says from which hosts.",
        examples=["https://github.com/username/repository"],
    )

    @field_validator("repo", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None
