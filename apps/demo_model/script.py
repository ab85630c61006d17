"""Decide the next model reply: the prompt's words give the steps, the conversation so far says how many are done."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace

from apps.demo_model.commands import (
    HANGS_AT_NEWS,
    Calls,
    Fail,
    Item,
    Quote,
    answer_by_schema,
    parse,
    poison,
    say,
    split,
)
from apps.demo_model.conversation import Call, Conversation, read
from apps.demo_model.schema import instance_of
from apps.demo_model.wire import Hang, JsonObject, Part, Text, ToolUse

QUOTE_CHARS = 4_000
LASTING = re.compile(r"(.+) every time", re.IGNORECASE | re.DOTALL)
COMPACTION = "Your task is to create a detailed summary of the conversation"


@dataclass(frozen=True)
class Reply:
    """The next model message, or `failure`: the HTTP status to send instead.

    `said` is its message, and `retry_after` its header of that name. `once_key` names a failure that is to happen once;
    after that the reply is `parts`.
    """

    parts: tuple[Part, ...]
    failure: int | None = None
    once_key: str | None = None
    said: str | None = None
    retry_after: int | None = None


def decide(request: JsonObject) -> Reply:
    """The reply to the body of one POST /v1/messages, from nothing but that body."""
    talk = read(request)
    prompt = talk.prompts[-1] if talk.prompts else ""
    if talk.answer_schema is not None:
        return Reply((Text(json.dumps(instance_of(talk.answer_schema))),))
    if COMPACTION in prompt:
        return Reply((_summary(talk),))
    if poisoned := next(filter(None, map(poison, talk.prompts)), None):
        return Reply((), poisoned.status, said=poisoned.said)
    lasting = LASTING.fullmatch(prompt)
    steps = split(lasting[1] if lasting else prompt)
    if talk.nudged:
        refuses = steps[-1].lower().startswith("answer without schema")
        return Reply((say("I answer without the schema.") if refuses else answer_by_schema(None, talk),))
    news = [say(f"a background task ended: {_plain(notice)}") for notice in talk.notices]
    if news and not talk.fresh and HANGS_AT_NEWS in prompt.lower():
        return Reply((Hang(),))
    if not talk.fresh and lasting is None:
        return Reply(tuple(news) or (say("the script has no further step."),))
    reply = _play([item for step in steps for item in parse(step, talk)], talk)
    return replace(reply, parts=(*news, *reply.parts))


def _play(program: list[Item], talk: Conversation) -> Reply:
    """What the program says from where the conversation stands up to its next tool calls."""
    calls = list(talk.calls)
    answers: list[str] = []
    parts: list[Part] = []
    failure: Fail | None = None
    for item in program:
        match item:
            case Calls(uses):
                prepared = _take_preparation(calls, uses[0])
                if len(calls) < len(uses):
                    parts += uses if prepared else _prepare(uses, talk)
                    break
                answers = [talk.results.get(call.id, "(no result)") for call in calls[: len(uses)]]
                del calls[: len(uses)]
                parts, failure = [], None
            case Quote():
                parts.append(say("the tool answered: " + "\n".join(answers)[:QUOTE_CHARS]))
            case Fail():
                failure = failure or item
                parts.append(say("recovered"))
            case _:
                parts.append(item)
    if failure is None:
        return Reply(tuple(parts) or (say("done."),))
    once_key = _mark(talk) if failure.once else None
    return Reply(tuple(parts), failure.status, once_key, failure.said, failure.retry_after)


def _take_preparation(calls: list[Call], wanted: ToolUse) -> bool:
    """Drop the ToolSearch calls that only prepared `wanted`: they are no step of the script."""
    before = len(calls)
    while calls and calls[0].name == "ToolSearch" != wanted.name:
        del calls[0]
    return len(calls) < before


def _prepare(uses: tuple[ToolUse, ...], talk: Conversation) -> tuple[ToolUse, ...]:
    """A ToolSearch first, where needed: the CLI refuses a deferred tool until its schema was asked for."""
    name = uses[0].name
    if name in talk.tools or "ToolSearch" not in talk.tools:
        return uses
    return (ToolUse("ToolSearch", {"query": f"select:{name}", "max_results": 1}),)


def _mark(talk: Conversation) -> str:
    """Equal for a retry of the same request, different for every other place in any conversation."""
    place = json.dumps([talk.session, talk.prompts, [call.id for call in talk.calls]])
    return hashlib.sha256(place.encode()).hexdigest()


def _summary(talk: Conversation) -> Text:
    earlier = "\n".join(talk.prompts[:-1])
    return Text(f"<summary>\n{say('the user said so far:').text}\n{earlier}\n</summary>")


def _plain(notice: str) -> str:
    found = re.findall(r"<(?:summary|result)>(.*?)</", notice, re.DOTALL)
    return (": ".join(found) or notice.strip())[:QUOTE_CHARS]
