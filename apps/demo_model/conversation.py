"""What a Messages request says: the person's prompts, the tool calls since, and what the CLI slipped in.

The CLI wraps a person's words: `<system-reminder>` blocks stand beside the prompt, several prompts share one
user message when no reply stands between them (after an interrupt or an API error), and some text blocks are
the CLI's own. Telling these apart happens here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from apps.demo_model.wire import JsonObject

REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
WORKING_DIRECTORY = re.compile(r"working directory:\s*(.+)", re.IGNORECASE)
NOTICE = re.compile(r"<task-notification>(.*?)</task-notification>", re.DOTALL)
MEANWHILE = re.compile(
    r"The user sent a new message while you were working:\n(.*?)\n\n(?=This is how Claude Code)", re.DOTALL
)
NUDGE = "[structured-output-enforce]"
RESUMED = "Continue from where you left off."
NOT_A_PERSON = ("[Request interrupted by user", "[Image: ", NUDGE, "<local-command-", "<command-", RESUMED)


@dataclass(frozen=True)
class Call:
    """A tool call the model made, by name, and the id under which its result comes back."""

    id: str
    name: str


@dataclass
class Conversation:
    """One request, read.

    Attributes:
        prompts: what the person said, oldest first; the last one is being answered.
        attachments: media types of the images and documents that came with the last prompt.
        calls: tool calls since the last prompt, in order; `results` maps their ids to result text.
        fresh: whether a prompt or a tool result came after the model's last message.
        notices: background tasks that ended since the model's last message, as the CLI worded it.
        nudged: whether the CLI, since the model's last message, insisted on StructuredOutput.
        tools: name → input schema, as offered by the request.
        system: text of the system prompt.
        cwd: the CLI's working directory, "" when it is not stated.
        answer_schema: when the reply must be JSON text of this schema, as for the CLI's session titles.
        settings: model, thinking and effort that the request asks for.
        session: an opaque mark of the conversation, equal in every request of it.
    """

    prompts: list[str] = field(default_factory=list)
    attachments: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    notices: list[str] = field(default_factory=list)
    nudged: bool = False
    tools: dict[str, JsonObject] = field(default_factory=dict)
    system: str = ""
    cwd: str = ""
    answer_schema: JsonObject | None = None
    settings: JsonObject = field(default_factory=dict)
    session: str = ""


def read(request: JsonObject) -> Conversation:
    """Read the body of POST /v1/messages; tolerates block types it does not know."""
    found = Conversation(
        tools={str(tool.get("name")): _object(tool.get("input_schema")) for tool in _objects(request.get("tools"))},
        system="\n".join(str(block.get("text", "")) for block in _blocks(request.get("system"))),
        session=str(_object(request.get("metadata")).get("user_id", "")),
    )
    output = _object(request.get("output_config"))
    found.settings = {
        "model": request.get("model"),
        "thinking": request.get("thinking"),
        "effort": output.get("effort"),
    }
    form = _object(output.get("format"))
    found.answer_schema = _object(form.get("schema")) or None
    _read_aside(found, found.system)
    for message in _objects(request.get("messages")):
        blocks = _blocks(message.get("content"))
        if message.get("role") == "assistant":
            _read_assistant(found, blocks)
        elif message.get("role") == "user":
            _read_user(found, blocks)
        else:
            # Newer models get the CLI's reminders as messages of the role "system".
            for block in blocks:
                _read_aside(found, str(block.get("text", "")))
    return found


def _read_assistant(found: Conversation, blocks: list[JsonObject]) -> None:
    found.fresh = found.nudged = False
    found.notices = []
    for block in blocks:
        if block.get("type") == "tool_use":
            found.calls.append(Call(str(block.get("id")), str(block.get("name"))))


def _read_user(found: Conversation, blocks: list[JsonObject]) -> None:
    media: list[str] = []
    spoken = False
    for block in blocks:
        match block.get("type"):
            case "text":
                spoken = _read_text(found, str(block.get("text", ""))) or spoken
            case "image" | "document":
                media.append(str(_object(block.get("source")).get("media_type", block["type"])))
            case "tool_result":
                found.results[str(block.get("tool_use_id"))] = _result_text(block.get("content"))
                found.fresh = True
    # A tool that reads a PDF or a picture puts it beside its result: that is nobody's prompt.
    shown = bool(media) and not any(block.get("type") == "tool_result" for block in blocks)
    if shown and not spoken:
        _start_prompt(found, "")
    if shown or spoken:
        found.attachments = media


def _read_aside(found: Conversation, text: str) -> None:
    if not found.cwd and (stated := WORKING_DIRECTORY.search(text)):
        found.cwd = stated.group(1).strip()
    found.notices += NOTICE.findall(text)
    # What a person says in the middle of a turn changes nothing of what the turn is at.
    found.prompts[-1:-1] = MEANWHILE.findall(text)
    found.nudged = found.nudged or NUDGE in text


def _read_text(found: Conversation, text: str) -> bool:
    _read_aside(found, text)
    words = NOTICE.sub("", REMINDER.sub("", text)).strip()
    if words in ("", "Tool loaded.") or words.startswith(NOT_A_PERSON):
        return False
    _start_prompt(found, words)
    return True


def _start_prompt(found: Conversation, words: str) -> None:
    found.prompts.append(words)
    found.calls, found.results = [], {}
    found.fresh, found.nudged = True, False


def _result_text(content: Any) -> str:
    texts = [str(block.get("text", f"[{block.get('type')}]")) for block in _blocks(content)]
    return REMINDER.sub("", "\n".join(texts)).strip()


def _blocks(content: Any) -> list[JsonObject]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return _objects(content)


def _objects(value: Any) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}
