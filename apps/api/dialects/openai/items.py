"""One answer as a response: its output items, and the events that tell them. Pure.

An event has the same number however it is delivered, live or years later: texts are told in pieces whose ends depend on
nothing but the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from apps.api.core.codec import encode
from apps.api.dialects.openai.history import named
from apps.api.dialects.openai.reading import INCOMPLETE, Growing, Reading, Step

Event = dict[str, Any]

_ERRORS = {"model_rate_limited": "rate_limit_exceeded", "model_request_invalid": "invalid_prompt"}


def piece_end(start: int) -> int:
    """Where the piece of a text ends that begins at `start`: the first ones are a character, so that words show as they
    come, and those of long texts are long."""
    if start < 4096:
        return start + max(1, min(16, start // 4))
    return start + start // 256


class Answer(Growing):
    """A response as it grows, as its events."""

    def __init__(self, response_id: UUID, data: Mapping[str, Any], settled: frozenset[UUID]) -> None:
        """`data`: what is kept of its request."""
        self._id, self._data = response_id, data
        super().__init__(Reading(settled, structured=bool(data.get("structured"))))
        self.output: list[dict[str, Any]] = []
        self.completed_at: float | None = None
        self._number = 0
        self._open: dict[str, Any] | None = None
        self._text, self._told = "", 0
        self._whole = False

    def begin(self) -> list[Event]:
        """The first events, before there is any of the run."""
        begun = [self._event("response.created", response=self.shown())]
        kind = "queued" if self._data["background"] else "in_progress"
        return [*begun, self._event(f"response.{kind}", response=self.shown())]

    @property
    def said(self) -> list[str]:
        """All texts of it."""
        return [item["content"][0]["text"] for item in self.output if item["type"] == "message" and item["content"]]

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _step(self, step: Step) -> Iterator[Event]:
        if step.kind == "begun" and self._data["background"]:
            yield self._event("response.in_progress", response=self.shown())
        elif step.kind == "delta":
            yield from self._more(step.what, step.text)
        elif step.kind == "block":
            yield from self._block(step)
        elif step.kind == "tool":
            yield from self._close("commentary")
        elif step.kind == "call":
            yield from self._close("commentary")
            yield from self._call(step)
        elif step.kind == "end":
            yield from self._close("commentary" if self.reading.structured else "final_answer")
            yield from self._end()

    # --- texts

    def _more(self, what: str, text: str) -> Iterator[Event]:
        if self._open is None or self._whole:
            yield from self._close("commentary")
            yield from self._begin(what)
        self._text += text
        while (end := piece_end(self._told)) <= len(self._text):
            yield from self._piece(end)

    def _piece(self, end: int) -> Iterator[Event]:
        piece, self._told = self._text[self._told : end], end
        if self._is_thought:
            yield self._event("response.reasoning_text.delta", **self._place, content_index=0, delta=piece)
        else:
            yield self._event("response.output_text.delta", **self._place, content_index=0, delta=piece, logprobs=[])

    @property
    def _is_thought(self) -> bool:
        return self._open is not None and self._open["type"] == "reasoning"

    @property
    def _place(self) -> dict[str, Any]:
        assert self._open is not None  # noqa: S101 - for the type checker
        return {"item_id": self._open["id"], "output_index": len(self.output)}

    def _begin(self, what: str) -> Iterator[Event]:
        number = len(self.output)
        self._text, self._told, self._whole = "", 0, False
        if what == "thinking":
            self._open = {"id": f"rs_{self._id.hex}_{number}", "type": "reasoning", "summary": [], "content": []}
        else:
            self._open = {"id": f"msg_{self._id.hex}_{number}", "type": "message", "role": "assistant", "content": []}
        self._open["status"] = "in_progress"
        yield self._event("response.output_item.added", output_index=number, item=dict(self._open))
        if what != "thinking":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._place, content_index=0, part=part)

    def _block(self, step: Step) -> Iterator[Event]:
        if step.what == "structured" or self._open is None or self._whole:
            yield from self._close("commentary")
            yield from self._begin(step.what)
        self._text = step.text
        while self._told < len(self._text):
            yield from self._piece(min(piece_end(self._told), len(self._text)))
        self._whole = True  # what it is, the next step says
        if step.what == "structured":
            yield from self._close("final_answer")

    def _close(self, phase: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        text, place = self._text, self._place
        if self._is_thought:
            part: dict[str, Any] = {"type": "reasoning_text", "text": text}
            yield self._event("response.reasoning_text.done", **place, content_index=0, text=text)
        else:
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            item["phase"] = phase
            yield self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=[])
            yield self._event("response.content_part.done", **place, content_index=0, part=part)
        item |= {"content": [part], "status": "completed"}
        yield self._event("response.output_item.done", output_index=place["output_index"], item=dict(item))
        self.output.append(item)
        self._open = None

    # --- calls, and the end

    def _call(self, step: Step) -> Iterator[Event]:
        number = len(self.output)
        item = {"type": "function_call", "id": f"fc_{self._id.hex}_{number}", "call_id": step.call_id}
        item |= {"name": step.what, "arguments": "", "status": "in_progress"}
        place = {"item_id": item["id"], "output_index": number}
        yield self._event("response.output_item.added", output_index=number, item=dict(item))
        yield self._event("response.function_call_arguments.delta", **place, delta=step.text)
        yield self._event("response.function_call_arguments.done", **place, arguments=step.text, name=step.what)
        item |= {"arguments": step.text, "status": "completed"}
        yield self._event("response.output_item.done", output_index=number, item=dict(item))
        self.output.append(item)

    def _end(self) -> Iterator[Event]:
        self.completed_at = self.reading.ended_at
        shown = self.shown()
        kind = "incomplete" if shown["status"] == "cancelled" else shown["status"]
        yield self._event(f"response.{kind}", response=shown)

    @property
    def status(self) -> str:
        """`queued`, `in_progress`, `completed`, `failed`, `incomplete` or `cancelled`."""
        ends = {"succeeded": "completed", "waiting": "completed", "interrupted": "cancelled", "failed": "failed"}
        if not self.over:
            return "queued" if self.reading.status == "queued" and self._data["background"] else "in_progress"
        code = (self.reading.error or {}).get("code", "")
        return "incomplete" if code in INCOMPLETE else ends[self.reading.status]

    def shown(self) -> dict[str, Any]:
        """The response object."""
        data, status, error = self._data, self.status, self.reading.error
        found = None
        if status == "failed":
            code = _ERRORS.get((error or {}).get("code", ""), "server_error")
            found = {"code": code, "message": (error or {}).get("message", "The run failed.")}
        reason = INCOMPLETE[error["code"]] if status == "incomplete" and error else None
        return {
            "id": named("response", self._id),
            "object": "response",
            "created_at": data["created_at"],
            "status": status,
            "background": data["background"],
            "completed_at": int(self.completed_at) if self.completed_at and status == "completed" else None,
            "error": found,
            "incomplete_details": {"reason": reason} if reason else None,
            **data["shown"],
            "output": [dict(item) for item in self.output],
            "usage": usage(self.reading) if self.over else None,
        }


def usage(reading: Reading) -> dict[str, Any]:
    """Tokens, as responses tell them."""
    used = reading.tokens()
    return {
        "input_tokens": used["input"],
        "input_tokens_details": {"cached_tokens": used["cached"], "cache_write_tokens": used["written"]},
        "output_tokens": used["output"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["input"] + used["output"],
    }


def frame_of(event: Event) -> bytes:
    """An event of a stream. Without an id: the Python client would take each comment behind one for an event."""
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), encode(event))
