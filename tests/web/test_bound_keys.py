"""A key that is bound to profiles is a wall: every route that there is, and every way to name a session."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect

from apps.api import keys
from apps.api.auth import SCOPES
from apps.api.db import Database
from apps.api.main import create_app
from apps.api.settings import Settings
from tests.fleet import Fleet

PATHS: dict[str, dict[str, Any]] = create_app(Settings(_env_file=None)).openapi()["paths"]
METHODS = {"get", "post", "put", "patch", "delete"}
OPERATIONS = [(method, path) for path, found in PATHS.items() for method in found if method in METHODS]

OWN = {
    "/api/v1/query",
    "/api/v1/query/single",
    "/api/v1/sessions",
    "/api/v1/agents/preview",  # changes nothing
    "/compat/chat-server/chat",
    "/compat/code-server/query",
    "/compat/code-server/session/start",
    "/compat/execute-server/execute/",
    "/compat/execute-server/sessions/cleanup",  # of its own sessions: see below
}
"""What changes something, and names no session in its path: a bound key begins sessions of its own there."""


@dataclass(frozen=True)
class Wall:
    headers: dict[str, str]
    session_id: str
    run_id: str


@pytest.fixture(scope="module")
async def wall(fleet: Fleet) -> Wall:
    """A key that is bound to one profile, and a session of no profile."""
    async with Database.open(Settings(_env_file=None, database_url=fleet.env["DATABASE_URL"])) as db:
        key = await keys.create_key(db, tenant="default", name=uuid4().hex, scopes=SCOPES, profiles=["readonly"])
    session_id = await fleet[0].session(title="foreign")
    done = await fleet[0].ask(session_id, "say foreign")
    return Wall({"X-API-Key": key.secret}, session_id, done["run_id"])


def filled(path: str, wall: Wall) -> str:
    known = {"session_id": wall.session_id, "run_id": wall.run_id, "port": "8000"}
    parts = (part[1:-1] if part.startswith("{") else None for part in path.split("/"))
    named = [known.get(name, str(uuid4())) if name else text for name, text in zip(parts, path.split("/"), strict=True)]
    return "/".join(named)


@pytest.mark.parametrize(
    ("method", "path"),
    [(m, p) for m, p in OPERATIONS if "{session_id}" in p or ("{run_id}" in p and "/preview/" not in p)],
)
async def test_a_session_of_another_profile_is_closed_to_every_route(
    fleet: Fleet, wall: Wall, method: str, path: str
) -> None:
    answer = await fleet[1].client.request(method, filled(path, wall), headers=wall.headers, json={})
    assert answer.status_code == 403, answer.text
    if path.startswith("/api/v1") and "/admin/" not in path:
        assert answer.json()["error"]["code"] == "profile_not_permitted"


@pytest.mark.parametrize(
    ("method", "path"),
    [(m, p) for m, p in OPERATIONS if m != "get" and "{session_id}" not in p and "{run_id}" not in p and p not in OWN],
)
async def test_what_all_keys_of_a_tenant_use_is_not_changed_by_a_bound_key(
    fleet: Fleet, wall: Wall, method: str, path: str
) -> None:
    answer = await fleet[1].client.request(method, filled(path, wall), headers=wall.headers, json={})
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["code"] == "key_is_bound"


async def test_the_session_is_as_it_was_and_its_own_keys_use_it(fleet: Fleet, wall: Wall) -> None:
    state = (await fleet[1].get(f"/sessions/{wall.session_id}")).json()
    assert (state["title"], state["num_turns"]) == ("foreign", 1)
    assert "mine" in (await fleet[1].ask(wall.session_id, "say mine"))["result"]


async def test_lists_leave_out_what_a_bound_key_cannot_use(fleet: Fleet, wall: Wall) -> None:
    own = (await fleet[0].post("/sessions", {}, headers=wall.headers)).json()["session_id"]
    listed = (await fleet[1].get("/sessions?limit=200", headers=wall.headers)).json()["data"]
    assert own in [session["session_id"] for session in listed]
    assert {session["profile"] for session in listed} == {"readonly"}
    assert (await fleet[1].get("/requests?status=all", headers=wall.headers)).json()["data"] == []
    assert (await fleet[1].get("/agents", headers=wall.headers)).status_code == 200


async def test_a_clean_up_of_a_bound_key_leaves_the_sessions_of_others(fleet: Fleet, wall: Wall) -> None:
    started = await fleet[0].client.post("/compat/execute-server/execute/", json={"prompt": "say hello"})
    foreign = started.json()["session_id"]
    run_id = (await fleet[0].get(f"/sessions/{foreign}/runs")).json()["data"][0]["run_id"]
    await fleet[0].follow(run_id)
    path = "/compat/execute-server/sessions"
    assert foreign not in (await fleet[1].client.get(f"{path}/", headers=wall.headers)).text
    cleaned = await fleet[1].client.delete(f"{path}/cleanup?max_age_hours=0", headers=wall.headers)
    assert cleaned.json()["removed"] == 0
    assert (await fleet[1].get(f"/sessions/{foreign}")).status_code == 200


async def test_an_idempotency_key_opens_no_session_of_another_profile(fleet: Fleet, wall: Wall) -> None:
    for path, body in (("/sessions", {}), ("/query", {"prompt": "say once"})):
        again = {"Idempotency-Key": uuid4().hex}
        assert (await fleet[0].post(path, body, headers=again)).status_code in (200, 201)
        repeated = await fleet[1].post(path, body, headers={**again, **wall.headers})
        assert (repeated.status_code, repeated.json()["error"]["code"]) == (403, "profile_not_permitted")


async def test_a_websocket_is_no_way_around(fleet: Fleet, wall: Wall) -> None:
    ids = {"session_id": wall.session_id}
    url = fleet[1].url.replace("http", "ws") + "/api/v1/query/ws"
    async with connect(url, additional_headers=wall.headers) as socket:
        for message in (
            {"type": "prompt", "prompt": "say no", **ids},
            {"type": "follow", **ids},
            {"type": "follow", "run_id": wall.run_id, **ids},
            {"type": "interrupt", **ids},
            {"type": "control", "model": "x", **ids},
            {"type": "answer", "answers": {"a": "b"}, **ids},
            {"type": "answer", "decision": "allow", "request_id": str(uuid4()), **ids},
        ):
            await socket.send(json.dumps(message))
            answer = json.loads(await socket.recv())
            assert (answer["type"], answer["error"]["code"]) == ("error", "profile_not_permitted"), message
