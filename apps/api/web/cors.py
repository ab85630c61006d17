"""Pages of other origins that may use the native API, and surfaces for front ends, each with a key: `ALLOWED_ORIGINS`.

No other path is theirs. Previews are pages of agents and have headers of their own; on the paths of older servers there
may be callers without a key; figures are the operator's.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_SENT = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
    "traceparent",
    "X-API-Key",
    "X-Request-ID",
)

_READ = (
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "traceparent",
    "X-Request-ID",
    "X-Run-ID",
    "X-Session-ID",
)

_REMEMBERED = 3600
"""Seconds that a browser need not ask again whether it may."""


class AllowedOrigins:
    """Lets pages of these origins ask at paths with these prefixes, and read the answers; `*` is every origin."""

    def __init__(self, app: ASGIApp, origins: Sequence[str], prefixes: tuple[str, ...] = ("/api/",)) -> None:
        self._app, self._prefixes = app, prefixes
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_SENT,
            expose_headers=_READ,
            max_age=_REMEMBERED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        theirs = scope["type"] == "http" and scope["path"].startswith(self._prefixes)
        await (self._shared if theirs else self._app)(scope, receive, send)
