"""What a prompt may be made of: text, images and documents, checked before anybody stores them.

Formats and sizes are those of the Messages API. Data comes in the request itself: the server fetches no URL.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from apps.api.core.config.names import Part

MAX_IMAGE_CHARS = 5 * 1024 * 1024
"""Characters of base64 of one image. The Messages API refuses larger ones."""

MAX_BLOCKS = 100
"""Blocks of one prompt."""

_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
    "application/pdf": (b"%PDF-",),
}
"""How files of a type begin."""


def type_of(given: Any) -> str:
    """The tag of a block."""
    # What is in brackets is no part of a field's name in an error: see `web/errors.py`.
    return f"[{given.get('type') if isinstance(given, dict) else getattr(given, 'type', None)}]"


def _own_data(source: Any) -> Any:
    if isinstance(source, dict) and source.get("type") == "url":
        raise ValueError("URLs are not fetched: send the data itself")
    return source


def _check(media_type: str, data: str) -> None:
    try:
        found = binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:  # of binascii, or for what is not ASCII
        raise ValueError("data: is not base64 (standard alphabet, padded, no line breaks)") from error
    webp = media_type != "image/webp" or found[8:12] == b"WEBP"
    if not (found.startswith(_SIGNATURES[media_type]) and webp):
        raise ValueError(f"data: is not {media_type}")


class TextBlock(Part):
    """Words. `type` is `text`."""

    type: Literal["text"]
    text: Annotated[str, Field(min_length=1)]


class ImageSource(Part):
    """A picture as base64; what it is is checked."""

    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: Annotated[str, Field(min_length=1, max_length=MAX_IMAGE_CHARS)]

    @model_validator(mode="after")
    def _is_an_image(self) -> ImageSource:
        _check(self.media_type, self.data)
        return self


class ImageBlock(Part):
    """A picture. `type` is `image`."""

    type: Literal["image"]
    source: Annotated[ImageSource, BeforeValidator(_own_data)]


class PdfSource(Part):
    """A PDF file as base64."""

    type: Literal["base64"]
    media_type: Literal["application/pdf"]
    data: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _is_a_pdf(self) -> PdfSource:
        _check(self.media_type, self.data)
        return self


class TextSource(Part):
    """A document of plain text."""

    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: Annotated[str, Field(min_length=1)]


class DocumentBlock(Part):
    """A document. `type` is `document`."""

    type: Literal["document"]
    source: Annotated[
        Annotated[
            Annotated[PdfSource, Tag("[base64]")] | Annotated[TextSource, Tag("[text]")],
            Discriminator(type_of, custom_error_type="type", custom_error_message="type: must be 'base64' or 'text'"),
        ],
        BeforeValidator(_own_data),
    ]
    title: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    context: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ImageBlock, Tag("[image]")]
    | Annotated[DocumentBlock, Tag("[document]")],
    Discriminator(
        type_of, custom_error_type="type", custom_error_message="type: must be 'text', 'image' or 'document'"
    ),
]
Blocks = Annotated[list[Block], Field(min_length=1, max_length=MAX_BLOCKS)]


def texts(prompt: str | Iterable[TextBlock | ImageBlock | DocumentBlock | dict[str, Any]]) -> list[str]:
    """All words in a prompt, those of documents included. Of blocks, or of what they are as JSON."""
    if isinstance(prompt, str):
        return [prompt]
    found: list[str] = []
    for block in prompt:
        part = block if isinstance(block, dict) else block.model_dump()
        if part["type"] == "text":
            found.append(part["text"])
        elif part["type"] == "document":
            data = part["source"]["data"] if part["source"]["type"] == "text" else None
            found += filter(None, (part.get("title"), part.get("context"), data))
    return found


def _says_something(prompt: str | list[TextBlock | ImageBlock | DocumentBlock]) -> Any:
    shows = not isinstance(prompt, str) and any(block.type != "text" for block in prompt)
    if not (shows or "".join(texts(prompt)).strip()):
        raise ValueError("must not be empty")
    return prompt


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[Blocks, Tag("list[block]")],
    Discriminator(lambda given: "str" if isinstance(given, str) else "list[block]"),
    AfterValidator(_says_something),
]
"""What the user says."""


def without_data(content: Any) -> Any:
    """Content blocks as events show them: an image or a document tells its size instead of its data.

    Events are sent to everybody who follows, and again to whoever resumes; the conversation itself keeps the data.
    """
    return [_told(block) for block in content] if isinstance(content, list) else content


def _told(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    source = block.get("source")
    if block.get("type") in ("image", "document") and isinstance(source, dict) and isinstance(source.get("data"), str):
        data = source["data"].encode(errors="replace")
        size = len(data) * 3 // 4 - data[-2:].count(b"=") if source.get("type") == "base64" else len(data)
        kept = {name: value for name, value in source.items() if name != "data"}
        return {**block, "source": kept, "data_omitted": True, "bytes": size}
    return {**block, "content": without_data(block["content"])} if isinstance(block.get("content"), list) else block
