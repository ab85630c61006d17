"""Conversations as the clients send them, chat messages and items of responses alike, and what names one. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from apps.api.core.codec import encode
from apps.api.dialects.openai.errors import refused

Kind = Literal["user", "assistant", "call", "output"]

OURS = {"call": "call_", "response": "resp_", "conversation": "conv_"}

_OF_OTHERS = ("reasoning", "web_search_call", "mcp_call", "mcp_list_tools", "mcp_approval_request", "compaction")
"""Items of earlier answers that say nothing to the agent which it does not know."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of a conversation. `id`: of a call, or of the call that an output is of. `parts`: `(kind, value)`, where
    the kind is text, image (a URL) or file (a data URL) and the last is where it stands in the request."""

    kind: Kind
    parts: tuple[tuple[str, str, str], ...] = ()
    id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """All its words."""
        return "".join(value if kind == "text" else f"[{kind}]" for kind, value, _ in self.parts)


@dataclass(slots=True)
class History:
    """What a request says: instructions, and the conversation, the newest last."""

    instructions: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def split(self) -> tuple[list[Entry], list[Entry]]:
        """What was said before, and what is new: all that comes after the last word of the agent."""
        last = max((n for n, entry in enumerate(self.entries) if entry.kind in ("assistant", "call")), default=-1)
        return self.entries[: last + 1], self.entries[last + 1 :]


def key(about: Sequence[Any], entries: Iterable[Entry]) -> str:
    """The name of a conversation that its client sends whole: what was said in it, by whom, and what it is about. Where
    words are cut into messages, and white space, make no difference."""
    told: list[list[str]] = []
    for entry in entries:
        if entry.kind in ("call", "output"):
            told.append([entry.kind, entry.id])
            continue
        said = "".join("".join(value.split()) for _, value, _ in entry.parts)
        if told and told[-1][0] == entry.kind == "assistant":
            told[-1][1] += said
        elif said or entry.kind == "user":
            told.append([entry.kind, said])
    # A call's output says nothing that the call's id does not, and may come in any order.
    steps = [step for step in told if step[0] != "output"]
    return f"hist:{hashlib.sha256(encode([list(about), steps])).hexdigest()}"


def rendered(entries: Sequence[Entry]) -> str | None:
    """What was said elsewhere, for an agent that has not heard it; None where nothing was."""
    if not entries:
        return None
    lines = ["This conversation was begun elsewhere. What was said so far:", ""]
    for entry in entries:
        who = {"user": "User", "assistant": "You", "call": "You called", "output": "It answered"}[entry.kind]
        lines.append(f"{who}: {entry.name + ' ' if entry.name else ''}{entry.text}")
    return "\n".join([*lines, "", "Go on from there. The user says now:"])


def uuid_of(kind: str, id_: str) -> UUID | None:
    """The id behind one of ours, as `resp_` and 32 hexadecimal digits."""
    prefix = OURS[kind]
    rest = id_.removeprefix(prefix)
    if not id_.startswith(prefix) or len(rest) != 32 or not rest.isalnum():
        return None
    try:
        found = UUID(rest)
    except ValueError:
        return None
    return found if found.hex == rest else None


def named(kind: str, id_: UUID) -> str:
    """The inverse of `uuid_of`."""
    return f"{OURS[kind]}{id_.hex}"


# --- chat ----------------------------------------------------------------------------------------------------------


def of_messages(messages: Sequence[dict[str, Any]]) -> History:
    """The messages of a chat. Raises BadRequest."""
    found = History()
    for number, message in enumerate(messages):
        _message(found, message, f"messages[{number}]")
    return found


_MESSAGE_FIELDS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "tool": {"role", "content", "tool_call_id"},
    "assistant": {"role", "content", "name", "refusal", "tool_calls", "annotations", "audio", "function_call"},
}


def _message(found: History, message: dict[str, Any], at: str) -> None:
    role = message.get("role")
    if role not in _MESSAGE_FIELDS:
        raise refused(f"{at}.role", f"{at}.role: must be one of {', '.join(_MESSAGE_FIELDS)}", "invalid_value")
    known(message, _MESSAGE_FIELDS[role], at)
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise refused(f"{at}.{name}", f"{at}.{name} is not supported by this server.")
    parts = _parts(message.get("content"), f"{at}.content", optional=role == "assistant")
    if role in ("system", "developer"):
        found.instructions.append(Entry("user", _texts_only(parts)).text)
    elif role == "tool":
        call_id = _string(message.get("tool_call_id"), f"{at}.tool_call_id")
        found.entries.append(Entry("output", _texts_only(parts), call_id))
    elif role == "user":
        found.entries.append(Entry("user", parts))
    else:
        said = parts or _parts(message.get("refusal"), f"{at}.refusal", optional=True)
        if said:
            found.entries.append(Entry("assistant", _texts_only(said)))
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise refused(f"{at}.tool_calls", f"{at}.tool_calls: must be a list", "invalid_value")
        for number, call in enumerate(calls):
            found.entries.append(_call(call, f"{at}.tool_calls[{number}]"))


def _call(call: Any, at: str) -> Entry:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise refused(at, f"{at}: must be a call of a function", "invalid_value")
    name, id_ = _string(function.get("name"), f"{at}.function.name"), _string(call.get("id"), f"{at}.id")
    arguments = function.get("arguments")
    return Entry("call", (("text", arguments if isinstance(arguments, str) else "", at),), id_, name)


# --- responses -----------------------------------------------------------------------------------------------------

_ITEM_FIELDS = {
    "message": {"type", "id", "role", "content", "status", "phase"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status", "namespace", "caller"},
    "function_call_output": {"type", "id", "call_id", "output", "status", "caller"},
}


def of_input(given: str | Sequence[dict[str, Any]], field_: str = "input") -> History:
    """The input of a response. Raises BadRequest."""
    found = History()
    if isinstance(given, str):
        found.entries.append(Entry("user", (("text", given, field_),)))
        return found
    for number, item in enumerate(given):
        _item(found, item, f"{field_}[{number}]")
    return found


def _item(found: History, item: dict[str, Any], at: str) -> None:
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if kind in _OF_OTHERS:
        return
    if kind not in _ITEM_FIELDS:
        raise refused(f"{at}.type", f"{at}: items of the type {str(kind)[:50]!r} are not supported by this server.")
    known(item, _ITEM_FIELDS[kind], at)
    if kind == "message":
        role, parts = item.get("role"), _parts(item.get("content"), f"{at}.content")
        if role in ("system", "developer"):
            found.instructions.append(Entry("user", _texts_only(parts)).text)
        elif role in ("user", "assistant"):
            found.entries.append(Entry(role, parts if role == "user" else _texts_only(parts)))
        else:
            raise refused(f"{at}.role", f"{at}.role: must be user, assistant, system or developer", "invalid_value")
        return
    call_id = _string(item.get("call_id"), f"{at}.call_id")
    if kind == "function_call":
        arguments = item.get("arguments")
        text = arguments if isinstance(arguments, str) else ""
        found.entries.append(Entry("call", (("text", text, at),), call_id, _string(item.get("name"), f"{at}.name")))
    else:
        parts = _parts(item.get("output"), f"{at}.output")
        found.entries.append(Entry("output", _texts_only(parts), call_id))


# --- parts ---------------------------------------------------------------------------------------------------------

_PART_FIELDS = {
    "text": {"type", "text", "prompt_cache_breakpoint"},
    "input_text": {"type", "text", "prompt_cache_breakpoint"},
    "output_text": {"type", "text", "annotations", "logprobs"},
    "refusal": {"type", "refusal"},
    "image_url": {"type", "image_url", "prompt_cache_breakpoint"},
    "input_image": {"type", "image_url", "detail", "file_id", "prompt_cache_breakpoint"},
    "file": {"type", "file", "prompt_cache_breakpoint"},
    "input_file": {"type", "file_data", "filename", "file_id", "file_url", "detail", "prompt_cache_breakpoint"},
}


def known(given: dict[str, Any], names: set[str], at: str) -> None:
    """Raises BadRequest `unknown_parameter` for a member that has no meaning here."""
    if strange := next((name for name in given if name not in names), None):
        param = f"{at}.{strange}"[:300]
        raise refused(param, f"Unknown parameter: {param!r}.", "unknown_parameter")


def _string(value: Any, at: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise refused(at, f"{at}: must be a text of 1 to 200 characters", "invalid_value")
    return value


def _parts(content: Any, at: str, *, optional: bool = False) -> tuple[tuple[str, str, str], ...]:
    if isinstance(content, str):
        return (("text", content, at),) if content or not optional else ()
    if content is None and optional:
        return ()
    if not isinstance(content, list):
        raise refused(at, f"{at}: must be a text or a list of parts", "invalid_value")
    return tuple(_part(part, f"{at}[{number}]") for number, part in enumerate(content))


def _part(part: Any, at: str) -> tuple[str, str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _PART_FIELDS:
        raise refused(f"{at}.type", f"{at}: parts of the type {str(kind)[:50]!r} are not supported by this server.")
    known(part, _PART_FIELDS[kind], at)
    inner = part
    if kind in ("image_url", "file"):
        inner = part[kind] if isinstance(part.get(kind), dict) else {}
        names = {"url", "detail"} if kind == "image_url" else {"file_data", "filename", "file_id"}
        known(inner, names, f"{at}.{kind}")
    for name in ("file_id", "file_url"):
        if inner.get(name) is not None:
            raise refused(f"{at}.{name}", f"{name} is not supported by this server: send the data itself.")
    holds = {"image_url": "url", "input_image": "image_url", "file": "file_data", "input_file": "file_data"}
    value = inner.get(holds.get(kind, "refusal" if kind == "refusal" else "text"))
    if not isinstance(value, str):
        raise refused(at, f"{at}: lacks its content", "invalid_value")
    sort = "image" if "image" in kind else "file" if "file" in kind else "text"
    return sort, value, at


def _texts_only(parts: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str, str], ...]:
    if other := next((at for kind, _, at in parts if kind != "text"), None):
        raise refused(other, f"{other}: only text is supported here.")
    return parts
