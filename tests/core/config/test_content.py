"""What prompts are made of, and how events show it."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from apps.api.core.config import content
from apps.api.core.config.content import MAX_IMAGE_CHARS, Content, texts, without_data

CONTENT: TypeAdapter[Any] = TypeAdapter(Content)
FILES = {
    "image/png": b"\x89PNG\r\n\x1a\n....",
    "image/jpeg": b"\xff\xd8\xff\xe0....",
    "image/gif": b"GIF89a....",
    "image/webp": b"RIFF....WEBPVP8 ",
    "application/pdf": b"%PDF-1.7 ....",
}


def block(media_type: str, data: bytes | str, **more: Any) -> dict[str, Any]:
    encoded = data if isinstance(data, str) else base64.b64encode(data).decode()
    kind = media_type.partition("/")[0].replace("application", "document")
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": encoded}, **more}


@pytest.mark.parametrize("media_type", FILES)
def test_files_of_every_type_are_taken_as_they_are(media_type: str) -> None:
    given = block(media_type, FILES[media_type])
    [taken] = CONTENT.validate_python([given])
    assert taken.model_dump(exclude_none=True) == given


@pytest.mark.parametrize("named", FILES)
@pytest.mark.parametrize("actual", FILES)
def test_a_file_is_what_it_says_it_is(named: str, actual: str) -> None:
    given = [block(named, FILES[actual])]
    if named == actual:
        CONTENT.validate_python(given)
    else:
        with pytest.raises(ValidationError, match=f"is not {named}"):
            CONTENT.validate_python(given)


@pytest.mark.parametrize("data", ["", "!", "iVBORw0KGgo", "iVBORw0K\nGgo=", "iVBORw0KGgo_", "é", " iVBORw0KGgo="])
def test_what_is_no_base64_is_refused(data: str) -> None:
    with pytest.raises(ValidationError):
        CONTENT.validate_python([block("image/png", data)])


def test_an_image_may_be_as_large_as_the_model_takes_it_and_no_larger() -> None:
    size = MAX_IMAGE_CHARS // 4 * 3
    whole = FILES["image/png"].ljust(size, b".")
    CONTENT.validate_python([block("image/png", whole)])
    with pytest.raises(ValidationError, match="at most"):
        CONTENT.validate_python([block("image/png", whole + b".")])


@pytest.mark.parametrize("kind", ["image", "document"])
def test_no_url_is_fetched(kind: str) -> None:
    with pytest.raises(ValidationError, match="send the data itself"):
        CONTENT.validate_python([{"type": kind, "source": {"type": "url", "url": "https://example.com/x"}}])


def test_the_words_of_documents_count_as_words() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "three"}
    document = {"type": "document", "source": source, "title": "one", "context": "two"}
    prompt = CONTENT.validate_python([document, {"type": "text", "text": "four"}])
    assert texts(prompt) == ["one", "two", "three", "four"]
    assert texts("five") == ["five"]


def test_events_tell_the_size_of_data_instead_of_repeating_it() -> None:
    for size in (5, 6, 7):
        shown = without_data([block("image/png", b"." * size)])
        assert shown == [
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png"},
                "data_omitted": True,
                "bytes": size,
            }
        ]
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "é\ud83d"}, "title": "t"}
    assert without_data([text])[0] == {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain"},
        "title": "t",
        "data_omitted": True,
        "bytes": 3,
    }


def test_events_leave_everything_else_as_it_is() -> None:
    for shown in ("text", None, [{"type": "text", "text": "x"}], ["x"], [{"type": "image", "source": {"type": "url"}}]):
        assert without_data(shown) == shown
    result = {"type": "tool_result", "content": [{"type": "text", "text": "x"}, block("image/png", b"....")]}
    inner = without_data([result])[0]["content"]
    assert (inner[0], inner[1]["bytes"]) == ({"type": "text", "text": "x"}, 4)
    assert content.MAX_BLOCKS == 100
