"""What the clients may send, and what of it this server has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apps.api.core import codec
from apps.api.dialects.openai.errors import refused, unsupported

MAX_ITEMS = 5_000
"""Messages, or items, of one request."""

MAX_METADATA = 16

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)
]
Things = Annotated[list[dict[str, Any]], Field(max_length=MAX_ITEMS)]

Model = Annotated[str, Field(min_length=1, max_length=200, examples=["claude-sonnet-5-5"])]
_MODEL = "A model, one of its aliases, or `preset:NAME`: see `GET /models`."

_ANY: tuple[Any, ...] = ("*",)
"""Values of a parameter that changes nothing here, whatever it says: it is a hint for caches and for abuse."""

_SAMPLING = {"temperature": (1,), "top_p": (1,), "top_logprobs": (0,), "service_tier": ("auto", "default")}
_HINTS = {
    "prompt_cache_key": _ANY,
    "prompt_cache_options": _ANY,
    "prompt_cache_retention": _ANY,
}

CHAT_OTHERS: Mapping[str, tuple[Any, ...]] = {
    **_SAMPLING,
    **_HINTS,
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "verbosity": ("medium",),
    "modalities": (["text"],),
    "logit_bias": ({},),
    "store": (False,),
    **dict.fromkeys(("audio", "function_call", "functions", "max_completion_tokens", "max_tokens", "moderation"), ()),
    **dict.fromkeys(("prediction", "seed", "stop", "web_search_options"), ()),
}
"""Parameters of chat completions that change nothing when they have one of these values, and are refused otherwise."""

RESPONSES_OTHERS: Mapping[str, tuple[Any, ...]] = {
    **_SAMPLING,
    **_HINTS,
    "truncation": ("disabled",),
    **dict.fromkeys(("access_programs", "background_options", "context_management", "image", "max_output_tokens"), ()),
    **dict.fromkeys(("max_tool_calls", "moderation", "prompt"), ()),
}
"""The same of responses."""

WHY = {
    "functions": "use tools.",
    "function_call": "use tool_choice.",
    "store": "chat completions are not kept; use responses for that.",
    "prompt": "use a preset as the model: preset:NAME.",
}
_USUAL = "the agent's program decides this."

T = TypeVar("T", bound=BaseModel)


class Body(BaseModel):
    """A request. What is not known is refused: it would ask for something that does not happen."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Body):
    """What a stream has beside the answer."""

    include_usage: bool | None = Field(None, description="Chat: a last chunk with the tokens used.")
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is padded here.")


class ChatRequest(Body):
    """A chat completion."""

    model: Model = Field(description=_MODEL)
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="The conversation so far: system, developer, user, assistant and tool messages.",
        examples=[[{"role": "user", "content": "say hello"}]],
    )
    stream: bool | None = Field(None, description="Tell the answer as it comes, as `data:` lines.")
    stream_options: StreamOptions | None = Field(None, description="With `stream`.")
    tools: Annotated[list[dict[str, Any]], Field(max_length=64)] | None = Field(
        None, description="Functions of your own program. The agent's own tools it has beside them."
    )
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = Field(
        None, description="`auto` or `none`, or `allowed_tools` with the mode `auto`; a call cannot be forced."
    )
    parallel_tool_calls: bool | None = Field(None, description="`false`: one call at a time.")
    response_format: dict[str, Any] | None = Field(None, description="`text`, or `json_schema` with a schema.")
    reasoning_effort: Effort | None = Field(None, description="How much the model thinks.")
    metadata: Metadata | None = Field(None, description="Echoed.")
    user: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="Your user. Conversations of different ones are never one session."
    )
    safety_identifier: Annotated[str, Field(max_length=200)] | None = Field(None, description="The same, by its name.")


class Reasoning(Body):
    """How the model thinks."""

    effort: Effort | None = Field(None, description="How much.")
    summary: Literal["auto"] | None = Field(None, description="Accepted: reasoning is told as it is.")


class TextOptions(Body):
    """What the answer looks like."""

    format: dict[str, Any] | None = Field(None, description="`text`, or `json_schema` with a name and a schema.")
    verbosity: Literal["medium"] | None = Field(None, description="No other is supported.")


class ResponseRequest(Body):
    """A response."""

    model: Model = Field(description=_MODEL)
    input: str | Things = Field(description="What to answer: text, or items.", examples=["say hello"])
    instructions: Annotated[str, Field(max_length=100_000)] | None = Field(
        None, description="For this response: added to the agent's own system prompt."
    )
    background: bool | None = Field(None, description="Answer at once; the response goes on without you.")
    conversation: Annotated[str, Field(max_length=100)] | dict[str, Any] | None = Field(
        None, description="A conversation's id. One response at a time."
    )
    previous_response_id: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="Go on behind this response."
    )
    include: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=20)] | None = Field(
        None, description="Accepted; there is nothing more to include."
    )
    metadata: Metadata | None = Field(None, description="Kept with the response.")
    parallel_tool_calls: bool | None = Field(None, description="`false`: one call at a time.")
    reasoning: Reasoning | None = Field(None, description="How the model thinks.")
    store: bool | None = Field(None, description="`false`: nothing of it is kept once it is over.")
    stream: bool | None = Field(None, description="Tell it as it comes, event by event.")
    stream_options: StreamOptions | None = Field(None, description="With `stream`.")
    text: TextOptions | None = Field(None, description="What the answer looks like.")
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = Field(
        None, description="`auto` or `none`, or `allowed_tools` with the mode `auto`; a call cannot be forced."
    )
    tools: Annotated[list[dict[str, Any]], Field(max_length=64)] | None = Field(
        None,
        description="`function`: of your program. `web_search`: the agent may search. `mcp`: of a server.",
    )
    user: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="Your user. Conversations of different ones are never one session."
    )
    safety_identifier: Annotated[str, Field(max_length=200)] | None = Field(None, description="The same, by its name.")


class NewConversation(Body):
    """A conversation."""

    items: Annotated[list[dict[str, Any]], Field(max_length=20)] | None = Field(
        None, description="What was said before.", examples=[[]]
    )
    metadata: Metadata | None = Field(None, description="Kept with it.")


class ConversationChange(Body):
    """What becomes of a conversation."""

    metadata: Metadata = Field(description="Instead of what it had.", examples=[{"topic": "demo"}])


class NewItems(Body):
    """More of a conversation."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=20)] = Field(
        description="Told to the agent with the next response.",
        examples=[[{"type": "message", "role": "user", "content": "My name is Ada."}]],
    )


def read(model: type[T], body: dict[str, Any], others: Mapping[str, tuple[Any, ...]] | None = None) -> T:
    """A request's body.

    Args:
        others: parameters that are no field of the model, each with the values that change nothing.

    Raises:
        BadRequest: `unsupported_parameter`, `unknown_parameter`, `missing_required_parameter`, `invalid_value`, with
            the parameter.
    """
    try:
        codec.check(body, storable=True)
    except codec.Unsuitable as error:
        raise refused(error.field or None, error.reason, "invalid_value") from error
    given = dict(body)
    for name, neutral in (others or {}).items():
        value = given.pop(name, None)
        if value is not None and neutral is not _ANY and not any(_same(value, one) for one in neutral):
            raise unsupported(name, WHY.get(name, _USUAL))
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        places = [p for p in first["loc"] if isinstance(p, int) or p in given or not _is_a_type(p)]
        param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in places).lstrip(".")[:300]
        code = _CODES.get(first["type"], "invalid_value")
        why = f"Unknown parameter: {param!r}." if code == "unknown_parameter" else f"{param}: {first['msg']}"
        raise refused(param, why, code) from error


_CODES = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}


def _is_a_type(place: str) -> bool:
    """Whether it is what pydantic says of a member of a union, and no name of a field."""
    return "[" in place or place in ("str", "dict", "list")


def _same(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
