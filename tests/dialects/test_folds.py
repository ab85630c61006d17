"""What a run is told as by the AI SDK's and AG-UI's surfaces: folds over its events."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.dialects.ag_ui.translate import Run
from apps.api.dialects.ai_sdk.translate import Message as Fold
from apps.api.web.asking import Waiting
from tests.dialects.ag_ui_rules import Client
from tests.dialects.ui_message import Message

SESSION, RUN = uuid4(), uuid4()
ONE, TWO = str(uuid4()), str(uuid4())


class Log:
    """Numbers events as an owner does."""

    def __init__(self) -> None:
        self._seq = itertools.count(1)
        self._newest, self._part = 0, 0

    def __call__(self, type_: str, **data: Any) -> Frame:
        if type_ == "partial":
            self._part += 1
        else:
            self._newest, self._part = next(self._seq), 0
        encoded = event_data(SESSION, RUN, self._newest, datetime.now(UTC), data)
        return Frame.build(Position(self._newest, self._part), type_, encoded)

    def says(self, *blocks: Any, role: str = "assistant", parent: str | None = None, uuid: UUID | None = None) -> Frame:
        content = [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]
        uuid_ = str(uuid) if uuid else None
        return self("message", role=role, content=content, parent_tool_use_id=parent, uuid=uuid_)

    def hears(self, *results: Any, parent: str | None = None) -> Frame:
        return self.says(*results, role="user", parent=parent)

    def delta(self, text: str, index: int = 0, kind: str = "text") -> Frame:
        return self("partial", index=index, delta={"type": kind, kind: text}, parent_tool_use_id=None)

    def asks(self, request_id: str, call: str | None, name: str = "Bash") -> Frame:
        nothing = dict.fromkeys(("title", "reason", "blocked_path", "agent_id"))
        about: dict[str, Any] = {"tool_name": name, "input": {}, "suggestions": [], "description": "d", **nothing}
        return self(
            "permission_request", request_id=request_id, tool_use_id=call, expires_at="2999-01-01T00:00:00Z", **about
        )

    def decided(self, request_id: str, decision: str, **more: Any) -> Frame:
        return self("action_resolved", request_id=request_id, decision=decision, by={"type": "key"}, **more)

    def ends(self, status: str = "succeeded", **error: Any) -> list[Frame]:
        used = {"usage": {}, "total_cost_usd": 0.1, "num_turns": 2, "model_usage": {"m": {"inputTokens": 1}}}
        failed = [self("error", code="timeout", message="late", retryable=False, **error)] if status == "failed" else []
        return [self("result", status=status, structured_output=None, **used), *failed, self("done", status=status)]


def use(id_: str, name: str = "Bash", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": given}


def result(id_: str, content: Any = "ok", *, is_error: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content, "is_error": is_error}


def begun(log: Log) -> list[Frame]:
    init = log("init", model="m", tools=[], mcp_servers=[])
    return [log("queued", position=1), init, log.says("hi", role="user", uuid=RUN)]


def asking() -> tuple[list[Frame], list[Frame]]:
    """A run up to where it asks, and the rest."""
    log = Log()
    before = [
        *begun(log),
        log.delta("think", 0, "thinking"),
        log.says({"type": "thinking", "thinking": "thinking"}),
        log.delta("he", 1),
        log.delta("llo", 1),
        log.says("hello"),
        log.says(use("t1")),
        log.says(use("t2")),
        log.asks(ONE, "t1"),
    ]
    after = [
        log.decided(ONE, "allow"),
        log.hears(result("t1")),
        log.asks(TWO, "t2"),
        log.decided(TWO, "deny", message="no"),
        log.hears(result("t2", "no", is_error=True)),
        log.says(use("t3", "Task", subagent_type="helper")),
        log.says(use("t4", "Read"), parent="t3"),
        log.hears(result("t4"), parent="t3"),
        log.says("found", parent="t3"),
        log.hears(result("t3", [{"type": "text", "text": "found"}])),
        log.delta("by"),
        log.says("bye"),
        *log.ends(),
    ]
    return before, after


def told(message: Message, fold: Fold, frames: list[Frame]) -> None:
    for frame in frames:
        for chunk in fold.take(frame):
            message.take(chunk)


def message_of(*parts: list[Frame]) -> Message:
    """A message as its client has it: each part but the last one ended where the client had to act."""
    message, seen = Message(), list[Frame]()
    for number, frames in enumerate(parts, 1):
        fold = Fold(str(SESSION), str(RUN))
        for frame in seen:
            fold.take(frame)
        for chunk in fold.begin():
            message.take(chunk)
        told(message, fold, frames)
        seen += frames
        if number < len(parts):
            for chunk in fold.pause():
                message.take(chunk)
    return message


def parts_of(message: Message) -> list[Any]:
    return [part for part in message.parts if part["type"] != "step-start" and not part["type"].startswith("data-")]


def test_a_message_that_was_asked_about_is_the_one_that_was_not() -> None:
    before, after = asking()
    whole, asked = message_of([*before, *after]), message_of(before, after)
    assert parts_of(asked) == parts_of(whole)
    assert [part.get("state", part.get("text")) for part in parts_of(whole)] == [
        "thinking",
        "hello",
        "output-available",
        "output-denied",
        "output-available",
        "bye",
    ]


def test_a_message_without_its_deltas_is_the_same() -> None:
    before, after = asking()
    durable = [frame for frame in [*before, *after] if not frame.part]
    assert parts_of(message_of(durable)) == parts_of(message_of([*before, *after]))


@pytest.mark.parametrize("lost", range(1, 4))
def test_what_is_lost_of_deltas_is_in_the_message(lost: int) -> None:
    log = Log()
    deltas = [log.delta(text) for text in ("one ", "two ", "three")]
    frames = [*begun(log), *deltas[:-lost], log.says("one two three"), *log.ends()]
    assert message_of(frames).text == "one two three"


def test_where_it_asks_nothing_but_what_asks_is_left_in_the_last_step() -> None:
    before, _ = asking()
    message = Message()
    fold = Fold(str(SESSION), str(RUN))
    for chunk in fold.begin():
        message.take(chunk)
    told(message, fold, before)
    assert message.blocked() == ["t1"]


def test_a_call_that_asks_beside_one_that_works_begins_a_step() -> None:
    log = Log()
    message = message_of([*begun(log), log.says(use("t1")), log.says(use("t2")), log.asks(ONE, "t2")], [])
    assert message.blocked() == []  # of the step that goes on
    last = [part for part in message.parts if "toolCallId" in part or part["type"] == "step-start"]
    assert [part.get("toolCallId", "step") for part in last] == ["step", "t1", "step", "t2", "step"]


def test_whether_a_tool_of_the_client_may_run_is_asked_apart_from_its_call() -> None:
    log = Log()
    call = use("t1", "mcp__client__weather", city="Ulm")
    asked = log.asks(ONE, "t1", "mcp__client__weather")
    about = {"tool_use_id": "t1", "tool_name": "weather", "input": {"city": "Ulm"}, "agent_id": None}
    theirs = log("client_tool_call", request_id=TWO, expires_at="2999-01-01T00:00:00Z", **about)
    after = [log.decided(TWO, "answered"), log.hears(result("t1", '{"a":1}')), log.says("done"), *log.ends()]
    message = message_of([*begun(log), log.says(call), asked], [log.decided(ONE, "allow"), theirs], after)
    first, second = (part for part in message.parts if "toolCallId" in part)
    assert (first["toolCallId"], first["state"], first["output"]) == (ONE, "output-available", "allow")
    assert (second["type"], second["state"], second["output"]) == ("tool-weather", "output-available", {"a": 1})


@pytest.mark.parametrize(
    ("status", "more", "last"),
    [
        ("interrupted", {}, {"type": "finish", "finishReason": "other"}),
        ("succeeded", {}, {"type": "finish", "finishReason": "stop"}),
        ("failed", {}, {"type": "error", "errorText": "late"}),
    ],
)
def test_what_is_left_open_ends_with_the_run(status: str, more: dict[str, Any], last: dict[str, Any]) -> None:
    log = Log()
    frames = [*begun(log), log.says(use("t1")), log.asks(ONE, "t1"), log.delta("half"), *log.ends(status, **more)]
    message = message_of(frames)
    assert message.chunks[-1] == last
    assert message.tool()["state"] == "output-error"


def test_a_continuation_always_changes_the_message() -> None:
    """A client whose message has not changed sends its answer again, for ever."""
    log = Log()
    asked = [*begun(log), log.says(use("t1")), log.asks(ONE, "t1")]
    for rest in ([], [log.decided(ONE, "closed"), *log.ends("interrupted")]):
        message = message_of(asked, rest)
        assert sum(part["type"] == "step-start" for part in message.parts) == 2
        after = message.chunks[max(n for n, c in enumerate(message.chunks) if c["type"] == "start") :]
        assert "message-metadata" in [chunk["type"] for chunk in after]


# --- AG-UI ---


def runs(*parts: list[Frame]) -> Iterator[tuple[Client, Callable[[], None]]]:
    seen = list[Frame]()
    client = Client()
    for number, frames in enumerate(parts, 1):
        run, waiting = Run(str(RUN)), Waiting()
        for frame in [*seen, *frames]:
            waiting.take(frame)
        for frame in seen:
            run.take(frame)
        run.resume()
        client.take({"type": "RUN_STARTED", "threadId": "t", "runId": str(number)})
        for frame in frames:
            for event in run.take(frame):
                client.take(event)
        last, end = run.pause(waiting.open.values()) if number < len(parts) else ([], run.end)
        ids = {"threadId": "t", "runId": str(number)} if end["type"] == "RUN_FINISHED" else {}
        for event in [*last, {**end, **ids}]:
            client.take(event)
        seen += frames
    yield client, lambda: None


def client_of(*parts: list[Frame]) -> Client:
    return next(runs(*parts))[0]


def test_a_thread_that_was_asked_about_is_the_one_that_was_not() -> None:
    before, after = asking()
    whole, asked = client_of([*before, *after]), client_of(before, after)
    assert asked.messages == whole.messages
    durable = [frame for frame in [*before, *after] if not frame.part]
    assert client_of(durable).messages == whole.messages
    assert [end["outcome"]["type"] for end in asked.ends] == ["interrupt", "success"]
    [interrupt] = asked.ends[0]["outcome"]["interrupts"]
    assert (interrupt["id"], interrupt["toolCallId"], interrupt["reason"]) == (ONE, "t1", "tool_approval")


def test_a_subagent_that_is_at_work_is_suspended_where_it_asks() -> None:
    log = Log()
    before = [*begun(log), log.says(use("t1", "Task")), log.says("look", parent="t1"), log.asks(ONE, "t2")]
    after = [log.decided(ONE, "allow"), log.says("seen", parent="t1"), log.hears(result("t1")), *log.ends()]
    client = client_of(before, after)
    assert [e["type"] for e in client.events if e["type"].startswith("SUBAGENT")] == [
        "SUBAGENT_STARTED",
        "SUBAGENT_FINISHED",
    ] * 2


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ends_early_leaves_nothing_open(status: str) -> None:
    log = Log()
    frames = [*begun(log), log.says(use("t1", "Task")), log.says("look", parent="t1"), log.delta("half")]
    end = client_of([*frames, *log.ends(status)]).ends[-1]
    assert end["type"] == ("RUN_ERROR" if status == "failed" else "RUN_FINISHED")
