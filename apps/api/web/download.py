"""Files in answers: ranges, and answers that stream one while its client may have it."""

from __future__ import annotations

import asyncio
import mimetypes
import re
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import format_datetime
from urllib.parse import quote

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from apps.api.codes import ErrorCode
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.views import Item
from apps.api.errors import ApiError
from apps.api.web.opened import Held

log = structlog.get_logger(__name__)

SECONDS = 3600.0
"""For the whole of an answer."""

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class BadRange(ApiError):
    """Nothing of the file is within the range that was asked for."""

    status = 416
    code: ErrorCode = "range_not_satisfiable"


def part_of(item: Item, wanted: str | None, unless_changed: str | None) -> tuple[int, int] | None:
    """Where in a file begins, and how long is, what `Range` and `If-Range` ask for. None: all of it; also of what is no
    single range of bytes (RFC 9110, section 14). Raises BadRange."""
    found = _RANGE.fullmatch(wanted or "")
    if found is None or not any(found.groups()) or unless_changed not in (None, item.etag):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(item.size - int(last), 0), item.size
    else:
        start, end = int(first), min(int(last) + 1, item.size) if last else item.size
        if last and int(last) < start:
            return None
    if start >= end:
        raise BadRange("The file has no such range.", headers={"Content-Range": f"bytes */{item.size}"})
    return start, end - start


UNKNOWN = "application/octet-stream"


def media_type_of(name: str) -> str:
    """What a file is, as far as its name tells."""
    of_content, packed = mimetypes.guess_type(name)
    return {None: of_content, "gzip": "application/gzip"}.get(packed) or UNKNOWN


def attached(name: str) -> dict[str, str]:
    """Headers of what is downloaded, never shown: it comes from the API's origin, and an agent may have made it."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return {
        "Content-Type": media_type_of(name),
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-cache",
    }


def headers_of(item: Item) -> dict[str, str]:
    """Headers of a file that is downloaded."""
    return {
        **attached(item.path.rpartition("/")[2]),
        "Accept-Ranges": "bytes",
        "ETag": item.etag or "",
        "Last-Modified": format_datetime(item.modified_at, usegmt=True),
        "Content-Length": str(item.size),
    }


def etags(header: str | None) -> tuple[str, ...]:
    """Those of `If-Match` or `If-None-Match`, weak or not."""
    return tuple(tag.strip().removeprefix("W/") for tag in header.split(",")) if header else ()


def of_file(
    request: Request, item: Item, read: Callable[[int, int], AsyncIterator[bytes]], held: Held, kind: str | None = None
) -> Response:
    """The answer to GET or HEAD of a file, or of a range of it. `read`: gives so many of its bytes from one on; `kind`:
    its media type, if another than its name tells. Raises BadRange."""
    headers, told = request.headers, headers_of(item)
    if kind is not None:
        told["Content-Type"] = kind
    if item.etag in etags(headers.get("if-none-match")):
        kept = {name: told[name] for name in ("ETag", "Last-Modified", "Cache-Control")}
        return Response(status_code=304, headers=kept)
    part = part_of(item, headers.get("range"), headers.get("if-range"))
    if request.method == "HEAD":
        return Response(headers=told)
    if part is None:
        return Download(read(0, item.size), held, told)
    begin, length = part
    told |= {"Content-Length": str(length), "Content-Range": f"bytes {begin}-{begin + length - 1}/{item.size}"}
    return Download(read(begin, length), held, told, 206)


class Download(StreamingResponse):
    """An answer that holds its share as long as it lasts. One that breaks off breaks off for the client, too."""

    def __init__(
        self, content: AsyncIterator[bytes], held: Held, headers: Mapping[str, str], status_code: int = 200
    ) -> None:
        super().__init__(content, status_code, headers)
        self._held = held
        held.kept = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await self._held.during(super().__call__(scope, receive, send))
        except (OSError, TimeoutError, ClientDisconnect, StoreFailed, ApiError) as error:
            log.info("download.cut", error=type(error).__name__)
        finally:
            self._held.close()
