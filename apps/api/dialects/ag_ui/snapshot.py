"""A thread's messages, as its client would have made them of all that was told: for one that comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from apps.api.auth import Principal
from apps.api.core.codec import decode
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.sessions import names
from apps.api.dialects.ag_ui import schemas as wire
from apps.api.dialects.ag_ui.translate import Events, Run

MAX_EVENTS = 2_000
"""Stored messages that are looked through, the newest; and what `log.newest` reads of bytes."""

Message = dict[str, Any]


async def messages(
    core: Core,
    caller: Principal,
    session_id: UUID,
    surface: str,
    prefix: str,
    body: wire.RunAgentInput,
    but: UUID | None,
) -> list[Message]:
    """All messages of a session but those of run `but`, of which there is the user's alone.

    Args:
        surface, prefix: of the names of runs, which end with the id of the client's message.
    """
    frames = await log.newest(core.db, caller.tenant_id, session_id, ["message"], limit=MAX_EVENTS)
    named = await names.of_session(core.db, caller.tenant_id, session_id, surface)
    ids = {str(one.run_id): one.text.removeprefix(prefix) for one in named if one.text.startswith(prefix)}
    theirs = {message.id: message for message in body.messages}
    told, folds = list[Message](), dict[str, Run]()
    for frame in frames:
        data, run_id = decode(frame.data), frame.run_id or ""
        if data["role"] == "user" and data["uuid"] == run_id:
            told.append(_prompt(data["content"], ids.get(run_id, run_id), theirs))
        elif but is None or run_id != str(but):
            fold = folds.setdefault(run_id, Run(run_id))
            _apply(told, fold.take(frame), body.messages)
    waiting = ids.get(str(but))
    if waiting in theirs and all(message["id"] != waiting for message in told):  # it has not begun
        told.append(_prompt([], waiting, theirs))
    return told


def _prompt(content: list[Message], id_: str, theirs: dict[str, wire.AgUiMessage]) -> Message:
    own = theirs.get(id_)
    if own is not None and own.role == "user" and own.content is not None:
        return {"id": id_, "role": "user", "content": own.content}
    return {"id": id_, "role": "user", "content": "\n".join(b["text"] for b in content if b["type"] == "text")}


def _apply(told: list[Message], events: Events, theirs: Sequence[wire.AgUiMessage]) -> None:
    """What the client does with these events."""
    for event in events:
        if "subagentRunId" in event:
            continue
        kind, id_ = event["type"], event.get("messageId", "")
        if kind == "TEXT_MESSAGE_START":
            told.append({"id": id_, "role": "assistant", "content": ""})
        elif kind == "REASONING_MESSAGE_START":
            told.append({"id": id_, "role": "reasoning", "content": ""})
        elif kind in ("TEXT_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT"):
            _of(told, id_)["content"] += event["delta"]
        elif kind == "TOOL_CALL_START":
            function = {"name": event["toolCallName"], "arguments": ""}
            call = {"id": event["toolCallId"], "type": "function", "function": function}
            _of(told, event["parentMessageId"]).setdefault("toolCalls", []).append(call)
        elif kind == "TOOL_CALL_ARGS":
            calls = (call for message in reversed(told) for call in message.get("toolCalls", ()))
            next(call for call in calls if call["id"] == event["toolCallId"])["function"]["arguments"] += event["delta"]
        elif kind == "TOOL_CALL_RESULT":
            own = (m.id for m in theirs if m.role == "tool" and m.toolCallId == event["toolCallId"])
            result = {"role": "tool", "toolCallId": event["toolCallId"], "content": event["content"]}
            told.append({"id": next(own, id_), **result})


def _of(told: list[Message], id_: str) -> Message:
    for message in reversed(told):
        if message["id"] == id_:
            return message
    told.append({"id": id_, "role": "assistant"})
    return told[-1]
