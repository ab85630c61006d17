"""Wire models of the AI SDK's transport, and what its messages say in the core's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from pydantic import ValidationError as PydanticError

from apps.api.core.codec import encode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.content import Block, Content
from apps.api.core.config.names import Name, Text
from apps.api.core.sessions.admission import NO_CHANGES
from apps.api.errors import ValidationError
from apps.api.web.errors import findings

Id = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
AgentRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(@[1-9][0-9]{0,8})?$")]

MAX_MESSAGES, MAX_PARTS = 10_000, 10_000
"""Of a request, and of a message. What counts is the size of the body."""

MAX_HISTORY_CHARS = 100_000
"""Of what was said before, that a new session is told: the newest."""

MAX_RESULT_CHARS = 1_000_000
"""Of what a tool of the client gave."""

MAX_REASON_CHARS = 10_000

_CONTENT: TypeAdapter[str | list[Block]] = TypeAdapter(Content)
_EXAMPLE = {
    "id": "chat-1",
    "trigger": "submit-message",
    "messages": [{"id": "message-1", "role": "user", "parts": [{"type": "text", "text": "say hello"}]}],
}


def _described(schema: dict[str, Any]) -> None:
    for name in AgentConfig.model_fields:
        schema["properties"][name].setdefault("description", "As in the native API: an option of the agent.")
    schema["examples"] = [_EXAMPLE]


class UIMessage(BaseModel):
    """A message as the client keeps it. Parts are read by their type."""

    model_config = ConfigDict(extra="ignore")

    id: Id = Field(description="The client made it of a user's message, the server of an assistant's.")
    role: Literal["system", "user", "assistant"]
    parts: Annotated[list[dict[str, Any]], Field(max_length=MAX_PARTS)]


class ChatBody(AgentConfig):
    """What `DefaultChatTransport` sends, and options of the agent beside it (its `body`)."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_described)

    id: Id = Field(description="The chat. The first message makes its session.")
    messages: Annotated[list[UIMessage], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="All of the chat. Of one that is known the last one counts."
    )
    trigger: Literal["submit-message", "regenerate-message"] = Field(
        "submit-message", description="A new message, or an answer; or the last one once more."
    )
    messageId: Id | None = Field(None, description="The message that is edited, answered again or continued.")  # noqa: N815
    agent: AgentRef | None = Field(None, description="A preset, of a new chat.")
    profile: Name | None = Field(None, description="The operator's profile, of a new chat.")
    on_disconnect: Literal["continue", "interrupt"] = Field(
        "continue", description="What becomes of the run when the client leaves, as its `stop` does, or a closed tab."
    )
    timeout_seconds: float | None = Field(None, gt=0, le=86_400, description="Deadline of the run.")

    @property
    def config(self) -> AgentConfig:
        """The options of the agent in it."""
        given = self.model_fields_set & AgentConfig.model_fields.keys()
        if not given:
            return NO_CHANGES
        return AgentConfig.model_construct(given, **{name: getattr(self, name) for name in AgentConfig.model_fields})


class Stopped(BaseModel):
    """`applied`: the run has ended. `accepted`: it has been told."""

    run_id: UUID | None
    status: Literal["applied", "accepted"] = Field(examples=["applied"])


def prompt_of(message: UIMessage, before: list[UIMessage] | None = None) -> str | list[dict[str, Any]]:
    """What a user's message says, as a prompt; after what was said before, if the session does not know that.

    Raises:
        ValidationError: it says nothing, or holds what cannot be given to an agent.
    """
    blocks = list(_blocks(message))
    if told := _told(before or []):
        blocks.insert(0, {"type": "text", "text": told})
    try:
        content = _CONTENT.validate_python(blocks)
    except PydanticError as error:
        found = findings(error.errors()[:20])
        raise ValidationError.of("messages", "; ".join(f"{e['field']}: {e['reason']}" for e in found[:3])) from error
    given = [block.model_dump(exclude_none=True) for block in content if not isinstance(block, str)]
    return given[0]["text"] if len(given) == 1 and given[0]["type"] == "text" else given


def _blocks(message: UIMessage) -> Iterator[dict[str, Any]]:
    for place, part in enumerate(message.parts):
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            if part["text"]:
                yield {"type": "text", "text": part["text"]}
        elif kind == "file":
            yield _file(part, place)
        elif isinstance(kind, str) and kind.startswith("data-"):
            yield {"type": "text", "text": f"{kind}: {encode(part.get('data')).decode()}"}
        else:
            raise ValidationError.of(f"messages.parts.{place}", "must be text, a file, or data of a user")


def _file(part: dict[str, Any], place: int) -> dict[str, Any]:
    url, media = part.get("url"), part.get("mediaType")
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        raise ValidationError.of(f"messages.parts.{place}.url", "URLs are not fetched: send the data itself, as base64")
    source = {"type": "base64", "media_type": media, "data": data}
    return {"type": "document" if media == "application/pdf" else "image", "source": source}


def _told(before: list[UIMessage]) -> str:
    lines = list[str]()
    room = MAX_HISTORY_CHARS
    for message in reversed(before):
        texts = [part["text"] for part in message.parts if part.get("type") == "text" and _is_text(part.get("text"))]
        said = f"{message.role}: {' '.join(texts)}"
        if (room := room - len(said)) < 0:
            break
        if texts:
            lines.append(said)
    return "What was said in this conversation before:\n\n" + "\n\n".join(reversed(lines)) if lines else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# --- answers ---


class Answers:
    """What an assistant's message says of what it was asked, by the ids in it: a client's word, for what we have open.

    Attributes:
        approvals: by the request's id.
        outputs: by the call's id.
    """

    def __init__(self, message: UIMessage) -> None:
        self.approvals: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}
        for part in message.parts:
            approval, call = part.get("approval"), part.get("toolCallId")
            if isinstance(approval, dict) and isinstance(approval.get("approved"), bool):
                self.approvals[str(approval.get("id"))] = approval
            elif isinstance(call, str) and part.get("state") in ("output-available", "output-error"):
                self.outputs[call] = part

    def to(self, kind: str, request_id: str, tool_use_id: str | None, questions: list[str]) -> dict[str, Any] | None:
        """The decision on a request, as `answering.answer` takes it; None where the message says nothing of it.

        Raises ValidationError for what is no answer.
        """
        if kind == "permission":
            approval = self.approvals.get(request_id)
            return None if approval is None else _decision(approval)
        part = self.outputs.get(tool_use_id or request_id)
        if part is None:
            return None
        return _answers(part, questions) if kind == "question" else _tool_result(part)


def _decision(approval: dict[str, Any]) -> dict[str, Any]:
    if approval["approved"]:
        return {"decision": "allow"}
    reason = approval.get("reason")
    return {"decision": "deny", **({"message": _bounded(reason, MAX_REASON_CHARS, "reason")} if reason else {})}


def _tool_result(part: dict[str, Any]) -> dict[str, Any]:
    failed = part["state"] == "output-error"
    given = part.get("errorText") if failed else part.get("output")
    text = given if isinstance(given, str) else encode(given).decode()
    content = [{"type": "text", "text": _bounded(text, MAX_RESULT_CHARS, "output")}]
    return {"decision": "answered", "content": content, "is_error": failed}


def _answers(part: dict[str, Any], questions: list[str]) -> dict[str, Any]:
    given = part.get("errorText") if part["state"] == "output-error" else part.get("output")
    if isinstance(given, dict) and isinstance(given.get("answers"), dict):
        given = given["answers"]
    if isinstance(given, str):
        given = dict.fromkeys(questions, given)
    if not isinstance(given, dict) or not given:
        raise ValidationError.of(
            "messages", "the output of AskUserQuestion must have an answer by each question's text"
        )
    answers = {}
    for question, answer in given.items():
        words = answer if isinstance(answer, list) else [answer]
        if not all(isinstance(word, str) for word in words):
            raise ValidationError.of("messages", "an answer must be text, or a list of texts")
        answers[question] = _bounded(", ".join(words), MAX_REASON_CHARS, "output")
    return {"decision": "answered", "answers": answers}


def _bounded(text: Any, limit: int, field: str) -> str:
    if not isinstance(text, str) or len(text) > limit or "\x00" in text:
        raise ValidationError.of(f"messages.{field}", f"must be text of at most {limit} characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError.of(f"messages.{field}", "must not contain half of a surrogate pair") from error
    return text
