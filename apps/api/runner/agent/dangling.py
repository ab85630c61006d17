"""A tool call at the end of a conversation that has no result: how the next process carries it out.

The bundled CLI goes on with a call that a hook had put off (`permissionDecision: "defer"`): when it starts with a
`hook_deferred_tool` in its conversation that no result follows, it hands that very call to its hooks and to
`can_use_tool`, as if the model had just made it, and then asks the model on. What it writes when a hook puts a call
off is written here for a call whose process has ended. Seen with 2.1.332: see docs/adr/0019-parked-sessions.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4, uuid5

from claude_agent_sdk import ToolResultBlock, UserMessage

from apps.api.core.codec import encode
from apps.api.core.sessions.transcripts import Transcripts

_ID = re.compile(r"[\w-]{1,200}", re.ASCII)

NOT_DONE = (
    "This call was not carried out: the session was parked while a call before it waited for a person."
    " Make it again if it is still needed."
)

_KEPT = ("isSidechain", "userType", "entrypoint", "cwd", "sessionId", "version", "gitBranch", "timestamp")
"""What an entry has in common with those around it."""


@dataclass(frozen=True, slots=True)
class Dangling:
    """A call without a result, at the end of a conversation.

    Attributes:
        entry: the entry that holds it.
        cwd: the directory that the conversation has got to.
        others: the calls after it in the same message that have no result either, each with its entry.
        others_before: whether a call before it has none, which therefore may be at work.
    """

    entry: Mapping[str, Any]
    call: Mapping[str, Any]
    cwd: str | None
    others: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    others_before: bool

    def deferral(self) -> str:
        """The entry that makes a CLI carry the call out when it starts."""
        attachment = {
            "type": "hook_deferred_tool",
            "toolUseID": self.call["id"],
            "toolName": self.call["name"],
            "toolInput": self.call["input"],
            "hookName": f"PreToolUse:{self.call['name']}",
            "hookEvent": "PreToolUse",
            "permissionMode": "default",
        }
        entry = {**self._common(self.entry), "type": "attachment", "uuid": str(uuid4()), "attachment": attachment}
        return encode(entry).decode()

    def refusals(self) -> list[dict[str, Any]]:
        """Results for the `others`, as entries: they have not begun, and no process will begin them."""
        return [
            {
                **self._common(entry),
                "type": "user",
                "uuid": str(uuid5(UUID(entry["uuid"]), call["id"])),  # the same again, when it is stored again
                "message": {"role": "user", "content": [_refusal(call)]},
                "toolUseResult": f"Error: {NOT_DONE}",
                "sourceToolAssistantUUID": entry["uuid"],
            }
            for entry, call in self.others
        ]

    def messages(self) -> list[UserMessage]:
        """The same results as the SDK would tell them."""
        return [
            UserMessage(
                content=[ToolResultBlock(tool_use_id=call["id"], content=NOT_DONE, is_error=True)], uuid=entry["uuid"]
            )
            for entry, (_, call) in zip(self.refusals(), self.others, strict=True)
        ]

    def _common(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"parentUuid": entry["uuid"], **{name: entry[name] for name in _KEPT if name in entry}}


def _refusal(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call["id"], "content": NOT_DONE, "is_error": True}


async def find(store: Transcripts, tool_use_id: str) -> Dangling | None:
    """The call of this id, if the conversation ends with it, and it has no result."""
    return find_in(await store.tail(store.conversation), tool_use_id)


def find_in(entries: Sequence[Mapping[str, Any]], tool_use_id: str) -> Dangling | None:
    """The same in the last entries of a conversation, oldest first, which an agent's process has written."""
    if not _ID.fullmatch(tool_use_id):
        return None
    calls = [(entry, block) for entry in entries for block in _blocks(entry, "assistant", "tool_use")]
    done = {block.get("tool_use_id") for entry in entries for block in _blocks(entry, "user", "tool_result")}
    said = [entry for entry in entries if entry.get("type") == "assistant"]
    place = next((n for n, (_, call) in enumerate(calls) if call.get("id") == tool_use_id), None)
    if place is None or tool_use_id in done:
        return None
    entry, call = calls[place]
    if _message_of(said[-1]) != _message_of(entry):
        return None
    left = [(e, c) for e, c in calls if _message_of(e) == _message_of(entry) and c.get("id") not in done]
    where = next(n for n, (_, c) in enumerate(left) if c is call)
    if not all(_is_sound(e, c) for e, c in left):
        return None
    return Dangling(entry, call, entries[-1].get("cwd"), left[where + 1 :], where > 0)


def _blocks(entry: Mapping[str, Any], type_: str, block_type: str) -> list[Mapping[str, Any]]:
    message = entry.get("message")
    content = message.get("content") if entry.get("type") == type_ and isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") == block_type]


def _message_of(entry: Mapping[str, Any]) -> Any:
    message = entry.get("message")
    return message.get("id") if isinstance(message, dict) else None


def _is_sound(entry: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    try:
        UUID(str(entry.get("uuid")))
    except ValueError:
        return False
    named = isinstance(call.get("name"), str) and isinstance(call.get("input"), dict)
    return named and isinstance(call.get("id"), str) and bool(_ID.fullmatch(call["id"]))


_ASK = json.dumps({"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "ask"}})


def asking_hook(tool_use_id: str) -> dict[str, Any]:
    """A hook, as settings of the CLI have it, by which one call is put to `can_use_tool`, whatever the rules say.

    The CLI may get to the call before it has heard of the SDK's hooks. Where this one fails the call is blocked.
    """
    found = f"case $? in 0) echo '{_ASK}';; 1) ;; *) exit 2;; esac"
    script = f"PATH=/usr/bin:/bin; grep -qF '{tool_use_id}'; {found}"
    hook = {"type": "command", "command": "/bin/sh", "args": ["-c", script], "onFailure": "block", "timeout": 30}
    return {"PreToolUse": [{"hooks": [hook]}]}
