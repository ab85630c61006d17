"""From the SDK's messages to events. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from claude_agent_sdk import (
    AssistantMessage,
    ContentBlock,
    Message,
    RateLimitEvent,
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

from apps.api.core.codec import timestamp
from apps.api.core.config.content import without_data
from apps.api.core.events.log import Event

_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("input_json", "partial_json"),
}


def partial(message: StreamEvent) -> dict[str, Any] | None:
    """The fields of a `partial` event, or None for stream events that carry no text."""
    event = message.event
    if event.get("type") != "content_block_delta":
        return None
    kind = _DELTAS.get(event["delta"].get("type", ""))
    if kind is None:
        return None
    name, source = kind
    return {
        "index": event["index"],
        "delta": {"type": name, name: event["delta"][source]},
        "parent_tool_use_id": message.parent_tool_use_id,
    }


def block(value: ContentBlock) -> dict[str, Any]:
    """One content block as JSON."""
    match value:
        case TextBlock():
            return {"type": "text", "text": value.text}
        case ThinkingBlock():
            return {"type": "thinking", "thinking": value.thinking}
        case ToolUseBlock():
            return {"type": "tool_use", "id": value.id, "name": value.name, "input": value.input}
        case ToolResultBlock():
            return {
                "type": "tool_result",
                "tool_use_id": value.tool_use_id,
                "content": without_data(value.content),
                "is_error": bool(value.is_error),
            }
        case ServerToolUseBlock():
            return {"type": "server_tool_use", "id": value.id, "name": value.name, "input": value.input}
        case ServerToolResultBlock():
            return {"type": "server_tool_result", "tool_use_id": value.tool_use_id, "content": value.content}


def prompt_message(run_id: UUID, content: Any) -> dict[str, Any]:
    """The fields of the `message` event that shows the user's own prompt. Its uuid is the run's id."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": "user", "content": without_data(blocks), "parent_tool_use_id": None, "uuid": str(run_id)}


EXCERPT = 200
"""Characters of a prompt that are shown with its checkpoint."""


def checkpoint(run_id: UUID, content: Any) -> dict[str, Any]:
    """The fields of the `checkpoint` event of a prompt: files can be rewound to what they were before it."""
    blocks = prompt_message(run_id, content)["content"]
    text = " ".join(b["text"] for b in blocks if b.get("type") == "text")
    return {"checkpoint_id": str(run_id), "user_message_uuid": str(run_id), "prompt": text[:EXCERPT]}


def events(message: Message, run_id: UUID | None) -> list[Event]:
    """The durable events that a message stands for; most system messages stand for none."""
    match message:
        case AssistantMessage():
            fields = {
                "role": "assistant",
                "content": [block(b) for b in message.content],
                "parent_tool_use_id": message.parent_tool_use_id,
                "uuid": message.uuid,
                "message_id": message.message_id,
                "model": message.model,
                "usage": message.usage,
            }
            return [Event("message", fields, run_id)]
        case UserMessage():
            content = message.content
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else [block(b) for b in content]
            fields = {
                "role": "user",
                "content": blocks,
                "parent_tool_use_id": message.parent_tool_use_id,
                "uuid": message.uuid,
            }
            return [Event("message", fields, run_id)]
        case TaskStartedMessage() | TaskProgressMessage() | TaskUpdatedMessage() | TaskNotificationMessage():
            return [Event("task", _task(message), run_id)]
        case RateLimitEvent():
            info = message.rate_limit_info
            fields = {"status": "rate_limit", "limit": info.rate_limit_type, "state": info.status}
            return [Event("status", {**fields, "resets_at": _moment(info.resets_at)}, run_id)]
        case SystemMessage():
            return _system(message, run_id)
    return []


def _moment(seconds: float | None) -> str | None:
    """ISO 8601, of seconds since 1970; None of what is no moment."""
    try:
        return None if seconds is None else timestamp(datetime.fromtimestamp(seconds, UTC))
    except (OverflowError, OSError, ValueError, TypeError):
        return None


def tool_calls(message: Message) -> list[str]:
    """Ids of the tool calls in a message."""
    return (
        [b.id for b in message.content if isinstance(b, ToolUseBlock)] if isinstance(message, AssistantMessage) else []
    )


def _task(
    message: TaskStartedMessage | TaskProgressMessage | TaskUpdatedMessage | TaskNotificationMessage,
) -> dict[str, Any]:
    data = message.data
    status = {"task_started": "started", "task_progress": "progress"}.get(message.subtype)
    patch = data.get("patch") or {}
    return {
        "task_id": message.task_id,
        "status": status or data.get("status") or patch.get("status") or "updated",
        "description": data.get("description"),
        "summary": data.get("summary"),
        "tool_use_id": data.get("tool_use_id"),
        "subagent_type": data.get("subagent_type"),
        "usage": data.get("usage"),
    }


def _system(message: SystemMessage, run_id: UUID | None) -> list[Event]:
    data = message.data
    match message.subtype:
        case "api_retry":
            names = ("attempt", "max_retries", "retry_delay_ms", "error_status", "error")
            return [Event("status", {"status": "model_retry", **{n: data.get(n) for n in names}}, run_id)]
        case "model_fallback":
            told = {n: data.get(n) for n in ("original_model", "fallback_model", "trigger")}
            return [Event("status", {"status": "model_fallback", **told}, run_id)]
        case "compact_boundary":
            return [Event("status", {"status": "compacted", "detail": data.get("compact_metadata")}, run_id)]
        case "status" if data.get("status") == "compacting":
            return [Event("status", {"status": "compacting"}, run_id)]
    return []


def init(data: Mapping[str, Any], isolation: str) -> dict[str, Any]:
    """The fields of the `init` event. `cwd` is told as the agent sees it. `isolation`: see `launcher.Wall.layer`."""
    return {
        "model": data.get("model"),
        "tools": data.get("tools", []),
        "mcp_servers": data.get("mcp_servers", []),
        "permission_mode": data.get("permissionMode"),
        "cwd": data.get("cwd"),
        "skills": data.get("skills", []),
        "commands": data.get("slash_commands", []),
        "agents": data.get("agents", []),
        "sdk_session_id": data.get("session_id"),
        "isolation": isolation,
    }
