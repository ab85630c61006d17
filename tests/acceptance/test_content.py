"""Images and documents: they reach the model whole, from any instance, and events do not carry their data."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest

from tests.fleet import Fleet, Shared


def png(width: int, height: int, *, filler: int = 0) -> bytes:
    """A real picture, `filler` bytes larger than it must be."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\x00" + bytes(3 * width) for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    extra = chunk(b"teXt", bytes(filler)) if filler else b""
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


BYPASS = {"permission_mode": "bypassPermissions"}
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj"


def of(kind: str, media_type: str, data: bytes) -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
    return {"type": kind, "source": source}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


async def test_images_and_documents_reach_the_model_from_another_instance(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    [other, _] = await fleet.others(await fleet.owner_of(session_id))
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "some words"}}
    blocks = [
        of("image", "image/png", png(8, 8)),
        of("document", "application/pdf", PDF),
        {**document, "title": "Notes", "context": "from a meeting"},
        text("what are these"),
    ]
    body = {"prompt": blocks, "session_id": session_id}
    answer = await other.post("/query/single", body)
    assert answer.status_code == 200, answer.text
    for kind in ("image/png", "application/pdf", "text/plain"):
        assert f"1 attachment(s) of type {kind}" in answer.json()["result"]
    events = await other.follow(answer.json()["run_id"])
    shown = next(e.data for e in events if e.event == "message" and e.data["role"] == "user")["content"]
    assert shown[0] == {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png"},
        "data_omitted": True,
        "bytes": len(png(8, 8)),
    }
    assert (shown[1]["bytes"], shown[2]["bytes"], shown[2]["title"]) == (len(PDF), 10, "Notes")
    assert shown[3] == text("what are these")
    listed = (await fleet[2].get(f"/sessions/{session_id}/messages")).text
    assert blocks[0]["source"]["data"] not in listed


async def test_the_conversation_keeps_its_images(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    first = await fleet[1].post(
        "/query/single", {"prompt": [of("image", "image/png", png(8, 8)), text("look")], "session_id": session_id}
    )
    assert "image/png" in first.json()["result"]
    assert (await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})).status_code < 300
    context = await fleet[2].ask(session_id, "recall")
    assert ". look" in context["result"]


async def test_a_picture_alone_is_a_prompt(shared: Shared) -> None:
    body = {"prompt": [of("image", "image/png", png(4, 4))], "session_id": await shared.of(**BYPASS)}
    answer = await shared.fleet[1].post("/query/single", body)
    assert answer.status_code == 200, answer.text
    assert "1 attachment(s) of type image/png" in answer.json()["result"]


async def test_a_picture_of_the_largest_size_fits_into_a_request(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    room = 5 * 1024 * 1024 // 4 * 3
    picture = png(64, 64, filler=room - len(png(64, 64)) - 12)
    assert len(picture) == room
    body = {"prompt": [of("image", "image/png", picture), text("look")], "session_id": session_id}
    answer = await fleet[1].post("/query/single", body)
    assert answer.status_code == 200, answer.text
    assert "1 attachment(s) of type image/" in answer.json()["result"]  # the agent scales it down, perhaps as a JPEG
    events = await fleet[2].client.get(
        f"/api/v1/runs/{answer.json()['run_id']}/events", headers={"Accept": "application/json"}
    )
    assert len(events.content) < 20_000


async def test_a_picture_that_a_tool_shows_is_left_out_of_events_too(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    made = base64.b64encode(png(64, 64)).decode()
    await fleet[0].ask(session_id, f"run echo {made} | base64 -d > picture.png")
    answer = await fleet[1].ask(session_id, "read picture.png")
    events = await fleet[2].follow(answer["run_id"])
    results = [
        block
        for e in events
        if e.event == "message" and e.data["role"] == "user"
        for block in e.data["content"]
        if block["type"] == "tool_result"
    ]
    [picture] = results[0]["content"]
    assert (picture["type"], picture["data_omitted"]) == ("image", True)
    assert "data" not in picture["source"]


@pytest.mark.parametrize(
    ("prompt", "field", "reason"),
    [
        ([of("image", "image/png", b"GIF89a")], "prompt.0.source", "is not image/png"),
        ([text("x"), of("image", "image/tiff", b"x")], "prompt.1.source.media_type", "image/webp"),
        (
            [{"type": "image", "source": {"type": "url", "url": "http://a"}}],
            "prompt.0.source",
            "send the data itself",
        ),
        ([of("document", "application/pdf", b"PK")], "prompt.0.source", "is not application/pdf"),
        ([{"type": "video"}], "prompt.0", "must be 'text', 'image' or 'document'"),
        (
            [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x" * 400_001}}],
            "prompt",
            "longer than 400000 characters",
        ),
    ],
)
async def test_what_cannot_be_shown_to_the_model_is_refused_with_its_place(
    fleet: Fleet, prompt: Any, field: str, reason: str
) -> None:
    response = await fleet[0].post("/query", {"prompt": prompt})
    assert response.status_code == 422
    [error] = response.json()["error"]["details"]["errors"]
    assert error["field"] == field
    assert reason in error["reason"]
