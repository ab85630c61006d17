"""The events of a run as steps of one answer: a part of the run, to its end or to where it calls the client. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from apps.api.core.codec import decode, encode
from apps.api.core.events.frames import Frame
from apps.api.dialects.openai.history import named
from apps.api.dialects.openai.options import function_name

INCOMPLETE = {
    "max_turns_exceeded": "max_messages",
    "max_budget_exceeded": "max_output_tokens",
    "budget_reached": "max_output_tokens",
    "model_output_limit": "max_output_tokens",
    "model_refused": "content_filter",
}
"""Why a run has failed, of those ways that these clients take for an answer that is not whole."""

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(frozen=True, slots=True)
class Step:
    """What happens next. `delta`: more of a block of `what` (text or thinking); `block`: it is whole; `tool`: the agent
    uses one of its own tools; `call`: one of the client's; `end`."""

    kind: Literal["begun", "delta", "block", "tool", "call", "end"]
    what: str = ""
    text: str = ""
    call_id: str = ""


@dataclass(slots=True)
class Reading:
    """Reads one answer.

    Attributes:
        settled: requests that were answered before it began: it begins behind the last of them.
        structured: JSON by a schema is the answer.
        status: `queued`, `running`, `waiting`, or how the run has ended.
    """

    settled: frozenset[UUID] = frozenset()
    structured: bool = False
    status: str = "queued"
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    over: bool = False
    ended_at: float | None = None
    _unseen: set[UUID] = field(init=False)
    _asked: set[UUID] = field(default_factory=set)
    _block: str | None = None
    _said: str = ""
    _incoming: str = ""
    _index: int = -1
    _usage: dict[str, dict[str, int]] = field(default_factory=dict)
    _before: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._unseen = set(self.settled)

    def take(self, frame: Frame) -> Iterator[Step]:
        """The next event of the run."""
        if self.over or frame.type in ("queued", "resync"):
            return
        if self._unseen:
            self._skip(frame)
            return
        if self.status == "queued":
            self.status = "running"
            yield Step("begun")
        match frame.type:
            case "partial":
                yield from self._partial(decode(frame.data))
            case "message":
                yield from self._message(decode(frame.data))
            case "client_tool_call":
                self.ended_at = frame.made_at  # for all who read it, if it waits for this
                yield from self._call(decode(frame.data))
            case "action_resolved" if UUID(decode(frame.data)["request_id"]) in self._asked:
                yield from self.wait()
            case "result":
                self.result = decode(frame.data)
            case "error":
                self.error = decode(frame.data)
            case "done":
                self.ended_at = frame.made_at
                yield from self._end(decode(frame.data)["status"])

    def wait(self) -> Iterator[Step]:
        """The run waits for the client: the answer is over."""
        if not self.over:
            self.status = "waiting"
            yield from self._close()
            self.over = True
            yield Step("end")

    @property
    def asks(self) -> bool:
        """Whether the client was called in this answer."""
        return bool(self._asked)

    def _skip(self, frame: Frame) -> None:
        if frame.type == "client_tool_call":
            self._unseen.discard(UUID(decode(frame.data)["request_id"]))
        elif frame.type == "message":
            self._count(decode(frame.data))
        if not self._unseen:
            self._before, self._usage = self._sum(), {}

    def _partial(self, data: dict[str, Any]) -> Iterator[Step]:
        kind = data["delta"]["type"]
        if data["parent_tool_use_id"] or kind not in ("text", "thinking"):
            return
        if self._block != kind:
            yield from self._close()
        elif data["index"] < self._index:
            self._incoming = ""  # the model was asked once more
        self._block, self._index = kind, data["index"]
        self._incoming += data["delta"][kind]
        yield from self._more()

    def _more(self) -> Iterator[Step]:
        if len(self._incoming) > len(self._said) and self._block:
            more = self._incoming[len(self._said) :]
            self._said += more
            yield Step("delta", self._block, more)

    def _message(self, data: dict[str, Any]) -> Iterator[Step]:
        if data["parent_tool_use_id"] or data["role"] != "assistant":
            return
        self._count(data)
        for block in data["content"]:
            kind = block.get("type")
            if kind in ("text", "thinking"):
                text = block[kind]
                if self._block != kind:
                    yield from self._close()
                if not text and not self._said:
                    continue
                self._block, self._incoming = kind, text
                yield from self._more()
                yield from self._close(text)
            elif kind == "tool_use":
                yield from self._close()
                yield Step("tool", str(block.get("name")))

    def _close(self, text: str | None = None) -> Iterator[Step]:
        if self._block and (self._said or text):
            yield Step("block", self._block, self._said if text is None else text)
        self._block, self._said, self._incoming, self._index = None, "", "", -1

    def _call(self, data: dict[str, Any]) -> Iterator[Step]:
        request_id = UUID(data["request_id"])
        if request_id in self.settled:
            return
        self._asked.add(request_id)
        yield from self._close()
        arguments = encode(data["input"]).decode()
        yield Step("call", function_name(data["tool_name"]), arguments, named("call", request_id))

    def _end(self, status: str) -> Iterator[Step]:
        self.status = status
        yield from self._close()
        output = (self.result or {}).get("structured_output")
        if self.structured and status == "succeeded" and output is not None:
            yield Step("block", "structured", encode(output).decode())
        self.over = True
        yield Step("end")

    # --- tokens

    def _count(self, data: Mapping[str, Any]) -> None:
        used = data.get("usage") or {}
        counted = self._usage.setdefault(str(data.get("message_id")), {})
        for name in _COUNTS:
            value = used.get(name)
            counted[name] = max(counted.get(name, 0), value if isinstance(value, int) else 0)

    def _sum(self) -> dict[str, int]:
        return {name: sum(one.get(name, 0) for one in self._usage.values()) for name in _COUNTS}

    def tokens(self) -> dict[str, int]:
        """What this answer has used: `input`, of which `cached` was read and `written` stored, and `output`."""
        used = self._sum()
        if self.result and self.result.get("usage"):
            whole = self.result["usage"]
            used = {name: max(0, (whole.get(name) or 0) - self._before.get(name, 0)) for name in _COUNTS}
        cached, written = used["cache_read_input_tokens"], used["cache_creation_input_tokens"]
        total = used["input_tokens"] + cached + written
        return {"input": total, "cached": cached, "written": written, "output": used["output_tokens"]}


class Growing(ABC):
    """An answer as it grows, in a client's words: `take` and `wait` tell all of it, in order."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    @abstractmethod
    def _step(self, step: Step) -> Iterator[dict[str, Any]]:
        """What is told of a step."""

    def take(self, frame: Frame) -> list[dict[str, Any]]:
        """What is told for the run's next event."""
        return [one for step in self.reading.take(frame) for one in self._step(step)]

    def wait(self) -> list[dict[str, Any]]:
        """What is told for a run that waits for its client."""
        return [one for step in self.reading.wait() for one in self._step(step)]

    @property
    def over(self) -> bool:
        return self.reading.over
