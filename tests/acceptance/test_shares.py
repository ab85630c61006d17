"""Fair shares: what a key and a tenant may have, held by all instances together."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest

from tests.fleet import Fleet
from tests.sockets import open_socket


async def limited(fleet: Fleet, of_tenant: dict[str, Any], **of_key: Any) -> dict[str, str]:
    """The headers of a key of a new tenant, with such limits."""
    name = f"t{uuid4().hex}"
    assert (await fleet[0].post("/admin/tenants", {"name": name})).status_code == 201
    put = await fleet[0].client.put(f"/api/v1/admin/tenants/{name}/limits", json=of_tenant)
    assert put.status_code == 200, put.text
    made = await fleet[0].post("/admin/keys", {"tenant": name, "name": "k", "limits": of_key})
    assert made.status_code == 201, made.text
    return {"X-API-Key": made.json()["secret"]}


@pytest.mark.parametrize("whose", ["key", "tenant"])
async def test_a_limit_of_60_a_minute_admits_60_over_three_instances(fleet: Fleet, whose: str) -> None:
    limit = {"runs_per_minute": 60}
    headers = await limited(fleet, limit) if whose == "tenant" else await limited(fleet, {}, **limit)
    nowhere = f"/sessions/{uuid4()}/query"  # what is admitted runs nothing
    sent = (
        instance.post(nowhere, {"prompt": "say one"}, headers=headers)
        for instance in fleet.instances
        for _ in range(60)
    )
    began = time.monotonic()
    answers = await asyncio.gather(*sent)
    statuses = [answer.status_code for answer in answers]
    minutes = 1 + int((time.monotonic() - began) // 60)  # one, unless this machine is very slow
    assert 60 <= statuses.count(404) <= 60 * minutes
    assert statuses.count(404) + statuses.count(429) == 180
    refused = next(answer for answer in answers if answer.status_code == 429)
    error = refused.json()["error"]
    assert (error["code"], error["details"]["scope"], error["details"]["used"]) == ("rate_limited", whose, 60)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


OLDER = {
    "/compat/code-server/query": {"prompt": "say no"},
    "/compat/chat-server/chat": {"prompt": "say no"},
    "/compat/execute-server/execute/": {"prompt": "say no", "cwd": "x"},
}


async def test_what_is_beyond_a_quota_is_refused_on_every_instance_and_surface(fleet: Fleet) -> None:
    headers = await limited(fleet, {"queued_runs": 1})
    session_id = (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]
    path = f"/sessions/{session_id}/query"
    running = await fleet[0].post(path, {"prompt": "stream 500 words slowly"}, headers=headers)
    async with fleet[1].stream(f"/runs/{running.json()['run_id']}/events", headers=headers) as events:
        async for event in events:
            if event.event == "init":
                break
    assert (await fleet[1].post(path, {"prompt": "say behind"}, headers=headers)).status_code == 202
    told = {"name": "queued_runs", "scope": "tenant", "limit": 1, "used": 1}
    for instance in fleet.instances:
        for route in (path, "/query", "/query/single"):
            refused = await instance.post(route, {"prompt": "say no"}, headers=headers)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["details"]) == (429, "quota_exceeded", told), route
            assert refused.headers["Retry-After"] == "5"
        for route, body in OLDER.items():
            refused = await instance.client.post(route, json=body, headers=headers)
            assert refused.status_code == 429, refused.text
            assert "queued_runs is used up: 1 of 1" in refused.json()["detail"]
        async with open_socket(instance, headers) as socket:
            assert await socket.refused("prompt", prompt="say no") == (429, "quota_exceeded")
        shown = (await instance.get("/limits", headers=headers)).json()["data"]
        assert [entry["used"] for entry in shown if entry["name"] == "queued_runs"] == [1]
    await fleet[2].post(f"/sessions/{session_id}/interrupt", headers=headers)
    assert (await fleet[2].post(f"{path}?wait=60", {"prompt": "say more"}, headers=headers)).status_code == 200


async def test_an_agent_that_fills_its_tenants_share_of_the_disk_is_ended(fleet: Fleet) -> None:
    headers = await limited(fleet, {"workspace_bytes": 5_000_000})
    made = (await fleet[0].post("/sessions", {"permission_mode": "bypassPermissions"}, headers=headers)).json()
    path = f"/sessions/{made['session_id']}/query"
    filling = "run head -c 9000000 /dev/zero | tr '\\0' x > large; sleep 60"
    run = await fleet[1].post(path, {"prompt": filling}, headers=headers)
    told = await fleet[2].follow(run.json()["run_id"], headers=headers)
    assert [(e.event, e.data.get("code")) for e in told[-2:]] == [("error", "workspace_full"), ("done", None)]
    for instance in fleet.instances:
        refused = await instance.post(path, {"prompt": "say no"}, headers=headers)
        details = refused.json()["error"]["details"]
        assert (refused.status_code, details["name"], details["scope"]) == (429, "workspace_bytes", "tenant")
        assert details["used"] > 5_000_000
    assert (await fleet[0].client.delete(f"/api/v1/sessions/{made['session_id']}", headers=headers)).is_success
    again = await fleet[1].post("/query/single", {"prompt": "say there is room"}, headers=headers)
    assert again.status_code == 200, again.text
