"""Managed Agents by the wire: what the official clients do not show of it. For what they do see tests/clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.api.core.events.frames import Frame, Position
from apps.api.dialects.managed import ids, toolsets
from apps.api.dialects.managed.translate import Fold
from tests.conftest import NewKey
from tests.dialects import managed_sdk
from tests.fleet import API_KEY, NO_TLS, Fleet

PREFIX = "/compat/managed-agents/v1"
TOOLSET = {"type": "agent_toolset_20260401"}


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {API_KEY}", "anthropic-beta": "never-heard-of-2099-01-01"}
    async with httpx.AsyncClient(base_url=fleet[0].url + PREFIX, headers=headers, timeout=60, verify=NO_TLS) as made:
        yield made


def refused(response: httpx.Response, status: int, type_: str, says: str = "") -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"]["type"] == type_
    assert says in body["error"]["message"], body
    assert body["request_id"] == response.headers["request-id"]
    if status < 500 and status != 429:
        assert response.headers["x-should-retry"] == "false"


async def made(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["request-id"]
    found: dict[str, Any] = response.json()
    return found


async def agent(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    return await made(client, "/agents", **{"name": "An agent", "model": "claude-sonnet-5-5", **more})


async def session(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    place = await made(client, "/environments", name="a place")
    return await made(client, "/sessions", agent=(await agent(client))["id"], environment_id=place["id"], **more)


# --- ids -------------------------------------------------------------------------------------------------------------


@given(st.uuids())
def test_an_id_leads_back_to_what_it_is_of(id_: UUID) -> None:
    assert ids.read("sesn", ids.write("sesn", id_)) == id_ == ids.read("sesn", str(id_))
    assert ids.read("agent", ids.write("sesn", id_)) == ids.NOBODY


@given(st.uuids(), st.integers(0, 2**63 - 1), st.integers(0, 65535))
def test_an_events_id_leads_back_to_its_place(id_: UUID, seq: int, nth: int) -> None:
    assert ids.part(ids.EVENT, ids.of_part(ids.EVENT, id_, seq, nth)) == (id_, seq, nth)


@given(st.text())
def test_what_is_no_id_is_nobodys(text: str) -> None:
    assert ids.read("sesn", text) == ids.NOBODY
    assert ids.read("sesn", f"sesn_{text}") == ids.NOBODY
    assert ids.part(ids.EVENT, f"sevt_{text}") is None


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_keys_are_read_from_both_headers(fleet: Fleet) -> None:
    async with httpx.AsyncClient(base_url=fleet[0].url + PREFIX, timeout=60, verify=NO_TLS) as nobody:
        refused(await nobody.get("/agents"), 401, "authentication_error")
        refused(await nobody.get("/agents", headers={"x-api-key": "wrong"}), 401, "authentication_error")
        assert (await nobody.get("/agents", headers={"x-api-key": API_KEY})).status_code == 200


@pytest.mark.parametrize(
    "text",
    ["sesn_nope", "agent_aaaaaaaaaaaaaaaaaaaaaaaaaa", "x", "..", "sesn_", "415af1a7-d2a1-4762-be90-bf162184fa8f"],
)
async def test_what_is_no_session_is_not_found(client: httpx.AsyncClient, text: str) -> None:
    for path in ("", "/events", "/events/stream", "/threads", "/threads/sthr_x", "/threads/sthr_x/events"):
        response = await client.get(f"/sessions/{text}{path}")
        refused(response, 404, "not_found_error")
    refused(await client.post(f"/sessions/{text}/archive"), 404, "not_found_error")


async def test_a_session_of_another_surface_is_not_shown(client: httpx.AsyncClient, fleet: Fleet) -> None:
    native = await fleet[0].session()
    refused(await client.get(f"/sessions/{ids.write('sesn', native)}"), 404, "not_found_error")
    own = await session(client)
    state = (await fleet[0].get(f"/sessions/{ids.read('sesn', own['id'])}")).json()
    assert state["surface"] == "managed_agents"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"multiagent": {"type": "coordinator", "agents": ["x"]}}, "multiagent"),
        ({"execution_identity": {"type": "aws_role"}}, "execution_identity"),
        ({"model": {"id": "m", "speed": "fast"}}, "model.speed"),
        ({"model": {"id": "m", "inference_geo": "eu"}}, "model.inference_geo"),
        ({"tools": [{**TOOLSET, "default_config": {"permission_policy": {"type": "auto"}}}]}, "permission_policy"),
        ({"tools": [{**TOOLSET, "configs": [{"name": "web_fetch", "allowed_domains": ["a.com"]}]}]}, "allowed_domains"),
        ({"tools": [{**TOOLSET, "configs": [{"name": "nope"}]}]}, "tools.0"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]}, "tools.0.mcp_server_name"),
        ({"mcp_servers": [{"type": "url", "name": "s", "url": "https://127.0.0.1/x"}]}, "mcp_servers.0.name"),
        ({"tools": [{"type": "custom", "name": "t", "description": "d", "input_schema": {}}]}, "input_schema"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"name": ""}, "name"),
        ({"never_heard_of": 1}, "never_heard_of"),
    ],
)
async def test_what_an_agent_cannot_be_is_refused_by_name(client: httpx.AsyncClient, body: Any, field: str) -> None:
    response = await client.post("/agents", json={"name": "x", "model": "m", **body})
    refused(response, 400, "invalid_request_error", field)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"type": "self_hosted"}, "config.type"),
        ({"type": "cloud", "packages": {"pip": ["numpy"]}}, "config.packages.pip"),
        ({"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["not a host"]}}, "allowed_hosts"),
    ],
)
async def test_what_an_environment_cannot_be_is_refused_by_name(
    client: httpx.AsyncClient, config: Any, field: str
) -> None:
    response = await client.post("/environments", json={"name": "x", "config": config})
    refused(response, 400, "invalid_request_error", field)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"type": "user.tool_result", "tool_use_id": "x"}, "events.0"),
        ({"type": "user.define_outcome", "description": "x", "rubric": {"type": "text", "content": "x"}}, "events.0"),
        ({"type": "system.message", "content": [{"type": "text", "text": "x"}]}, "events.0"),
        ({"type": "user.message", "content": []}, "events.0"),
        ({"type": "user.message", "content": [{"type": "text", "text": " "}]}, "events.0"),
        ({"type": "user.message", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}, "events.0"),
        ({"type": "user.interrupt", "session_thread_id": "sthr_x"}, "events.0.session_thread_id"),
        ({"type": "nope"}, "events.0"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name(client: httpx.AsyncClient, event: Any, field: str) -> None:
    own = await session(client)
    response = await client.post(f"/sessions/{own['id']}/events", json={"events": [event]})
    refused(response, 400, "invalid_request_error", field)
    listed = (await client.get(f"/sessions/{own['id']}/events")).json()
    assert listed == {"data": [], "next_page": None}


async def test_a_confirmation_of_nothing_is_not_found(client: httpx.AsyncClient) -> None:
    own, other = await session(client), await session(client)
    place = ids.of_part(ids.EVENT, ids.read("sesn", other["id"]), 1, 100)
    for id_ in ("sevt_x", place, ids.of_part(ids.EVENT, ids.read("sesn", own["id"]), 1, 100)):
        event = {"type": "user.tool_confirmation", "tool_use_id": id_, "result": "allow"}
        response = await client.post(f"/sessions/{own['id']}/events", json={"events": [event]})
        refused(response, 404, "not_found_error")


# --- agents ----------------------------------------------------------------------------------------------------------


async def test_an_agent_has_versions_and_changes_by_the_newest(client: httpx.AsyncClient) -> None:
    asks = {"name": "bash", "permission_policy": {"type": "always_ask"}}
    first = await agent(client, tools=[{**TOOLSET, "configs": [asks]}], metadata={"a": "1", "b": "2"}, system="S")
    assert first["version"] == 1
    policies = {c["name"]: c["permission_policy"]["type"] for c in first["tools"][0]["configs"]}
    assert policies == {name: "always_ask" if name == "bash" else "always_allow" for name in toolsets.BUILT_IN}
    path = f"/agents/{first['id']}"
    second = await made(client, path, name="Another name", version=1, metadata={"a": None, "c": "3"})
    assert (second["version"], second["name"], second["metadata"]) == (2, "Another name", {"b": "2", "c": "3"})
    assert second["tools"] == first["tools"]
    assert (await made(client, path, name="Another name"))["version"] == 2  # no news
    refused(await client.post(path, json={"name": "x", "version": 1}), 409, "invalid_request_error", "not 1")
    third = await made(client, path, system=None, model={"id": "claude-haiku-5-5", "effort": "high"})
    assert (third["system"], third["model"]["id"], third["model"]["effort"]) == (
        None,
        "claude-haiku-5-5",
        {"type": "high"},
    )
    versions = (await client.get(f"{path}/versions", params={"limit": 2})).json()
    assert [v["version"] for v in versions["data"]] == [3, 2]
    last = (await client.get(f"{path}/versions", params={"limit": 2, "page": versions["next_page"]})).json()
    assert ([v["version"] for v in last["data"]], last["next_page"]) == ([1], None)
    old = (await client.get(path, params={"version": 1, "beta": "true"})).json()
    assert (old["name"], old["system"]) == ("An agent", "S")


async def test_an_archived_agent_can_be_read_and_nothing_else(client: httpx.AsyncClient) -> None:
    own, twin = await agent(client, name="same"), await agent(client, name="same")
    place = await made(client, "/environments", name="x")
    for _ in range(2):
        gone = await made(client, f"/agents/{own['id']}/archive")
    assert gone["archived_at"]
    assert (await client.get(f"/agents/{own['id']}")).json() == gone
    refused(await client.post(f"/agents/{own['id']}", json={"name": "y"}), 409, "invalid_request_error")
    begin = {"agent": own["id"], "environment_id": place["id"]}
    refused(await client.post("/sessions", json=begin), 400, "invalid_request_error", "agent")
    listed = [a["id"] for a in (await client.get("/agents", params={"limit": 100})).json()["data"]]
    assert twin["id"] in listed
    assert own["id"] not in listed
    moment = {"created_at[gte]": twin["created_at"], "created_at[lte]": twin["created_at"]}
    assert twin["id"] in [a["id"] for a in (await client.get("/agents", params=moment)).json()["data"]]
    everything = (await client.get("/agents", params={"limit": 100, "include_archived": True})).json()["data"]
    assert own["id"] in [a["id"] for a in everything]


async def test_mcp_servers_and_their_tools_come_back_as_they_were(client: httpx.AsyncClient) -> None:
    tool = {"name": "drop", "permission_policy": {"type": "always_ask"}}
    toolset = {
        "type": "mcp_toolset",
        "mcp_server_name": "s",
        "default_config": {"permission_policy": {"type": "always_allow"}},
        "configs": [tool, {"name": "hide", "enabled": False}],
    }
    server = {"type": "url", "name": "s", "url": "https://127.0.0.1/x"}
    custom = {"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object", "properties": {}}}
    own = await agent(client, tools=[toolset, custom], mcp_servers=[server])
    shown = own["tools"][0]
    assert own["mcp_servers"] == [server]
    assert own["tools"][1] == custom
    assert shown["default_config"] == {"enabled": True, "permission_policy": {"type": "always_allow"}}
    told = {c["name"]: (c["enabled"], c["permission_policy"]["type"]) for c in shown["configs"]}
    assert told == {"drop": (True, "always_ask"), "hide": (False, "always_allow")}
    refused(await client.post(f"/agents/{own['id']}", json={"mcp_servers": []}), 400, "invalid_request_error", "s")
    less = await made(client, f"/agents/{own['id']}", tools=[custom], mcp_servers=[])
    assert (less["tools"], less["mcp_servers"]) == ([custom], [])


# --- environments ----------------------------------------------------------------------------------------------------


async def test_an_environment_changes_is_archived_and_removed(client: httpx.AsyncClient) -> None:
    own = await made(client, "/environments", name="one", metadata={"a": "1"})
    assert own["config"]["networking"] == {"type": "unrestricted"}
    assert own["config"]["packages"]["pip"] == []
    path = f"/environments/{own['id']}"
    changed = await made(client, path, name="two", description="d", metadata={"a": "", "b": "2"})
    assert (changed["name"], changed["description"], changed["metadata"]) == ("two", "d", {"b": "2"})
    await made(client, f"{path}/archive")
    refused(await client.post(path, json={"name": "x"}), 409, "invalid_request_error")
    begin = {"agent": (await agent(client))["id"], "environment_id": own["id"]}
    refused(await client.post("/sessions", json=begin), 400, "invalid_request_error", "environment_id")
    assert (await client.delete(path)).json() == {"id": own["id"], "type": "environment_deleted"}
    refused(await client.get(path), 404, "not_found_error")
    used = await session(client)
    refused(await client.delete(f"/environments/{used['environment_id']}"), 409, "invalid_request_error")


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_a_session_begins_with_an_agent_as_it_is_wanted(client: httpx.AsyncClient) -> None:
    own, place = await agent(client, system="A", tools=[TOOLSET]), await made(client, "/environments", name="x")
    await made(client, f"/agents/{own['id']}", system="B")
    at = {"environment_id": place["id"]}
    newest = await made(client, "/sessions", agent=own["id"], **at)
    assert (newest["agent"]["version"], newest["agent"]["system"]) == (2, "B")
    older = await made(client, "/sessions", agent={"type": "agent", "id": own["id"], "version": 1}, **at)
    assert (older["agent"]["version"], older["agent"]["system"]) == (1, "A")
    other = {"type": "agent_with_overrides", "id": own["id"], "system": "C", "tools": []}
    changed = await made(
        client,
        "/sessions",
        agent=other,
        budget={"type": "limit", "max_list_cost": {"amount": "1.5", "currency": "USD"}},
        **at,
    )
    assert (changed["agent"]["system"], changed["agent"]["tools"], changed["status"]) == ("C", [], "idle")
    assert float(changed["budget"]["max_list_cost"]["amount"]) == 1.5
    path = f"/sessions/{changed['id']}"
    more = await made(client, path, title="t", metadata={"k": "v"}, agent={"tools": [TOOLSET]}, budget=None)
    assert (more["title"], more["metadata"], more["budget"]) == ("t", {"k": "v"}, None)
    assert more["agent"]["tools"][0]["type"] == TOOLSET["type"]
    assert (await made(client, path, title=None))["title"] is None
    again = {"budget": {"type": "limit", "max_list_cost": {"amount": "2", "currency": "USD"}}}
    refused(await client.post(path, json=again), 400, "invalid_request_error", "budget_create_only")


async def test_an_archived_session_is_read_only(client: httpx.AsyncClient) -> None:
    own = await session(client)
    path, say = f"/sessions/{own['id']}", {"type": "user.message", "content": [{"type": "text", "text": "say hi"}]}
    assert (await made(client, f"{path}/archive"))["archived_at"]
    await made(client, f"{path}/archive")
    refused(await client.post(f"{path}/events", json={"events": [say]}), 409, "invalid_request_error", "archived")
    refused(await client.post(path, json={"title": "x"}), 409, "invalid_request_error", "archived")
    listed = (await client.get("/sessions", params={"agent_id": own["agent"]["id"]})).json()["data"]
    assert listed == []
    assert (await client.delete(path)).json() == {"id": own["id"], "type": "session_deleted"}


async def test_sessions_are_turned_over_in_both_directions(client: httpx.AsyncClient) -> None:
    own, place = await agent(client), await made(client, "/environments", name="x")
    begin = {"agent": own["id"], "environment_id": place["id"]}
    all_ids = [(await made(client, "/sessions", **begin))["id"] for _ in range(5)][::-1]
    query: dict[str, Any] = {"agent_id": own["id"], "limit": 2}
    pages, cursor = [], None
    while True:
        page = (await client.get("/sessions", params={**query, **({"page": cursor} if cursor else {})})).json()
        pages.append(page)
        if (cursor := page["next_page"]) is None:
            break
    assert [[s["id"] for s in page["data"]] for page in pages] == [all_ids[:2], all_ids[2:4], all_ids[4:]]
    assert pages[0]["prev_page"] is None
    back = (await client.get("/sessions", params={**query, "page": pages[2]["prev_page"]})).json()
    assert [s["id"] for s in back["data"]] == all_ids[2:4]
    first = (await client.get("/sessions", params={**query, "page": back["prev_page"]})).json()
    assert [s["id"] for s in first["data"]] == all_ids[:2]
    assert (first["prev_page"], first["next_page"] is not None) == (None, True)
    oldest = (await client.get("/sessions", params={**query, "order": "asc", "limit": 1})).json()
    assert [s["id"] for s in oldest["data"]] == all_ids[4:]
    since = (await client.get(f"/sessions/{all_ids[1]}")).json()["created_at"]
    newer = (await client.get("/sessions", params={**query, "created_at[gt]": since})).json()
    assert [s["id"] for s in newer["data"]] == all_ids[:1]
    bracketed = {**query, "limit": 9, "statuses[]": ["idle", "terminated"]}
    assert len((await client.get("/sessions", params=bracketed)).json()["data"]) == 5
    assert (await client.get("/sessions", params={**query, "statuses": "running"})).json()["data"] == []
    refused(await client.get("/sessions", params={"page": "nope"}), 400, "invalid_request_error")


async def test_a_key_that_is_bound_sees_sessions_of_its_profile_only(
    client: httpx.AsyncClient, fleet: Fleet, new_key: NewKey
) -> None:
    own = await session(client)
    headers = await new_key("default", scopes=("read", "write"), profiles=["readonly"])
    async with httpx.AsyncClient(base_url=fleet[0].url + PREFIX, headers=headers, timeout=60, verify=NO_TLS) as bound:
        for path in ("", "/events", "/threads", "/events/stream"):
            refused(await bound.get(f"/sessions/{own['id']}{path}"), 403, "permission_error")
        refused(await bound.post("/agents", json={"name": "x", "model": "m"}), 403, "permission_error")
        assert (await bound.get("/sessions", params={"agent_id": own["agent"]["id"]})).json()["data"] == []


async def test_initial_events_begin_a_session_at_work(client: httpx.AsyncClient) -> None:
    says = [{"type": "user.message", "content": [{"type": "text", "text": f"say {n}"}]} for n in ("one", "two")]
    own = await session(client, initial_events=says)
    assert own["status"] == "running"
    events: list[Any] = []
    async with client.stream("GET", f"/sessions/{own['id']}/events/stream", headers={"Last-Event-ID": "0"}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
            if [e["type"] for e in events].count("session.status_idle") == 2:
                break
    said = [e["content"][0]["text"] for e in events if e["type"] in ("user.message", "agent.message")]
    assert [text.rpartition(" ")[2] for text in said] == ["one", "one", "two", "two"]
    listed = (await client.get(f"/sessions/{own['id']}/events", params={"limit": 1000})).json()
    assert listed["data"] == events
    for order, limit, expected in (("desc", 3, events[::-1]), ("asc", 1, events), ("asc", 3, events)):
        pages, cursor = [], None
        for _ in range(100):
            params: dict[str, Any] = {"limit": limit, "order": order, **({"page": cursor} if cursor else {})}
            page = (await client.get(f"/sessions/{own['id']}/events", params=params)).json()
            pages += page["data"]
            if (cursor := page["next_page"]) is None:
                break
        assert pages == expected, (order, limit)


# --- translation -----------------------------------------------------------------------------------------------------


def test_what_has_no_word_here_is_left_out() -> None:
    fold = Fold(uuid4(), lambda _tool: False)
    for kind in ("queued", "init", "files", "hook", "checkpoint", "network_denied", "task", "resync", "never heard of"):
        assert fold.feed(Frame.build(Position(1), kind, b'{"created_at":"2026-01-01T00:00:00Z"}')) == []


def stored(session_id: UUID, run_id: str, *events: tuple[str, dict[str, Any]]) -> list[Frame]:
    """A log."""
    common = {"session_id": str(session_id), "run_id": run_id, "created_at": "2026-01-01T00:00:00Z"}
    return [
        Frame.build(Position(seq), kind, json.dumps({**common, "seq": seq, **data}).encode())
        for seq, (kind, data) in enumerate(events, 1)
    ]


def said(role: str, *blocks: dict[str, Any], of: str | None = None, uuid: str = "u", **more: Any) -> tuple[str, Any]:
    told = {"role": role, "content": blocks, "parent_tool_use_id": of, "uuid": uuid, "message_id": None, **more}
    return "message", told


def call(id_: str, name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": given}


def result(id_: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": "out", "is_error": is_error}


def a_log(session_id: UUID, run_id: str) -> list[Frame]:
    """Everything that can happen in a run, once."""
    asked, called = str(uuid4()), str(uuid4())
    by = {"type": "key", "key_id": str(uuid4()), "key_name": None}
    text = {"type": "text", "text": "words"}
    retry = {"status": "model_retry", "error_status": 529, "error": "overloaded"}
    return stored(
        session_id,
        run_id,
        ("init", {}),
        said("user", text, uuid=run_id),
        ("status", retry),
        said("assistant", {"type": "thinking", "thinking": "x"}, message_id="m1", usage={"output_tokens": 3}),
        said("assistant", text, call("c1", "Bash", command="ls"), message_id="m1"),
        ("permission_request", {"request_id": asked, "tool_name": "Bash", "input": {}, "tool_use_id": "c1"}),
        ("action_resolved", {"request_id": asked, "decision": "deny", "by": by, "message": "no"}),
        said("user", result("c1", is_error=True)),
        said("assistant", call("c2", "mcp__client__weigh"), call("c3", "mcp__s__drop"), message_id="m2"),
        ("client_tool_call", {"request_id": called, "tool_name": "weigh", "input": {}, "tool_use_id": "c2"}),
        ("action_resolved", {"request_id": called, "decision": "answered", "by": by}),
        said("user", result("c2"), result("c3")),
        ("status", {"status": "compacted", "detail": None}),
        said("assistant", call("c4", "Task", subagent_type="reviewer", prompt="look"), message_id="m3"),
        said("assistant", call("c5", "Read"), of="c4"),
        said("user", result("c5"), of="c4"),
        said("assistant", text, of="c4"),
        said("user", result("c4")),
        ("error", {"code": "model_overloaded", "message": "x", "retryable": True}),
        ("done", {"status": "failed"}),
    )


def test_every_event_is_one_that_the_package_knows_with_all_that_it_requires() -> None:
    session_id, known = uuid4(), managed_sdk.told()
    log, found = a_log(session_id, str(uuid4())), list[dict[str, Any]]()
    for thread in (None, "c4"):
        fold = Fold(session_id, lambda tool: tool == "Bash", thread)
        found += [event for frame in log for event in fold.feed(frame)]
    for event in found:
        model = known[event["type"]]
        assert not {*event} - {*model.model_fields}, event["type"]
        model.model_validate(event, strict=False)
    types = {event["type"] for event in found}
    done = {name for name, what in managed_sdk.coverage()["told"].items() if what == "done"}
    assert done - types == {"event_start", "event_delta", "session.deleted", "user.interrupt"}
    assert len({event["id"] for event in found}) == len(found)


async def test_package_managers_are_refused_where_no_registries_are_named(client: httpx.AsyncClient) -> None:
    config = {"type": "cloud", "networking": {"type": "limited", "allow_package_managers": True}}
    answer = await client.post("/environments", json={"name": "e", "config": config})
    refused(answer, 400, "invalid_request_error")
    assert answer.json()["error"]["message"].startswith("config.networking.allow_package_managers: ")
