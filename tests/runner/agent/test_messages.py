"""From the SDK's messages to events."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ContentBlock,
    HookEventMessage,
    Message,
    RateLimitEvent,
    RateLimitInfo,
    ServerToolResultBlock,
    ServerToolUseBlock,
    StreamEvent,
    SystemMessage,
    TaskNotificationMessage,
    TaskProgressMessage,
    TaskStartedMessage,
    TaskUpdatedMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from apps.api.runner.agent import messages
from tests.runner.agent.test_outcome import MODEL, SDK_SESSION, SUCCESS

RUN = UUID("74fc4ab6-a3f1-4a7b-b17c-fac01c6b5154")


def stream(event: dict[str, Any], parent: str | None = None) -> StreamEvent:
    return StreamEvent(str(uuid4()), SDK_SESSION, event, parent)


def delta(given: dict[str, Any], index: int = 0, parent: str | None = None) -> StreamEvent:
    return stream({"type": "content_block_delta", "index": index, "delta": given}, parent)


def system(subtype: str, **data: Any) -> SystemMessage:
    return SystemMessage(subtype, {"type": "system", "subtype": subtype, "session_id": SDK_SESSION, **data})


def only(message: Message) -> tuple[str, dict[str, Any]]:
    """Type and fields of the one event that a message stands for."""
    [event] = messages.events(message, RUN)
    assert event.run_id == RUN
    return event.type, dict(event.fields)


# --- deltas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"type": "text_delta", "text": "Using"}, {"type": "text", "text": "Using"}),
        ({"type": "thinking_delta", "thinking": "Hm."}, {"type": "thinking", "thinking": "Hm."}),
        ({"type": "input_json_delta", "partial_json": '{"a'}, {"type": "input_json", "input_json": '{"a'}),
    ],
    ids=["text", "thinking", "input_json"],
)
def test_a_delta_becomes_a_partial_event(given: dict[str, Any], told: dict[str, Any]) -> None:
    fields = messages.partial(delta(given, index=2, parent="toolu_1"))
    assert fields == {"index": 2, "delta": told, "parent_tool_use_id": "toolu_1"}


@pytest.mark.parametrize(
    "event",
    [
        {"type": "message_start", "message": {"id": "msg_1", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
        {"type": "ping"},
        {"type": "error", "error": {"type": "overloaded_error"}},
        {},
    ],
    ids=lambda event: str(event.get("delta", event).get("type")),
)
def test_other_stream_events_are_no_partial_events(event: dict[str, Any]) -> None:
    assert messages.partial(stream(event)) is None
    assert messages.events(stream(event), RUN) == []


# --- messages ------------------------------------------------------------------------------------------------------

BLOCKS: list[tuple[ContentBlock, dict[str, Any]]] = [
    (TextBlock("hi"), {"type": "text", "text": "hi"}),
    (ThinkingBlock("Hm.", "c2ln"), {"type": "thinking", "thinking": "Hm."}),
    (
        ToolUseBlock("toolu_1", "Bash", {"command": "ls"}),
        {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
    ),
    (
        ToolResultBlock("toolu_1", "hi", False),
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "hi", "is_error": False},
    ),
    (
        ToolResultBlock("toolu_1", [{"type": "text", "text": "no"}], True),
        {
            "type": "tool_result",
            "tool_use_id": "toolu_1",
            "content": [{"type": "text", "text": "no"}],
            "is_error": True,
        },
    ),
    (
        ToolResultBlock("toolu_1"),
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": None, "is_error": False},
    ),
    (
        ServerToolUseBlock("srvtoolu_1", "web_search", {"query": "x"}),
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
    ),
    (
        ServerToolResultBlock("srvtoolu_1", {"type": "web_search_tool_result"}),
        {"type": "server_tool_result", "tool_use_id": "srvtoolu_1", "content": {"type": "web_search_tool_result"}},
    ),
]


@pytest.mark.parametrize(("given", "told"), BLOCKS, ids=[type(given).__name__ for given, _ in BLOCKS])
def test_a_content_block_becomes_json(given: ContentBlock, told: dict[str, Any]) -> None:
    assert messages.block(given) == told


def test_every_kind_of_block_is_told() -> None:
    for kind in ContentBlock.__args__:
        assert any(isinstance(given, kind) for given, _ in BLOCKS), kind


def test_a_message_of_the_assistant() -> None:
    said = AssistantMessage(
        content=[TextBlock("Using tool."), ToolUseBlock("toolu_1", "Bash", {})],
        model=MODEL,
        parent_tool_use_id="toolu_0",
        usage={"input_tokens": 100},
        message_id="msg_1",
        session_id=SDK_SESSION,
        uuid="d64740e3-a8bd-427e-861a-94dd1c1d43fa",
    )
    assert only(said) == (
        "message",
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Using tool."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}},
            ],
            "parent_tool_use_id": "toolu_0",
            "uuid": "d64740e3-a8bd-427e-861a-94dd1c1d43fa",
            "message_id": "msg_1",
            "model": MODEL,
            "usage": {"input_tokens": 100},
        },
    )


@pytest.mark.parametrize("content", ["echo sub", [TextBlock("echo sub")]], ids=["text", "blocks"])
def test_a_message_of_the_user(content: Any) -> None:
    type_, fields = only(UserMessage(content, uuid="7c070adf", parent_tool_use_id="toolu_0"))
    assert type_ == "message"
    assert fields == {
        "role": "user",
        "content": [{"type": "text", "text": "echo sub"}],
        "parent_tool_use_id": "toolu_0",
        "uuid": "7c070adf",
    }


@pytest.mark.parametrize("content", ["say hi", [{"type": "text", "text": "say hi"}]], ids=["text", "blocks"])
def test_the_prompt_itself_is_told_with_the_id_of_its_run(content: Any) -> None:
    assert messages.prompt_message(RUN, content) == {
        "role": "user",
        "content": [{"type": "text", "text": "say hi"}],
        "parent_tool_use_id": None,
        "uuid": str(RUN),
    }


def test_a_message_outside_of_any_run_has_no_run() -> None:
    [event] = messages.events(UserMessage("a background task ended"), None)
    assert event.run_id is None


# --- tasks, limits, the system -------------------------------------------------------------------------------------

TASK = {"task_id": "aa537897d2a43b165", "tool_use_id": "toolu_1", "description": "sub work"}
TASK_USAGE = {"total_tokens": 120, "tool_uses": 0, "duration_ms": 69}
IDENT = {"uuid": "fb69ca01", "session_id": SDK_SESSION}


def task(kind: Any, subtype: str, data: dict[str, Any], **fields: Any) -> Any:
    return kind(subtype=subtype, data={"type": "system", "subtype": subtype, **data}, task_id=TASK["task_id"], **fields)


TASKS: dict[str, tuple[Any, str]] = {
    "started": (task(TaskStartedMessage, "task_started", TASK, description="sub work", **IDENT), "started"),
    "progress": (
        task(
            TaskProgressMessage,
            "task_progress",
            {**TASK, "usage": TASK_USAGE},
            description="sub work",
            usage=TASK_USAGE,
            **IDENT,
        ),
        "progress",
    ),
    "updated": (
        task(TaskUpdatedMessage, "task_updated", {"patch": {"status": "completed"}}, patch={"status": "completed"}),
        "completed",
    ),
    "updated without a status": (
        task(TaskUpdatedMessage, "task_updated", {"patch": {"end_time": 1}}, patch={"end_time": 1}),
        "updated",
    ),
    "notification": (
        task(
            TaskNotificationMessage,
            "task_notification",
            {**TASK, "status": "completed", "summary": "sub", "usage": TASK_USAGE, "output_file": "/tmp/x"},
            status="completed",
            output_file="/tmp/x",
            summary="sub",
            **IDENT,
        ),
        "completed",
    ),
}


@pytest.mark.parametrize(("message", "status"), TASKS.values(), ids=TASKS)
def test_a_task_tells_its_status(message: Message, status: str) -> None:
    type_, fields = only(message)
    assert type_ == "task"
    assert fields["task_id"] == TASK["task_id"]
    assert fields["status"] == status
    assert set(fields) == {"task_id", "status", "description", "summary", "tool_use_id", "subagent_type", "usage"}


def test_a_task_that_ended_tells_its_summary_and_usage_but_no_path_of_the_host() -> None:
    _, fields = only(TASKS["notification"][0])
    assert fields["summary"] == "sub"
    assert fields["usage"] == TASK_USAGE
    assert "/tmp/x" not in str(fields)


def test_the_beginning_of_a_run_tells_what_the_agent_has() -> None:
    given = {
        "cwd": "/workspaces/example",
        "tools": ["Task", "Bash"],
        "mcp_servers": [],
        "model": MODEL,
        "permissionMode": "bypassPermissions",
        "slash_commands": ["verify"],
        "agents": ["Explore"],
        "skills": ["dataviz"],
        "apiKeySource": "ANTHROPIC_API_KEY",
        "memory_paths": {"auto": "/workspaces/example/memory/"},
        "messaging_socket_path": "/tmp/cc-socks/29233.sock",
    }
    assert messages.init(system("init", **given).data, "landlock") == {
        "model": MODEL,
        "tools": ["Task", "Bash"],
        "mcp_servers": [],
        "permission_mode": "bypassPermissions",
        "cwd": "/workspaces/example",
        "skills": ["dataviz"],
        "commands": ["verify"],
        "agents": ["Explore"],
        "sdk_session_id": SDK_SESSION,
        "isolation": "landlock",
    }


def test_a_retry_of_the_model_is_told() -> None:
    given = {"attempt": 1, "max_retries": 10, "retry_delay_ms": 552, "error_status": 529, "error": "overloaded"}
    assert only(system("api_retry", **given, uuid="f2245")) == ("status", {"status": "model_retry", **given})


def test_compaction_is_told_when_it_begins_and_when_it_is_done() -> None:
    assert only(system("status", status="compacting")) == ("status", {"status": "compacting"})
    detail = {"trigger": "auto", "pre_tokens": 155_000}
    done = only(system("compact_boundary", compact_metadata=detail))
    assert done == ("status", {"status": "compacted", "detail": detail})


def test_a_limit_of_the_account_is_told() -> None:
    limit = RateLimitInfo(status="rejected", resets_at=1795173760, rate_limit_type="five_hour")
    assert only(RateLimitEvent(limit, "15e1a6aa", SDK_SESSION)) == (
        "status",
        {"status": "rate_limit", "limit": "five_hour", "state": "rejected", "resets_at": "2026-11-20T11:22:40.000Z"},
    )


@pytest.mark.parametrize(
    "message",
    [
        system("status", status="requesting"),
        system("status", status=None),
        system("status"),
        system("thinking_tokens", estimated_tokens=6),
        system("something_of_a_later_release", status="compacting"),
        system(""),
        HookEventMessage("hook_started", {"type": "system", "hook_name": "PostToolUse:Bash"}),
    ],
    ids=["requesting", "no status", "nothing", "thinking_tokens", "unknown", "nameless", "hook"],
)
def test_other_system_messages_stand_for_no_event(message: Message) -> None:
    assert messages.events(message, RUN) == []


def test_a_result_is_no_event_by_itself() -> None:
    assert messages.events(SUCCESS, RUN) == []
