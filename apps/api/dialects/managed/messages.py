"""Events that clients send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from apps.api.core.config import client_tools
from apps.api.core.config.content import Content
from apps.api.core.config.names import Text
from apps.api.dialects.managed.common import Closed, explained, unsupported
from apps.api.errors import ValidationError as Invalid
from apps.api.web.errors import findings

_CONTENT: TypeAdapter[Any] = TypeAdapter(Content)
_RESULT: TypeAdapter[Any] = TypeAdapter(
    Annotated[list[client_tools.ResultBlock], Field(min_length=1, max_length=client_tools.MAX_BLOCKS)]
)

Blocks = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=100)]
EventId = Annotated[str, Field(max_length=120)]


def _checked(adapter: TypeAdapter[Any], blocks: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    for number, block in enumerate(blocks):
        source = block.get("source")
        kind = source.get("type") if isinstance(source, dict) else None
        where = f"{field}.content.{number}"
        if kind in ("url", "file"):
            raise unsupported(
                f"{where}.source.type", "nothing is fetched here: send the data itself ('base64', 'text')"
            )
        if block.get("type") in ("redacted", "search_result"):
            raise unsupported(f"{where}.type", f"{block['type']} is not supported: 'text', 'image' or 'document'")
    try:
        found = adapter.validate_python(blocks)
    except ValidationError as error:
        first = findings(error.errors())[0]
        raise Invalid.of(f"{field}.content.{first['field']}", first["reason"]) from error
    return [block.model_dump(exclude_none=True) for block in found]


class UserMessage(Closed):
    """What a person says: begins a turn, or waits for the end of the one that runs."""

    type: Literal["user.message"]
    content: Blocks

    def prompt(self, field: str) -> list[dict[str, Any]]:
        """As the core takes it. Raises BadRequest, ValidationError, which name `field`."""
        return _checked(_CONTENT, self.content, field)


class UserInterrupt(Closed):
    """Stop what runs."""

    type: Literal["user.interrupt"]
    session_thread_id: Annotated[str, Field(max_length=120)] | None = None


class UserToolConfirmation(Closed):
    """Whether a call may run."""

    type: Literal["user.tool_confirmation"]
    tool_use_id: EventId
    result: Literal["allow", "deny"]
    deny_message: Annotated[Text, Field(max_length=10_000)] | None = None
    session_thread_id: Annotated[str, Field(max_length=120)] | None = None


class UserCustomToolResult(Closed):
    """What a custom tool has come to."""

    type: Literal["user.custom_tool_result"]
    custom_tool_use_id: EventId
    content: Annotated[list[dict[str, Any]], Field(max_length=100)] | None = None
    is_error: bool | None = None
    session_thread_id: Annotated[str, Field(max_length=120)] | None = None

    def result(self, field: str) -> list[dict[str, Any]]:
        """As the core takes it. Raises BadRequest, ValidationError, which name `field`."""
        if not self.content:
            return [{"type": "text", "text": "(no content)"}]
        return _checked(_RESULT, self.content, field)


class Refused(Closed):
    """What is known and not supported."""

    type: Literal["user.tool_result", "user.define_outcome", "system.message"]
    tool_use_id: Any = None
    content: Any = None
    is_error: Any = None
    session_thread_id: Any = None
    description: Any = None
    rubric: Any = None
    max_iterations: Any = None


REASONS = {
    "user.tool_result": "built-in tools run on this server: there is no result to give",
    "user.define_outcome": "outcomes are not evaluated here",
    "system.message": "the system prompt is the agent's: update the agent, or begin another session",
}

Sent = Annotated[
    UserMessage | UserInterrupt | UserToolConfirmation | UserCustomToolResult | Refused,
    Field(discriminator="type"),
]


class SendEvents(Closed):
    """Events for a session, in order."""

    model_config = explained()

    events: Annotated[list[Sent], Field(min_length=1, max_length=50)]
