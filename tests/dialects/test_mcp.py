"""Agents as tools of other agents: the official client of MCP, each of whose messages goes to another instance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client

from tests.acceptance.asking import ASKING, COMMAND
from tests.balancer import Balancer, balancing
from tests.conftest import NewKey
from tests.fleet import API_KEY, HEADERS, Fleet, Instance

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture
async def balancer(fleet: Fleet) -> AsyncIterator[Balancer]:
    async with balancing(fleet.instances) as found:
        yield found


@asynccontextmanager
async def connected(url: str, key: str = API_KEY) -> AsyncIterator[ClientSession]:
    # No connection is kept, so that each message goes to the next instance.
    headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=180) as http,
        streamable_http_client(f"{url}/mcp", http_client=http) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


def told(result: Any) -> dict[str, Any]:
    assert not result.is_error, result
    content: dict[str, Any] = result.structured_content
    return content


def code_of(result: Any) -> str:
    assert result.is_error, result
    return str(result.structured_content["error"]["code"])


async def preset(instance: Instance, **fields: Any) -> str:
    name = f"p{uuid4().hex[:12]}"
    made = await instance.post("/agents", {"name": name, **fields})
    assert made.status_code == 201, made.text
    return name


async def test_an_agent_is_run_and_gone_on_with_on_any_instance(fleet: Fleet, balancer: Balancer) -> None:
    async with connected(balancer.url) as session:
        first = told(await session.call_tool("run_agent", {"prompt": "say hello", "end_user": "u-1"}))
        assert first["status"] == "succeeded"
        assert "hello" in first["result"]
        more = {"session_id": first["session_id"], "prompt": "say more"}
        second = told(await session.call_tool("continue_session", more))
        assert second["session_id"] == first["session_id"]
        assert "more" in second["result"]
        again = told(await session.call_tool("get_run", {"run_id": first["run_id"]}))
        assert again == first
    assert all(balancer.asked.values()), "every instance was asked"
    state = (await fleet[0].get(f"/sessions/{first['session_id']}")).json()
    assert (state["surface"], state["end_user"]) == ("mcp", "u-1")


async def test_a_preset_is_a_tool_with_its_schema(fleet: Fleet, balancer: Balancer) -> None:
    plain = await preset(fleet[0], description="Greets.", tools=[])
    formed = await preset(fleet[0], tools=[], output_format={"type": "json_schema", "schema": SCHEMA})
    async with connected(balancer.url) as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert tools[f"preset_{plain}"].description == "Greets."
        assert tools[f"preset_{formed}"].output_schema == SCHEMA
        done = told(await session.call_tool(f"preset_{plain}", {"prompt": "say hello"}))
        assert "hello" in done["result"]
        late = await session.call_tool(f"preset_{formed}", {"prompt": "say hello", "wait_seconds": 0})
        assert late.is_error
        assert late.structured_content["status"] in ("queued", "running")
        assert late.meta is not None
        assert late.meta["run_id"] == late.structured_content["run_id"]
        assert code_of(await session.call_tool("preset_none", {"prompt": "x"})) == "agent_not_found"


async def test_a_run_outlives_its_call(balancer: Balancer) -> None:
    async with connected(balancer.url) as session:
        begun = told(await session.call_tool("run_agent", {"prompt": "say hello", "wait_seconds": 0}))
        assert begun["status"] in ("queued", "running")
        assert "get_run" in begun["advice"]
        done = told(await session.call_tool("get_run", {"run_id": begun["run_id"], "wait_seconds": 90}))
        assert done["status"] == "succeeded"


async def test_a_run_that_needs_a_person_is_told_at_once_and_goes_on(fleet: Fleet, balancer: Balancer) -> None:
    heard: list[str | None] = []

    async def heard_of(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async with connected(balancer.url) as session:
        asked = told(
            await session.call_tool(
                "run_agent",
                dict[str, Any](prompt=COMMAND, options=ASKING, wait_seconds=120),
                progress_callback=heard_of,
            )
        )
        assert asked["status"] == "requires_action"
        [request] = asked["asked"]
        assert (request["type"], request["about"]["tool_name"]) == ("permission", "Bash")
        assert any(message and asked["run_id"] in message for message in heard)
        path = f"/sessions/{asked['session_id']}/permissions/{request['request_id']}"
        assert (await fleet[0].post(path, {"decision": "allow"})).status_code == 200
        done = told(await session.call_tool("get_run", {"run_id": asked["run_id"], "wait_seconds": 90}))
        assert (done["status"], done["asked"]) == ("succeeded", [])


async def test_what_is_wrong_is_the_answer_of_the_tool(balancer: Balancer) -> None:
    async with connected(balancer.url) as session:
        for name, arguments, code in (
            ("run_agent", {}, "validation_error"),
            ("run_agent", {"prompt": "x", "options": {"nonsense": 1}}, "validation_error"),
            ("run_agent", {"prompt": "x", "preset": "none"}, "agent_not_found"),
            ("run_agent", {"prompt": "x", "profile": "none"}, "validation_error"),
            ("run_agent", {"prompt": "x", "wait_seconds": 301}, "validation_error"),
            ("continue_session", {"prompt": "x", "session_id": str(uuid4())}, "session_not_found"),
            ("get_run", {"run_id": str(uuid4())}, "run_not_found"),
            ("cancel_run", {"run_id": str(uuid4())}, "run_not_found"),
            ("nothing", {}, "not_found"),
        ):
            assert code_of(await session.call_tool(name, arguments)) == code, (name, arguments)


async def test_nothing_of_another_tenant_is_there(fleet: Fleet, balancer: Balancer, new_key: NewKey) -> None:
    name = await preset(fleet[0], tools=[])
    run = await fleet[0].ask(await fleet[0].session(), "say hello")
    async with connected(balancer.url, (await new_key())["X-API-Key"]) as session:
        assert f"preset_{name}" not in [tool.name for tool in (await session.list_tools()).tools]
        assert code_of(await session.call_tool(f"preset_{name}", {"prompt": "x"})) == "agent_not_found"
        assert code_of(await session.call_tool("get_run", {"run_id": run["run_id"]})) == "run_not_found"
        more = {"session_id": run["session_id"], "prompt": "x"}
        assert code_of(await session.call_tool("continue_session", more)) == "session_not_found"


async def test_a_bound_key_has_the_tools_of_its_profiles(fleet: Fleet, balancer: Balancer, new_key: NewKey) -> None:
    own, foreign = await preset(fleet[0], profile="readonly"), await preset(fleet[0], profile="dev")
    run = await fleet[0].ask(await fleet[0].session(), "say hello")
    bound = (await new_key("default", profiles=["readonly"]))["X-API-Key"]
    async with connected(balancer.url, bound) as session:
        tools = [tool.name for tool in (await session.list_tools()).tools]
        assert f"preset_{own}" in tools
        assert f"preset_{foreign}" not in tools
        assert code_of(await session.call_tool(f"preset_{foreign}", {"prompt": "x"})) == "profile_not_permitted"
        assert code_of(await session.call_tool("get_run", {"run_id": run["run_id"]})) == "profile_not_permitted"
        assert code_of(await session.call_tool("cancel_run", {"run_id": run["run_id"]})) == "profile_not_permitted"
        more = {"session_id": run["session_id"], "prompt": "x"}
        assert code_of(await session.call_tool("continue_session", more)) == "profile_not_permitted"


async def test_a_key_that_may_read_asks_and_runs_nothing(balancer: Balancer, new_key: NewKey) -> None:
    reader = (await new_key("default", scopes=("read",)))["X-API-Key"]
    async with connected(balancer.url, reader) as session:
        assert code_of(await session.call_tool("run_agent", {"prompt": "x"})) == "insufficient_scope"
        assert code_of(await session.call_tool("get_run", {"run_id": str(uuid4())})) == "run_not_found"


async def test_who_cancels_stops_the_run_from_any_instance(fleet: Fleet) -> None:
    begun = await fleet[0].client.post("/mcp", json=INITIALIZE, headers=ACCEPT)
    assert begun.status_code == 200, begun.text
    headers = {**ACCEPT, "mcp-session-id": begun.headers["mcp-session-id"], "mcp-protocol-version": "2025-06-18"}
    call = {"name": "run_agent", "arguments": {"prompt": "stream 600 words every 200 ms", "wait_seconds": 0}}
    message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call}
    answers = [await instance.client.post("/mcp", json=message, headers=headers) for instance in fleet.instances[:2]]
    assert len({answer.text.partition('"run_id":"')[2][:36] for answer in answers}) == 1, "sent twice, run once"
    run_id = answers[0].text.partition('"run_id":"')[2][:36]
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    strange = {**headers, "mcp-session-id": str(uuid4())}
    assert (await fleet[1].client.post("/mcp", json=cancel, headers=strange)).status_code == 202
    assert (await fleet[0].get(f"/runs/{run_id}")).json()["status"] in ("queued", "running")
    assert (await fleet[1].client.post("/mcp", json=cancel, headers=headers)).status_code == 202
    async with asyncio.timeout(60):
        events = await fleet[0].follow(run_id)
    assert events[-1].event == "done"
    assert (await fleet[0].get(f"/runs/{run_id}")).json()["status"] == "interrupted"


async def test_the_door_is_the_one_of_all_routes(fleet: Fleet) -> None:
    client = fleet[0].client
    nobody = await client.post("/mcp", json=INITIALIZE, headers={**ACCEPT, "X-API-Key": "cak_wrong"})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")
    page = await client.post("/mcp", json=INITIALIZE, headers={**ACCEPT, "Origin": "https://evil.example.com"})
    assert (page.status_code, page.json()["error"]["code"]) == (403, "origin_not_permitted")
    own = await client.post("/mcp", json=INITIALIZE, headers={**ACCEPT, "Origin": fleet[0].url})
    assert own.status_code == 200
    for method in ("GET", "DELETE", "PUT"):
        answer = await client.request(method, "/mcp", headers={**HEADERS, **ACCEPT})
        assert answer.status_code == 405, method
    for body in (b"{", b'{"a":1,"a":2}', b"[]", b'"x"', b'{"jsonrpc":"2.0"}'):
        answer = await client.post("/mcp", content=body, headers={**ACCEPT, "Content-Type": "application/json"})
        assert answer.status_code == 400, (body, answer.text)


def test_the_package_speaks_what_we_say() -> None:
    assert types.LATEST_PROTOCOL_VERSION >= "2026-07-28"
