"""The playground: one static page that tries this API in a browser. It holds no secret, so it needs no key."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from importlib import resources

from fastapi import APIRouter, Request, Response

from apps.api.limits import PUBLIC_LIMIT, public_limiter
from apps.api.web.route import instance_of

router = APIRouter()

_NO_DIALECTS = '<meta name="dialects" content="">'


def _hash_of(page: str, tag: str) -> str:
    [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def render(dialects: Iterable[str]) -> Response:
    """The page for a server with the dialects at these paths, with headers that allow it its own script, its own
    style and requests to its own server, and nothing else."""
    page = resources.files("apps.api.web").joinpath("playground.html").read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of(page, "script"),
        "style-src": _hash_of(page, "style"),
        "img-src": "data:",  # the empty icon; without it browsers ask for /favicon.ico
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        # What an agent says cannot become HTML here, even by a mistake in the script.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert _NO_DIALECTS in page  # noqa: S101 - the page is ours
    return Response(
        page.replace(_NO_DIALECTS, f'<meta name="dialects" content="{escape(" ".join(dialects))}">'),
        media_type="text/html",
        headers={
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "Cache-Control": "no-cache",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        },
    )


@router.get("/playground", include_in_schema=False)
@public_limiter.limit(PUBLIC_LIMIT)
async def playground(request: Request) -> Response:
    """A page for people, which is no part of the API's document."""
    return instance_of(request).playground
