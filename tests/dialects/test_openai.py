"""OpenAI's API: what is pure of it. With the official clients: tests/clients/test_openai.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.dialects.openai import history
from apps.api.dialects.openai.chat import Completion
from apps.api.dialects.openai.history import Entry
from apps.api.dialects.openai.items import Answer, piece_end
from apps.api.dialects.openai.options import function_name, tool_name
from apps.api.errors import BadRequest

RESPONSE, SESSION = uuid4(), uuid4()
DATA = {"created_at": 1, "background": False, "shown": {"model": "m"}}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = "".join(f"word{n} " for n in range(700))


def frame(seq: int, type_: str, part: int = 0, **fields: Any) -> Frame:
    return Frame.build(Position(seq, part), type_, event_data(SESSION, SESSION, seq, NOW, fields))


def message(seq: int, *blocks: dict[str, Any]) -> Frame:
    usage = {"input_tokens": 3, "output_tokens": 2}
    more: dict[str, Any] = {"parent_tool_use_id": None, "message_id": str(seq), "usage": usage}
    return frame(seq, "message", role="assistant", content=list(blocks), **more)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


USE = {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}
END = [
    frame(8, "result", status="succeeded", usage={"input_tokens": 9, "output_tokens": 7}, structured_output={"a": 1}),
    frame(9, "done", status="succeeded"),
]
WHOLE = [frame(1, "init"), message(2, text(TEXT)), message(3, USE), message(4, text("the end")), *END]


def deltas(words: str, size: int) -> list[Frame]:
    pieces = [words[at : at + size] for at in range(0, len(words), size)]
    return [
        frame(1, "partial", n, index=0, delta={"type": "text", "text": piece}, parent_tool_use_id=None)
        for n, piece in enumerate(pieces, 1)
    ]


def played(frames: Sequence[Frame], settled: frozenset[UUID] = frozenset(), **data: Any) -> tuple[Answer, list[Any]]:
    answer = Answer(RESPONSE, {**DATA, **data}, settled)
    events = answer.begin()
    for one in frames:
        events += answer.take(one)
    return answer, events


@pytest.mark.parametrize("size", [1, 3, 50, 5_000])
def test_events_are_the_same_whether_their_deltas_came_or_not(size: int) -> None:
    _, live = played([WHOLE[0], *deltas(TEXT, size), *WHOLE[1:]])
    answer, stored = played(WHOLE)
    assert live == stored
    assert [event["sequence_number"] for event in stored] == list(range(len(stored)))
    assert [item["phase"] for item in answer.output] == ["commentary", "final_answer"]
    assert answer.shown()["usage"]["total_tokens"] == 16


def test_a_long_text_has_few_pieces_and_a_short_one_comes_at_once() -> None:
    ends = [piece_end(0)]
    while ends[-1] < 4_000_000:
        ends.append(piece_end(ends[-1]))
    assert len(ends) < 2_500
    assert ends[:4] == [1, 2, 3, 4]
    assert ends == sorted(set(ends))


def test_what_a_model_says_once_more_is_told_as_it_said_it_in_the_end() -> None:
    again = [*deltas("it brok", 7), *deltas("it is whole", 3), message(2, text("it is whole")), *END]
    answer, events = played(again)
    assert [event["text"] for event in events if event["type"] == "response.output_text.done"] == ["it is whole"]
    assert answer.said == ["it is whole"]


def test_a_structured_output_is_the_answer() -> None:
    answer, _ = played(WHOLE, structured=True)
    assert [(item["phase"], item["content"][0]["text"]) for item in answer.output][-1] == ("final_answer", '{"a":1}')
    chat = Completion("m", frozenset(), structured=True)
    found = [delta for one in WHOLE for delta in chat.take(one)]
    assert found == [{"content": '{"a":1}'}]


def test_a_run_has_one_answer_for_each_time_that_it_calls() -> None:
    first, second = uuid4(), uuid4()

    def call(seq: int, id_: UUID) -> list[Frame]:
        asked = frame(seq, "client_tool_call", request_id=str(id_), tool_name="x-a-5f", input={"n": 1})
        return [asked, frame(seq + 1, "action_resolved", request_id=str(id_))]

    run = [message(1, text("a")), *call(2, first), message(4, text("b")), *call(5, second), message(7, text("c")), *END]
    parts = [frozenset[UUID](), frozenset({first}), frozenset({first, second})]
    answers = [played(run, settled)[0] for settled in parts]
    assert [answer.status for answer in answers] == ["completed"] * 3
    kinds = [[item["type"] for item in answer.output] for answer in answers]
    assert kinds == [["message", "function_call"], ["message", "function_call"], ["message"]]
    assert [answer.said for answer in answers] == [["a"], ["b"], ["c"]]
    call_ = answers[0].output[1]
    assert (call_["name"], call_["arguments"]) == ("a_", '{"n":1}')
    assert history.uuid_of("call", call_["call_id"]) == first


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("max_turns_exceeded", "incomplete", "max_messages"),
        ("model_refused", "incomplete", "content_filter"),
        ("owner_lost", "failed", None),
    ],
)
def test_how_a_run_can_fail(code: str, status: str, reason: str | None) -> None:
    answer, events = played([frame(1, "error", code=code, message="why"), frame(2, "done", status="failed")])
    assert events[-1]["type"] == f"response.{status}"
    shown = answer.shown()
    assert shown["status"] == status
    assert (shown["incomplete_details"] or {}).get("reason") == reason
    assert (shown["error"] or {}).get("message") == (None if reason else "why")


@pytest.mark.parametrize("name", ["weigh", "a__b", "_x", "9a", "x-y", "a-b_c", "weigh_", "A" * 64])
def test_names_of_functions_come_back(name: str) -> None:
    ours = tool_name(name)
    assert ours is not None
    assert function_name(ours) == name
    assert "__" not in ours


def test_a_name_that_would_be_too_long_is_none() -> None:
    assert tool_name("_" * 64) is None


def entry(kind: Any, words: str = "", id_: str = "") -> Entry:
    return Entry(kind, (("text", words, ""),) if words else (), id_)


def test_a_history_is_known_by_what_was_said() -> None:
    said = [entry("user", "hi there"), entry("assistant", "let me see"), entry("assistant", "it is fine")]
    joined = [entry("user", "hi  there\n"), entry("assistant", "let me see\n\nit is fine")]
    assert history.key(["k"], said) == history.key(["k"], joined)
    assert history.key(["k"], said) != history.key(["other"], said)
    assert history.key(["k"], said) != history.key(["k"], said[:2])
    assert history.key(["k"], [entry("user", "a"), entry("user", "b")]) != history.key(["k"], [entry("user", "ab")])
    calls = [entry("call", "{}", "c1"), entry("output", "x", "c1")]
    assert history.key([], calls) == history.key([], calls[:1])
    assert history.key([], calls) != history.key([], [entry("call", "{}", "c2")])


@pytest.mark.parametrize(
    "id_", ["", "resp_", "resp_" + "g" * 32, "resp_" + "A" * 32, "call_" + "a" * 32, "resp_" + "١" * 32]
)
def test_what_is_no_id_of_ours(id_: str) -> None:
    assert history.uuid_of("response", id_) is None


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "computer_call"}, "input[0].type"),
        ({"id": "msg_1"}, "input[0].type"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[0].content[0].file_id"),
        ({"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0]"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        ({"role": "user", "content": "x", "y": 1}, "input[0].y"),
    ],
)  # fmt: skip
def test_items_that_are_not_read_are_refused_by_their_place(item: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        history.of_input([item])
    assert raised.value.details["param"] == param
