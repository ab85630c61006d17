"""The page of the console, the same for every path below `/console`, and its files."""

from __future__ import annotations

import json
import secrets
from string import Template

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from apps.api.errors import NotFound
from apps.api.limits import PUBLIC_LIMIT, public_limiter
from apps.api.web.console import assets
from apps.api.web.console.assets import Assets

router = APIRouter(include_in_schema=False)

ASSET_LIMIT = "6000/minute"
"""Requests per minute and address for files: a browser that has none of them yet asks for all, about fifty."""

LIBRARIES = {
    "preact": "vendor/preact.mjs",
    "preact/hooks": "vendor/hooks.mjs",
    "htm": "vendor/htm.mjs",
    "marked": "vendor/marked.mjs",
    "dompurify": "vendor/purify.mjs",
    "uplot": "vendor/uPlot.mjs",
}
"""Names by which scripts import what others have written, so that those files stay as they were published."""

_SAFE = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def render(files: Assets, raw_path: str) -> Response:
    """The page for a URL with this path, which says where its files are relative to it: a proxy may have stripped the
    beginning of the path.

    Only what carries this answer's nonce is loaded: not even a script of this origin, where agents show pages of
    their own, see docs/previews.md.
    """
    nonce = secrets.token_urlsafe(16)
    _, slash, below = raw_path.partition("/console/")
    base = f"{'../' * below.count('/') if slash else 'console/'}assets/{files.digest}/"
    policy = {
        "default-src": "'none'",
        "script-src": f"'nonce-{nonce}'",
        "style-src": f"'nonce-{nonce}'",
        "img-src": "data: blob:",  # what the key was shown for is downloaded by the script, and shown from memory
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        # What an agent says becomes HTML by DOMPurify alone, even if the scripts have a mistake.
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify",
    }
    # "./": a name in an import map must not look like another name.
    names = {name: f"./{base}{path}" if not base.startswith(".") else base + path for name, path in LIBRARIES.items()}
    page = Template(files.page).substitute(
        nonce=nonce,
        base=base,
        imports=json.dumps({"imports": names}),
        styles="\n".join(f'<link rel="stylesheet" nonce="{nonce}" href="{base}{path}">' for path in files.styles()),
        modules="\n".join(
            f'<link rel="modulepreload" nonce="{nonce}" href="{base}{path}">' for path in files.modules()
        ),
    )
    return Response(
        page,
        media_type="text/html",
        headers={
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "Cache-Control": "no-store",
            **_SAFE,
        },
    )


@router.get("/console/assets/{digest}/{path:path}")
@public_limiter.limit(ASSET_LIMIT)
async def asset(request: Request, digest: str, path: str) -> Response:
    """A file of this release. Raises NotFound for one of another: the page that asks is of another instance, in the
    middle of an update."""
    files = assets.load()
    found = files.files.get(path) if digest == files.digest else None
    if found is None:
        raise NotFound("This release of the console has no such file.")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding", **_SAFE}
    content = found.content
    if found.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = found.packed, "gzip"
    return Response(content, media_type=found.media_type, headers=headers)


@router.get("/console")
@router.get("/console/{path:path}")
@public_limiter.limit(PUBLIC_LIMIT)
async def console(request: Request) -> Response:
    """A page for people, which is no part of the API's document."""
    return render(assets.load(), request.scope["raw_path"].decode("latin-1"))


@router.get("/playground")
async def playground(request: Request) -> Response:
    """Where the page was that came before."""
    return RedirectResponse("console", 308)
