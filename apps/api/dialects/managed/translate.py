"""From the session's log to this API's events. Pure: the same ones with the same ids on every instance, listed or live.

An event's id says where the log has what it tells: see `ids.Part`. What a client has sent is known by the run or the
request that it was about, since its answer tells the id before the log has it. A call is told where it is known whether
it waits for a person: see `_Use.asked`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from apps.api.core.codec import decode
from apps.api.core.config import client_tools
from apps.api.core.events.frames import Frame
from apps.api.dialects.managed import ids
from apps.api.dialects.managed.blocks import prompt_blocks, result_blocks
from apps.api.dialects.managed.ids import EVENT, THREAD
from apps.api.dialects.managed.toolsets import THEIRS

BLOCKS, SAID = 100, 1000
"""Where the numbers of what a message's blocks tell begin: of calls by the message, of texts by the model's request."""

SUBAGENT = ("Task", "Agent")
"""Tools by which an agent calls a subagent."""

END_TURN: dict[str, Any] = {"type": "end_turn"}

_STOPS = {
    "budget_reached": "budget_reached",
    "max_budget_exceeded": "budget_reached",
    "model_refused": "refusal",
    "interrupted": "end_turn",
}
"""Code of a run's failure → why the session is idle, where it is not that retries are exhausted."""

_ERRORS = {
    "model_overloaded": "model_overloaded_error",
    "model_rate_limited": "model_rate_limited_error",
    "model_billing_failed": "billing_error",
}
_QUIET = ("interrupted", "budget_reached", "max_budget_exceeded", "model_refused")
"""Failures that are told by the reason of the idle session alone."""

_RETRIED = {429: "model_rate_limited_error", 503: "model_overloaded_error", 529: "model_overloaded_error"}
_WENT_ON = ("expired", "withdrawn")
"""Why a request was closed while its run goes on."""

_TOKENS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")

Event = dict[str, Any]


@dataclass(slots=True)
class _Use:
    """A call of a tool.

    Attributes:
        id: of its event.
        kind: `tool`, `mcp`, `custom`, or `thread` for a call of a subagent.
        parent: the call of the subagent that makes this one.
        asked: whether it waits for a person: known before it does for tools that always or never do; for others (None)
            once that was asked, or the call has a result.
        told: whether its event was told.
        answered: the request of a custom tool that was answered.
    """

    id: str
    kind: str
    name: str
    input: dict[str, Any]
    parent: str | None
    asked: bool | None
    told: bool = False
    answered: str | None = None


@dataclass(slots=True)
class Fold:
    """Reads a log from the beginning of a run, or from between two.

    Attributes:
        asks: whether calls of a tool wait for a person, see `toolsets.asks`.
        thread: tells what a subagent does, whose call this is; None: what the agent does.
    """

    session_id: UUID
    asks: Callable[[str], bool | None]
    thread: str | None = None
    _uses: dict[str, _Use] = field(default_factory=dict)
    _open: dict[str, str] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _span: tuple[int, str] | None = None
    _said: int = 0
    _message_id: str | None = None
    _usage: Mapping[str, Any] | None = None
    _failure: Mapping[str, Any] | None = None
    _seq: int = 0
    _nth: int = 0
    _at: str = ""
    _run: str | None = None
    _preview: tuple[str, int] | None = None

    def feed(self, frame: Frame) -> list[Event]:
        """What a stored event tells here; nothing of kinds that have no word for it."""
        tell = _KINDS.get(frame.type)
        if tell is None:
            return []
        data = decode(frame.data)
        self._seq, self._nth, self._at = frame.seq, 0, data["created_at"]
        return list(tell(self, data))

    # --- building ----------------------------------------------------------------------------------------------------

    def _event(self, type_: str, id_: str | None = None, **fields: Any) -> Event:
        if id_ is None:
            id_ = ids.of_part(EVENT, self.session_id, self._seq, self._nth)
            self._nth += 1
        return {"id": id_, "type": type_, "processed_at": self._at, **fields}

    def _begin_request(self) -> Iterator[Event]:
        if self._span is None:
            begun = self._event("span.model_request_start")
            self._span, self._said, self._message_id, self._usage = (self._seq, begun["id"]), 0, None, None
            yield begun

    def _end_request(self, *, is_error: bool = False) -> Iterator[Event]:
        if self._span is not None:
            usage = {name: (self._usage or {}).get(name) or 0 for name in _TOKENS}
            began, self._span = self._span[1], None
            yield self._event(
                "span.model_request_end", model_request_start_id=began, model_usage=usage, is_error=is_error
            )

    # --- messages ----------------------------------------------------------------------------------------------------

    def _message(self, data: Mapping[str, Any]) -> Iterator[Event]:
        parent, content = data["parent_tool_use_id"], data["content"]
        if data["role"] == "user":
            if parent is None and data["uuid"] is not None and data["uuid"] == data["run_id"]:
                yield from self._prompt(data)
            for block in content:
                if block["type"] == "tool_result":
                    yield from self._result(block, parent)
            return
        if parent is None:
            if self._message_id not in (None, data.get("message_id")):
                yield from self._end_request()
            if self.thread is None:
                yield from self._begin_request()
            self._message_id, self._usage = data.get("message_id") or "", data.get("usage") or self._usage
        for nth, block in enumerate(content):
            yield from self._block(block, BLOCKS + nth, parent)

    def _prompt(self, data: Mapping[str, Any]) -> Iterator[Event]:
        self._run, self._failure = data["run_id"], None
        if self.thread is not None:
            return
        id_ = ids.of_client("m", data["run_id"])
        yield self._event("user.message", id_, content=prompt_blocks(data["content"]))
        yield self._event("session.status_running")
        yield from self._begin_request()

    def _block(self, block: Mapping[str, Any], nth: int, parent: str | None) -> Iterator[Event]:
        id_ = ids.of_part(EVENT, self.session_id, self._seq, nth)
        if block["type"] in ("tool_use", "server_tool_use"):
            yield from self._use(block, id_, nth, parent)
        elif parent == self.thread and block["type"] in ("text", "thinking"):
            said = id_ if self._span is None else ids.of_part(EVENT, self.session_id, self._span[0], SAID + self._said)
            if block["type"] == "thinking":
                yield self._event("agent.thinking", said)
            elif block["text"]:
                yield self._event("agent.message", said, content=[{"type": "text", "text": block["text"]}])
        elif block["type"] == "server_tool_result":
            yield from self._result({**block, "is_error": False}, parent)
        if parent is None:
            self._said += 1

    def _use(self, block: Mapping[str, Any], id_: str, nth: int, parent: str | None) -> Iterator[Event]:
        name, kind = block["name"], "tool"
        if parent is None and name in SUBAGENT:
            kind, id_ = "thread", ids.of_part(THREAD, self.session_id, self._seq, nth)
        elif name.startswith(f"mcp__{client_tools.SERVER}__"):
            kind = "custom"
        elif name.startswith("mcp__"):
            kind = "mcp"
        asked = None if kind == "custom" else self.asks(name)
        if kind == "thread" and asked is None:
            asked = False  # calling a subagent needs no permission; what it does may
        use = self._uses[block["id"]] = _Use(id_, kind, name, dict(block["input"]), parent, asked)
        if parent is None:
            self._waiting.add(block["id"])
        if asked is False:
            yield from self._tell(use, "allow")

    def _tell(self, use: _Use, permission: str) -> Iterator[Event]:
        """Tell a call, once, where it belongs: a subagent's among what the agent does only if it is asked for."""
        if use.told or (use.parent != self.thread and (self.thread is not None or permission != "ask")):
            return
        use.told, told = True, {"name": THEIRS.get(use.name, use.name), "input": use.input}
        of_thread = self._thread_of(use) if self.thread is None else None
        more: dict[str, Any] = {"session_thread_id": of_thread}
        if use.kind == "thread":
            yield from self._thread_begins(use)
        elif use.kind == "custom" and permission == "ask":
            told["name"] = use.name.removeprefix(f"mcp__{client_tools.SERVER}__")
            yield self._event("agent.custom_tool_use", use.id, **told, **more)
        elif use.kind == "mcp":
            _, server, told["name"] = use.name.split("__", 2) if use.name.count("__") > 1 else ("", "", use.name)
            more |= {"mcp_server_name": server, "evaluated_permission": permission}
            yield self._event("agent.mcp_tool_use", use.id, **told, **more)
        else:
            yield self._event("agent.tool_use", use.id, **told, **more, evaluated_permission=permission)

    def _thread_of(self, use: _Use) -> str | None:
        caller = self._uses.get(use.parent or "")
        return caller.id if caller is not None and caller.kind == "thread" else None

    def _result(self, block: Mapping[str, Any], parent: str | None) -> Iterator[Event]:
        use = self._uses.get(block["tool_use_id"])
        if parent is None:
            self._waiting.discard(block["tool_use_id"])
            yield from self._end_request()
        if use is not None and use.parent == self.thread:
            content, is_error = result_blocks(block["content"]), bool(block["is_error"])
            if not use.told:
                # Custom, and nobody was asked: something refused it, and its client is not to answer it.
                yield from self._tell(use, "deny" if use.kind == "custom" else "allow")
            if use.kind == "thread":
                yield from self._thread_ends(use, content)
            elif use.answered is not None:
                yield self._custom_result(use, content=content, is_error=is_error)
            elif use.kind == "mcp":
                yield self._event("agent.mcp_tool_result", mcp_tool_use_id=use.id, content=content, is_error=is_error)
            elif use.kind == "tool" or use.asked is not True:
                yield self._event("agent.tool_result", tool_use_id=use.id, content=content, is_error=is_error)
        if parent is None and not self._waiting and self.thread is None:
            yield from self._begin_request()

    def _custom_result(self, use: _Use, **fields: Any) -> Event:
        id_ = ids.of_client("r", use.answered or "")
        use.answered = None
        return self._event("user.custom_tool_result", id_, custom_tool_use_id=use.id, session_thread_id=None, **fields)

    # --- subagents ---------------------------------------------------------------------------------------------------

    def _thread_begins(self, use: _Use) -> Iterator[Event]:
        named = {"session_thread_id": use.id, "agent_name": agent_of(use.input)}
        yield self._event("session.thread_created", **named)
        yield self._event("session.thread_status_running", **named)
        text = str(use.input.get("prompt") or "")
        told = {"to_session_thread_id": use.id, "to_agent_name": named["agent_name"]}
        yield self._event("agent.thread_message_sent", **told, content=[{"type": "text", "text": text}])

    def _thread_ends(self, use: _Use, content: list[dict[str, Any]]) -> Iterator[Event]:
        name = agent_of(use.input)
        named = {"session_thread_id": use.id, "agent_name": name}
        yield self._event("session.thread_status_idle", **named, stop_reason=END_TURN)
        told = {"from_session_thread_id": use.id, "from_agent_name": name}
        yield self._event("agent.thread_message_received", **told, content=content)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _ask(self, data: Mapping[str, Any]) -> Iterator[Event]:
        use = self._uses.get(data["tool_use_id"] or "")
        if use is None:  # of a call that no message shows
            name = data["tool_name"]
            use = _Use(ids.of_part(EVENT, self.session_id, self._seq, BLOCKS), "tool", name, data["input"], None, True)
            self._uses[data["tool_use_id"] or data["request_id"]] = use
        if use.parent is None:
            yield from self._end_request()
        use.asked = True
        yield from self._tell(use, "ask")
        self._open[data["request_id"]] = data["tool_use_id"] or data["request_id"]
        yield from self._idle_for_action()

    def _idle_for_action(self) -> Iterator[Event]:
        if self.thread is None:
            waits = [self._uses[call].id for call in self._open.values()]
            yield self._event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": waits})

    def _resolved(self, data: Mapping[str, Any]) -> Iterator[Event]:
        use = self._uses.get(self._open.pop(data["request_id"], ""))
        if use is None:
            return
        decision = data["decision"]
        if use.kind == "custom" and decision == "answered":
            use.answered = data["request_id"]  # told with what was answered, when the agent has it
        elif decision in ("allow", "deny") and (self.thread is None or use.parent == self.thread):
            told = {"tool_use_id": use.id, "result": decision, "deny_message": data.get("message")}
            id_ = ids.of_client("r", data["request_id"])
            yield self._event("user.tool_confirmation", id_, session_thread_id=self._thread_of(use), **told)
        goes_on = decision != "closed" or data["by"].get("reason") in _WENT_ON
        if self._open:
            yield from self._idle_for_action()
        elif goes_on and self.thread is None:
            yield self._event("session.status_running")

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _status(self, data: Mapping[str, Any]) -> Iterator[Event]:
        if self.thread is not None:
            return
        if data["status"] == "compacted":
            yield self._event("agent.thread_context_compacted")
        elif data["status"] == "background_turn":
            self._run = data["run_id"]
            yield self._event("session.status_running")
        elif data["status"] == "model_retry":
            kind = _RETRIED.get(data["error_status"] or 0, "model_request_failed_error")
            message = f"The model's answer failed ({data['error_status'] or data['error']}), and is asked for again."
            yield self._event("session.error", error=_error(kind, message, "retrying"))

    def _failed(self, data: Mapping[str, Any]) -> Iterator[Event]:
        self._failure = data
        yield from self._end_request(is_error=data["code"] != "interrupted")
        if data["code"] not in _QUIET and self.thread is None:
            usual = "model_request_failed_error" if data["code"].startswith("model_") else "unknown_error"
            kind = _ERRORS.get(data["code"], usual)
            yield self._event("session.error", error=_error(kind, data["message"], "exhausted"))

    def _ended(self, data: Mapping[str, Any]) -> Iterator[Event]:
        run_id, main = data["run_id"], self.thread is None
        if main and data["status"] == "interrupted" and (self._failure or {}).get("code") in (None, "interrupted"):
            yield self._event("user.interrupt", ids.of_client("i", run_id), session_thread_id=None)
        if run_id != self._run:
            return  # it never began
        yield from self._end_request()
        for use in self._uses.values():
            if use.answered is not None and use.parent == self.thread:
                yield self._custom_result(use)
            if main and use.kind == "thread" and use.told and use.id in self._running_threads():
                named = {"session_thread_id": use.id, "agent_name": agent_of(use.input)}
                yield self._event("session.thread_status_idle", **named, stop_reason=END_TURN)
        code = (self._failure or {}).get("code") or "interrupted"
        stop = "end_turn" if data["status"] != "failed" else _STOPS.get(code, "retries_exhausted")
        if main:
            yield self._event("session.status_idle", stop_reason={"type": stop})
        self._uses, self._open, self._waiting, self._run = {}, {}, set(), None

    def _running_threads(self) -> set[str]:
        return {self._uses[call].id for call in self._waiting if call in self._uses}

    # --- previews ----------------------------------------------------------------------------------------------------

    def preview(self, frame: Frame, wanted: frozenset[str]) -> list[Event]:
        """What is told of a piece of a message that is not stored yet, to who asked for it."""
        data = decode(frame.data)
        if data["parent_tool_use_id"] is not None or self.thread is not None or self._span is None:
            return []
        kind = {"text": "agent.message", "thinking": "agent.thinking"}.get(data["delta"]["type"])
        if kind not in wanted or data["index"] < self._said:
            return []
        id_ = ids.of_part(EVENT, self.session_id, self._span[0], SAID + data["index"])
        told: list[Event] = []
        if self._preview is None or self._preview[0] != id_:
            told.append({"type": "event_start", "event": {"type": kind, "id": id_}})
        self._preview = id_, 0
        if kind == "agent.message":
            delta = {"type": "content_delta", "index": 0, "content": {"type": "text", "text": data["delta"]["text"]}}
            told.append({"type": "event_delta", "event_id": id_, "delta": delta})
        return told


_KINDS: dict[str, Callable[[Fold, Mapping[str, Any]], Iterator[Event]]] = {
    "message": Fold._message,
    "permission_request": Fold._ask,
    "client_tool_call": Fold._ask,
    "action_resolved": Fold._resolved,
    "status": Fold._status,
    "error": Fold._failed,
    "done": Fold._ended,
}


def agent_of(given: Mapping[str, Any]) -> str:
    """The name of the subagent that is called with this."""
    return str(given.get("subagent_type") or "general-purpose")


def _error(kind: str, message: str, retry: str) -> dict[str, Any]:
    return {"type": kind, "message": message, "retry_status": {"type": retry}}
