"""What is sent as lines, what is stored of agents' words, and what JSON of clients is taken."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import httpx
import orjson
import pytest

from apps.api.core import codec
from apps.api.core.codec import decode, encode
from apps.api.core.events.frames import Frame, Position

LINE_ENDS = [c for c in map(chr, range(0x11000)) if len(f"a{c}b".splitlines()) > 1]


def lines_of(data: bytes) -> list[str]:
    """As a client reads them that splits text wherever Python does."""
    return list(httpx.Response(200, content=data).iter_lines())


def test_python_knows_the_ends_of_lines_that_this_file_tries() -> None:
    assert {"\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"} == set(LINE_ENDS)


@pytest.mark.parametrize("end", LINE_ENDS, ids=ascii)
@pytest.mark.parametrize("around", ["", "ü", "\ud83d", "\\", '"'], ids=ascii)
def test_no_reader_sees_two_lines_where_one_was_sent(end: str, around: str) -> None:
    value = {f"key{end}": [f"{around}{end}{around}", {end: 1}]}
    line = encode(value)
    assert lines_of(b"data: " + line + b"\n\n") == ["data: " + line.decode(), ""]
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == value


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029"], ids=ascii)
def test_an_event_that_an_older_version_stored_is_sent_on_one_line(end: str) -> None:
    stored = json.dumps({"text": f"a{end}b"}, ensure_ascii=False).encode()
    frame = Frame.build(Position(1), "message", stored)
    assert len(frame.raw.decode().splitlines()) == len(frame.raw.split(b"\n")) - 1
    assert decode(frame.data) == {"text": f"a{end}b"}


def deep(depth: int, leaf: Any = 1) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


@pytest.mark.parametrize(
    "value", [{"half": "\ud83d", "n": float("nan")}, [2**70, float("inf")], deep(5_000), 10**5_000], ids=range(4)
)
def test_what_is_encoded_is_always_json(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(encode(value), parse_constant=refuse)


NASTY: list[Any] = [
    {"a\x00": "b\x00"},
    "\ud83d \ude00",
    {"\udfff": 1},
    2**64,
    -(2**63) - 1,
    10**400,
    float("nan"),
    [float("inf"), -float("inf")],
    deep(300),
    (1, 2),
    object,
]


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
def test_what_is_cleaned_can_be_stored(value: Any) -> None:
    text = orjson.dumps(codec.clean(value)).decode()
    assert "\\u0000" not in text


@pytest.mark.parametrize(
    "value", [{"a": [1, -2, 0.5, True, None, "ü😀\u2028\n", {}]}, 2**64 - 1, -(2**63), ""], ids=repr
)
def test_what_can_be_stored_stays_as_it_is(value: Any) -> None:
    assert codec.clean(value) == value
    assert type(codec.clean(value)) is type(value)


REFUSED: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"a":[1,NaN]}', "a.1"),
    "Infinity": (b'{"a":-Infinity}', "a"),
    "beyond a float": (b'{"a":1e400}', "a"),
    "beyond 64 bits": (b'{"a":{"b":18446744073709551616}}', "a.b"),
    "below 64 bits": (b'{"a":-9223372036854775809}', "a"),
    "many digits": (b'{"a":' + b"1" * 1000 + b"}", "a"),
    "a key twice": (b'{"a":{"b":1,"b":1}}', "a"),
    "a key twice at the top": (b'{"a":1,"a":2}', ""),
    "a key twice in other spelling": (b'{"a":1,"\\u0061":2}', ""),
    "deep": (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "a.0.0.0.0.0.0.0"),
    "many values": (b"[" + b"[]," * 1_000_000 + b"0]", ""),
}


@pytest.mark.parametrize(("sent", "field"), REFUSED.values(), ids=REFUSED)
def test_json_that_readers_would_not_read_alike_is_refused_with_its_place(sent: bytes, field: str) -> None:
    with pytest.raises(codec.Unsuitable) as caught:
        codec.parse(sent)
    assert caught.value.field == field
    assert caught.value.reason


NOT_JSON = {
    "empty": b"",
    "half": b"{",
    "two": b"{}{}",
    "quotes": b"{'a':1}",
    "not UTF-8": b'"\xff"',
    "surrogates in UTF-8": b'"\xed\xa0\xbd"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "deeper than anybody reads": b"[" * 100_000,
    "a number of thousands of digits": b"1" * 5_000,
    "an open string": b'["\\"' + b'"\\"' * 400_000 + b"," * 400_000,
}


@pytest.mark.parametrize("sent", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_json_is_refused(sent: bytes) -> None:
    with pytest.raises((codec.NotJson, codec.Unsuitable)):
        codec.parse(sent)


def test_what_is_json_is_read_as_it_is() -> None:
    value = {
        "a": [1, -0.5, 1e300, True, None, "ü😀\u2028\x00\ufeff", {"": {}}],
        "n": [2**64 - 1, -(2**63)],
        "d": deep(90),
    }
    assert codec.parse(json.dumps(value)) == value
    assert codec.parse(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


@pytest.mark.parametrize("value", [b'"a",', b'"",', b'"1":1,', b"1,"], ids=bytes.decode)
def test_many_values_are_refused_before_all_of_them_are_looked_at(value: bytes) -> None:
    """The body is held as bytes and as text, whatever it is made of; a list of its parts takes fifty times that."""
    sent = b"[" + value * (4_000_000 // len(value)) + b"0]"
    tracemalloc.start()
    try:
        with pytest.raises(codec.Unsuitable, match="values"):
            codec.parse(sent)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(sent)
    finally:
        tracemalloc.stop()


def test_a_long_text_is_not_many_values() -> None:
    value = {"prompt": '\\",' * 400_000}
    assert codec.parse(json.dumps(value)) == value


UNSTORABLE: list[tuple[Any, str]] = [
    ({"a": ["x\x00"]}, "a.0"),
    ({"a": ["\ud83d"]}, "a.0"),
    ({"a": {"\udfff": 1}}, "a"),
    ({"\x00": 1}, ""),
]


@pytest.mark.parametrize(("value", "field"), UNSTORABLE)
def test_text_that_cannot_be_stored_is_refused_where_it_is_to_be_stored(value: Any, field: str) -> None:
    codec.check(value)
    with pytest.raises(codec.Unsuitable) as caught:
        codec.check(value, storable=True)
    assert caught.value.field == field
