"""The plain words that choose what the demo model does.

Steps are chained with " then "; double quotes protect a " then " that belongs to the text.

| words                                      | what happens                                               |
|--------------------------------------------|------------------------------------------------------------|
| say TEXT                                   | replies TEXT                                               |
| stream N words [slowly, every M ms]        | `word1 word2 ...`, one delta each, M ms apart (slowly: 100) |
| reply with N bytes                         | a text of N bytes, at most 4 MiB                           |
| think [about X]                            | a thinking block, then text                                |
| run COMMAND, run in background COMMAND     | Bash                                                       |
| run at once COMMAND & COMMAND              | several Bash calls in one message                          |
| use N tools [at once]                      | N Bash calls, one after another or in one message          |
| write FILE: TEXT                           | Write                                                      |
| read FILE                                  | Read                                                       |
| edit FILE: OLD => NEW                      | Read, then Edit                                            |
| use tool NAME {json}                       | any tool; ToolSearch first if the CLI has deferred it      |
| use tools at once NAME {json} & NAME {json} | several such calls in one message                         |
| ask QUESTION? options A, B                 | AskUserQuestion                                            |
| delegate [in background] [to NAME:] PROMPT | a sub-agent, which acts on PROMPT by these same rules      |
| delegate at once PROMPT & PROMPT           | several sub-agents, side by side                           |
| answer by schema [{json}]                  | StructuredOutput with that JSON, or the least that fits    |
| answer without schema                      | text only, even when the CLI insists                       |
| fail with STATUS [once] [for MODEL]        | that HTTP status (400-599), every time or the first time;  |
|                                            | for MODEL: only when that model is asked                   |
| fail with STATUS [asking for N s] saying X | that status with this text, and N as its retry-after       |
| poison with STATUS saying X                | every request with this prompt in its history is refused   |
| stop with REASON                           | ends the message with that stop_reason, such as refusal    |
| tell usage {json}                          | says that the message used that (tokens by kind)           |
| STEPS every time                           | the same when the CLI asks again, as after a refusal       |
| answer nothing, answer a web page          | a message without content; a page of HTML instead of one   |
| garble the stream                          | an event in the reply that is no JSON                      |
| break the stream                           | drops the connection in the middle of the reply            |
| hang, hang after N words                   | silence until the client leaves, at most 600 s             |
| hang at the news                           | the same when a task in the background has ended           |
| remember X                                 | says it will                                               |
| recall, what did I say, ... remember ...?  | lists every earlier prompt of the conversation             |
| show system prompt                         | its last 2,000 characters                                  |
| show request                               | model, thinking and effort that the request asks for       |
| list tools                                 | the names of the tools in the request                      |
| help                                       | this table                                                 |
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from apps.demo_model.conversation import Conversation
from apps.demo_model.schema import instance_of
from apps.demo_model.wire import (
    MAX_REPLY_BYTES,
    Break,
    Garble,
    Hang,
    JsonObject,
    Page,
    Part,
    Stop,
    Text,
    Thinking,
    ToolUse,
    Usage,
    Words,
)

PLACEHOLDERS = frozenset({"DeferredToolPlaceholder"})
"""What the CLI puts beside the tools of a session, for those that it would load later."""

PREFIX = "[demo model, scripted] "
ECHO_CHARS = 500
SYSTEM_CHARS = 2_000
MAX_WORDS = 20_000
MAX_TOOLS = 50
HANGS_AT_NEWS = "hang at the news"


@dataclass(frozen=True)
class Fail:
    """The request that comes to this step is refused with `status`; `once`: only the first time."""

    status: int
    once: bool = False
    said: str | None = None
    retry_after: int | None = None


@dataclass(frozen=True)
class Calls:
    """Tool calls made in one message; the script goes on when their results are there."""

    uses: tuple[ToolUse, ...]


@dataclass(frozen=True)
class Quote:
    """Text that repeats the results of the latest `Calls`."""


Item = Part | Fail | Calls | Quote
Match = re.Match[str]


def split(prompt: str) -> list[str]:
    """The steps of a prompt. " then " parts them only where a command's verb follows, outside double quotes."""
    steps, start = [], 0
    for found in _SEPARATOR.finditer(prompt):
        if found["then"]:
            steps.append(prompt[start : found.start()].strip())
            start = found.end()
    return [*steps, prompt[start:].strip()]


def parse(step: str, talk: Conversation) -> list[Item]:
    """One step as items; words that are no command become a friendly echo."""
    for pattern, build in _COMMANDS:
        if found := pattern.fullmatch(step):
            return build(found, talk)
    return [_echo(step, talk)]


def poison(prompt: str) -> Fail | None:
    """What a prompt brings upon every request that holds it, if it does: as a picture that the model cannot read."""
    found = _POISON.fullmatch(prompt)
    return Fail(int(found["status"]), said=found["said"]) if found else None


def say(text: str) -> Text:
    """Text of the demo model's own: it always admits to being scripted."""
    return Text(PREFIX + text)


def answer_by_schema(given: JsonObject | None, talk: Conversation) -> Text | ToolUse:
    """The StructuredOutput call with `given`, or with the least that fits the schema of the request."""
    value = instance_of(talk.tools.get("StructuredOutput", {"type": "object"})) if given is None else given
    if "StructuredOutput" in talk.tools:
        return ToolUse("StructuredOutput", value)
    return say(f"no schema was asked for; I would answer {json.dumps(value)}")


def _echo(step: str, talk: Conversation) -> Text:
    words = f'You said: "{step[:ECHO_CHARS]}".' if step else "You sent no words."
    kinds = sorted(set(talk.attachments))
    seen = "".join(f" I see {talk.attachments.count(kind)} attachment(s) of type {kind}." for kind in kinds)
    return say(f'{words}{seen} I am a stand-in, not Claude: send "help" to see which words I act on.')


def _tool(name: str, **tool_input: object) -> list[Item]:
    return [Calls((ToolUse(name, tool_input),)), Quote()]


def _bash(command: str, **more: object) -> list[Item]:
    return _tool("Bash", command=command, description="Command from the prompt", **more)


def _run_at_once(found: Match, talk: Conversation) -> list[Item]:
    commands = found["commands"].split(" & ")[:MAX_TOOLS]
    return [Calls(tuple(ToolUse("Bash", {"command": command}) for command in commands)), Quote()]


def _several(found: Match, talk: Conversation) -> list[Item]:
    count = max(1, min(int(found["count"]), MAX_TOOLS))
    uses = tuple(ToolUse("Bash", {"command": f"echo {number}"}) for number in range(1, count + 1))
    groups = [uses] if found["once"] else [(use,) for use in uses]
    return [*(Calls(group) for group in groups), Quote()]


def _write(found: Match, talk: Conversation) -> list[Item]:
    return _tool("Write", file_path=_path(found, talk), content=found["text"])


def _edit(found: Match, talk: Conversation) -> list[Item]:
    # The CLI refuses to edit a file that the model has not read.
    reading = Calls((ToolUse("Read", {"file_path": _path(found, talk)}),))
    return [reading, *_tool("Edit", file_path=_path(found, talk), old_string=found["old"], new_string=found["new"])]


def _path(found: Match, talk: Conversation) -> str:
    return posixpath.join(talk.cwd, _unquoted(found["file"]))


def _unquoted(text: str) -> str:
    return text[1:-1] if re.fullmatch(r'"[^"]*"', text) else text


def _use(found: Match, talk: Conversation) -> list[Item]:
    tool_input = _json_object(found["json"] or "{}")
    return [_no_json(found)] if tool_input is None else [Calls((ToolUse(found["name"], tool_input),)), Quote()]


def _use_at_once(found: Match, talk: Conversation) -> list[Item]:
    uses = []
    for call in found["calls"].split(" & ")[:MAX_TOOLS]:
        name, _, given = call.partition(" ")
        tool_input = _json_object(given or "{}")
        if tool_input is None:
            return [say(f"this is not a JSON object: {given[:ECHO_CHARS]}")]
        uses.append(ToolUse(name, tool_input))
    return [Calls(tuple(uses)), Quote()]


def _answer(found: Match, talk: Conversation) -> list[Item]:
    given = _json_object(found["json"] or "null")
    if found["json"] and given is None:
        return [_no_json(found)]
    answer = answer_by_schema(given, talk)
    return [Calls((answer,)), Quote()] if isinstance(answer, ToolUse) else [answer]


def _json_object(text: str) -> JsonObject | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_json(found: Match) -> Text:
    return say(f"this is not a JSON object: {found['json'][:ECHO_CHARS]}")


def _ask(found: Match, talk: Conversation) -> list[Item]:
    options = [{"label": name.strip(), "description": name.strip()} for name in found["options"].split(",")]
    question = {"question": found["question"], "header": "Question", "options": options, "multiSelect": False}
    return _tool("AskUserQuestion", questions=[question])


def _delegate(found: Match, talk: Conversation) -> list[Item]:
    task = _task(_unquoted(found["prompt"]), talk, name=found["name"], background=bool(found["background"]))
    return [Calls((task,)), Quote()]


def _delegate_at_once(found: Match, talk: Conversation) -> list[Item]:
    return [Calls(tuple(_task(prompt, talk) for prompt in found["prompts"].split(" & ")[:MAX_TOOLS])), Quote()]


def _task(prompt: str, talk: Conversation, *, name: str | None = None, background: bool = False) -> ToolUse:
    given = {
        "description": "Scripted task",
        "prompt": prompt,
        "subagent_type": name or "general-purpose",
        # The CLI's default is the background, where the parent's reply cannot quote the result.
        "run_in_background": background,
    }
    return ToolUse("Task" if "Task" in talk.tools else "Agent", given)


def _think(found: Match, talk: Conversation) -> list[Item]:
    subject = found["subject"] or "it"
    return [Thinking(f"Let me think about {subject}."), say(f"I have thought about {subject}.")]


def _stream(found: Match, talk: Conversation) -> list[Item]:
    gap_ms = int(found["gap"] or 100) if found["pace"] else 0
    return [Words(min(int(found["count"]), MAX_WORDS), gap_ms / 1000)]


def _fill(found: Match, talk: Conversation) -> list[Item]:
    size = min(int(found["size"]), MAX_REPLY_BYTES)
    return [Text((PREFIX + "x" * size)[:size])]


def _hang(found: Match, talk: Conversation) -> list[Item]:
    return [Words(min(int(found["count"]), MAX_WORDS)), Hang()] if found["count"] else [Hang()]


def _fail(found: Match, talk: Conversation) -> list[Item]:
    if found["model"] not in (None, talk.settings.get("model")):
        return [say(f"{talk.settings.get('model')} answers")]
    retry_after = int(found["after"]) if found["after"] else None
    return [Fail(int(found["status"]), bool(found["once"]), found["said"], retry_after)]


def _tell_usage(found: Match, talk: Conversation) -> list[Item]:
    figures = _json_object(found["json"])
    return [_no_json(found)] if figures is None else [say("I used what you say"), Usage(figures)]


def _recall(found: Match, talk: Conversation) -> list[Item]:
    earlier = talk.prompts[:-1]
    listed = "".join(f"\n{number}. {prompt}" for number, prompt in enumerate(earlier, 1))
    return [say("you said:" + listed if earlier else "you have said nothing before.")]


_FAILING = r"(?: asking for (?P<after>\d{1,5}) ?s)?(?: saying (?P<said>.+))?"
_FILE = r'(?P<file>"[^"]+"|\S+?)'
_WORDS: list[tuple[str, Callable[[Match, Conversation], list[Item]]]] = [
    (r"say (.+)", lambda found, talk: [say(found[1])]),
    (r"stream (?P<count>\d{1,9}) words?(?P<pace> slowly| every (?P<gap>\d{1,6}) ?ms)?", _stream),
    (r"reply with (?P<size>\d{1,9}) bytes?", _fill),
    (r"think(?: about (?P<subject>.+))?", _think),
    (r"run in (?:the )?background:? (.+)", lambda found, talk: _bash(found[1], run_in_background=True)),
    (r"run at once (?P<commands>.+)", _run_at_once),
    (r"run(?: the shell command)?:? (.+)", lambda found, talk: _bash(found[1])),
    (r"use (?P<count>\d{1,3}) tools?(?P<once> at once)?", _several),
    (rf"write {_FILE}: ?(?P<text>.*)", _write),
    (rf"read {_FILE}", lambda found, talk: _tool("Read", file_path=_path(found, talk))),
    (rf"edit {_FILE}: ?(?P<old>.+?) => (?P<new>.*)", _edit),
    (r"use tools at once (?P<calls>\S+ .+)", _use_at_once),
    (r"use tool (?P<name>\S+)\s*(?P<json>\S.*)?", _use),
    (r"ask (?P<question>.+\?) options:? (?P<options>.+)", _ask),
    (r"delegate at once (?P<prompts>.+)", _delegate_at_once),
    (r"delegate(?P<background> in (?:the )?background)?(?: to (?P<name>[\w:-]+):)? (?P<prompt>.+)", _delegate),
    (r"answer by schema\s*(?P<json>\S.*)?", _answer),
    (r"answer without schema.*", lambda found, talk: [say("I answer without the schema.")]),
    (
        rf"fail with (?P<status>[45]\d\d)(?P<once> once)?(?: for (?P<model>\S+))?{_FAILING}",
        _fail,
    ),
    (r"stop with (?P<reason>[a-z_]+)", lambda found, talk: [say("I stop here"), Stop(found["reason"])]),
    (r"tell usage\s*(?P<json>\S.*)", _tell_usage),
    (r"answer nothing", lambda found, talk: [Stop("end_turn")]),
    (r"answer a web page", lambda found, talk: [Page()]),
    (r"garble the stream", lambda found, talk: [say("now it is garbled"), Garble(), say("lost")]),
    (r"break the stream", lambda found, talk: [Break()]),
    (HANGS_AT_NEWS, lambda found, talk: [say("I will hang when a task in the background has ended.")]),
    (r"hang(?: after (?P<count>\d{1,9}) words?)?", _hang),
    (r"recall|what did i say\??|.*\bremember\b.*\?", _recall),
    (r"remember (.+)", lambda found, talk: [say(f"I will remember: {found[1]}")]),
    (r"show system prompt", lambda found, talk: [say(f"the system prompt ends: {talk.system[-SYSTEM_CHARS:]}")]),
    (r"show request", lambda found, talk: [say(f"the request asks for {json.dumps(talk.settings)}")]),
    (r"list tools", lambda found, talk: [say("tools: " + ", ".join(sorted(talk.tools.keys() - PLACEHOLDERS)))]),
    (r"help", lambda found, talk: [say(__doc__ or "")]),
]
_COMMANDS = [(re.compile(words, re.IGNORECASE | re.DOTALL), build) for words, build in _WORDS]
_POISON = re.compile(r"poison with (?P<status>[45]\d\d)(?: saying (?P<said>.+))?", re.IGNORECASE | re.DOTALL)
_VERBS = (
    "say|stream|reply|think|run|use|write|read|edit|ask|delegate|answer|fail|stop with|garble|break|hang"
    "|recall|remember|show|list|tell usage"
)
_SEPARATOR = re.compile(rf'"(?:\\.|[^"\\])*"|(?P<then>,?\s{{1,9}}then\s{{1,9}}(?=(?:{_VERBS})\b))', re.IGNORECASE)
