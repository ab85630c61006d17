"""Plays a scenario with the official `anthropic` package: `managed.py sync|async NAME PARAMETERS`, see `test_managed`.

What the vendor's own examples do, by a base URL. Both clients have the same methods: see `drive.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anthropic
import httpx

Parameters = dict[str, Any]
Play = Callable[[Any, Parameters], Awaitable[dict[str, Any]]]

MODES = {"sync": anthropic.Anthropic, "async": anthropic.AsyncAnthropic}
MODE = MODES[sys.argv[1]]
TOOLSET = "agent_toolset_20260401"


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(values: Any) -> AsyncIterator[Any]:
    values = await got(values)
    if hasattr(values, "__aiter__"):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


async def error_of(doing: Callable[[], Any]) -> dict[str, Any] | None:
    try:
        await got(doing())
    except anthropic.APIStatusError as error:
        headers = error.response.headers
        told = {
            "status": error.status_code,
            "type": error.body["error"]["type"],
            "text": error.body["error"]["message"],
        }
        return {**told, "request_id": error.request_id, "retry": headers.get("x-should-retry")}
    return None


def pass_gate(p: Parameters) -> None:
    httpx.get(p["gate"], timeout=120).raise_for_status()


async def begun(client: Any, **agent: Any) -> Any:
    """A session with an agent and an environment of its own."""
    wanted = {"name": "Coding Assistant", "model": "claude-sonnet-5-5", "tools": [{"type": TOOLSET}], **agent}
    made = await got(client.beta.agents.create(**wanted))
    config = {"type": "cloud", "networking": {"type": "unrestricted"}}
    environment = await got(client.beta.environments.create(name="quickstart-env", config=config))
    return await got(client.beta.sessions.create(agent=made.id, environment_id=environment.id, title="Quickstart"))


def says(text: str) -> list[dict[str, Any]]:
    return [{"type": "user.message", "content": [{"type": "text", "text": text}]}]


async def send(client: Any, session: Any, *events: Any) -> Any:
    return await got(client.beta.sessions.events.send(session.id, events=list(events)))


async def listed(client: Any, session: Any, **more: Any) -> list[Any]:
    return [event async for event in each(client.beta.sessions.events.list(session.id, **more))]


def checked(events: list[Any]) -> list[list[str]]:
    """Ids and types, once every event has all that its type requires."""
    for event in events:
        for name, field in type(event).model_fields.items():
            assert not field.is_required() or getattr(event, name) is not None, (event.type, name)
        assert type(event).model_fields["type"].annotation.__args__ == (event.type,), event
    return [[event.id, event.type] for event in events]


async def until_idle(stream: Any, react: Any = None) -> list[Any]:
    """The events of a turn, up to the idle that ends it."""
    seen = []
    async for event in each(stream):
        seen.append(event)
        if event.type == "session.status_idle":
            if event.stop_reason.type != "requires_action":
                break
            if react is not None:
                await react(event, seen)
    with suppress(AttributeError):
        await got(stream.close())
    return seen


async def first_steps(client: Any, p: Parameters) -> dict[str, Any]:
    session = await begun(client, system="You are helpful.", metadata={"team": "docs"})
    stream = await got(client.beta.sessions.events.stream(session.id))
    sent = await send(client, session, *says("write hello.txt: hi there then say written"))
    seen = await until_idle(stream)
    all_events = await listed(client, session)
    newest = await listed(client, session, order="desc", limit=3)
    after = await got(client.beta.sessions.retrieve(session.id))
    return {
        "sent": [[event.id, event.type] for event in sent.data],
        "seen": checked(seen),
        "listed": checked(all_events),
        "newest": checked(newest),
        "few": checked(await listed(client, session, types=["agent.message", "agent.tool_use"])),
        "texts": [block.text for e in seen if e.type == "agent.message" for block in e.content],
        "status": after.status,
        "usage": after.usage.output_tokens,
        "cost": after.usage.list_cost.amount,
        "agent": [after.agent.name, after.agent.system, after.agent.model.id, len(after.agent.tools)],
        "permissions": [e.evaluated_permission for e in seen if e.type == "agent.tool_use"],
        "spans": [e.model_usage.output_tokens for e in seen if e.type == "span.model_request_end"],
    }


async def tool_confirmed(client: Any, p: Parameters) -> dict[str, Any]:
    asks = {"name": "bash", "permission_policy": {"type": "always_ask"}}
    session = await begun(client, tools=[{"type": TOOLSET, "configs": [asks]}])
    answers: list[Any] = []

    async def react(event: Any, seen: list[Any]) -> None:
        if p.get("gate"):
            pass_gate(p)
        for id_ in event.stop_reason.event_ids:
            call = next(e for e in seen if e.id == id_)
            more = {"deny_message": p["message"]} if p["result"] == "deny" else {}
            confirmation = {"type": "user.tool_confirmation", "tool_use_id": id_, "result": p["result"], **more}
            answers.append([call.name, call.input["command"], call.evaluated_permission])
            answers.append((await send(client, session, confirmation)).data[0].id)

    stream = await got(client.beta.sessions.events.stream(session.id))
    await send(client, session, *says(p["prompt"]))
    seen = await until_idle(stream, react)
    texts = [block.text for e in seen if e.type == "agent.message" for block in e.content]
    return {"answers": answers, "seen": checked(seen), "listed": checked(await listed(client, session)), "texts": texts}


WEIGH = {
    "type": "custom",
    "name": "weigh",
    "description": "Weighs a thing.",
    "input_schema": {"type": "object", "properties": {"thing": {"type": "string"}}, "required": ["thing"]},
}


async def custom_tool(client: Any, p: Parameters) -> dict[str, Any]:
    session = await begun(client, tools=[{"type": TOOLSET}, WEIGH])
    called: list[Any] = []

    async def react(event: Any, seen: list[Any]) -> None:
        for id_ in event.stop_reason.event_ids:
            call = next(e for e in seen if e.id == id_)
            called.append([call.type, call.name, call.input])
            content = [{"type": "text", "text": "7 kg"}]
            result = {"type": "user.custom_tool_result", "custom_tool_use_id": id_, "content": content}
            called.append((await send(client, session, result)).data[0].id)
            called.append(await error_of(partial(client.beta.sessions.events.send, session.id, events=[result])))

    stream = await got(client.beta.sessions.events.stream(session.id))
    await send(client, session, *says('use tool mcp__client__weigh {"thing": "a stone"}'))
    seen = await until_idle(stream, react)
    texts = [block.text for e in seen if e.type == "agent.message" for block in e.content]
    results = [block.text for e in seen if e.type == "user.custom_tool_result" for block in e.content]
    return {"called": called, "seen": checked(seen), "texts": texts, "results": results}


async def interrupted(client: Any, p: Parameters) -> dict[str, Any]:
    session = await begun(client)
    stream = await got(client.beta.sessions.events.stream(session.id, event_deltas=["agent.message"]))
    await send(client, session, *says("hang after 3 words"))
    seen, sent = [], None
    async for event in each(stream):
        seen.append(event)
        if event.type == "event_delta" and sent is None:
            queued = await send(client, session, *says("say next"))
            waits = (await listed(client, session))[-1]
            interrupt = await send(client, session, {"type": "user.interrupt"})
            sent = [interrupt.data[0].id, queued.data[0].id, waits.id, waits.processed_at]
        if event.type == "session.status_idle" and any(e.type == "agent.message" for e in seen):
            break
    durable = [event for event in seen if not event.type.startswith("event_")]
    texts = [block.text for e in seen if e.type == "agent.message" for block in e.content]
    idle = await send(client, session, {"type": "user.interrupt"})
    return {
        "sent": sent,
        "seen": checked(durable),
        "listed": checked(await listed(client, session)),
        "texts": texts,
        "idle": len(idle.data),
    }


async def main() -> None:
    name, p = sys.argv[2], json.loads(sys.argv[3])
    client = MODE(base_url=p["base_url"], api_key=p["api_key"])
    print(json.dumps(await SCENARIOS[name](client, p)))
    await got(client.close())


SCENARIOS: dict[str, Play] = {play.__name__: play for play in (first_steps, tool_confirmed, custom_tool, interrupted)}

if __name__ == "__main__":
    asyncio.run(main())
