"""The official client for Managed Agents, as tests of its resources use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic

from tests.fleet import API_KEY, Instance

PREFIX = "/compat/managed-agents"
TOOLSET: Any = {"type": "agent_toolset_20260401"}


def at(instance: Instance, key: str = API_KEY) -> anthropic.AsyncAnthropic:
    """A client of this surface, which knows nothing but a base URL and a key."""
    return anthropic.AsyncAnthropic(base_url=instance.url + PREFIX, api_key=key, max_retries=0)


async def error_of(doing: Callable[[], Any]) -> dict[str, Any]:
    """What it is refused with."""
    try:
        value = await doing()
    except anthropic.APIStatusError as error:
        body: Any = error.body
        told = body["error"]
        return {"status": error.status_code, "type": told["type"], "text": told["message"]}
    raise AssertionError(f"was not refused: {value}")


async def agent_and_environment(client: anthropic.AsyncAnthropic, **more: Any) -> tuple[str, str]:
    """Ids of an agent and an environment of its own."""
    wanted: dict[str, Any] = {"name": "Tester", "model": "claude-sonnet-5-5", "tools": [TOOLSET], **more}
    agent = await client.beta.agents.create(**wanted)
    environment = await client.beta.environments.create(name="testing", config={"type": "cloud"})
    return agent.id, environment.id


async def turn(client: anthropic.AsyncAnthropic, session_id: str, text: str) -> list[Any]:
    """The events of a turn that a message begins, up to the idle that ends it."""
    seen = []
    async with await client.beta.sessions.events.stream(session_id) as stream:
        await client.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
        )
        async for event in stream:
            seen.append(event)
            if event.type == "session.status_idle":
                return seen
    raise AssertionError(f"no idle: {[event.type for event in seen]}")
