"""How a model can fail, as the CLI tells it, and what a client is told: one table from the kind to the code.

What a code means for the client (status, whether to send the prompt again) is in `errors.RUN_FAILURES`.
"""

from __future__ import annotations

import math
from typing import Any

from claude_agent_sdk import AssistantMessage, Message, ResultMessage, SystemMessage

from apps.api.runner.agent import hearsay

BY_REASON = {
    "prompt_too_long": "context_window_exceeded",
    "blocking_limit": "context_window_exceeded",
    "rapid_refill_breaker": "context_window_exceeded",
    "image_error": "model_request_invalid",
    "malformed_tool_use_exhausted": "model_error",
    "model_error": "model_error",
}
"""`terminal_reason` of a result, where it alone says what happened."""

BY_STATUS = {
    400: "model_request_invalid",
    401: "model_authentication_failed",
    403: "model_authentication_failed",
    404: "model_not_found",
    413: "model_request_invalid",
    429: "model_rate_limited",
    502: "model_unreachable",
    504: "model_unreachable",
    529: "model_overloaded",
}
"""HTTP status of the model API, or of a gateway before it; any other is `model_error`."""

BY_KIND = {
    "authentication_failed": "model_not_configured",  # without a status: the CLI found nothing to log in with
    "oauth_org_not_allowed": "model_authentication_failed",
    "account_on_hold": "model_authentication_failed",
    "verification_required": "model_authentication_failed",
    "cloud_credential_error": "model_not_configured",
    "billing_error": "model_billing_failed",
    "rate_limit": "model_rate_limited",
    "overloaded": "model_overloaded",
    "invalid_request": "model_request_invalid",
    "model_not_found": "model_not_found",
    "max_output_tokens": "model_output_limit",
}
"""`error` of the message that the CLI writes in the model's place (all values of CLI 2.1.332), where no status is told;
`server_error`, `unknown` and what a later CLI adds are `model_unreachable`."""

CONTEXT_WINDOW = "context window"
"""In the CLI's words for `model_context_window_exceeded`, whose kind is the same as that of `max_tokens`."""

POISONOUS = frozenset({"model_request_invalid", "context_window_exceeded", "model_refused"})
"""The model refuses what the conversation holds: it would refuse every later prompt as well."""

MAX_RETRY_AFTER = 3600
"""Seconds; more is no advice."""


class Signs:
    """What the CLI told of the model's failures since the turn began.

    Attributes:
        said: the id of the last message in the model's place.
    """

    def __init__(self) -> None:
        self.said: str | None = None
        self.kind: str | None = None
        self.retry_after: int | None = None

    def hear(self, message: Message) -> None:
        """Take any message of the agent's own; those of subagents are none of it."""
        if isinstance(message, AssistantMessage) and message.parent_tool_use_id is None:
            self.kind, self.said = message.error, message.uuid
        elif isinstance(message, SystemMessage) and message.subtype == "api_retry":
            # It waits as long as the model API asks for, and a little longer; without that it chooses by itself.
            seconds = math.ceil(hearsay.figure(message.data.get("retry_delay_ms")) / 1000)
            self.retry_after = max(1, min(seconds, MAX_RETRY_AFTER), self.retry_after or 0)


def code_of(result: ResultMessage, kind: str | None = None) -> str | None:
    """The code for a result, or None when it was not the model that failed."""
    reason = result.terminal_reason or ""
    if not result.is_error or not (result.api_error_status is not None or reason == "api_error" or reason in BY_REASON):
        return None
    if result.stop_reason == "refusal":
        return "model_refused"
    if reason in BY_REASON:
        return BY_REASON[reason]
    if kind == "billing_error":  # its status is that of an invalid request
        return BY_KIND[kind]
    if result.api_error_status is not None:
        return BY_STATUS.get(result.api_error_status, "model_error")
    if kind == "max_output_tokens" and CONTEXT_WINDOW in (result.result or ""):
        return "context_window_exceeded"
    return BY_KIND.get(kind or "", "model_unreachable")


def with_advice(error: dict[str, Any], told: Signs) -> dict[str, Any]:
    """An `error` with `retry_after_seconds`, where the model API is busy and it was told how long."""
    busy = error["code"] in ("model_rate_limited", "model_overloaded")
    return {**error, "retry_after_seconds": told.retry_after} if busy and told.retry_after else error
