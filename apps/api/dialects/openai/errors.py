"""Errors as the official clients read them, and what says whether they try again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from apps.api.errors import RUN_FAILURES, ApiError, BadRequest, Conflict, NotFound, RunFailed

RETRY = "x-should-retry"
"""By themselves the clients try again after 408, 409, 429 and every 5xx, and believe this header before that."""

_NO_ROOM = ("budget_reached", "quota_exceeded")
"""What a limit says that no waiting helps against."""

_STATUSES = {405: 404, 410: 404, 422: 400}
_CODES = {
    "authentication_required": "invalid_api_key",
    "agent_not_found": "model_not_found",
    "budget_reached": "insufficient_quota",
    "quota_exceeded": "insufficient_quota",
    "rate_limited": "rate_limit_exceeded",
    "session_busy": "conversation_locked",
    "validation_error": "invalid_value",
}
"""How some of ours are told; others keep their names."""


def refused(param: str | None, message: str, code: str = "unsupported_parameter") -> BadRequest:
    """400 for something that cannot be honoured, or is not valid; `param` is where it stands in the request."""
    return BadRequest(message, details={"param": param, "told": code})


def unsupported(param: str, why: str) -> BadRequest:
    """400 for a parameter that this server does not have."""
    return refused(param, f"{param} is not supported by this server: {why}")


def unknown(what: str, id_: str, param: str | None = None) -> NotFound:
    """404, the same for what is another tenant's."""
    return NotFound(f"No such {what}: {id_[:100]!r}.", details={"param": param, "told": "not_found"})


def locked(message: str) -> Conflict:
    """409: somebody else's request is under way in the same conversation."""
    return Conflict(message, code="session_busy")


def told(error: ApiError) -> dict[str, Any]:
    """The error object: `message`, `type`, `param`, `code`."""
    status = _STATUSES.get(error.status, error.status)
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "insufficient_quota" if error.code in _NO_ROOM else "rate_limit_error"
    found = error.details.get("errors") or [{}]
    param = error.details.get("param", found[0].get("field"))
    return {
        "message": error.message,
        "type": kind,
        "param": param,
        "code": error.details.get("told") or _CODES.get(error.code, error.code),
    }


def may_retry(error: ApiError) -> bool:
    """Whether the same request may succeed later. One whose run goes on finds that run again."""
    if isinstance(error, RunFailed):
        return RUN_FAILURES.get(error.code, (0, False))[1] and error.code != "interrupted"
    return error.status >= 500 or (error.status == 429 and error.code not in _NO_ROOM)


def error_shape(error: ApiError, _request_id: str) -> tuple[int, Any]:
    """`{"error": {…}}`, with `x-should-retry`; `x-request-id` every answer has."""
    error.headers[RETRY] = "true" if may_retry(error) else "false"
    return _STATUSES.get(error.status, error.status), {"error": told(error)}


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str = Field(examples=["temperature is not supported by this server: the agent's program sets it."])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(None, examples=["temperature"])
    code: str | None = Field(None, examples=["unsupported_parameter"])


class OpenAIError(BaseModel):
    """An error, as the official clients read it."""

    error: ErrorObject


_WHY: dict[int, tuple[str, str, str | None, str]] = {
    400: ("The request is not valid, or asks for what is not supported.", "invalid_request_error", "model", "required"),
    401: ("No key, or one that is unknown, revoked or expired.", "invalid_request_error", None, "invalid_api_key"),
    403: ("The key may not do this.", "invalid_request_error", None, "insufficient_scope"),
    404: ("No such thing, or it belongs to another tenant.", "invalid_request_error", None, "not_found"),
    409: ("The conversation is at work.", "invalid_request_error", None, "conversation_locked"),
    413: ("The body is too large.", "invalid_request_error", None, "body_too_large"),
    429: ("Too many requests, or a budget is used up.", "rate_limit_error", None, "rate_limit_exceeded"),
    500: ("The run failed, or the server.", "server_error", None, "internal_error"),
    502: ("The run failed.", "server_error", None, "agent_crashed"),
    503: ("A part that the server depends on is away.", "server_error", None, "dependency_unavailable"),
    504: ("The run took too long, or goes on.", "server_error", None, "still_running"),
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents: these statuses, and those that any may answer."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({400, 401, 403, 429, 500, 503, *statuses}):
        text, kind, param, code = _WHY[status]
        example = {"error": {"message": text, "type": kind, "param": param, "code": code}}
        found[status] = {
            "model": OpenAIError,
            "description": text,
            "content": {"application/json": {"example": example}},
        }
    return found
