"""From a run's events to those of AG-UI 1.0: a fold. The same events give the same ones, on any instance.

The client refuses null, and what is out of order: whatever was begun is ended before a run of theirs ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apps.api.core.codec import decode, encode
from apps.api.core.config.client_tools import full_name
from apps.api.core.events.frames import Frame
from apps.api.dialects.ag_ui.subagents import Subagents
from apps.api.web import figures
from apps.api.web.asking import Request

Event = dict[str, Any]
Events = list[Event]
Data = dict[str, Any]

_OURS = full_name("")
_KINDS = {"text": "text", "thinking": "reasoning"}

_APPROVAL = {
    "type": "object",
    "properties": {
        "approved": {"type": "boolean"},
        "reason": {"type": "string"},
        "updated_input": {"type": "object"},
    },
    "required": ["approved"],
}


def line(event: Event) -> bytes:
    """An event as it is sent."""
    return b"data: " + encode(event) + b"\n\n"


def failed(message: str, code: str) -> Event:
    """The event that ends a stream for this reason."""
    return {"type": "RUN_ERROR", "message": message, "code": code}


class Run:
    """A run as AG-UI tells it: in as many runs of theirs as there are requests for it."""

    def __init__(self, run_id: str) -> None:
        self._run_id, self._blocks = run_id, 0
        self._open: tuple[str, int, str] | None = None
        self._said, self._parent, self._heard = "", "", False
        self._calls: dict[str, Data] = {}
        self._over, self._theirs = set[str](), set[str]()
        self._agents = Subagents()
        self._result: Data = {}
        self._error: Data | None = None
        self.end: Event = {}
        self._tell: dict[str, Callable[[Data], Events]] = {
            "partial": self._partial,
            "message": self._message,
            "task": self._task,
            "result": self._hear_result,
            "error": self._hear_error,
            "client_tool_call": self._client_call,
            "permission_request": lambda d: [],
            "question": lambda d: [],
            "done": self._done,
        }

    def take(self, frame: Frame) -> Events:
        """What the next event is told as. After `done`, `end` is the event that ends the stream, without its ids."""
        data = decode(frame.data)
        tell = self._tell.get(frame.type)
        told = tell(data) if tell else [{"type": "CUSTOM", "name": frame.type, "value": own(data)}]
        return _stamped(told, int(frame.made_at * 1000))

    def pause(self, asked: Iterable[Request]) -> tuple[Events, Event]:
        """What a stream ends with where the client must act: and the event that ends it, without its ids."""
        requests = list(asked)
        told = [*self._close(), *self._agents.suspend()]
        interrupts = [self._interrupt(one) for one in requests if one.kind != "client_tool"]
        if interrupts:
            return told, {"type": "RUN_FINISHED", "outcome": {"type": "interrupt", "interrupts": interrupts}}
        pending = [one.tool_use_id or str(one.id) for one in requests]
        return told, {"type": "RUN_FINISHED", "outcome": {"type": "success", "pendingToolCallIds": pending}}

    def resume(self) -> None:
        """What follows is told to a client that has what came before, in another run of theirs."""
        self._open = None
        self._agents.suspend()

    def _interrupt(self, asked: Request) -> Event:
        data, permission = asked.data, asked.kind == "permission"
        told = {
            "id": str(asked.id),
            "reason": "tool_approval" if permission else "question",
            "message": _message_of(data, permission),
            "responseSchema": _APPROVAL if permission else _answers_schema(data),
            "expiresAt": data["expires_at"],
            "metadata": own(data),
        }
        return {**told, "toolCallId": asked.tool_use_id} if asked.tool_use_id else told

    # --- what the agent says ---

    def _partial(self, data: Data) -> Events:
        kind = _KINDS.get(data["delta"]["type"])
        piece = data["delta"].get(data["delta"]["type"])
        if kind is None or not piece or data["parent_tool_use_id"]:
            return []
        events = Events()
        if self._open is None or self._open[:2] != (kind, data["index"]):
            events = self._close() + self._begin(kind, data["index"])
        self._said += piece
        return [*events, self._delta(piece)]

    def _message(self, data: Data) -> Events:
        blocks = data["content"] if isinstance(data["content"], list) else []
        parent = data["parent_tool_use_id"]
        if parent:
            return self._nested(parent, data["role"], blocks)
        events = Events()
        for block in blocks:
            if data["role"] == "user":
                if block["type"] == "tool_result":
                    events += self._returned(block)
                    self._parent = ""
            elif block["type"] in _KINDS:
                events += self._whole(_KINDS[block["type"]], block[block["type"]])
            elif block["type"] in ("tool_use", "server_tool_use"):
                events += [*self._close(), *self._called(block, self._parent_id())]
            elif block["type"] == "server_tool_result":
                events += self._returned({**block, "is_error": False})
        return events

    def _nested(self, parent: str, role: str, blocks: list[Data]) -> Events:
        agent, events = self._agents.of(parent, self._calls.get(parent, {}))
        if agent is None:
            return []
        for block in blocks:
            if block["type"] == "text" and role == "assistant" and block["text"]:
                message = {"messageId": self._new_id(), "subagentRunId": agent}
                events.append({"type": "TEXT_MESSAGE_START", "role": "assistant", **message})
                events.append({"type": "TEXT_MESSAGE_CONTENT", "delta": block["text"], **message})
                events.append({"type": "TEXT_MESSAGE_END", **message})
            elif block["type"] == "tool_use":
                events += [{**e, "subagentRunId": agent} for e in self._called(block, self._new_id())]
            elif block["type"] == "tool_result":
                events += [{**e, "subagentRunId": agent} for e in self._returned(block)]
        return events

    def _new_id(self) -> str:
        self._blocks += 1
        return f"{self._run_id}-{self._blocks}"

    def _parent_id(self) -> str:
        """The assistant's message that a call is of: the text before it, or one of its own."""
        self._parent = self._parent or self._new_id()
        return self._parent

    def _begin(self, kind: str, index: int) -> Events:
        id_ = self._new_id()
        self._open, self._said = (kind, index, id_), ""
        if kind == "reasoning":
            start = {"type": "REASONING_MESSAGE_START", "messageId": id_, "role": "reasoning"}
            return [{"type": "REASONING_START", "messageId": id_}, start]
        self._parent = id_
        return [{"type": "TEXT_MESSAGE_START", "messageId": id_, "role": "assistant"}]

    def _delta(self, piece: str) -> Event:
        assert self._open is not None  # noqa: S101 - for the type checker
        kind = "TEXT_MESSAGE_CONTENT" if self._open[0] == "text" else "REASONING_MESSAGE_CONTENT"
        return {"type": kind, "messageId": self._open[2], "delta": piece}

    def _close(self) -> Events:
        if self._open is None:
            return []
        kind, _, id_ = self._open
        self._open = None
        if kind == "text":
            return [{"type": "TEXT_MESSAGE_END", "messageId": id_}]
        return [{"type": "REASONING_MESSAGE_END", "messageId": id_}, {"type": "REASONING_END", "messageId": id_}]

    def _whole(self, kind: str, text: str) -> Events:
        # Deltas are not durable: what was lost of them is in the message that they build.
        events = Events()
        if self._open is None or self._open[0] != kind or not text.startswith(self._said):
            if not text:
                return self._close()
            events += self._close() + self._begin(kind, -1)
        rest = text[len(self._said) :]
        return [*events, *([self._delta(rest)] if rest else []), *self._close()]

    # --- tools ---

    def _called(self, block: Data, parent: str) -> Events:
        id_, name = block["id"], block["name"]
        self._calls[id_] = block
        call = {"toolCallId": id_}
        start = {"type": "TOOL_CALL_START", **call, "toolCallName": name.removeprefix(_OURS), "parentMessageId": parent}
        args = {"type": "TOOL_CALL_ARGS", **call, "delta": encode(block["input"]).decode()}
        return [start, args, {"type": "TOOL_CALL_END", **call}]

    def _returned(self, block: Data) -> Events:
        id_ = block["tool_use_id"]
        if id_ not in self._calls or id_ in self._over:
            return []
        self._over.add(id_)
        ended = self._agents.end(id_, failed=block["is_error"], why=_text(block["content"]))
        if id_ in self._theirs:  # the client has it: it sent it
            return ended
        told = {"type": "TOOL_CALL_RESULT", "messageId": f"{id_}-result", "toolCallId": id_, "role": "tool"}
        return [*ended, {**told, "content": _text(block["content"])}]

    def _client_call(self, data: Data) -> Events:
        if data["tool_use_id"]:
            self._theirs.add(data["tool_use_id"])
        return []

    # --- the rest ---

    def _task(self, data: Data) -> Events:
        told = {"type": "ACTIVITY_SNAPSHOT", "messageId": f"task-{data['task_id']}", "activityType": "TASK"}
        return [{**told, "content": own(data), "replace": True}]

    def _hear_result(self, data: Data) -> Events:
        self._result = figures.result(data)
        return []

    def _hear_error(self, data: Data) -> Events:
        self._error = data
        return []

    def _done(self, data: Data) -> Events:
        usage = _usage(self._result)
        if data["status"] == "failed":
            error = self._error or {"message": "The run has failed.", "code": "execution_error"}
            self.end = {**failed(error["message"], error["code"]), **usage}
        elif data["status"] == "interrupted":
            self.end = {"type": "RUN_FINISHED", "outcome": {"type": "cancelled"}, **usage}
        else:
            names = ("structured_output", "total_cost_usd", "num_turns", "duration_ms", "stop_reason")
            result = {name: self._result[name] for name in names if self._result.get(name) is not None}
            self.end = {"type": "RUN_FINISHED", "result": result, "outcome": {"type": "success"}, **usage}
        return [*self._close(), *self._agents.suspend()]


def own(data: Mapping[str, Any]) -> Data:
    """An event's own fields."""
    return {k: v for k, v in data.items() if k not in ("session_id", "run_id", "seq", "created_at")}


def _stamped(events: Events, moment: int) -> Events:
    return [{**event, "timestamp": moment} for event in events]


def _text(content: Any) -> str:
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        return "\n".join(part["text"] for part in content)
    if isinstance(content, str):
        return content
    return "" if content is None else encode(content).decode()


def _message_of(data: Data, permission: bool) -> str:
    if permission:
        return data["title"] or data["description"] or f"May {data['tool_name']} run?"
    texts = [question.get("question", "") for question in data["questions"]]
    return "\n".join(text for text in texts if isinstance(text, str))


def _answers_schema(data: Data) -> Data:
    texts = [q["question"] for q in data["questions"] if isinstance(q.get("question"), str)]
    return {"type": "object", "properties": {text: {"type": "string"} for text in texts}}


def _usage(result: Data) -> Data:
    models = [
        {
            "model": name,
            "provider": "anthropic",
            "inputTokens": int(of["input_tokens"]),
            "outputTokens": int(of["output_tokens"]),
            "cachedInputTokens": int(of["cache_read_input_tokens"]),
            "cacheWriteInputTokens": int(of["cache_creation_input_tokens"]),
        }
        for name, of in (result.get("model_usage") or {}).items()
    ]
    return {"usage": models} if models else {}
