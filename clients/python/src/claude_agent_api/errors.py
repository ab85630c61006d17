"""What can go wrong, one tree:

ClaudeAgentError
├── APIError             the server answered with an error
│   ├── BadRequest       400
│   ├── Unauthorized     401: no key, or one that is not known
│   ├── Forbidden        403
│   ├── NotFound         404
│   ├── Conflict         409
│   ├── ValidationError  422: `field` and `errors` say what is wrong
│   ├── RateLimited      429: `retry_after` says for how long
│   └── ServerError      500 and above
├── ConnectionFailed     no answer at all, or one that broke
├── RunFailed            a run did not succeed
└── WebhookInvalid       a message that is not to be believed
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_LATER = {"preset_busy", "schedule_busy", "files_busy", "too_many_commands", "body_too_slow"}
"""Codes that a wait helps with, of statuses where it does not in general."""

_NEVER = {"encryption_not_configured", "preview_unavailable", "budget_reached", "still_running", "too_many_wrong_keys"}
"""Codes that it does not help with, of statuses where it does in general."""

_NOT_BEGUN = {"rate_limited", "too_many_streams", "too_many_bytes", "instance_full", "quota_exceeded"}
"""Codes of requests that have had no effect, whatever they asked for."""


class ClaudeAgentError(Exception):
    """Any error of this library.

    Attributes:
        message: for people.
        retryable: whether the same may simply be tried again.
        retry_after: seconds to wait before, if that was told.
    """

    def __init__(self, message: str, *, retryable: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message, self.retryable, self.retry_after = message, retryable, retry_after


class APIError(ClaudeAgentError):
    """The server answered with an error.

    Attributes:
        status: of HTTP; 0: the error came in a stream.
        code: the API's, such as `session_not_found`; None: the answer is not the API's, but for example a proxy's.
        details: facts of the error.
        request_id: for the operator's log.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.status, self.code, self.request_id = status, code, request_id
        self.details = dict(details or {})

    @property
    def errors(self) -> list[dict[str, str]]:
        """Of a `ValidationError`: each `field` and `reason`."""
        found = self.details.get("errors")
        return found if isinstance(found, list) else []

    @property
    def field(self) -> str | None:
        """The first field that is wrong."""
        return next((error.get("field") for error in self.errors), None)

    @property
    def not_begun(self) -> bool:
        """Whether the server says that the request has had no effect."""
        return self.code in _NOT_BEGUN

    def __str__(self) -> str:
        facts = [str(self.status) if self.status else "", self.code or "", f"request {self.request_id or 'unknown'}"]
        return f"{self.message} ({', '.join(fact for fact in facts if fact)})"


class BadRequest(APIError):
    """400."""


class Unauthorized(APIError):
    """401: no key was sent, or it is unknown, revoked or expired."""


class Forbidden(APIError):
    """403: the key, its tenant or the profile does not allow it."""


class NotFound(APIError):
    """404: no such object of this tenant."""


class Conflict(APIError):
    """409: not as things are now."""


class ValidationError(APIError):
    """422: see `field` and `errors`."""


class RateLimited(APIError):
    """429: too much, for now or at all; see `retry_after`."""


class ServerError(APIError):
    """500 and above."""


class ConnectionFailed(ClaudeAgentError):
    """There is no answer: nobody listens, the connection broke, or it took too long."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class RunFailed(ClaudeAgentError):
    """A run ended without success.

    Attributes:
        code: why, such as `owner_lost` or `max_turns_exceeded`; `interrupted`: somebody stopped it.
        retryable: whether the same prompt may simply be sent again. Tools of this run may have had effects.
        details: facts of the error.
        result: the data of its `result` event, if it came to that.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        session_id: str,
        run_id: str,
        retryable: bool = False,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.code, self.session_id, self.run_id = code, session_id, run_id
        self.details, self.result = dict(details or {}), result

    def __str__(self) -> str:
        return f"{self.message} ({self.code}, run {self.run_id})"


class WebhookInvalid(ClaudeAgentError):
    """The message was not signed with this secret, was changed on its way, or is too old."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: ValidationError,
    429: RateLimited,
}

_BY_CODE: dict[str, type[APIError]] = {
    "invalid_api_key": Unauthorized,
    "session_deleted": Conflict,
    "instance_full": ServerError,
    "dependency_unavailable": ServerError,
}


def error_of(status: int, headers: Mapping[str, str], body: bytes, url: str) -> APIError:
    """The error that an answer tells; a page of HTML, or nothing at all, is one as well."""
    told = error_in(body)
    code = str(told["code"]) if told else None
    wait = seconds_of(headers.get("retry-after"))
    usual = status in (502, 503, 504) or (status == 429 and (wait is not None or code != "quota_exceeded"))
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else APIError)
    return kind(
        str(told.get("message") or code) if told else f"{url} answered {status}, and not as this API does",
        status=status,
        code=code,
        details=told.get("details") if told and isinstance(told.get("details"), dict) else None,
        request_id=headers.get("x-request-id"),
        retryable=(usual or code in _LATER) and code not in _NEVER,
        retry_after=wait,
    )


def error_in(body: bytes) -> dict[str, Any] | None:
    """`error` of an answer of the API; None: it is none."""
    try:
        told = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return None
    return told if isinstance(told, dict) and "code" in told else None


def error_of_stream(data: Mapping[str, Any]) -> APIError:
    """Why the server ends a stream whose run goes on: an `error` event that has no id."""
    code = str(data.get("code"))
    kind = _BY_CODE.get(code, Forbidden)
    return kind(str(data.get("message")), status=0, code=code, details=data.get("details"))


def seconds_of(text: str | None) -> float | None:
    """A `Retry-After` in seconds; the API never sends a date, and a proxy's is not worth its parser."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if seconds >= 0 and math.isfinite(seconds) else None
