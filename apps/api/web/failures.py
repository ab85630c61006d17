"""What the documents of surfaces that tell errors in the native shape say of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from apps.api.codes import ErrorCode


class Why(BaseModel):
    """What went wrong."""

    code: ErrorCode = Field(description="For programs.", examples=["session_busy"])
    message: str = Field(description="For people.")
    details: dict[str, Any]


class Failure(BaseModel):
    """An error, as the native API tells it."""

    error: Why
    request_id: str = Field(description="What to look for in the server's log.")


_WHY = {
    400: "The request is not valid.",
    401: "No key, or one that is unknown, revoked or expired.",
    403: "The key may not do this.",
    404: "What it names is not there, or is another tenant's.",
    409: "It cannot be done now.",
    410: "The events were removed for their age.",
    413: "The body, or what is to be copied, is too large.",
    422: "A field is missing, unknown or out of range; `details.errors` names each.",
    429: "A limit of the key or of its tenant is reached.",
    500: "The server failed.",
    503: "The server is stopping, full, or lacks what it depends on.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents: these statuses, and those that every route may answer."""
    every = sorted({401, 403, 422, 429, 500, 503, *statuses})
    return {status: {"model": Failure, "description": _WHY[status]} for status in every}
