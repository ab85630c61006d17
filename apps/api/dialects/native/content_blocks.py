"""What messages are made of, as events show them. For the document: events are sent as they are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Ours(BaseModel):
    """An object that this server makes: it has no other fields. Clients ignore fields that they do not know."""

    model_config = ConfigDict(extra="forbid")


class Theirs(BaseModel):
    """An object that the SDK, the model or a tool makes: it may have more fields than are named here."""

    model_config = ConfigDict(extra="allow")


class TextContent(Theirs):
    """Words."""

    type: Literal["text"]
    text: str = Field(examples=["Here are the Python files."])


class ImageContentSource(Ours):
    """What an image is, without its data."""

    type: Literal["base64"]
    media_type: str = Field(examples=["image/png"])


class ImageContent(Ours):
    """An image of a prompt, or of a tool's result, without its data."""

    type: Literal["image"]
    source: ImageContentSource
    data_omitted: Literal[True]
    bytes: int = Field(description="Size of the data that is left out.")


class DocumentContentSource(Ours):
    """What a document is, without its data."""

    type: Literal["base64", "text"]
    media_type: str = Field(examples=["application/pdf"])


class DocumentContent(Ours):
    """A document of a prompt, without its data."""

    type: Literal["document"]
    source: DocumentContentSource
    title: str | None = None
    context: str | None = None
    data_omitted: Literal[True]
    bytes: int = Field(description="Size of the data that is left out.")


class ThinkingContent(Ours):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str


class ToolUseContent(Ours):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str = Field(description="Of the call; its result and its requests name it as `tool_use_id`.")
    name: str = Field(examples=["Bash"])
    input: dict[str, Any]


class ToolResultPart(Theirs):
    """A part of a tool's result: mostly `text`, or an `image` whose data is left out."""

    type: str = Field(examples=["text"])
    text: str | None = None


class ToolResultContent(Ours):
    """What a call has come to."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(description="`id` of the call.")
    content: str | list[ToolResultPart] | None
    is_error: bool


class ServerToolUseContent(Ours):
    """A call of a tool that the model's API executes itself, such as `web_search`."""

    type: Literal["server_tool_use"]
    id: str
    name: str = Field(examples=["web_search"])
    input: dict[str, Any]


class ServerToolResultContent(Ours):
    """What such a call has come to, as the model's API told it."""

    type: Literal["server_tool_result"]
    tool_use_id: str
    content: Any


ContentBlock = Annotated[
    TextContent
    | ImageContent
    | DocumentContent
    | ThinkingContent
    | ToolUseContent
    | ToolResultContent
    | ServerToolUseContent
    | ServerToolResultContent,
    Field(discriminator="type"),
]
"""One block of a message, by its `type`."""


class TextDelta(Ours):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingDelta(Ours):
    """A piece of what the model thinks."""

    type: Literal["thinking"]
    thinking: str


class InputJsonDelta(Ours):
    """A piece of the JSON of a tool call's input."""

    type: Literal["input_json"]
    input_json: str


Delta = Annotated[TextDelta | ThinkingDelta | InputJsonDelta, Field(discriminator="type")]
"""A piece of a message, by its `type`."""
