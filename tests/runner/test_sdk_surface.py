"""Everything that the SDK offers is taken, or has a reason why not: a new version shows here what is new."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, get_args, get_type_hints

import pytest
from claude_agent_sdk import AgentDefinition, ClaudeAgentOptions, ResultMessage, types

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.parts import (
    Beta,
    Effort,
    HookEvent,
    PermissionMode,
    Subagent,
    SubagentMode,
    TaskBudget,
    Thinking,
)
from apps.api.core.config.sdk_options import NOT_TAKEN, NOT_TAKEN_OF_SUBAGENTS, why_not
from apps.api.dialects.native.schemas import PromptBody
from apps.api.runner.agent.outcome import Meter, outcome_of


def names(kind: Any) -> set[str]:
    """Fields of a dataclass or a TypedDict."""
    return (
        {field.name for field in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else set(get_type_hints(kind))
    )


def words(alias: Any) -> set[str]:
    """The texts of a Literal, or of a union of them."""
    return {word for part in get_args(alias) for word in ([part] if isinstance(part, str) else words(part))}


def test_every_option_of_the_sdk_is_taken_or_has_a_reason_why_not() -> None:
    taken = set(PromptBody.model_fields) | {"session_id"}
    offered = names(ClaudeAgentOptions)
    assert offered - taken == set(NOT_TAKEN)
    assert not taken & set(NOT_TAKEN)
    ours = {"prompt", "agent", "profile", "title", "tags", "metadata", "timeout_seconds", "on_busy", "on_disconnect"}
    ours |= {"expand_prompt", "system_prompt_append", "unattended", "repository", "max_session_usd", "client_tools"}
    ours |= {"resources", "ask_tools", "end_user"}
    assert taken - offered == ours, "an option of ours has another name than the SDK's"


def test_every_field_of_a_subagent_is_taken_or_has_a_reason_why_not() -> None:
    spelt = {"disallowed_tools", "max_turns", "mcp_servers", "permission_mode"}
    assert names(AgentDefinition) - set(Subagent.model_fields) == set(NOT_TAKEN_OF_SUBAGENTS)
    assert set(Subagent.model_fields) - names(AgentDefinition) == spelt


def test_every_value_of_the_sdks_options_is_taken() -> None:
    assert words(PermissionMode) == words(types.PermissionMode)
    assert words(SubagentMode) == words(types.PermissionMode) - {"bypassPermissions"}  # the CLI ignores it
    assert words(Effort) == words(types.EffortLevel)
    assert words(Beta) == words(types.SdkBeta)
    assert words(HookEvent) == words(types.HookEvent)
    assert set(TaskBudget.model_fields) == names(types.TaskBudget)
    kinds = get_args(types.ThinkingConfig)
    assert words(Thinking.model_fields["type"].annotation) == {
        word for kind in kinds for word in words(get_type_hints(kind)["type"])
    }
    assert set(Thinking.model_fields) == {name for kind in kinds for name in names(kind)}
    [output_format, _] = get_args(AgentConfig.model_fields["output_format"].annotation)
    assert set(output_format.model_fields) == {"type", "schema_"}


RESULT_KEPT_BACK = {
    "subtype": "told as status and error",
    "session_id": "the SDK's own, which is of no use to clients; `init` tells it",
    "errors": "told as the error's message",
    "api_error_status": "told as the error's code",
    "deferred_tool_use": "no hook of ours defers",
    "uuid": "no transcript entry has it",
    "origin": "told as the run's origin",
    "user_message_uuid": "is in user_message_uuids",
}


def result(**more: Any) -> ResultMessage:
    given = {"subtype": "success", "duration_ms": 1, "duration_api_ms": 1, "is_error": False, "num_turns": 1}
    return ResultMessage(**{**given, "session_id": "s", **more})


def test_every_field_of_the_sdks_result_is_told_or_has_a_reason_why_not() -> None:
    told = set(outcome_of(result(), Meter())[1][0].fields)
    assert names(ResultMessage) - told == set(RESULT_KEPT_BACK)
    assert told - names(ResultMessage) == {"status"}


def test_the_result_tells_which_messages_it_answers_and_what_each_model_can_take() -> None:
    figures = dict.fromkeys(names(types.ModelUsage), 1) | {"contextWindow": 200_000, "maxOutputTokens": 64_000}
    message = result(user_message_uuids=["one", "two"], model_usage={"claude-x": figures})
    fields = outcome_of(message, Meter())[1][0].fields
    assert fields["user_message_uuids"] == ["one", "two"]
    assert fields["model_usage"] == {"claude-x": figures}


MESSAGES = {
    "UserMessage": "message",
    "AssistantMessage": "message",
    "SystemMessage": "init and status; of its kinds those that mean something to a client",
    "ResultMessage": "result",
    "StreamEvent": "partial",
    "RateLimitEvent": "status",
    "ConversationResetMessage": "not told: the next `init` tells the new conversation's id",
}
SYSTEM = {
    "TaskStartedMessage": "task",
    "TaskProgressMessage": "task",
    "TaskNotificationMessage": "task",
    "TaskUpdatedMessage": "task",
    "MirrorErrorMessage": "ends the run with storage_failed",
    "HookEventMessage": "not asked for: include_hook_events",
}


def test_every_kind_of_message_is_told_or_has_a_reason_why_not() -> None:
    assert {kind.__name__ for kind in typing.get_args(types.Message)} == set(MESSAGES)
    assert {kind.__name__ for kind in types.SystemMessage.__subclasses__()} == set(SYSTEM)


@pytest.mark.parametrize(
    ("location", "named"),
    [
        (("body", "setting_sources"), True),
        (("body", "agents", "helper", "memory"), True),
        (("body", "memory"), False),
        (("body", "agents", "helper", "resume"), False),
        (("body", "promt"), False),
        ((), False),
    ],
)
def test_a_field_of_the_sdk_that_is_not_taken_is_told_why(location: tuple[str, ...], named: bool) -> None:
    assert (why_not(location) is not None) is named
