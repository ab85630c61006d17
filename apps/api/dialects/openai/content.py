"""From parts of messages to what the agent reads. Pictures behind URLs are fetched by the guarded way out."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from apps.api.core.config.content import MAX_IMAGE_CHARS, Content
from apps.api.core.context import Core
from apps.api.core.network.outbound import Failed, Refused
from apps.api.dialects.openai.errors import refused
from apps.api.dialects.openai.history import Entry

MAX_FETCHED = 8
"""Pictures of one request that are fetched."""

FETCH_SECONDS = 20.0

_DATA_URL = re.compile(r"data:(image/(?:png|jpeg|gif|webp)|application/pdf|text/plain)(?:;charset=utf-8)?;base64,")
_CONTENT: TypeAdapter[Any] = TypeAdapter(Content)

_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


async def prompt(core: Core, tenant_id: UUID, entries: Sequence[Entry], before: str | None, param: str) -> Any:
    """What is said now, as the core takes it; `before`: what stands before that. Raises BadRequest."""
    parts = [part for entry in entries for part in entry.parts]
    urls = [value for kind, value, _ in parts if kind == "image" and not value.startswith("data:")]
    if len(urls) > MAX_FETCHED:
        raise refused(param, f"{param}: at most {MAX_FETCHED} pictures are fetched; send the data of others.")
    blocks: list[dict[str, Any]] = [{"type": "text", "text": before}] if before else []
    for kind, value, at in parts:
        if kind == "text":
            blocks += [{"type": "text", "text": value}] if value else []
        elif value.startswith("data:"):
            blocks.append(_of_data(value, at))
        elif kind == "image":
            blocks.append(await _fetched(core, tenant_id, value, at))
        else:
            raise refused(at, f"{at}: must be a data: URL of a PDF or a plain text", "invalid_value")
    only_text = len(blocks) == 1 and blocks[0]["type"] == "text"
    try:
        content = _CONTENT.validate_python(blocks[0]["text"] if only_text else blocks)
        return content if only_text else [block.model_dump(exclude_none=True) for block in content]
    except ValidationError as error:
        raise refused(param, f"{param}: {error.errors()[0]['msg']}", "invalid_value") from error


def _of_data(url: str, at: str) -> dict[str, Any]:
    match = _DATA_URL.match(url)
    if match is None:
        raise refused(at, f"{at}: must be base64 of a PNG, JPEG, GIF, WebP, PDF or plain text", "invalid_value")
    return _block(match[1], url[match.end() :], at)


def _block(media_type: str, data: str, at: str) -> dict[str, Any]:
    if media_type == "text/plain":
        try:
            text = base64.b64decode(data, validate=True).decode()
        except ValueError as error:
            raise refused(at, f"{at}: is not base64 of UTF-8", "invalid_value") from error
        return {"type": "document", "source": {"type": "text", "media_type": media_type, "data": text}}
    sort = "document" if media_type == "application/pdf" else "image"
    return {"type": sort, "source": {"type": "base64", "media_type": media_type, "data": data}}


async def _fetched(core: Core, tenant_id: UUID, url: str, at: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        fine = parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        fine = False
    if not fine or len(url) > 4000 or not url.isascii() or not url.isprintable() or " " in url:
        raise refused(at, f"{at}: must be an https:// or a data: URL", "invalid_value")
    got = bytearray()

    async def keep(some: bytes) -> None:
        got.extend(some)

    try:
        await core.outbound.download(url, FETCH_SECONDS, MAX_IMAGE_CHARS * 3 // 4, tenant_id, keep)
    except (Refused, Failed) as error:
        raise refused(at, f"{at}: could not be fetched: {error}", "invalid_image_url") from error
    kinds = [kind for start, kind in _SIGNATURES if got.startswith(start)]
    kinds += ["image/webp"] if got[8:12] == b"WEBP" else []
    if not kinds:
        raise refused(at, f"{at}: is no PNG, JPEG, GIF or WebP", "invalid_image_format")
    return _block(kinds[0], base64.b64encode(got).decode(), at)
