"""What the documents of surfaces that tell errors in the native shape say of them."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, Field

from apps.api.codes import ErrorCode


class ErrorBody(BaseModel):
    """What went wrong."""

    code: ErrorCode = Field(description="For programs.", examples=["session_busy"])
    message: str = Field(description="For people.")
    details: dict[str, Any]


class ErrorAnswer(BaseModel):
    """An error, as the native API tells it."""

    error: ErrorBody
    request_id: str = Field(description="What to look for in the server's log.")


_WHY: dict[int, tuple[str, ErrorCode, str]] = {
    400: ("InvalidRequest", "bad_request", "The request is not valid."),
    401: ("Unauthenticated", "invalid_api_key", "No key, or one that is unknown, revoked or expired."),
    403: ("Forbidden", "insufficient_scope", "The key may not do this."),
    404: ("NotFound", "session_not_found", "What it names is not there, or is another tenant's."),
    408: ("BodyTooSlow", "body_too_slow", "The body has not come in time."),
    409: ("Conflict", "session_busy", "It cannot be done now."),
    410: ("Gone", "events_expired", "The events were removed for their age."),
    413: ("TooLarge", "body_too_large", "The body, or what is to be copied, is too large."),
    422: ("ValidationFailed", "validation_error", "A field is missing, unknown or out of range."),
    429: ("LimitReached", "rate_limited", "A limit of the key or of its tenant is reached."),
    500: ("ServerError", "internal_error", "The server failed."),
    503: ("Unavailable", "dependency_unavailable", "The server is stopping, full, or lacks what it depends on."),
}


def _response(code: str, why: str) -> dict[str, Any]:
    example = {"error": {"code": code, "message": why, "details": {}}, "request_id": "req-1"}
    content = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "example": example}
    return {"description": why, "content": {"application/json": content}}


def responses(*statuses: int) -> dict[str, Any]:
    """The answers that routes with these statuses share, for a document."""
    return {name: _response(code, why) for status, (name, code, why) in _WHY.items() if status in _of(statuses)}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents: these statuses, and those that every route may answer."""
    return {status: {"$ref": f"#/components/responses/{_WHY[status][0]}"} for status in _of(statuses)}


def _of(statuses: tuple[int, ...]) -> list[int]:
    return sorted({401, 403, 422, 429, 500, 503, *statuses})


CODES = {"ErrorCode": get_args(ErrorCode)}
"""Words that have a name of their own in a document."""
