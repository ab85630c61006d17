"""From a run's events to chunks of the AI SDK's UI message stream: a fold. The same events give the same chunks, on any
instance.

Versions 6 and 7 of the client take what is made here, and refuse what they do not know, and null. So what is absent is
left out, and what has no word of theirs is called `data-NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apps.api.core.codec import decode, encode
from apps.api.core.config.client_tools import full_name
from apps.api.core.events.frames import Frame
from apps.api.web import figures

Chunk = dict[str, Any]
Chunks = list[Chunk]
Data = dict[str, Any]

DONE = b"data: [DONE]\n\n"
"""The end of a stream."""

QUESTION = "AskUserQuestion"
"""The tool by which an agent asks a person: the client answers it as a tool of its own."""

_OURS = full_name("")
_KINDS = {"text": "text", "thinking": "reasoning"}
_LENGTH = ("max_turns_exceeded", "budget_reached", "max_budget_exceeded", "model_output_limit")
"""Codes of failures that the client knows as an end for want of room."""

_CLOSED = {"expired": "Nobody answered in time.", "interrupted": "The run was interrupted."}


def line(chunk: Chunk) -> bytes:
    """A chunk as it is sent."""
    return b"data: " + encode(chunk) + b"\n\n"


def error(text: str) -> Chunk:
    """The chunk that ends a stream for this reason."""
    return {"type": "error", "errorText": text}


@dataclass(slots=True)
class _Call:
    """A call of a tool.

    Attributes:
        name: as the client is told it.
        theirs: the client's program executes it.
        told: the client has the call; `settled`: and what came of it, or it needs nothing of that.
        over: it has a result.
        asks: it waits for somebody.
        nested: of a subagent.
    """

    id: str
    name: str
    input: Any
    theirs: bool = False
    nested: bool = False
    told: bool = False
    settled: bool = False
    over: bool = False
    asks: bool = False


class Message:
    """The assistant's message that a run becomes.

    A client that waits for all calls of a message's last step, before it sends what its user has decided, must never
    find one there that does not ask: calls are told one at a time, and one that asks beside others begins a new step.
    """

    def __init__(self, session_id: str, run_id: str) -> None:
        self._session_id, self._run_id = session_id, run_id
        self._open: tuple[str, int, str] | None = None
        self._said, self._blocks = "", 0
        self._filled, self._heard = False, False
        self._calls: dict[str, _Call] = {}
        self._requests: dict[str, _Call] = {}
        self._error: Data | None = None
        self._tell: dict[str, Callable[[Data], Chunks]] = {
            "queued": lambda d: self._status("queued", position=d["position"]),
            "init": self._init,
            "partial": self._partial,
            "message": self._message,
            "permission_request": self._permission,
            "question": self._question,
            "client_tool_call": self._client_call,
            "action_resolved": self._resolved,
            "task": lambda d: [self._data("task", d, d["task_id"])],
            "checkpoint": lambda d: [self._data("checkpoint", d, d["checkpoint_id"])],
            "files": lambda d: [self._data("files", d, self._run_id)],
            "hook": lambda d: [self._data("hook", d)],
            "network_denied": lambda d: [self._data("network-denied", d)],
            "status": lambda d: [self._data("status", d)],
            "result": self._result,
            "error": self._failed,
            "done": self._done,
        }

    def begin(self) -> Chunks:
        """What a stream begins with: of a message that the client does not have, or makes anew; or one that goes on
        with it, after its client was asked. That one changes the message at once: a client whose message has not
        changed asks again, for ever."""
        self._open, self._filled, self._heard = None, False, False
        ids = {"session_id": self._session_id, "run_id": self._run_id}
        start = {"type": "start", "messageId": self._run_id, "messageMetadata": ids}
        return [start, {"type": "start-step"}, {"type": "message-metadata", "messageMetadata": ids}]

    def pause(self) -> Chunks:
        """What a stream ends with where the client must act."""
        return [*self._close(), {"type": "finish-step"}, {"type": "finish", "finishReason": "tool-calls"}]

    def take(self, frame: Frame) -> Chunks:
        """The chunks of the next event; those of `done` are the last."""
        tell = self._tell.get(frame.type)
        return [] if tell is None else tell(decode(frame.data))

    # --- what the agent says ---

    def _init(self, data: Data) -> Chunks:
        told = {"type": "message-metadata", "messageMetadata": {"model": data["model"]}}
        return [*([told] if data["model"] else []), *self._status("running")]

    def _partial(self, data: Data) -> Chunks:
        kind = _KINDS.get(data["delta"]["type"])
        if kind is None or data["parent_tool_use_id"]:
            return []
        piece = data["delta"][data["delta"]["type"]]
        chunks = self._enter()
        if self._open is None or self._open[:2] != (kind, data["index"]):
            chunks += self._close() + self._begin(kind, data["index"])
        self._said += piece
        return [*chunks, self._delta(piece)]

    def _message(self, data: Data) -> Chunks:
        blocks = data["content"] if isinstance(data["content"], list) else []
        if data["parent_tool_use_id"]:
            return self._nested(data["parent_tool_use_id"], data["role"], blocks)
        if data["role"] == "user":
            results = [block for block in blocks if block["type"] == "tool_result"]
            self._heard = self._heard or bool(results)
            return [chunk for block in results for chunk in self._returned(block)]
        chunks = self._enter() if blocks else []
        for block in blocks:
            if block["type"] in _KINDS:
                chunks += self._whole(_KINDS[block["type"]], block[block["type"]])
            elif block["type"] == "tool_use":
                chunks += [*self._close(), *self._called(block)]
            elif block["type"] == "server_tool_use":
                self._filled = True
                chunks += [*self._close(), _available(block["id"], block["name"], block["input"])]
            elif block["type"] == "server_tool_result":
                chunks.append(_output(block["tool_use_id"], block["content"]))
        return chunks

    def _nested(self, parent: str, role: str, blocks: list[Data]) -> Chunks:
        chunks = Chunks()
        for block in blocks:
            if block["type"] == "tool_use":
                self._calls[block["id"]] = _Call(block["id"], block["name"], block["input"], nested=True)
            elif block["type"] == "tool_result" and (call := self._calls.get(block["tool_use_id"])) and call.told:
                chunks += self._returned(block)
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        tools = [block["name"] for block in blocks if block["type"] == "tool_use"]
        if role == "assistant" and (texts or tools):
            told = {"tool_call_id": parent, "text": "\n".join(texts), "tools": tools}
            chunks.append(self._data("subagent", told, parent))
        return chunks

    def _enter(self) -> Chunks:
        """A new step, where what follows answers to results of tools."""
        return self._step() if self._heard else []

    def _step(self) -> Chunks:
        self._heard = False
        if not self._filled:
            return []
        self._filled = False
        return [*self._close(), {"type": "finish-step"}, {"type": "start-step"}]

    def _begin(self, kind: str, index: int) -> Chunks:
        self._blocks += 1
        self._open, self._said, self._filled = (kind, index, f"{kind}-{self._blocks}"), "", True
        return [{"type": f"{kind}-start", "id": self._open[2]}]

    def _delta(self, piece: str) -> Chunk:
        assert self._open is not None  # noqa: S101 - for the type checker
        return {"type": f"{self._open[0]}-delta", "id": self._open[2], "delta": piece}

    def _close(self) -> Chunks:
        if self._open is None:
            return []
        kind, _, id_ = self._open
        self._open = None
        return [{"type": f"{kind}-end", "id": id_}]

    def _whole(self, kind: str, text: str) -> Chunks:
        # Deltas are not durable: what was lost of them is in the message that they build.
        chunks = Chunks()
        if self._open is None or self._open[0] != kind or not text.startswith(self._said):
            if not text:
                return self._close()
            chunks += self._close() + self._begin(kind, -1)
        rest = text[len(self._said) :]
        return [*chunks, *([self._delta(rest)] if rest else []), *self._close()]

    # --- tools ---

    def _called(self, block: Data) -> Chunks:
        name = block["name"]
        theirs = name.startswith(_OURS) or name == QUESTION
        call = _Call(block["id"], name.removeprefix(_OURS), block["input"], theirs)
        self._calls[call.id] = call
        return [] if theirs or self._working() else self._show(call)

    def _working(self) -> bool:
        return any(call.told and not call.over for call in self._calls.values())

    def _show(self, call: _Call) -> Chunks:
        call.told = self._filled = True
        return [_available(call.id, call.name, call.input)]

    def _returned(self, block: Data) -> Chunks:
        call = self._calls.get(block["tool_use_id"])
        if call is None or call.over:
            return []
        chunks = [] if call.told else self._show(call)
        call.over = True
        if not call.settled:
            output = _parsed(block["content"]) if call.theirs else _plain(block["content"])
            chunks.append(_failure(call.id, _plain(output)) if block["is_error"] else _output(call.id, output))
        return chunks + self._release()

    def _release(self) -> Chunks:
        """Tell the next call of those that were held back, once no other one is at work."""
        held = (c for c in self._calls.values() if not (c.told or c.over or c.theirs or c.nested))
        call = None if self._working() else next(held, None)
        return [] if call is None else self._show(call)

    def _asks(self, data: Data, name: str, given: Any, *, theirs: bool) -> tuple[_Call, Chunks]:
        id_ = data["tool_use_id"] or data["request_id"]
        call = self._calls.get(id_) or _Call(id_, name, given)
        self._calls[id_] = self._requests[data["request_id"]] = call
        chunks = self._close()
        if not call.told:
            if any(other.told and not (other.over or other.settled or other.asks) for other in self._calls.values()):
                chunks += self._step()
            call.theirs = theirs
            call.told = self._filled = True
            shown = {"type": "tool-input-available", "toolCallId": id_, "toolName": name, "input": given}
            chunks.append(shown if theirs else _available(id_, name, given))
        call.asks = True
        return call, chunks

    def _permission(self, data: Data) -> Chunks:
        # Whether a tool of the client may run is asked in a part of its own: the client runs what it is told as its.
        asked = {**data, "tool_use_id": None} if data["tool_name"].startswith(_OURS) else data
        call, chunks = self._asks(asked, data["tool_name"], data["input"], theirs=False)
        request = {"type": "tool-approval-request", "toolCallId": call.id, "approvalId": data["request_id"]}
        about = {name: data[name] for name in ("title", "description", "reason", "blocked_path", "expires_at")}
        told = {"tool_call_id": call.id, "tool_name": data["tool_name"], **about}
        return [
            *chunks,
            request,
            self._data("approval", {"request_id": data["request_id"], **told}, data["request_id"]),
        ]

    def _question(self, data: Data) -> Chunks:
        _, chunks = self._asks(data, QUESTION, {"questions": data["questions"]}, theirs=True)
        told = {name: data[name] for name in ("request_id", "questions", "expires_at")}
        return [*chunks, self._data("question", told, data["request_id"])]

    def _client_call(self, data: Data) -> Chunks:
        return self._asks(data, data["tool_name"], data["input"], theirs=True)[1]

    def _resolved(self, data: Data) -> Chunks:
        call = self._requests.get(data["request_id"])
        if call is None:
            return []
        call.asks = False
        if call.over or call.settled:
            return []
        call.over = call.id == data["request_id"]  # it stands for the question alone: no result will come
        if data["decision"] == "deny":
            call.settled = True
            return [{"type": "tool-output-denied", "toolCallId": call.id}]
        if data["decision"] == "closed":
            call.settled = True
            reason = data["by"].get("reason", "")
            return [_failure(call.id, _CLOSED.get(reason, f"Nobody answers this any more: {reason}."))]
        if data.get("answers"):
            call.settled = True
            return [_output(call.id, data["answers"])]
        return [_output(call.id, data["decision"])] if call.over else []

    # --- the rest ---

    def _data(self, name: str, data: Data, id_: str | None = None) -> Chunk:
        told = {"type": f"data-{name}", "data": _own(data)}
        return {**told, "transient": True} if id_ is None else {**told, "id": id_}

    def _status(self, status: str, **more: Any) -> Chunks:
        return [self._data("status", {**more, "status": status})]

    def _result(self, data: Data) -> Chunks:
        shown = figures.result(data)
        names = ("usage", "total_cost_usd", "num_turns", "duration_ms", "stop_reason", "structured_output")
        told = {name: shown[name] for name in names if shown.get(name) is not None}
        return [*self._close(), {"type": "message-metadata", "messageMetadata": told}]

    def _failed(self, data: Data) -> Chunks:
        self._error = data
        return []

    def _done(self, data: Data) -> Chunks:
        why = self._error["message"] if self._error else "The run has ended."
        left = [c for c in self._calls.values() if c.told and not (c.over or c.settled)]
        chunks = self._close() + [_failure(call.id, why) for call in left]
        if data["status"] == "succeeded":
            return [*chunks, {"type": "finish-step"}, {"type": "finish", "finishReason": "stop"}]
        if data["status"] == "interrupted":
            end = [{"type": "finish-step"}, {"type": "abort"}, {"type": "finish", "finishReason": "other"}]
            return chunks + end
        if self._error and self._error["code"] in _LENGTH:
            told = {"type": "message-metadata", "messageMetadata": {"error": _own(self._error)}}
            return [*chunks, told, {"type": "finish-step"}, {"type": "finish", "finishReason": "length"}]
        return [*chunks, error(why)]


def _own(data: Data) -> Data:
    """An event's own fields."""
    return {k: v for k, v in data.items() if k not in ("session_id", "run_id", "seq", "created_at")}


def _available(id_: str, name: str, given: Any) -> Chunk:
    told = {"type": "tool-input-available", "toolCallId": id_, "toolName": name, "input": given}
    return {**told, "dynamic": True, "providerExecuted": True}


def _output(id_: str, output: Any) -> Chunk:
    return {"type": "tool-output-available", "toolCallId": id_, "output": output}


def _failure(id_: str, text: Any) -> Chunk:
    return {"type": "tool-output-error", "toolCallId": id_, "errorText": text if isinstance(text, str) else str(text)}


def _plain(content: Any) -> Any:
    """What a tool gave: text, where it is nothing else."""
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        return "\n".join(part["text"] for part in content)
    return "" if content is None else content


def _parsed(content: Any) -> Any:
    """What the client's own tool gave, as it sent it: what is no text was stored as JSON."""
    text = _plain(content)
    if not isinstance(text, str) or text[:1] not in ("{", "["):
        return text
    try:
        return decode(text)
    except ValueError:
        return text
