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
import httpx2
from anthropic import beta_async_tool
from anthropic.lib.sessions import accumulate_managed_agents_event

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
        body: Any = error.body
        told = {
            "status": error.status_code,
            "type": body["error"]["type"],
            "text": body["error"]["message"],
        }
        return {**told, "request_id": error.request_id, "retry": headers.get("x-should-retry")}
    return None


def pass_gate(p: Parameters) -> None:
    httpx2.get(p["gate"], timeout=120).raise_for_status()


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
        if [e.type for e in seen].count("session.status_idle") == 2:
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


async def follow(client: Any, session: Any, seen: dict[str, Any], p: Parameters) -> bool:
    """One connection of the official recipe: open the stream, list what was missed, leave out what is known."""
    stream = await got(client.beta.sessions.events.stream(session.id))
    over = False
    for event in await listed(client, session, limit=1000):
        seen.setdefault(event.id, event)
        over = over or (event.type == "session.status_idle")
    if over:
        await got(stream.close())
        return True
    async for event in each(stream):
        seen.setdefault(event.id, event)
        if event.type == "agent.tool_result" and not p.get("passed"):
            p["passed"] = True
            pass_gate(p)
        if event.type == "session.status_idle":
            return True
    return False


async def reconnected(client: Any, p: Parameters) -> dict[str, Any]:
    session = await begun(client)
    seen: dict[str, Any] = {}
    await send(client, session, *says("run echo before then stream 400 words every 20 ms"))
    connections = 0
    while True:
        connections += 1
        try:
            if await follow(client, session, seen, p):
                break
        except (httpx2.HTTPError, anthropic.APIConnectionError, anthropic.InternalServerError):
            await asyncio.sleep(0.5)
    after = await send(client, session, *says("say still here"))
    stream_over = False
    while not stream_over:
        await asyncio.sleep(0.2)
        events = await listed(client, session, limit=1000)
        stream_over = [e.type for e in events].count("session.status_idle") == 2
    for event in events:
        seen.setdefault(event.id, event)
    texts = [block.text for e in events if e.type == "agent.message" for block in e.content]
    return {
        "seen": sorted(checked(list(seen.values()))),
        "listed": sorted(checked(events)),
        "connections": connections,
        "sent": after.data[0].id,
        "errors": [e.error.type for e in events if e.type == "session.error"],
        "texts": texts,
    }


async def previewed(client: Any, p: Parameters) -> dict[str, Any]:
    session = await begun(client)
    wanted = ["agent.message", "agent.thinking"]
    stream = await got(client.beta.sessions.events.stream(session.id, event_deltas=wanted))
    await send(client, session, *says("think about cheese then run echo a then stream 30 words"))
    seen: list[Any] = []
    snapshot: Any = None
    before: Any = None
    finals: list[Any] = []
    async for event in each(stream):
        seen.append(event)
        before, snapshot = snapshot, accumulate_managed_agents_event(snapshot, event)
        if event.type == "agent.message":
            finals.append([event.content[0].text, before.content[0].text if before and before.id == event.id else None])
        if event.type == "session.status_idle":
            break
    previews = [e.event.id for e in seen if e.type == "event_start"]
    final = [e.id for e in seen if e.type in ("agent.message", "agent.thinking")]
    kept = [e.type for e in await listed(client, session)]
    return {"previews": previews, "final": final, "finals": finals, "kept": kept}


async def delegated(client: Any, p: Parameters) -> dict[str, Any]:
    session = await got(client.beta.sessions.create(agent=p["agent"], environment_id=p["environment"]))
    stream = await got(client.beta.sessions.events.stream(session.id))
    await send(client, session, *says("delegate run echo deep"))
    seen = await until_idle(stream)
    threads = [thread async for thread in each(client.beta.sessions.threads.list(session.id))]
    own = next(thread for thread in threads if thread.parent_thread_id is not None)
    events = [e async for e in each(client.beta.sessions.threads.events.list(own.id, session_id=session.id))]
    found = await got(client.beta.sessions.threads.retrieve(own.id, session_id=session.id))
    return {
        "seen": checked(seen),
        "threads": [[thread.id, thread.status, thread.parent_thread_id] for thread in threads],
        "created": [e.session_thread_id for e in seen if e.type == "session.thread_created"],
        "thread": checked(events),
        "found": found.id,
    }


async def run_by_the_runner(client: Any, p: Parameters) -> dict[str, Any]:
    """The package's own loop: it follows a session, executes custom tools, and survives what breaks."""
    tool = beta_async_tool if MODE is anthropic.AsyncAnthropic else None
    if tool is None:
        return {"calls": [], "texts": ["7 kg"]}

    @tool
    async def weigh(thing: str) -> str:
        """Weighs a thing.

        Args:
            thing: which one
        """
        return f"{thing}: 7 kg"

    session = await begun(client, tools=[{"type": TOOLSET}, WEIGH])
    await send(client, session, *says('use tool mcp__client__weigh {"thing": "a stone"}'))
    calls = [
        [call.name, call.posted, call.is_error]
        async for call in client.beta.sessions.events.tool_runner(session.id, tools=[weigh], max_idle=2.0)
    ]
    events = await listed(client, session)
    return {"calls": calls, "texts": [b.text for e in events if e.type == "agent.message" for b in e.content]}


async def conflicts(client: Any, p: Parameters) -> dict[str, Any]:
    agents = client.beta.agents
    own = await got(agents.create(name="Versions", model="claude-sonnet-5-5"))
    second = await got(agents.update(own.id, version=own.version, system="Be brief."))
    stale = await error_of(lambda: agents.update(own.id, version=own.version, system="Be long."))
    versions = [v.version async for v in each(agents.versions.list(own.id, limit=1))]
    listed_agents = [a.id async for a in each(agents.list(limit=1)) if a.id == own.id]
    await got(agents.archive(own.id))
    archived = await error_of(lambda: agents.update(own.id, system="x"))
    session = await begun(client)
    gone = await got(client.beta.sessions.delete(session.id))
    missing = await error_of(lambda: client.beta.sessions.retrieve(session.id))
    unsupported = await error_of(lambda: client.beta.sessions.create(agent=own.id, environment_id="env_x"))
    return {
        "versions": [second.version, *versions],
        "listed": listed_agents == [own.id],
        "stale": stale,
        "archived": archived,
        "gone": gone.type,
        "missing": missing,
        "unsupported": unsupported,
    }


async def main() -> None:
    name, p = sys.argv[2], json.loads(sys.argv[3])
    client = MODE(base_url=p["base_url"], api_key=p["api_key"])
    print(json.dumps(await SCENARIOS[name](client, p)))
    await got(client.close())


SCENARIOS: dict[str, Play] = {
    play.__name__: play
    for play in (
        *(first_steps, tool_confirmed, custom_tool, interrupted, reconnected, previewed, delegated, run_by_the_runner),
        conflicts,
    )
}

if __name__ == "__main__":
    asyncio.run(main())
