"""The Anthropic Messages API as bytes: what a reply is made of, its JSON message, its SSE frames, errors."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

JsonObject = dict[str, Any]

LONGEST_WAIT_S = 600.0
MAX_REPLY_BYTES = 4 * 1024 * 1024
SIGNATURE = "ZGVtbyBtb2RlbCwgc2NyaXB0ZWQ="

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Text:
    """A text block."""

    text: str


@dataclass(frozen=True)
class Words:
    """A text block `word1 word2 ...` of `count` deltas, `gap_s` seconds apart."""

    count: int
    gap_s: float = 0.0

    @property
    def text(self) -> str:
        return " ".join(f"word{number}" for number in range(1, self.count + 1))


@dataclass(frozen=True)
class Thinking:
    """A thinking block, signed as the real API signs it."""

    text: str


@dataclass(frozen=True)
class ToolUse:
    """A tool_use block; `input` is what the CLI hands to the tool."""

    name: str
    input: JsonObject
    id: str = field(default_factory=lambda: new_id("toolu"))


@dataclass(frozen=True)
class Hang:
    """Stay silent until the client leaves, at most `LONGEST_WAIT_S`, then drop the connection."""


@dataclass(frozen=True)
class Break:
    """Drop the connection in the middle of a text block."""


@dataclass(frozen=True)
class Garble:
    """In the middle of the reply, an event whose data is no JSON."""


@dataclass(frozen=True)
class Stop:
    """End the message with this `stop_reason`."""

    reason: str


@dataclass(frozen=True)
class Usage:
    """What the message says that it used, besides and in place of what it did."""

    figures: JsonObject


@dataclass(frozen=True)
class Page:
    """Instead of a message, a page of HTML with status 200, as a proxy sends it."""


Part = Text | Words | Thinking | ToolUse | Hang | Break | Garble | Stop | Usage | Page
PAGE = b"<html><body>Please log in.</body></html>"


@dataclass(frozen=True)
class Pause:
    """Not a frame: the sender waits this many seconds."""

    seconds: float


class ApiError(Exception):
    """An error that the client sees as `{"type": "error", "error": {"type", "message"}}`."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def body(self, request_id: str) -> JsonObject:
        error = {"type": ERROR_TYPES.get(self.status, _default_type(self.status)), "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}


def _default_type(status: int) -> str:
    return "api_error" if status >= 500 else "invalid_request_error"


def new_id(prefix: str) -> str:
    """`msg_01...`, `toolu_01...`, `req_01...`: unique, since the CLI merges messages that share an id."""
    return f"{prefix}_01{secrets.token_hex(11)}"


def message(parts: tuple[Part, ...], model: str, input_tokens: int) -> JsonObject:
    """The whole reply as a `message` object. Tokens are estimates: one per word of the reply."""
    content = [block for part in parts if (block := _block(part)) is not None]
    words = sum(len(_said(part).split()) for part in parts)
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": _stop_reason(parts),
        "stop_sequence": None,
        "usage": _usage(input_tokens, max(1, words)) | _told(parts),
    }


def _told(parts: tuple[Part, ...]) -> JsonObject:
    return {name: value for part in parts if isinstance(part, Usage) for name, value in part.figures.items()}


def _stop_reason(parts: tuple[Part, ...]) -> str:
    stops = [part.reason for part in parts if isinstance(part, Stop)]
    usual = "tool_use" if any(isinstance(part, ToolUse) for part in parts) else "end_turn"
    return stops[-1] if stops else usual


def frames(parts: tuple[Part, ...], model: str, input_tokens: int) -> Iterator[bytes | Pause | Break]:
    """The reply as SSE frames and waits. After a `Break` nothing follows: the connection is dropped."""
    if isinstance(parts[0], Hang):
        # A client must not even see the headers of an answer that never comes.
        yield from (Pause(LONGEST_WAIT_S), Break())
        return
    if isinstance(parts[0], Page):
        yield PAGE
        return
    whole = message(parts, model, input_tokens)
    used = {**whole["usage"], "output_tokens": min(1, whole["usage"]["output_tokens"])}
    start = {**whole, "content": [], "stop_reason": None, "usage": used}
    yield _frame("message_start", message=start)
    yield _frame("ping")
    for index, part in enumerate(parts):
        if isinstance(part, Hang):
            yield from (Pause(LONGEST_WAIT_S), Break())
            return
        if isinstance(part, Stop | Usage):
            continue
        if isinstance(part, Garble):
            yield b"event: content_block_start\ndata: {this is no JSON\n\n"
            continue
        block = {"type": "text", "text": ""} if isinstance(part, Break) else _block(part, whole=False)
        yield _frame("content_block_start", index=index, content_block=block)
        for delta in _deltas(part):
            yield delta if isinstance(delta, Pause) else _frame("content_block_delta", index=index, delta=delta)
        if isinstance(part, Break):
            yield part
            return
        yield _frame("content_block_stop", index=index)
    ending = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _frame("message_delta", delta=ending, usage=whole["usage"])
    yield _frame("message_stop")


def body(parts: tuple[Part, ...], model: str, input_tokens: int) -> Iterator[bytes | Pause | Break]:
    """The reply as one JSON body, with the waits of `frames()` before it, and cut short where those are."""
    yield from (step for step in frames(parts, model, input_tokens) if isinstance(step, Pause))
    if isinstance(parts[0], Page):
        yield PAGE
        return
    whole = json.dumps(message(parts, model, input_tokens)).encode()
    if any(isinstance(part, Break) for part in parts):
        yield whole[: len(whole) // 2]
    if any(isinstance(part, Break | Hang) for part in parts):
        yield Break()
        return
    yield whole


def _usage(input_tokens: int, output_tokens: int) -> JsonObject:
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _frame(event: str, **fields: Any) -> bytes:
    return f"event: {event}\ndata: {json.dumps({'type': event, **fields})}\n\n".encode()


def _said(part: Part) -> str:
    match part:
        case Text() | Words() | Thinking():
            return part.text
        case ToolUse():
            return json.dumps(part.input)
        case Break():
            return "cut"
        case _:
            return ""


def _block(part: Part, *, whole: bool = True) -> JsonObject | None:
    match part:
        case Text() | Words():
            return {"type": "text", "text": part.text if whole else ""}
        case Thinking():
            return {"type": "thinking", "thinking": part.text if whole else "", "signature": SIGNATURE if whole else ""}
        case ToolUse():
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.input if whole else {}}
        case _:
            return None


def _deltas(part: Part) -> Iterator[JsonObject | Pause]:
    if isinstance(part, Words):
        paced = LONGEST_WAIT_S / part.gap_s if part.gap_s else 0
        for number in range(1, part.count + 1):
            if 1 < number <= paced:
                yield Pause(part.gap_s)
            yield {"type": "text_delta", "text": f"word{number}" if number == 1 else f" word{number}"}
        return
    for piece in _pieces(_said(part)):
        match part:
            case Thinking():
                yield {"type": "thinking_delta", "thinking": piece}
            case ToolUse():
                yield {"type": "input_json_delta", "partial_json": piece}
            case _:
                yield {"type": "text_delta", "text": piece}
    if isinstance(part, Thinking):
        yield {"type": "signature_delta", "signature": SIGNATURE}


def _pieces(text: str) -> Iterator[str]:
    size = 24 if len(text) <= 2_000 else 16_384
    for start in range(0, len(text), size):
        yield text[start : start + size]
