"""Frames: what travels from the owner to every reader, byte for byte."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest

from apps.api.core.codec import decode, encode, timestamp
from apps.api.core.events.frames import Frame, Position, event_data, parse_batch, write_batch

SESSION, RUN = uuid4(), uuid4()
NOON = datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)


def frame(seq: int = 12, part: int = 0, run_id: UUID | None = RUN, type_: str = "message", **fields: object) -> Frame:
    return Frame.build(Position(seq, part), type_, event_data(SESSION, run_id, seq, NOON, fields))


def test_a_frame_is_one_server_sent_event() -> None:
    assert frame(text="hi").raw == (
        b"id: 12\nevent: message\n"
        b'data: {"session_id":"%s","run_id":"%s","seq":12,"created_at":"2026-01-31T12:00:00.123Z","text":"hi"}\n\n'
        % (str(SESSION).encode(), str(RUN).encode())
    )


def test_an_event_without_fields_of_its_own_is_complete_json() -> None:
    assert set(json.loads(frame().data)) == {"session_id", "run_id", "seq", "created_at"}


@pytest.mark.parametrize(("seq", "part"), [(1, 0), (12, 3), (10**17, 10**8)])
def test_a_parsed_frame_equals_the_built_one(seq: int, part: int) -> None:
    built = frame(seq, part, type_="partial", delta={"text": "x"})
    parsed = Frame.parse(built.raw)
    assert parsed == built
    assert parsed.position == (seq, part)
    assert decode(parsed.data)["seq"] == seq


@pytest.mark.parametrize("run_id", [RUN, None])
def test_the_run_is_told_without_parsing_json(run_id: UUID | None) -> None:
    assert frame(run_id=run_id).run_id == (str(run_id) if run_id else None)


def test_fields_cannot_pretend_to_belong_to_another_run() -> None:
    assert frame(run_id=None, text='\n\ndata: {"run_id":"x"}').run_id is None


HOSTILE = [
    "plain",
    "NUL \x00 and \x7f",
    "half a pair \ud83d alone",
    "whole pair 😀",
    "a\n\nid: 99\nevent: done\ndata: {}\n\n",
    "\r\n\r\n",
    "\u2028\u2029\x85\x0b\x0c",
    2**64,
    -(2**70),
    10**40,
    {"nested": ["\x00", "\udfff", {"deep": 2**65}]},
]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_whatever_an_agent_prints_survives_a_batch(value: object) -> None:
    frames = [frame(1, value=value), frame(1, 1, value=value), frame(2, value=value)]
    received = parse_batch(write_batch(frames))
    assert received == frames
    assert [json.loads(f.data)["value"] for f in received] == [value] * 3


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_an_encoded_frame_has_no_raw_line_break_in_its_data(value: object) -> None:
    raw = frame(value=value).raw
    assert raw.count(b"\n") == 4
    assert b"\r" not in raw


@pytest.mark.parametrize("value", [v for v in HOSTILE if not isinstance(v, int)][:-1], ids=repr)
def test_decode_is_the_inverse_of_encode(value: object) -> None:
    assert decode(encode(value)) == value
    assert decode(encode(value).decode()) == value


def test_decode_says_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="line 1"):
        decode('{"half": ')


def test_a_batch_says_whose_it_is() -> None:
    frames = [Frame.build(Position(n), "status", b"{}", 2**62 + 5) for n in (1, 2)]
    assert [f.generation for f in parse_batch(write_batch(frames))] == [2**62 + 5] * 2


@pytest.mark.parametrize("payload", [b"", b"{}", b"x\n", frame().raw, b"\xff\n"])
def test_what_is_no_batch_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(ValueError, match="int"):
        parse_batch(payload)


@pytest.mark.parametrize(
    ("text", "position"),
    [("0", (0, 0)), ("12", (12, 0)), ("12-3", (12, 3)), ("9" * 18 + "-" + "9" * 9, (10**18 - 1, 10**9 - 1))],
)
def test_positions_are_read(text: str, position: tuple[int, int]) -> None:
    assert Position.parse(text) == position


@pytest.mark.parametrize("text", ["0", "12", "12-3"])
def test_a_position_prints_as_it_was_read(text: str) -> None:
    assert str(Position.parse(text)) == text


NOT_POSITIONS = ["", " ", "x", "-1", "1-", "-", "1-2-3", "1.5", "+1", " 1", "1 ", "1\n", "1e3", "0x1", "٣", "²"]


@pytest.mark.parametrize("text", [*NOT_POSITIONS, "9" * 19, "1-" + "9" * 10, "9" * 5000])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SEQ"):
        Position.parse(text)


def test_positions_order_deltas_between_the_events_around_them() -> None:
    assert Position(12) < Position(12, 1) < Position(12, 10) < Position(13)


def test_times_are_utc_with_milliseconds() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert timestamp(elsewhere) == timestamp(NOON) == "2026-01-31T12:00:00.123Z"
    assert timestamp(NOON.replace(microsecond=0)) == "2026-01-31T12:00:00.000Z"
