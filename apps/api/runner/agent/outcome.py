"""From the SDK's result to the outcome of a run, and what the run has used. Pure, but for the meter's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from claude_agent_sdk import ResultMessage

from apps.api.core import codec
from apps.api.core.codec import encode
from apps.api.core.events.log import Event
from apps.api.core.sessions.outcome import Outcome, failure
from apps.api.core.tenant.usage import ModelUsage
from apps.api.errors import ApiError
from apps.api.runner.agent import hearsay, model_failures


class Meter:
    """Turns the SDK's cumulative figures into one run's share, by subtraction: the SDK counts per CLI process.

    What results of several turns told is kept together until a run takes it: a background turn that is shown inside
    a run is a part of what that run costs.
    """

    def __init__(self, settle: Callable[[float], None] = lambda _usd: None) -> None:
        """`settle` is told each result's own share of the cost, in USD."""
        self._settle = settle
        self._cost = 0.0
        self._models: dict[str, dict[str, Any]] = {}
        self._due: tuple[float, dict[str, dict[str, Any]]] | None = None

    def begin(self) -> None:
        """Another process counts, from zero."""
        self._cost, self._models = 0.0, {}

    def read(self, result: ResultMessage) -> None:
        """Count what was used since the previous result."""
        total = hearsay.figure(result.total_cost_usd, hearsay.MAX_COST_USD)
        totals = {
            codec.clean_text(str(name)): hearsay.figures(figures)
            for name, figures in (result.model_usage or {}).items()
        }
        if total < self._cost:  # `/clear` makes the CLI count from zero again
            self.begin()
        due_cost, due = self._due or (0.0, {})
        for name, figures in totals.items():
            before, so_far = self._models.get(name, {}), due.get(name, {})
            share = {k: max(v - before.get(k, 0), 0) if k in hearsay.CUMULATIVE else v for k, v in figures.items()}
            if any(share.get(k) for k in hearsay.CUMULATIVE):
                due[name] = {k: v + so_far.get(k, 0) if k in hearsay.CUMULATIVE else v for k, v in share.items()}
        self._due = due_cost + total - self._cost, due
        self._settle(total - self._cost)
        self._cost, self._models = total, totals

    def owe(self, cost: float | None, models: Mapping[str, dict[str, Any]]) -> None:
        """Count what an earlier process has used for the same run, too."""
        if cost is not None or models:
            self._due = cost or 0.0, dict(models)

    def take(self) -> tuple[float | None, dict[str, dict[str, Any]]]:
        """Cost in USD and usage by model since the last run; no cost when no result came since."""
        cost, models = self._due or (None, {})
        self._due = None
        return cost, models


def used(models: Mapping[str, Mapping[str, Any]]) -> list[ModelUsage]:
    """The SDK's figures as they are stored."""
    return [
        ModelUsage(
            model=name,
            input_tokens=int(figures.get("inputTokens") or 0),
            output_tokens=int(figures.get("outputTokens") or 0),
            cache_read_input_tokens=int(figures.get("cacheReadInputTokens") or 0),
            cache_creation_input_tokens=int(figures.get("cacheCreationInputTokens") or 0),
            web_search_requests=int(figures.get("webSearchRequests") or 0),
            cost_usd=float(figures.get("costUSD") or 0),
        )
        for name, figures in models.items()
    ]


_TOOL_GONE = "The tool whose call was waited for is not there any more: the call was not carried out."

_BY_US = frozenset({"interrupted", "timeout", "shutdown", "storage_failed"})
"""Why we end a run ourselves. What its agent says then is only that we ended it."""


def stopped(code: str, text: str = "") -> tuple[str, dict[str, Any]]:
    """Status and error of a run that we ended ourselves, or that ended without a result."""
    return "interrupted" if code == "interrupted" else "failed", failure(code, "" if code in _BY_US else text)


def outcome_of(
    message: ResultMessage,
    meter: Meter,
    stopping: str | None = None,
    *,
    structured: bool = False,
    told: model_failures.Signs | None = None,
    refused: ApiError | None = None,
    turns: int = 0,
) -> tuple[Outcome, list[Event]]:
    """How the SDK says that a turn ended, and the last events of the run but `done`, without run ids.

    `stopping` is our reason for having interrupted it, if we have: a turn that succeeded nevertheless has succeeded.
    `structured`: it had to give a structured output. The CLI asks the model for it once more, and then succeeds
    without. A prompt that the model never saw (`/clear`, or a hook has blocked it) has none.
    `told`: what the CLI has said of the model in this turn. `refused`: the failure for which we have answered it in the
    model's place, if we have. `turns`: how many an earlier process has made of it.

    `is_error` and `terminal_reason` decide, never `subtype` alone: a failed call to the model has
    `subtype="success"`.
    """
    meter.read(message)
    cost, models = meter.take()
    status, error = _verdict(message, told or model_failures.Signs(), refused)
    if structured and status == "succeeded" and message.num_turns and message.structured_output is None:
        status, error = "failed", failure("structured_output_missing")
    if stopping and status != "succeeded":
        status, error = stopped(stopping)
    fields = {
        "status": status,
        "result": message.result,
        "structured_output": message.structured_output,
        "is_error": message.is_error,
        "stop_reason": message.stop_reason,
        "terminal_reason": message.terminal_reason,
        "num_turns": hearsay.figure(message.num_turns) + turns if turns else message.num_turns,
        "duration_ms": message.duration_ms,
        "duration_api_ms": message.duration_api_ms,
        "total_cost_usd": cost,
        "usage": message.usage,
        "model_usage": models,
        "permission_denials": message.permission_denials or [],
        "user_message_uuids": message.user_message_uuids or [],
    }
    ended = Outcome(
        status=status,
        result=encode(fields).decode(),
        error=error,
        cost_usd=cost,
        usage=used(models),
        num_turns=int(hearsay.figure(message.num_turns)) + turns,
    )
    last = [Event("result", fields)]
    if error is not None and status == "failed":
        last.append(Event("error", error))
    return ended, last


def _verdict(
    message: ResultMessage, told: model_failures.Signs, refused: ApiError | None
) -> tuple[str, dict[str, Any] | None]:
    reason = message.terminal_reason or ""
    if reason.startswith("aborted"):
        return "interrupted", failure("interrupted")
    if reason == "tool_deferred_unavailable":
        return "failed", failure("execution_error", _TOOL_GONE)
    if message.subtype == "error_max_turns":
        return "failed", failure("max_turns_exceeded")
    if message.subtype == "error_max_budget_usd":
        return "failed", failure("max_budget_exceeded")
    if message.subtype == "error_max_structured_output_retries":
        return "failed", failure("structured_output_invalid", "; ".join(message.errors or []))
    if not message.is_error:
        return "succeeded", None
    code = model_failures.code_of(message, told.kind)
    if code and refused:
        details = {"details": refused.details} if refused.details else {}
        return "failed", {**failure(refused.code, refused.message), **details}
    if code:
        return "failed", model_failures.with_advice(failure(code, message.result or ""), told)
    return "failed", failure("execution_error", message.result or "; ".join(message.errors or []))
