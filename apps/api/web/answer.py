"""JSON answers that can hold whatever an agent printed."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from apps.api.core.codec import encode


class Json(Response):
    """Starlette's and pydantic's own encoders refuse lone surrogates; this one escapes them, as the log does."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)
