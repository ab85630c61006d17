"""What `@ag-ui/client` makes of a stream, by its rules: what it refuses is an error."""

from __future__ import annotations

from typing import Any

EVENTS: dict[str, tuple[set[str], set[str]]] = {
    # type → members that must be there, and that may be
    "RUN_STARTED": ({"threadId", "runId"}, set()),
    "RUN_FINISHED": ({"threadId", "runId"}, {"result", "outcome", "usage"}),
    "RUN_ERROR": ({"message"}, {"code", "usage"}),
    "TEXT_MESSAGE_START": ({"messageId", "role"}, set()),
    "TEXT_MESSAGE_CONTENT": ({"messageId", "delta"}, set()),
    "TEXT_MESSAGE_END": ({"messageId"}, set()),
    "TOOL_CALL_START": ({"toolCallId", "toolCallName"}, {"parentMessageId"}),
    "TOOL_CALL_ARGS": ({"toolCallId", "delta"}, set()),
    "TOOL_CALL_END": ({"toolCallId"}, set()),
    "TOOL_CALL_RESULT": ({"messageId", "toolCallId", "content"}, {"role"}),
    "REASONING_START": ({"messageId"}, set()),
    "REASONING_MESSAGE_START": ({"messageId", "role"}, set()),
    "REASONING_MESSAGE_CONTENT": ({"messageId", "delta"}, set()),
    "REASONING_MESSAGE_END": ({"messageId"}, set()),
    "REASONING_END": ({"messageId"}, set()),
    "STATE_SNAPSHOT": ({"snapshot"}, set()),
    "MESSAGES_SNAPSHOT": ({"messages"}, set()),
    "ACTIVITY_SNAPSHOT": ({"messageId", "activityType", "content"}, {"replace"}),
    "SUBAGENT_STARTED": ({"subagentRunId", "name"}, {"description", "parentToolCallId"}),
    "SUBAGENT_FINISHED": ({"subagentRunId"}, {"outcome"}),
    "SUBAGENT_ERROR": ({"subagentRunId", "message"}, {"code"}),
    "CUSTOM": ({"name", "value"}, set()),
}
ANYWHERE = {"type", "timestamp", "subagentRunId"}


class Client:
    """A thread as its client has it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []
        self.state: Any = None
        self._running = False
        self._open = set[tuple[str, str]]()
        self._agents, self._over = set[str](), set[str]()

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        needed, more = EVENTS[kind]
        assert needed <= set(event) <= needed | more | ANYWHERE, event
        assert all(value is not None for value in event.values()), event
        assert isinstance(event.get("timestamp", 0), int)
        assert self._running is (kind != "RUN_STARTED"), f"{kind} out of a run"
        self.events.append(event)
        agent = event.get("subagentRunId")
        if not kind.startswith("SUBAGENT"):
            assert agent is None or agent in self._agents, event
        getattr(self, f"_{kind.lower()}")(event)

    def _start(self, kind: str, id_: str) -> None:
        assert (kind, id_) not in self._open
        self._open.add((kind, id_))

    def _of(self, id_: str) -> dict[str, Any]:
        return next(message for message in self.messages if message["id"] == id_)

    def _run_started(self, _event: dict[str, Any]) -> None:
        self._running = True
        self._over.clear()

    def _run_finished(self, event: dict[str, Any]) -> None:
        assert not self._open, self._open
        assert not self._agents, self._agents
        outcome = event.get("outcome", {})
        assert outcome.get("type") != "interrupt" or outcome["interrupts"]
        self._running = False
        self.ends.append(event)

    def _run_error(self, event: dict[str, Any]) -> None:
        self._open.clear()
        self._running = False
        self.ends.append(event)

    def _text_message_start(self, event: dict[str, Any]) -> None:
        self._start("text", event["messageId"])
        self._message(event, "assistant", content="")

    def _message(self, event: dict[str, Any], role: str, **more: Any) -> None:
        assert all(message["id"] != event["messageId"] for message in self.messages), "it would be told twice"
        self.messages.append({"id": event["messageId"], "role": role, **more})

    def _text_message_content(self, event: dict[str, Any]) -> None:
        assert {("text", event["messageId"]), ("reasoning", event["messageId"])} & self._open
        self._of(event["messageId"])["content"] += event["delta"]

    def _text_message_end(self, event: dict[str, Any]) -> None:
        self._open.remove(("text", event["messageId"]))

    def _reasoning_start(self, event: dict[str, Any]) -> None:
        self._start("span", event["messageId"])

    def _reasoning_message_start(self, event: dict[str, Any]) -> None:
        assert event["role"] == "reasoning"
        self._start("reasoning", event["messageId"])
        self._message(event, "reasoning", content="")

    _reasoning_message_content = _text_message_content

    def _reasoning_message_end(self, event: dict[str, Any]) -> None:
        self._open.remove(("reasoning", event["messageId"]))

    def _reasoning_end(self, event: dict[str, Any]) -> None:
        self._open.remove(("span", event["messageId"]))

    def _tool_call_start(self, event: dict[str, Any]) -> None:
        self._start("call", event["toolCallId"])
        parent = event.get("parentMessageId", event["toolCallId"])
        found = [message for message in self.messages if message["id"] == parent]
        if not found:
            found = [{"id": parent, "role": "assistant"}]
            self.messages += found
        call = {"id": event["toolCallId"], "name": event["toolCallName"], "arguments": ""}
        found[0].setdefault("toolCalls", []).append(call)

    def _tool_call_args(self, event: dict[str, Any]) -> None:
        assert ("call", event["toolCallId"]) in self._open
        calls = (call for message in self.messages for call in message.get("toolCalls", ()))
        next(call for call in calls if call["id"] == event["toolCallId"])["arguments"] += event["delta"]

    def _tool_call_end(self, event: dict[str, Any]) -> None:
        self._open.remove(("call", event["toolCallId"]))

    def _tool_call_result(self, event: dict[str, Any]) -> None:
        assert isinstance(event["content"], str)
        self._message(event, "tool", toolCallId=event["toolCallId"], content=event["content"])

    def _state_snapshot(self, event: dict[str, Any]) -> None:
        self.state = event["snapshot"]

    def _messages_snapshot(self, event: dict[str, Any]) -> None:
        self.messages = [dict(message) for message in event["messages"]]

    def _activity_snapshot(self, event: dict[str, Any]) -> None:
        assert isinstance(event["content"], dict)

    def _subagent_started(self, event: dict[str, Any]) -> None:
        assert event["subagentRunId"] not in self._agents | self._over
        self._agents.add(event["subagentRunId"])

    def _subagent_finished(self, event: dict[str, Any]) -> None:
        self._agents.remove(event["subagentRunId"])
        self._over.add(event["subagentRunId"])

    _subagent_error = _subagent_finished

    def _custom(self, event: dict[str, Any]) -> None:
        pass
