"""What the Python client makes of bytes: events however they are cut, positions, texts whose deltas were lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from claude_agent_api import APIError, ConnectionFailed, Forbidden, RunFailed, Unauthorized
from claude_agent_api._follow import Following, Outcome, Text, events_of_run
from claude_agent_api._sse import Parser, Raw

SAID = 'Zeile eins\nZeile zwei — "ünï" 🦊\u2028\x0b\x85\x1c ende'
"""With what other libraries take for ends of lines."""


def parsed(stream: bytes, cuts: list[int]) -> list[Raw]:
    parser, found = Parser(), list[Raw]()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    return found


STREAM = (
    "\ufeff: a comment\n\n"
    f"id: 1\nevent: one\ndata: {json.dumps(SAID, ensure_ascii=False)[:6]}\ndata: {json.dumps(SAID)[6:]}\n\n"
    "event:two\nid\ndata:  two spaces\nretry: 5\nunknown: x\n\n"
    "data\ndata\n\n"
    "id: 3\nevent: without data\n\n"
    "data: last\n\n"
    "data: half of one"
)
EVENTS = [
    Raw("1", "one", json.dumps(SAID, ensure_ascii=False)[:6] + "\n" + json.dumps(SAID)[6:]),
    Raw("", "two", " two spaces"),
    Raw(None, "message", "\n"),
    Raw(None, "message", "last"),
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_stream_is_the_same_wherever_it_is_cut(end: str) -> None:
    stream = STREAM.replace("\n", end).encode()
    assert parsed(stream, []) == EVENTS
    for cut in range(1, len(stream)):
        assert parsed(stream, [cut]) == EVENTS, cut
    assert parsed(stream, list(range(1, len(stream)))) == EVENTS


def test_ends_of_lines_may_be_mixed() -> None:
    chosen = random.Random(7)
    for _ in range(50):
        stream = "".join(
            chosen.choice(["\n", "\r", "\r\n"]) if c == "\n" else c for c in "id: 1\ndata: x\n:c\n"
        ).encode()
        parser = Parser()
        assert parser.feed(stream) == []
        assert parser.feed(b"data: y\r\n\r\n") == [Raw("1", "message", "x\ny")]


def test_what_other_libraries_take_for_ends_of_lines_is_text() -> None:
    text = json.dumps(SAID, ensure_ascii=False)
    assert parsed(f"data: {text}\n\n".encode(), []) == [Raw(None, "message", text)]


def test_an_event_comes_as_soon_as_its_last_line_ends() -> None:
    parser = Parser()
    assert parser.feed(b"data: x\r\r") == [Raw(None, "message", "x")]
    assert parser.feed(b"\ndata: y\n\n") == [Raw(None, "message", "y")]


def test_a_very_long_line_is_taken_in_pieces() -> None:
    parser, found = Parser(), list[Raw]()
    for piece in [b"data: ", *([b"x" * 4096] * 4096), b"\n\n"]:
        found += parser.feed(piece)
    assert [len(event.data) for event in found] == [4096 * 4096]


def test_a_line_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("claude_agent_api._sse.MAX_EVENT_BYTES", 1000)
    following = following_run()
    for stream in (b"data: " + b"x" * 2000, b"data: x\n" * 500):
        following.opened(0)
        with pytest.raises(ConnectionFailed):
            following.feed(stream)


def following_run(**more: Any) -> Following:
    return events_of_run("r", None, more.pop("max_retries", 3), 0.0, **more)


def sse(id_: str | None, event: str, **data: Any) -> bytes:
    told = {"session_id": "s", "run_id": "r", "seq": 0, "created_at": "t", **data}
    return (f"id: {id_}\n" if id_ else "").encode() + f"event: {event}\ndata: {json.dumps(told)}\n\n".encode()


def delta(id_: str, text: str, parent: str | None = None) -> bytes:
    return sse(id_, "partial", index=0, delta={"type": "text", "text": text}, parent_tool_use_id=parent)


def message(id_: str, text: str, parent: str | None = None) -> bytes:
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    return sse(id_, "message", role="assistant", content=content, parent_tool_use_id=parent, uuid="u")


def test_a_position_goes_on_over_connections() -> None:
    following = following_run()
    assert "Last-Event-ID" not in following.request().headers
    following.feed(sse("1", "init") + b"id: 2\nevent: message\nda")
    assert following.cut(ConnectionFailed("x"), 1.0) > 0
    assert following.request().headers["Last-Event-ID"] == "1"
    following.opened(2.0)
    following.feed(sse("2", "init") + delta("2-1", "a") + sse("3", "done", status="succeeded") + sse("4", "init"))
    assert [event["id"] for event in following.events] == ["1", "2", "2-1", "3"]
    assert following.ended


def test_events_that_were_seen_are_left_out_where_nobody_passes_the_position_on() -> None:
    following = following_run()
    following.feed(sse("9", "init") + delta("9-1", "a") + delta("9-10", "b"))
    following.cut(ConnectionFailed("x"), 1.0)
    following.opened(1.0)
    following.feed(sse("9", "init") + delta("9-1", "a") + delta("9-10", "b") + delta("9-11", "c") + sse("10", "init"))
    assert [event["id"] for event in following.events] == ["9", "9-1", "9-10", "9-11", "10"]


def test_resync_sets_the_position_back() -> None:
    following = following_run()
    following.feed(sse("9", "init"))
    following.cut(ConnectionFailed("x"), 1.0)
    following.opened(1.0)
    following.feed(sse("4", "resync", seq=4, reason="lost") + sse("5", "init"))
    taken = [(following.next()["id"], following.given) for _ in range(3)]
    assert taken == [("9", "9"), ("4", "4"), ("5", "5")]
    assert following.position == "5"


def test_connections_that_bring_nothing_come_to_an_end_and_those_that_bring_something_do_not() -> None:
    following, now = following_run(), 0.0
    for number in range(1, 100):
        following.opened(now)
        following.feed(sse(str(number), "init"))
        now += following.cut(ConnectionFailed("x"), now)
    for _ in range(2):
        following.opened(now)
        now += following.cut(ConnectionFailed("x"), now)
    with pytest.raises(ConnectionFailed):
        following.cut(ConnectionFailed("x"), now)


def test_a_stream_that_waits_for_a_person_is_not_given_up() -> None:
    following, now = following_run(), 0.0
    for _ in range(100):  # a proxy cuts what is silent for a minute
        following.opened(now)
        following.feed(b": keep-alive\n\n")
        now += 60
        now += following.cut(ConnectionFailed("x"), now)


def test_partials_are_left_out_if_nobody_wants_them() -> None:
    following = following_run(partials=False)
    following.feed(delta("1-1", "a") + sse("2", "init"))
    assert [event["id"] for event in following.events] == ["2"]


@pytest.mark.parametrize(("code", "kind"), [("invalid_api_key", Unauthorized), ("insufficient_scope", Forbidden)])
def test_a_stream_says_why_the_server_ends_it(code: str, kind: type[APIError]) -> None:
    following = following_run()
    following.feed(sse("1", "init") + sse(None, "error", code=code, message="Gone.", retryable=False))
    assert [event["id"] for event in following.events] == ["1"]
    with pytest.raises(kind) as raised:
        following.fail()
    assert (raised.value.code, raised.value.retryable) == (code, False)


@pytest.mark.parametrize("stream", [b"data: <html>\n\n", b"data: 7\n\n", b"data: {}\nevent: resync\n\n"])
def test_what_is_no_event_of_the_api_is_a_broken_connection(stream: bytes) -> None:
    with pytest.raises(ConnectionFailed):
        following_run().feed(stream)


def words(*stream: bytes) -> list[str]:
    following, text = following_run(), Text()
    following.feed(b"".join(stream))
    return [said for event in following.events if (said := text.take(event))]


def test_text_is_that_of_the_deltas() -> None:
    assert words(delta("1-1", "Hel"), delta("1-2", "lo"), message("2", "Hello"), delta("2-1", " you")) == [
        *("Hel", "lo"),
        " you",
    ]


def test_text_whose_deltas_were_lost_comes_with_its_message() -> None:
    assert words(message("2", "Hello")) == ["Hello"]
    assert words(delta("1-1", "Hel"), message("2", "Hello")) == ["Hel", "lo"]
    assert words(delta("1-1", "H"), delta("1-3", "lo"), message("2", "Hello")) == ["H", "ello"]
    assert words(delta("1-2", "lo"), message("2", "Hello"), delta("2-1", "x")) == ["Hello", "x"]


def test_text_is_the_agents_own() -> None:
    assert words(delta("1-1", "sub", parent="t"), message("2", "sub", parent="t"), delta("2-1", "own")) == ["own"]


def outcome(*stream: bytes) -> Outcome:
    following, found = following_run(), Outcome()
    following.feed(b"".join(stream))
    for event in following.events:
        found.take(event)
    return found


def test_a_result_is_that_of_a_run_that_succeeded() -> None:
    done = outcome(sse("1", "result", result="well", status="succeeded"), sse("2", "done", status="succeeded"))
    assert done.result()["result"] == "well"


def test_a_run_that_failed_says_so() -> None:
    failed = {"code": "model_overloaded", "message": "Busy.", "retryable": True, "retry_after_seconds": 7}
    done = outcome(sse("1", "error", **failed), sse("2", "done", status="failed"))
    with pytest.raises(RunFailed) as raised:
        done.result()
    assert (raised.value.code, raised.value.retryable, raised.value.retry_after) == ("model_overloaded", True, 7)
    assert (raised.value.session_id, raised.value.run_id) == ("s", "r")


def test_a_run_that_is_not_done_has_no_result() -> None:
    with pytest.raises(ConnectionFailed):
        outcome(sse("1", "result", result="well", status="succeeded")).result()
