"""Hooks of a session: from what happens inside the agent to a signed request, and from the answer back to the agent.

A webhook that fails never hangs the agent, and never passes for one that has agreed: see `Hook.on_failure`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from claude_agent_sdk import HookMatcher
from claude_agent_sdk.types import HookCallback, HookContext, HookEvent, HookInput, HookJSONOutput
from pydantic import Field, ValidationError

from apps.api import __version__, clock, instruments, tracing
from apps.api.core import codec
from apps.api.core.codec import encode, timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Part
from apps.api.core.config.parts import TOOL_EVENTS, Hook, matches
from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.network.outbound import Failed, Refused
from apps.api.core.tenant import signing, vault
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import ApiError, LeaseLost, Unavailable
from apps.api.runner.agent.process import HookMatchers, Owner
from apps.api.runner.session.steering import AFTER_A_TOOL, Steering
from apps.api.runner.session.turn import Turns

log = structlog.get_logger(__name__)


MARGIN = 5.0
"""Seconds that the CLI waits longer than we do, so that our own word on a silent webhook comes first."""

_WITHHELD = {"session_id", "transcript_path", "agent_transcript_path", "cwd", "hook_event_name", "prompt_id"}
"""Of what the SDK says: paths of the host, and ids that mean nothing to a client."""

_TAKES: dict[str, frozenset[str]] = {
    "PreToolUse": frozenset({"deny", "ask", "updated_input", "additional_context", "continue"}),
    "PermissionRequest": frozenset({"deny", "updated_input", "continue"}),
    "PostToolUse": frozenset({"deny", "additional_context", "continue"}),
    "PostToolUseFailure": frozenset({"additional_context"}),
    "UserPromptSubmit": frozenset({"deny", "additional_context", "continue"}),
    "Stop": frozenset({"deny", "additional_context", "continue"}),
    "SubagentStop": frozenset({"deny", "additional_context"}),
    "SubagentStart": frozenset({"additional_context"}),
    "Notification": frozenset(),
    "PreCompact": frozenset(),
}
"""What an answer to each event may say besides `allow` and `reason`: the CLI was seen to obey it. The rest would have
no effect, and an answer that says it is a failure."""


_BEFORE = frozenset({"PreToolUse", "PermissionRequest"})
"""Events that come before a call is decided on."""


class Unusable(Failed):
    """What a webhook has answered is nothing that a hook may say; the message quotes it."""

    quotes = True


class HookAnswer(Part):
    """What a webhook may answer. An empty body is an answer that has no opinion."""

    decision: Literal["allow", "deny", "ask"] | None = None
    reason: str | None = None
    updated_input: dict[str, Any] | None = None
    additional_context: str | None = None
    continue_: bool = Field(True, alias="continue")
    stop_reason: str | None = None

    @property
    def summary(self) -> str:
        """The decision as `hook` events tell it."""
        return "stop" if not self.continue_ else self.decision or "none"

    def check(self, event: str) -> None:
        """Raises Failed when a part of the answer would have no effect for this event."""
        given = {name for name in ("updated_input", "additional_context") if getattr(self, name) is not None}
        given |= {self.decision} if self.decision in ("deny", "ask") else set()
        given |= set() if self.continue_ else {"continue"}
        if senseless := sorted(given - _TAKES[event]):
            raise Failed(f"its answer has {senseless[0]}, which means nothing to {event}")


_DENIED = "A hook has denied it."
_NO_OPINION = HookAnswer.model_validate({})


def output(event: str, answer: HookAnswer) -> HookJSONOutput:
    """The answer in the SDK's words (claude_agent_sdk.types, `SyncHookJSONOutput`)."""
    made: dict[str, Any] = {}
    decision, reason = answer.decision, answer.reason
    if not answer.continue_:
        made["continue_"] = False
        made["stopReason"] = answer.stop_reason or "A hook has stopped the run."
        if event in ("PreToolUse", "PermissionRequest"):  # by itself the CLI would run this tool, and then stop
            decision, reason = "deny", reason or made["stopReason"]
    specific: dict[str, Any] = {"hookEventName": event}
    if answer.additional_context is not None:
        specific["additionalContext"] = answer.additional_context
    if event == "PreToolUse":
        specific |= _present(
            permissionDecision=decision,
            permissionDecisionReason=reason,
            updatedInput=answer.updated_input,
        )
    elif event == "PermissionRequest":
        if decision == "allow":
            specific["decision"] = {"behavior": "allow", **_present(updatedInput=answer.updated_input)}
        elif decision == "deny":
            stop = {} if answer.continue_ else {"interrupt": True}
            specific["decision"] = {"behavior": "deny", "message": reason or _DENIED, **stop}
    elif decision == "deny":
        made |= {"decision": "block", "reason": reason or _DENIED}
    if len(specific) > 1:
        made["hookSpecificOutput"] = specific
    return cast(HookJSONOutput, made)


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _concerns(hook: Hook, tool_name: str) -> bool:
    # The CLI lists the tool that starts subagents as Task, and calls it Agent when it asks a hook.
    return matches(hook.matcher, tool_name) or (tool_name == "Agent" and matches(hook.matcher, "Task"))


def _denies(event: str, hook: Hook) -> bool:
    return (hook.on_failure or ("deny" if event in ("PreToolUse", "PermissionRequest") else "allow")) == "deny"


class Hooks:
    """The hooks of one session's agents."""

    def __init__(self, core: Core, writer: Writer, turns: Turns, owner: Owner, steering: Steering) -> None:
        self._core, self._writer, self._turns, self._owner, self._steering = core, writer, turns, owner, steering

    def matchers(self, config: AgentConfig) -> HookMatchers:
        """What the SDK is to call for this configuration."""
        made: HookMatchers = {
            event: [self._matcher(event, hook) for hook in hooks] for event, hooks in (config.hooks or {}).items()
        }
        for event in AFTER_A_TOOL:
            made[event] = [*made.get(event, ()), HookMatcher(matcher=None, hooks=[self._steering.after_a_tool])]
        return made

    def _matcher(self, event: HookEvent, hook: Hook) -> HookMatcher:
        # Without a matcher: the CLI's regular expressions backtrack, and look for a match anywhere in the name.
        return HookMatcher(
            matcher=None,
            hooks=[self._callback(event, hook)],
            timeout=hook.timeout_seconds + MARGIN,
            on_failure="block" if _denies(event, hook) else None,
        )

    def _callback(self, event: HookEvent, hook: Hook) -> HookCallback:
        async def call(given: HookInput, tool_use_id: str | None, _context: HookContext) -> HookJSONOutput:
            fields = cast(Mapping[str, Any], given)
            if event in TOOL_EVENTS and not _concerns(hook, fields["tool_name"]):
                return {}
            if event in _BEFORE and self._turns.takes_up(tool_use_id):
                return {}  # it was asked before the run was parked, and a person has decided since
            began, failure = time.monotonic(), None
            try:
                answer = await self._ask(event, hook, fields)
                decision = answer.summary
            except (Failed, Refused) as error:
                failure, decision = str(error), "failed"
                answer = _NO_OPINION
                if _denies(event, hook):
                    answer = HookAnswer(decision="deny", reason=f"The hook that decides on this failed: {failure}.")
                host = urlsplit(hook.url).hostname
                log.warning(
                    "hook.failed", session_id=str(self._writer.session_id), event_name=event, host=host, error=error
                )
            told = {
                "hook_event": event,
                "decision": decision,
                "duration_ms": round((time.monotonic() - began) * 1000),
                "host": urlsplit(hook.url).hostname,
                "tool_name": fields.get("tool_name"),
                "tool_use_id": tool_use_id if event in TOOL_EVENTS else None,
                "reason": answer.reason,
                "error": failure,
            }
            if event in _BEFORE and (answer.decision == "deny" or not answer.continue_):
                self._count_denied(tool_use_id or "")
            await self._tell(told)
            return output(event, answer)

        return call

    def _count_denied(self, tool_use_id: str) -> None:
        if tool_use_id not in self._turns.denied:
            self._turns.denied.add(tool_use_id)
            instruments.DENIED_BY_HOOK.inc()

    async def _tell(self, fields: Mapping[str, Any]) -> None:
        try:
            await self._writer.append(Event("hook", fields, self._turns.run_id))
        except (LeaseLost, Unavailable) as error:
            self._owner.lost(error)
            raise

    async def _ask(self, event: HookEvent, hook: Hook, given: Mapping[str, Any]) -> HookAnswer:
        """Send the event and read the answer. Raises Failed, Refused."""
        now, run_id, message_id = clock.now(), self._turns.run_id, str(uuid4())
        data = {
            "hook_event": event,
            "session_id": str(self._writer.session_id),
            "run_id": run_id and str(run_id),
            **{name: value for name, value in given.items() if name not in _WITHHELD},
        }
        body = encode({"delivery_id": message_id, "type": "hook", "created_at": timestamp(now), "data": data})
        headers = {"Content-Type": "application/json", "User-Agent": f"claude-agent-api/{__version__}"}
        headers |= tracing.headers(self._turns.traceparent)
        try:
            secret = await self._secret(hook.secret)
            headers |= signing.headers([secret], message_id, int(now.timestamp()), body)
        except ValueError as error:
            raise Failed(f"its secret cannot sign: {error}") from error
        tenant_id = self._writer.tenant_id
        got = await self._core.outbound.post(hook.url, headers, body, hook.timeout_seconds, tenant_id, "hook")
        if not got.accepted:
            raise Failed(f"it answered {got.status}")
        try:
            answer = HookAnswer.model_validate(codec.parse(got.body)) if got.body.strip() else _NO_OPINION
        except (codec.NotJson, codec.Unsuitable) as error:
            raise Unusable(f"its answer is not one that a hook may give: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Unusable(f"its answer is not one that a hook may give: {where or 'body'}: {first['msg']}") from error
        answer.check(event)
        return answer

    async def _secret(self, reference: str) -> str:
        name = reference[2:-1]
        try:
            found = await vault.resolve(self._core.db, self._core.settings, self._writer.tenant_id, [name])
        except ApiError as error:
            raise Failed(error.message) from error
        except CONNECTION_ERRORS as error:
            raise Failed("its secret could not be read") from error
        return found[name]
