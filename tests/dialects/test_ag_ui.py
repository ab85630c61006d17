"""AG-UI, by the rules of its client."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import NewKey
from tests.dialects.ag_ui_rules import Client
from tests.fleet import HEADERS, NO_TLS, Fleet

SAID = "[demo model, scripted] "


@pytest.fixture(scope="module")
async def agent(fleet: Fleet) -> str:
    name = f"helper-{uuid4().hex[:8]}"
    made = await fleet[0].post("/agents", {"name": name, "permission_mode": "default"})
    assert made.status_code == 201, made.text
    return name


class Thread:
    """A thread as a page keeps it."""

    def __init__(self, fleet: Fleet, agent: str, **more: Any) -> None:
        self.fleet, self.agent, self.more, self.id = fleet, agent, more, f"thread {uuid4()}"
        self.headers, self.sent, self.view = HEADERS, list[dict[str, Any]](), Client()
        self._next = 0

    def body(self, **more: Any) -> dict[str, Any]:
        always: dict[str, Any] = {"state": {}, "tools": [], "context": [], "forwardedProps": {}}
        own = {"threadId": self.id, "runId": str(uuid4()), "messages": self.sent}
        return {**always, **own, "protocolVersion": "1.0", **self.more, **more}

    def client(self) -> httpx.AsyncClient:
        self._next += 1
        url = self.fleet[self._next % len(self.fleet.instances)].url
        return httpx.AsyncClient(base_url=f"{url}/ag-ui", headers=self.headers, timeout=60, verify=NO_TLS)

    async def post(self, onto: Client | None = None, **more: Any) -> Client:
        view = onto or self.view
        async with self.client() as client, client.stream("POST", f"/{self.agent}", json=self.body(**more)) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            text = (await response.aread()).decode()
        assert "\r" not in text
        for line in text.split("\n"):
            if line.startswith("data: "):
                view.take(json.loads(line[6:]))
        return view

    async def refused(self, **more: Any) -> tuple[int, str]:
        async with self.client() as client:
            response = await client.post(f"/{self.agent}", json=self.body(**more))
        return response.status_code, response.json()["error"]["code"]

    async def say(self, content: Any, **more: Any) -> Client:
        self.sent.append({"id": f"m{len(self.sent)}", "role": "user", "content": content})
        return await self.post(**more)

    async def resolve(self, payload: Any, onto: Client | None = None) -> Client:
        interrupts = self.view.ends[-1]["outcome"]["interrupts"]
        told = [{"interruptId": one["id"], "status": "resolved", "payload": payload} for one in interrupts]
        return await self.post(onto, resume=told)


def text_of(view: Client) -> str:
    return str([m["content"] for m in view.messages if m["role"] == "assistant" and "content" in m][-1])


async def test_a_thread_is_one_session_on_any_instance(fleet: Fleet, agent: str) -> None:
    thread = Thread(fleet, agent)
    view = await thread.say("think about it then stream 5 words")
    assert view.ends[-1]["outcome"] == {"type": "success"}
    assert view.ends[-1]["runId"] == view.events[0]["runId"]
    assert view.messages[0]["role"] == "reasoning"
    await thread.say("where am I", context=[{"description": "The page", "value": "orders"}])
    view = await thread.say("recall")
    assert "stream 5 words" in text_of(view)
    assert "The page: orders" in text_of(view)
    ids = {e["value"]["session_id"] for e in view.events if e["type"] == "CUSTOM" and e["name"] == "run"}
    assert len(ids) == 1


async def test_a_run_that_is_sent_again_is_told_again_and_run_once(fleet: Fleet, agent: str) -> None:
    thread = Thread(fleet, agent, runId="the one")
    thread.sent = [{"id": "m", "role": "user", "content": "say hello"}]
    views = await asyncio.gather(*(thread.post(Client()) for _ in range(3)))
    assert [text_of(view) for view in views] == [f"{SAID}hello"] * 3
    other = await thread.post(Client(), runId="another")  # nothing new: the thread, as it is
    assert (other.messages[0]["id"], other.messages[0]["role"]) == ("m", "user")
    assert text_of(other) == f"{SAID}hello"


async def test_interrupts_go_on_with_the_same_run(fleet: Fleet, agent: str) -> None:
    thread = Thread(fleet, agent)
    view = await thread.say("run echo one > one.txt then say done")
    [interrupt] = view.ends[-1]["outcome"]["interrupts"]
    assert (interrupt["reason"], interrupt["responseSchema"]["required"]) == ("tool_approval", ["approved"])
    assert (await thread.refused(resume=[{"interruptId": str(uuid4()), "status": "cancelled"}]))[0] == 400
    assert (await thread.refused(resume=[{"interruptId": interrupt["id"], "status": "resolved"}]))[0] == 400
    shown = await thread.post(Client())
    assert shown.ends[-1]["outcome"]["interrupts"][0]["id"] == interrupt["id"]
    assert [m["role"] for m in shown.messages] == [m["role"] for m in [{"role": "user"}, *view.messages]]
    changed = {"approved": True, "updated_input": {"command": "echo two"}}
    view = await thread.resolve(changed)
    assert (text_of(view), view.ends[-1]["outcome"]["type"]) == (f"{SAID}done", "success")
    assert [m["content"] for m in view.messages if m["role"] == "tool"] == ["two"]
    ids = {e["value"]["run_id"] for e in view.events if e["type"] == "CUSTOM" and e["name"] == "run"}
    assert len(ids) == 1


async def test_what_is_asked_is_passed_over_by_a_message(fleet: Fleet, agent: str) -> None:
    thread = Thread(fleet, agent)
    await thread.say("ask Which colour? options red, blue then say done")
    view = await thread.say("say something else")
    assert text_of(view) == f"{SAID}something else"


async def test_a_front_end_tool_is_answered_by_a_message(fleet: Fleet, agent: str) -> None:
    tool = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}
    thread = Thread(fleet, agent, tools=[tool], forwardedProps={"allowed_tools": ["mcp__client__weather"]})
    view = await thread.say('use tool mcp__client__weather {"city": "Ulm"} then say done')
    [call] = view.ends[-1]["outcome"]["pendingToolCallIds"]
    thread.sent.append({"id": "t", "role": "tool", "toolCallId": call, "content": "21"})
    view = await thread.post()
    assert text_of(view) == f"{SAID}done"
    assert text_of(await thread.post(Client())) == f"{SAID}done"  # the same answer once more, as of another tab
    thread.sent.append({"id": view.messages[-1]["id"], "role": "assistant", "content": text_of(view)})
    again = await thread.post(Client())  # a page that comes back with all that was said
    assert [m["id"] for m in again.messages if m["role"] == "tool"] == ["t"]


async def test_the_state_is_kept_and_told(fleet: Fleet, agent: str) -> None:
    thread = Thread(fleet, agent)
    assert (await thread.say("say hello", state={"a": [1]})).state == {"a": [1]}
    assert (await thread.post(Client())).state == {"a": [1]}
    assert (await thread.say("say more", state={"a": 2})).state == {"a": 2}
    assert (await thread.post(Client())).state == {"a": 2}
    assert await thread.refused(state={"a": "x" * 70_000}) == (422, "validation_error")


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"messages": []}, (422, "validation_error")),
        ({"runId": ""}, (422, "validation_error")),
        ({"forwardedProps": {"nonsense": 1}}, (422, "validation_error")),
        ({"tools": [{"name": "no name", "description": "x"}]}, (422, "validation_error")),
        ({"messages": [{"id": "m", "role": "user", "content": [{"type": "audio"}]}]}, (422, "validation_error")),
        ({"resume": [{"interruptId": "x", "status": "cancelled"}]}, (400, "validation_error")),
    ],
)
async def test_what_cannot_be_is_refused(
    fleet: Fleet, agent: str, more: dict[str, Any], wanted: tuple[int, str]
) -> None:
    thread = Thread(fleet, agent)
    thread.sent = [{"id": "m", "role": "user", "content": "say hello"}]
    assert await thread.refused(**more) == wanted
    thread.agent = "nobody"
    assert await thread.refused() == (404, "agent_not_found")


async def test_a_thread_is_its_tenants(fleet: Fleet, agent: str, new_key: NewKey) -> None:
    ours = Thread(fleet, agent)
    await ours.say("run echo x > x.txt then say done")
    theirs = Thread(fleet, agent)
    theirs.id, theirs.headers = ours.id, await new_key(f"tenant-{uuid4()}")
    [interrupt] = ours.view.ends[-1]["outcome"]["interrupts"]
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": {"approved": True}}]
    assert (await theirs.refused(resume=resume))[0] == 400
    assert await theirs.refused() == (422, "validation_error")
    theirs.headers = await new_key("default", profiles=["readonly"])
    assert await theirs.refused() == (403, "profile_not_permitted")
    assert text_of(await ours.resolve({"approved": False})) == f"{SAID}done"
