"""The API's documents, and a page that shows them: static files of the package, and nothing of any other server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from html import escape
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response

from apps.api.core.codec import encode
from apps.api.errors import NotFound
from apps.api.limits import PUBLIC_LIMIT, public_limiter

_FILES = {
    "swagger-ui-bundle.js": ("viewer/vendor", "text/javascript"),
    "swagger-ui.css": ("viewer/vendor", "text/css"),
    "viewer.js": ("viewer", "text/javascript"),
}
"""Each with its directory and its type."""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script src="docs/swagger-ui-bundle.js" defer></script>
<script src="docs/viewer.js" defer></script>
</head>
<body><div id="viewer"></div></body>
</html>
"""
_SAFE = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_OF_THE_PAGE = {
    **_SAFE,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}

_public = public_limiter.limit(PUBLIC_LIMIT)


class Document:
    """A document, made when somebody first asks for it."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        """`make` takes a second, and is called in a thread."""
        self._make, self._lock = make, asyncio.Lock()
        self._made: bytes | None = None

    async def json(self) -> bytes:
        async with self._lock:
            if self._made is None:
                self._made = await asyncio.to_thread(lambda: encode(self._make()))
            return self._made


def router(prefix: str, title: str, make: Callable[[], dict[str, Any]]) -> APIRouter:
    """`openapi.json` and `docs` below a path. They hold no secret, so they need no key."""
    made, document = APIRouter(prefix=prefix, include_in_schema=False), Document(make)
    page = _PAGE.format(title=escape(title))

    @made.get("/openapi.json")
    @_public
    async def openapi(request: Request) -> Response:
        return Response(await document.json(), media_type="application/json", headers=_SAFE)

    @made.get("/docs")
    @_public
    async def docs(request: Request) -> Response:
        return Response(page, media_type="text/html", headers=_OF_THE_PAGE)

    @made.get("/docs/{name}")
    @_public
    async def file(request: Request, name: str) -> Response:
        if name not in _FILES:
            raise NotFound("No such file.")
        directory, kind = _FILES[name]
        content = resources.files("apps.api.web").joinpath(directory, name).read_bytes()
        return Response(content, media_type=kind, headers={**_SAFE, "Cache-Control": "public, max-age=3600"})

    return made
