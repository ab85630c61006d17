"""What a call used, read from an answer that comes in pieces of any size."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.api.core.tenant.model_calls import Used
from apps.api.runner.gateway.meter import MAX_LINE_BYTES, Meter

USAGE = {
    "input_tokens": 12,
    "cache_read_input_tokens": 300,
    "cache_creation_input_tokens": 40,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 30},
    "output_tokens": 1,
    "service_tier": "standard",
}
FOUND = Used(
    model="claude-sonnet-5-5",
    input_tokens=12,
    output_tokens=77,
    cache_read_input_tokens=300,
    cache_creation_input_tokens=40,
    cache_creation_1h_input_tokens=30,
    web_search_requests=2,
    complete=True,
)


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


STREAM = b"".join(
    (
        event("message_start", message={"id": "m", "model": "claude-sonnet-5-5", "usage": USAGE}),
        event("ping"),
        delta('he says "usage": {"output_tokens": 9999}'),
        delta('\ndata: {"type": "message_delta", "usage": {"output_tokens": 8888}}\n\n'),
        event("message_delta", delta={}, usage={"output_tokens": 50}),
        event("message_delta", delta={}, usage={"output_tokens": 77, "server_tool_use": {"web_search_requests": 2}}),
        event("message_stop"),
    )
)


def read(pieces: list[bytes], content_type: str = "text/event-stream; charset=utf-8") -> Used:
    meter = Meter(content_type)
    for piece in pieces:
        meter.feed(piece)
    return meter.end()


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_a_stream_is_read_wherever_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[begin:end] for begin, end in pairwise(places)]
    assert read(pieces) == FOUND


def test_a_stream_that_breaks_off_tells_what_was_known() -> None:
    used = read([STREAM[: STREAM.index(b"event: message_delta")]])
    assert (used.input_tokens, used.output_tokens, used.complete) == (12, 2, False), "one for each piece"


def test_how_an_answer_was_made_is_read_where_it_has_a_price() -> None:
    fast = event("message_start", message={"usage": {**USAGE, "speed": "fast", "inference_geo": "us"}})
    assert (read([fast]).fast, read([fast]).in_the_us) == (True, True)
    assert (read([STREAM]).fast, read([STREAM]).in_the_us) == (False, False)


def test_an_answer_that_is_no_stream_is_read_at_its_end() -> None:
    message = {"type": "message", "model": "claude-sonnet-5-5", "content": [], "usage": {**USAGE, "output_tokens": 77}}
    message["usage"] |= {"server_tool_use": {"web_search_requests": 2}}  # type: ignore[operator]
    text = json.dumps(message).encode()
    assert read([text[:50], text[50:]], "application/json") == FOUND


@pytest.mark.parametrize(
    "usage",
    [None, [], "many", *({"output_tokens": n} for n in (-5, "9", True, 1e9, 2**60)), {"cache_creation": 7}],
)
def test_figures_that_are_none_count_nothing(usage: Any) -> None:
    used = read([event("message_start", message={"model": 5, "usage": usage})])
    assert asdict(used) == asdict(Used())


@pytest.mark.parametrize("text", [b"", b"data: {", b'data: "usage"\n\n', b'data: ["usage"]\n', b"\x00\xff\n" * 99])
def test_what_is_no_event_is_passed_over(text: bytes) -> None:
    assert read([text, b"\n\n", STREAM]) == FOUND


def test_a_line_without_an_end_is_not_kept() -> None:
    meter = Meter("text/event-stream")
    for _ in range(30):
        meter.feed(b"x" * (MAX_LINE_BYTES // 10))
        assert len(meter._rest) <= MAX_LINE_BYTES
    meter.feed(b'"usage"\n')
    meter.feed(STREAM)
    assert meter.end() == FOUND
