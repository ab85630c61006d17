"""Wire models of AG-UI, and what its messages say in the core's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from pydantic import ValidationError as PydanticError

from apps.api.core import codec
from apps.api.core.codec import encode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.content import Block, Content
from apps.api.core.config.names import Name, Text
from apps.api.core.sessions.admission import NO_CHANGES
from apps.api.errors import ApiError, BadRequest, ValidationError
from apps.api.web.errors import findings

Id = Annotated[Text, StringConstraints(min_length=1, max_length=200)]

MAX_MESSAGES, MAX_CONTEXT, MAX_RESUMED = 10_000, 100, 200
MAX_STATE_BYTES = 64 * 1024
MAX_HISTORY_CHARS = 100_000
"""Of what was said before, that a new session is told: the newest."""

MAX_RESULT_CHARS, MAX_REASON_CHARS = 1_000_000, 10_000

_CONTENT: TypeAdapter[str | list[Block]] = TypeAdapter(Content)
_EXAMPLE: dict[str, Any] = {
    "threadId": "thread-1",
    "runId": "run-1",
    "messages": [{"id": "message-1", "role": "user", "content": "say hello"}],
    "tools": [],
    "context": [],
}


class Theirs(BaseModel):
    """A part of the client's, which may have more than is read of it."""

    model_config = ConfigDict(extra="ignore")


class AgUiMessage(Theirs):
    """A message of the client's history."""

    id: Id
    role: str = Field(max_length=50)
    content: Any = None
    toolCallId: str | None = None  # noqa: N815
    error: str | None = None


class AgUiTool(Theirs):
    """A tool that the client executes: a client tool of the session."""

    name: str
    description: str
    parameters: Any = None


class AgUiContext(Theirs):
    """What the agent is told beside the message."""

    description: Annotated[Text, Field(max_length=10_000)]
    value: Annotated[Text, Field(max_length=100_000)]


class AgUiResume(Theirs):
    """What was decided of an interrupt."""

    interruptId: Id  # noqa: N815
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class AgUiOptions(AgentConfig):
    """AgUiOptions of the agent, and how it is to be run."""

    profile: Name | None = None
    timeout_seconds: float | None = Field(None, gt=0, le=86_400)
    on_disconnect: Literal["continue", "interrupt"] = "continue"


class RunAgentInput(Theirs):
    """What `HttpAgent` sends."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [_EXAMPLE]})

    threadId: Id = Field(description="The thread. Its first request makes its session.")  # noqa: N815
    runId: Id = Field(description="The client's own; sent again, it gets what it began.")  # noqa: N815
    messages: Annotated[list[AgUiMessage], Field(max_length=MAX_MESSAGES)] = Field(
        description="All of the thread. Of one that is known the last ones count."
    )
    tools: list[AgUiTool] = Field([], max_length=64, description="Tools that the client executes.")
    context: list[AgUiContext] = Field([], max_length=MAX_CONTEXT, description="Told with the message.")
    state: Any = Field(None, description="Kept with the thread, and told back.")
    forwardedProps: AgUiOptions | None = Field(None, description="AgUiOptions of the agent.")  # noqa: N815
    resume: list[AgUiResume] = Field([], max_length=MAX_RESUMED, description="What was decided of interrupts.")

    def options(self) -> tuple[AgUiOptions, AgentConfig]:
        """How it is to be run, and the options of the agent. Raises ValidationError."""
        given = self.forwardedProps or AgUiOptions()
        fields = {n: getattr(given, n) for n in given.model_fields_set & AgentConfig.model_fields.keys()}
        if self.tools:
            fields["client_tools"] = [
                {"name": t.name, "description": t.description, "input_schema": t.parameters or {"type": "object"}}
                for t in self.tools
            ]
        if not fields:
            return given, NO_CHANGES
        try:
            return given, AgentConfig(**fields)
        except PydanticError as error:
            raise _wrong("tools" if self.tools else "forwardedProps", error) from error

    def checked_state(self) -> Any:
        """The state, where the client has one; else None. Raises ValidationError."""
        if self.state in (None, {}, [], ""):
            return None
        if len(encode(self.state)) > MAX_STATE_BYTES:
            raise ValidationError.of("state", f"is larger than {MAX_STATE_BYTES} bytes")
        try:
            codec.check(self.state, storable=True)
        except codec.Unsuitable as error:
            raise ValidationError.of("state", error.reason) from error
        return self.state


def _wrong(field: str, error: PydanticError) -> ApiError:
    found = findings(error.errors()[:20])
    return ValidationError.of(field, "; ".join(f"{e['field']}: {e['reason']}" for e in found[:3]))


def prompt_of(
    message: AgUiMessage, context: Sequence[AgUiContext], before: Sequence[AgUiMessage]
) -> str | list[dict[str, Any]]:
    """A user's message as a prompt; with the context, and with what was said before if the session does not know that.

    Raises ValidationError.
    """
    blocks = [{"type": "text", "text": text} for text in (_told(before), _context(context)) if text]
    if isinstance(message.content, str):
        blocks.append({"type": "text", "text": message.content})
    elif isinstance(message.content, list):
        blocks += [_block(part, place) for place, part in enumerate(message.content[:200])]
    if not blocks or not message.content:
        raise ValidationError.of("messages.content", "must not be empty")
    try:
        content = _CONTENT.validate_python(blocks)
    except PydanticError as error:
        raise _wrong("messages.content", error) from error
    given = [block.model_dump(exclude_none=True) for block in content if not isinstance(block, str)]
    return given[0]["text"] if len(given) == 1 and given[0]["type"] == "text" else given


def _block(part: Any, place: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part.get("text")}
    source = part.get("source") if isinstance(part, dict) else None
    if kind in ("image", "document") and isinstance(source, dict) and source.get("type") == "data":
        return {
            "type": kind,
            "source": {"type": "base64", "media_type": source.get("mimeType"), "data": source.get("value")},
        }
    raise ValidationError.of(f"messages.content.{place}", "must be text, or an image or a document with its data")


def _context(context: Sequence[AgUiContext]) -> str:
    return "\n".join(f"{one.description}: {one.value}" for one in context)


def _told(before: Sequence[AgUiMessage]) -> str:
    lines, room = list[str](), MAX_HISTORY_CHARS
    for message in reversed(before):
        if message.role in ("user", "assistant", "system", "developer") and isinstance(message.content, str):
            said = f"{message.role}: {message.content}"
            if (room := room - len(said)) < 0:
                break
            lines.append(said)
    return "What was said in this conversation before:\n\n" + "\n\n".join(reversed(lines)) if lines else ""


# --- answers ---


class Answers:
    """What a request says of what was asked: by interrupts, and by messages of tools. A client's word, for what we have
    open."""

    def __init__(self, body: RunAgentInput) -> None:
        self._resumed = {one.interruptId: one for one in body.resume}
        self._results: dict[str, AgUiMessage] = {}
        for message in reversed(body.messages):
            if message.role != "tool":
                break
            if message.toolCallId:
                self._results[message.toolCallId] = message

    @property
    def interrupts(self) -> list[str]:
        return list(self._resumed)

    def __bool__(self) -> bool:
        return bool(self._resumed or self._results)

    def to(
        self, kind: str, request_id: str, tool_use_id: str | None, questions: Sequence[str]
    ) -> dict[str, Any] | None:
        """The decision on a request, as `answering.answer` takes it; None where nothing is said of it.

        Raises BadRequest for what is no answer.
        """
        if kind == "client_tool":
            result = self._results.get(tool_use_id or request_id)
            return None if result is None else _result(result)
        one = self._resumed.get(request_id)
        if one is None:
            return None
        return _permission(one) if kind == "permission" else _question(one, questions)


def _permission(one: AgUiResume) -> dict[str, Any]:
    payload = one.payload if isinstance(one.payload, Mapping) else {"approved": one.payload}
    if one.status == "cancelled":
        return {"decision": "deny", "message": "The user has cancelled this."}
    if not isinstance(payload.get("approved"), bool):
        raise BadRequest("resume.payload: must have `approved`, true or false", code="validation_error")
    if payload["approved"]:
        changed = payload.get("updated_input")
        if changed is not None and not isinstance(changed, dict):
            raise BadRequest("resume.payload.updated_input: must be an object", code="validation_error")
        return {"decision": "allow", **({} if changed is None else {"updated_input": changed})}
    reason = payload.get("reason")
    return {"decision": "deny", **({"message": _bounded(reason, MAX_REASON_CHARS)} if reason else {})}


def _question(one: AgUiResume, questions: Sequence[str]) -> dict[str, Any]:
    given = one.payload
    if one.status == "cancelled":
        given = "The user does not want to answer."
    if isinstance(given, Mapping) and isinstance(given.get("answers"), Mapping):
        given = given["answers"]
    if isinstance(given, str):
        given = dict.fromkeys(questions, given)
    if not isinstance(given, Mapping) or not given:
        raise BadRequest("resume.payload: must have an answer by each question's text", code="validation_error")
    words = {question: answer if isinstance(answer, list) else [answer] for question, answer in given.items()}
    if not all(isinstance(word, str) for answer in words.values() for word in answer):
        raise BadRequest("resume.payload: an answer must be text, or a list of texts", code="validation_error")
    return {"decision": "answered", "answers": {q: _bounded(", ".join(a), MAX_REASON_CHARS) for q, a in words.items()}}


def _result(message: AgUiMessage) -> dict[str, Any]:
    text = message.content if isinstance(message.content, str) else encode(message.content).decode()
    content = [{"type": "text", "text": _bounded(message.error or text, MAX_RESULT_CHARS)}]
    return {"decision": "answered", "content": content, "is_error": bool(message.error)}


def _bounded(text: Any, limit: int) -> str:
    if not isinstance(text, str) or len(text) > limit or "\x00" in text:
        raise BadRequest(f"an answer must be text of at most {limit} characters", code="validation_error")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("an answer must not contain half of a surrogate pair", code="validation_error") from error
    return text
