"""Presets over HTTP: made on one instance, used on others, and run by whoever owns the session."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from tests.conftest import NewKey
from tests.fleet import Fleet, Instance


@pytest.fixture(scope="module")
async def stranger(new_key: NewKey) -> dict[str, str]:
    """Headers of a key of another tenant."""
    return await new_key()


@pytest.fixture
def name() -> str:
    return f"preset-{uuid4().hex[:12]}"


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def change(instance: Instance, method: str, path: str, **more: object) -> httpx.Response:
    return await instance.client.request(method, f"/api/v1{path}", **more)  # type: ignore[arg-type]


async def test_a_new_version_leaves_the_sessions_of_the_old_one_as_they_are(fleet: Fleet, name: str) -> None:
    made = await fleet[0].post("/agents", {"name": name, "system_prompt": "FIRST", "tools": ["Read"]})
    assert (made.status_code, made.json()["version"]) == (201, 1)
    session_id = await fleet[1].session(agent=name)
    await fleet[1].ask(session_id, "say first")
    changed = await change(fleet[2], "PATCH", f"/agents/{name}", json={"system_prompt": "SECOND"})
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    owner = await fleet.owner_of(session_id)
    other = (await fleet.others(owner))[0]
    assert "FIRST" in (await other.ask(session_id, "show system prompt"))["result"]
    assert "tools: Read" in (await other.ask(session_id, "list tools", agent=name))["result"]
    newer = await other.post("/query/single", {"prompt": "show system prompt", "agent": name})
    assert "SECOND" in newer.json()["result"]
    state = (await fleet[0].get(f"/sessions/{newer.json()['session_id']}")).json()
    assert state["agent"] == {"agent_id": made.json()["agent_id"], "name": name, "version": 2}
    listed = (await fleet[2].get("/sessions", params={"agent": name})).json()["data"]
    assert {row["session_id"] for row in listed} == {session_id, newer.json()["session_id"]}
    fixed = await other.post(f"/sessions/{session_id}/query", {"prompt": "say no", "agent": f"{name}@2"})
    assert refusal(fixed) == (422, "validation_error")


async def test_a_preset_is_replaced_listed_removed_and_never_shows_values(fleet: Fleet, name: str) -> None:
    body = {"name": name, "env": {"TOKEN": "do-not-show"}, "description": f"for {name}", "profile": "dev"}
    headers = {"Idempotency-Key": name}
    made, again = [await instance.post("/agents", body, headers=headers) for instance in (fleet[0], fleet[1])]
    assert made.json() == again.json()
    assert refusal(await fleet[1].post("/agents", body)) == (409, "name_in_use")
    listed = await fleet[2].get("/agents", params={"search": name.upper()})
    assert [agent["agent_id"] for agent in listed.json()["data"]] == [made.json()["agent_id"]]
    replaced = await change(fleet[1], "PUT", f"/agents/{made.json()['agent_id']}", json={"max_turns": 7})
    assert (replaced.json()["config"], replaced.json()["profile"]) == ({"max_turns": 7}, None)
    first = await fleet[2].get(f"/agents/{name}", params={"version": 1})
    assert first.json()["config"] == {"env": {"TOKEN": "***"}}
    versions = await fleet[0].get(f"/agents/{name}/versions")
    assert [row["version"] for row in versions.json()["data"]] == [2, 1]
    assert "do-not-show" not in made.text + listed.text + first.text + versions.text
    assert (await change(fleet[2], "DELETE", f"/agents/{name}")).status_code == 204
    assert refusal(await fleet[0].get(f"/agents/{name}")) == (404, "agent_not_found")
    assert refusal(await fleet[0].post("/sessions", {"agent": name})) == (404, "agent_not_found")


async def test_another_tenant_neither_sees_nor_uses_a_preset(fleet: Fleet, name: str, stranger: dict[str, str]) -> None:
    made = await fleet[0].post("/agents", {"name": name})
    for reference in (name, made.json()["agent_id"]):
        for method, path, body in (
            ("GET", f"/agents/{reference}", None),
            ("GET", f"/agents/{reference}/versions", None),
            ("PUT", f"/agents/{reference}", {}),
            ("PATCH", f"/agents/{reference}", {}),
            ("DELETE", f"/agents/{reference}", None),
            ("POST", "/sessions", {"agent": reference}),
            ("POST", "/query", {"prompt": "say no", "agent": reference}),
        ):
            response = await change(fleet[1], method, path, json=body, headers=stranger)
            assert refusal(response) == (404, "agent_not_found"), (method, path)
    assert (await fleet[1].get("/agents", headers=stranger)).json()["data"] == []


async def test_a_preset_and_what_it_may_not_hold(fleet: Fleet, name: str) -> None:
    for body, status, code in (
        ({"name": name, "profile": "yolo"}, 422, "validation_error"),
        ({"name": name, "profile": "readonly", "tools": ["Bash"]}, 403, "tool_not_permitted"),
        ({"name": str(uuid4())}, 422, "validation_error"),
        ({"name": "no name"}, 422, "validation_error"),
        ({"name": name, "prompt": "no"}, 422, "validation_error"),
        ({"name": name, "cwd": "../up"}, 422, "validation_error"),
    ):
        assert refusal(await fleet[0].post("/agents", body)) == (status, code), body
    assert refusal(await fleet[0].get(f"/agents/{name}")) == (404, "agent_not_found")
