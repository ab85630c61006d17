"""The audit log over HTTP: who did it, from where, whichever instance was asked."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from uuid import uuid4

from tests.acceptance.asking import ASKING, COMMAND, asked, path_of
from tests.fleet import PROGRAM, Fleet, Shared
from tests.sockets import open_socket


async def lines(fleet: Fleet, **filters: Any) -> list[dict[str, Any]]:
    found = await fleet[2].get("/admin/audit", params=filters)
    assert found.status_code == 200, found.text
    data: list[dict[str, Any]] = found.json()["data"]
    return data


async def command(fleet: Fleet, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "keys", *arguments, env={**os.environ, **fleet.env}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_a_key_is_followed_from_its_making_to_its_end(fleet: Fleet) -> None:
    me = (await fleet[0].get("/whoami")).json()
    name = f"t{uuid4().hex}"
    await fleet[0].post("/admin/tenants", {"name": name}, headers={"X-Request-ID": "making-it"})
    key = (await fleet[1].post("/admin/keys", {"tenant": name, "name": "backend"})).json()
    own = {"X-API-Key": key["secret"]}
    path = "/api/v1/secrets/TOKEN"
    assert (await fleet[2].client.put(path, json={"value": "hush"}, headers=own)).status_code == 201
    refused = await fleet[2].client.put(path, json={"value": ""}, headers=own)
    assert refused.status_code == 422
    await command(fleet, "revoke", key["key_id"])
    found = await lines(fleet, tenant=name)
    assert [line["action"] for line in found] == ["key.revoked", "secret.put", "key.created", "tenant.created"]
    revoked, put, _, created = found
    by_hand = {"type": "cli", "key_id": None, "key_name": None, "tenant": None, "address": None, "request_id": None}
    assert revoked["actor"] == by_hand
    assert (put["target"], put["actor"]["key_id"], put["actor"]["tenant"]) == ("TOKEN", key["key_id"], name)
    where = {"address": "127.0.0.1", "request_id": "making-it"}
    assert created["actor"] == {
        "type": "key",
        "key_id": me["key_id"],
        "key_name": me["key_name"],
        "tenant": me["tenant"],
        **where,
    }
    assert "hush" not in str(found)
    assert key["secret"] not in str(found)
    assert await lines(fleet, tenant=name, actor=key["key_id"]) == [put]
    assert await lines(fleet, tenant=name, actor="cli", action="key.revoked") == [revoked]
    assert await lines(fleet, tenant=name, since=put["created_at"], until=revoked["created_at"]) == [put]


async def test_lines_come_page_by_page_and_wrong_filters_are_refused(fleet: Fleet) -> None:
    name = f"t{uuid4().hex}"
    for number in range(3):
        await command(fleet, "create", "--tenant", name, "--name", f"k{number}")
    first = (await fleet[0].get("/admin/audit", params={"tenant": name, "limit": 3})).json()
    rest = (await fleet[1].get("/admin/audit", params={"tenant": name, "cursor": first["next_cursor"]})).json()
    told = [line["details"].get("name") for line in (*first["data"], *rest["data"])]
    assert (told, rest["next_cursor"]) == (["k2", "k1", "k0", None], None)
    for wrong in ({"actor": "me"}, {"action": "key.read"}, {"since": "yesterday"}, {"cursor": "x"}, {"tenant": "\x00"}):
        assert (await fleet[0].get("/admin/audit", params=wrong)).status_code == 422, wrong
    assert (await fleet[0].get("/admin/audit", params={"since": "2026-01-01T00:00:00"})).status_code == 422


async def test_who_decides_for_an_agent_is_written_down_whichever_way_it_came(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    me = (await fleet[0].get("/whoami")).json()["key_id"]
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    decision = {"decision": "allow", "updated_input": {"command": "echo hush"}}
    answered = await fleet[2].post(path_of(request), decision, headers={"X-Request-ID": "by-http"})
    assert answered.status_code == 200, answered.text
    await fleet[1].follow(run_id)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    other = await asked(fleet[1], run_id)
    async with open_socket(fleet[1]) as socket:
        ids = {"session_id": session_id, "request_id": other.data["request_id"]}
        await socket.ask("answer", **ids, decision="deny", message="hush")
    await fleet[1].follow(run_id)
    found = {line["target"]: line for line in await lines(fleet, action="request.answered", actor=me)}
    first, second = (found[r.data["request_id"]] for r in (request, other))
    assert first["details"]["session_id"] == session_id
    assert (first["details"]["decision"], first["details"]["changed_input"]) == ("allow", True)
    assert (first["details"]["tool_name"], first["actor"]["request_id"]) == ("Bash", "by-http")
    assert (second["details"]["decision"], second["actor"]["address"]) == ("deny", "127.0.0.1")
    assert second["actor"]["request_id"]
    assert "hush" not in str(found)
