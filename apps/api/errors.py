"""Domain errors: one tree, each with the code, the HTTP status and the message that a client sees.

ApiError
├── ValidationError         422 validation_error
├── BadRequest              400 bad_request
├── NotFound                404 *_not_found
├── Unauthorized            401 authentication_required, invalid_api_key, client_token_expired
├── Forbidden               403 insufficient_scope, tool_not_permitted, option_not_permitted, profile_not_permitted
│                               key_is_bound, mcp_command_not_permitted, tenant_suspended, address_not_permitted,
│                               origin_not_permitted, model_not_permitted, client_token_not_permitted
├── Conflict                409 session_busy, session_deleted, no_live_run, idempotency_key_reused,
│                               too_many_webhooks, too_many_schedules, too_many_commands, webhook_disabled,
│                               checkpointing_off, workspace_not_copied, preset_busy, preset_changed,
│                               preset_archived, session_archived, environment_archived, environment_in_use,
│                               too_many_environments, schedule_busy, schedule_archived, own_tenant, tenant_deleted,
│                               not_a_file, not_a_directory, directory_not_empty, file_exists, files_busy
├── PreconditionFailed      412 etag_mismatch
├── Gone                    410 events_expired
├── TooLarge                413 body_too_large, workspace_too_large, conversation_too_large
├── RateLimited             429 rate_limited, too_many_streams, too_many_connections, too_many_bytes,
│                               too_many_wrong_keys, budget_reached, quota_exceeded
├── RunFailed               a run ended without success: the status follows its code
├── StillRunning            504 still_running
└── Unavailable             503 dependency_unavailable, encryption_not_configured, instance_full
    └── Busy                503 dependency_unavailable, at once
LeaseLost                   not for clients: this writer is no longer the owner
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from apps.api.codes import ErrorCode, RunCode


class ApiError(Exception):
    """An error that a client is meant to see.

    Attributes:
        status: HTTP status.
        code: stable, part of the wire contract.
        message: one English sentence for a developer; never holds a secret.
        details: JSON-safe facts, for example the field paths of a validation error.
        headers: extra response headers.
    """

    status = 500
    code: ErrorCode = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.details = dict(details or {})
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The native error body: `{"error": {"code", "message", "details"}, "request_id"}`."""
        error = {"code": self.code, "message": self.message, "details": self.details}
        return {"error": error, "request_id": request_id}


class ValidationError(ApiError):
    status = 422
    code: ErrorCode = "validation_error"

    @classmethod
    def of(cls, field: str, reason: str) -> ValidationError:
        """A validation error about one field, shaped like the ones that pydantic finds."""
        return cls(f"{field}: {reason}", details={"errors": [{"field": field, "reason": reason}]})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with what a caller wants: where, the code of the error for it, and why."""

    field: str
    code: ErrorCode
    reason: str

    def listed(self) -> dict[str, str]:
        """As an entry of an error's `details.errors`, where a plain validation error has no code of its own."""
        told = {"field": self.field, "code": self.code, "reason": self.reason}
        return {name: text for name, text in told.items() if text != ValidationError.code}


class BadRequest(ApiError):
    status = 400
    code: ErrorCode = "bad_request"


Noun = Literal[
    "agent",
    "environment",
    "checkpoint",
    "command",
    "credential",
    "delivery",
    "file",
    "key",
    "mcp_server",
    "message",
    "model_credential",
    "port",
    "profile",
    "request",
    "run",
    "schedule",
    "secret",
    "session",
    "skill",
    "tenant",
    "vault",
    "webhook",
]
"""What can be missing."""


class NotFound(ApiError):
    status = 404
    code: ErrorCode = "not_found"

    @classmethod
    def of(cls, noun: Noun) -> NotFound:
        """`session` → 404 session_not_found. The same answer for another tenant's object."""
        return cls(f"No such {noun}.", code=cast(ErrorCode, f"{noun}_not_found"))


class Unauthorized(ApiError):
    status = 401
    code: ErrorCode = "authentication_required"


class Forbidden(ApiError):
    status = 403
    code: ErrorCode = "insufficient_scope"


class Conflict(ApiError):
    status = 409


class PreconditionFailed(ApiError):
    status = 412
    code: ErrorCode = "etag_mismatch"


class Gone(ApiError):
    status = 410
    code: ErrorCode = "events_expired"


class TooLarge(ApiError):
    status = 413
    code: ErrorCode = "body_too_large"


class RateLimited(ApiError):
    status = 429
    code: ErrorCode = "rate_limited"


class StillRunning(ApiError):
    """A request that waits gave up; its run goes on. `details` holds the run's ids."""

    status = 504
    code: ErrorCode = "still_running"


class Unavailable(ApiError):
    status = 503
    code: ErrorCode = "dependency_unavailable"


class Busy(Unavailable):
    """There is no place for this request now. It was not begun, so it may be sent again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


def problems_in(error: ApiError, field: str) -> list[Problem]:
    """An error as problems; those without a field of their own stand at `field`."""
    if listed := error.details.get("errors"):
        return [Problem(e["field"], e.get("code", ValidationError.code), e["reason"]) for e in listed]
    return [Problem(error.details.get("field", field), error.code, error.message)]


@contextmanager
def noting(found: list[Problem], field: str) -> Iterator[None]:
    """Add to `found` what is raised about the caller's request, instead of raising it."""
    try:
        yield
    except (ValidationError, Forbidden, NotFound) as error:
        found += problems_in(error, field)


def refuse(found: Sequence[Problem]) -> None:
    """Raise what the first problem calls for, with all of them, unless there are none.

    Raises:
        ValidationError: its code is `validation_error`.
        NotFound: it ends with `_not_found`.
        Forbidden: any other. `tool_not_permitted` comes before all else that a policy says.
    """
    if not found:
        return
    first = found[0]
    listed = {"errors": [problem.listed() for problem in dict.fromkeys(found)]}
    message = "; ".join(f"{problem.field}: {problem.reason}" for problem in found[:3])
    if first.code == ValidationError.code:
        raise ValidationError(message, details=listed)
    if first.code.endswith("_not_found"):
        raise NotFound(first.reason, code=first.code, details=listed if len(found) > 1 else {})
    code = next((problem.code for problem in found if problem.code == "tool_not_permitted"), first.code)
    raise Forbidden(message, code=code, details=listed)


_NO_ANSWER = "The model gave no answer."

RUN_FAILURES: Mapping[str, tuple[int, bool, str]] = {
    # code: (HTTP status of a waiting request, may the same prompt simply be sent again, the usual message)
    "interrupted": (409, True, "The run was interrupted."),
    "timeout": (504, True, "The run took longer than its timeout."),
    "owner_lost": (
        503,
        True,
        "The instance that ran this prompt died or lost its lease. The conversation is kept; send it again.",
    ),
    "shutdown": (503, True, "The instance shut down before the run was done. The conversation is kept; send it again."),
    "storage_failed": (503, True, "The conversation could not be stored, so it cannot be relied on."),
    "agent_crashed": (502, True, "The agent process ended without a result."),
    "agent_start_failed": (502, True, "The agent could not be started."),
    "workspace_not_restored": (503, True, "The session's files could not be brought to the instance that runs it."),
    "agent_out_of_memory": (422, False, "The agent's processes took more memory than they may."),
    "agent_too_many_processes": (422, False, "The agent had more processes and threads than it may."),
    "workspace_full": (422, False, "The files of the tenant's or the key's sessions are more than its limit allows."),
    "agent_message_too_large": (502, False, "One message of the agent process, such as a tool's result, is too large."),
    "session_deleted": (409, False, "The session was deleted."),
    "tenant_suspended": (403, False, "The operator has suspended the tenant."),
    "profile_removed": (409, False, "The operator has removed the profile of the session. Create a new session."),
    "model_not_found": (400, False, _NO_ANSWER),
    "model_request_invalid": (400, False, _NO_ANSWER),
    "model_authentication_failed": (502, False, _NO_ANSWER),
    "model_credential_missing": (409, False, "The tenant has no model credential, and needs one of its own."),
    "model_not_configured": (502, False, _NO_ANSWER),
    "model_billing_failed": (502, False, _NO_ANSWER),
    "model_refused": (422, False, _NO_ANSWER),
    "model_output_limit": (422, False, _NO_ANSWER),
    "context_window_exceeded": (400, False, _NO_ANSWER),
    "model_overloaded": (503, True, _NO_ANSWER),
    "model_rate_limited": (503, True, _NO_ANSWER),
    "model_unreachable": (502, True, _NO_ANSWER),
    "model_error": (502, True, _NO_ANSWER),
    "max_turns_exceeded": (422, False, "The agent used up max_turns before it was done."),
    "budget_reached": (429, False, "A budget of the session, its key or its tenant is used up."),
    "model_not_permitted": (403, False, "The tenant or the key may not use this model."),
    "max_budget_exceeded": (422, False, "The agent used up max_budget_usd before it was done."),
    "checkpoint_not_found": (404, False, "There is no such checkpoint."),
    "rewind_failed": (409, False, "The agent could not restore the files."),
    "repository_failed": (422, False, "The repository could not be cloned."),
    "resource_failed": (422, False, "A resource could not be brought into the workspace."),
    "structured_output_missing": (
        502,
        True,
        "The model answered without the structured output that output_format asks for.",
    ),
    "structured_output_invalid": (502, True, "None of the model's structured outputs matched the schema."),
    "execution_error": (502, False, "The agent failed."),
}
"""Every way in which a run can fail. `core/sessions/outcome.py` makes the error of a run of it."""


class RunFailed(ApiError):
    """A run that a request waited for did not succeed. `details` holds the run's ids and its result, if any."""

    def __init__(
        self, code: str, message: str, details: Mapping[str, Any], retry_after_seconds: int | None = None
    ) -> None:
        headers = {"Retry-After": str(retry_after_seconds)} if retry_after_seconds else None
        super().__init__(message, code=cast(RunCode, code), details=details, headers=headers)
        self.status = RUN_FAILURES.get(code, (502,))[0]


class LeaseLost(Exception):
    """This instance no longer owns the session; its writer must stop and kill its CLI."""
