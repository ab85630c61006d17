"""A key that is bound to profiles is a wall: every route that there is, and every way to name a session."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from fastapi import routing
from fastapi.dependencies.models import Dependant
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from apps.api.auth import SCOPES
from apps.api.dialects.native.ws import KINDS
from apps.api.main import create_app
from apps.api.settings import Settings
from tests.conftest import NewKey
from tests.fleet import Fleet

NAMES = {"session_id", "run_id"}


@dataclass(frozen=True)
class Named:
    """A route, the sessions and runs that a request to it may name, and where: `path`, `query` or `body`."""

    method: str
    path: str
    names: dict[str, str]


def _query(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*map(_query, dependant.dependencies))


def _named(method: str, route: Any) -> Named:
    body = getattr(route, "body_field", None)
    fields = getattr(body.field_info.annotation, "model_fields", {}) if body else {}
    places = {"body": fields, "query": _query(route.dependant)}
    names = {name: place for place, found in places.items() for name in NAMES & set(found)}
    return Named(method, route.path, names | {n: "path" for n in NAMES if f"{{{n}}}" in route.path})


def _all_routes() -> Iterator[Named]:
    app = create_app(Settings(_env_file=None))
    # Releases of FastAPI differ in whether the routes of a router that was included are the app's own.
    for route in getattr(routing, "iter_route_contexts", iter)(app.routes):
        if hasattr(route, "dependant"):
            for method in sorted(getattr(route, "methods", None) or {"WEBSOCKET"}):
                yield _named(method, route)


# What instances pass on to each other has been let in by the first, and needs a ticket.
ROUTES = [route for route in _all_routes() if not route.path.startswith("/internal/")]
NAMING = [
    (route.method, route.path, name, where)
    for route in ROUTES
    for name, where in sorted(route.names.items())
    if (name, where) != ("run_id", "body")
]
"""A run that a body names is only ever compared with those of the session in the path."""

SURFACES = ("chat-server/", "code-server/", "execute-server/", "managed-agents/")

OWN = {
    "/api/v1/query",
    "/api/v1/query/single",
    "/api/v1/sessions",
    "/api/v1/agents/preview",  # changes nothing
    "/mcp",  # of its own presets: see tests/dialects/mcp
    "/api/v1/schedules",  # of its own profiles: see tests/core/fleet/test_schedules.py
    "/api/v1/schedules/{schedule_id}",
    *(f"/api/v1/schedules/{{schedule_id}}/{act}" for act in ("pause", "resume", "run")),
    "/compat/chat-server/chat",
    "/compat/code-server/query",
    "/compat/code-server/session/start",
    "/compat/execute-server/execute/",
    "/compat/execute-server/sessions/cleanup",  # of its own sessions: see below
    "/compat/openai/v1/chat/completions",
    "/compat/openai/v1/responses",
    "/compat/openai/v1/conversations",
    # Of responses and conversations in its own sessions: see tests/clients/test_openai.py.
    "/compat/openai/v1/responses/{response_id}",
    "/compat/openai/v1/responses/{response_id}/cancel",
    "/compat/openai/v1/conversations/{conversation_id}",
    "/compat/openai/v1/conversations/{conversation_id}/items",
    # Chats and threads of others are refused by their names: tests/dialects has tests of that.
    "/ui/chat",
    "/ui/chat/{chat_id:path}/stop",
    "/ag-ui/{agent}",
    "/compat/managed-agents/v1/sessions",
    # Of its own profiles: see tests/dialects/test_managed_deployments.py.
    "/compat/managed-agents/v1/deployments",
    "/compat/managed-agents/v1/deployments/{deployment_id}",
    *(
        f"/compat/managed-agents/v1/deployments/{{deployment_id}}/{act}"
        for act in ("archive", "pause", "unpause", "run")
    ),
}
"""What changes something, and names no session in its path: a bound key begins sessions of its own there."""


YEARLY = {"cron": "0 0 1 1 *", "prompt": "say no"}


@dataclass(frozen=True)
class Wall:
    headers: dict[str, str]
    foreign: dict[str, str]
    own: dict[str, str]
    webhook: dict[str, str]


@pytest.fixture(scope="module")
async def wall(fleet: Fleet, new_key: NewKey) -> Wall:
    """A key that is bound to one profile, a session of no profile, and one of the key's own."""
    headers = await new_key("default", scopes=SCOPES, profiles=["readonly"])
    webhook_id = (await fleet[0].post("/webhooks", {"url": "https://127.0.0.1:1/"})).json()["webhook_id"]
    session_id = await fleet[0].session(title="foreign")
    done = await fleet[0].ask(session_id, "say foreign")
    own = {"session_id": (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]}
    own["schedule_id"] = (await fleet[0].post("/schedules", YEARLY, headers=headers)).json()["schedule_id"]
    foreign = {"session_id": session_id, "run_id": done["run_id"]}
    return Wall(headers, foreign, own, {"webhook_id": webhook_id})


def filled(path: str, known: dict[str, str]) -> str:
    return re.sub(r"{(\w+)(:\w+)?}", lambda found: {"port": "8000", **known}.get(found[1]) or str(uuid4()), path)


def test_the_walk_sees_every_kind_of_route() -> None:
    assert {where for *_, where in NAMING} == {"path", "query", "body"}
    named = {path for _, path, *_ in NAMING}
    for prefix in ("/api/v1/runs/", "/preview/", *(f"/compat/{name}" for name in SURFACES)):
        assert any(path.startswith(prefix) for path in named), prefix
    assert {method for method, *_ in NAMING} > {"GET", "POST", "PATCH", "DELETE", "WEBSOCKET"}


@pytest.mark.parametrize(("method", "path", "name", "where"), NAMING)
async def test_a_session_of_another_profile_is_closed_to_every_route(
    fleet: Fleet, wall: Wall, method: str, path: str, name: str, where: str
) -> None:
    foreign = {name: wall.foreign[name]}
    url = filled(path, {**wall.own, **(foreign if where == "path" else {})})
    if method == "WEBSOCKET":
        with pytest.raises(InvalidStatus) as refused:
            await connect(fleet[1].url.replace("http", "ws") + url, additional_headers=wall.headers)
        status, text = refused.value.response.status_code, bytes(refused.value.response.body or b"").decode()
    else:
        least = YEARLY if "/schedules" in path else {"prompt": "say no"}
        body = {**least, **foreign} if where == "body" else {}
        params = foreign if where == "query" else {}
        answer = await fleet[1].client.request(method, url, headers=wall.headers, json=body, params=params)
        status, text = answer.status_code, answer.text
    assert status == 403, text
    if method != "HEAD" and not path.startswith("/compat/"):
        assert json.loads(text)["error"]["code"] == "profile_not_permitted"


async def test_a_run_of_another_profile_is_no_run_of_the_own_session(fleet: Fleet, wall: Wall) -> None:
    told = []
    for run_id in (wall.foreign["run_id"], str(uuid4())):
        url = f"/api/v1/sessions/{wall.own['session_id']}/interrupt"
        answer = await fleet[1].client.post(url, headers=wall.headers, json={"run_id": run_id})
        told.append((answer.status_code, answer.json()["error"]))
    assert told[0] == told[1]
    assert told[0][0] == 409


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (route.method, route.path)
        for route in ROUTES
        if route.method not in ("GET", "WEBSOCKET") and "path" not in route.names.values() and route.path not in OWN
    ],
)
async def test_what_all_keys_of_a_tenant_use_is_not_changed_by_a_bound_key(
    fleet: Fleet, wall: Wall, method: str, path: str
) -> None:
    answer = await fleet[1].client.request(method, filled(path, {}), headers=wall.headers, json={})
    assert answer.status_code == 403, answer.text
    if not path.startswith("/compat/"):
        assert answer.json()["error"]["code"] == "key_is_bound"


@pytest.mark.parametrize(
    "path", [route.path for route in ROUTES if route.method == "GET" and "path" not in route.names.values()]
)
async def test_no_answer_names_a_session_of_another_profile(fleet: Fleet, wall: Wall, path: str) -> None:
    queries = ["?group_by=session&limit=200", "?group_by=key,model,session"] if path.endswith("/usage") else [""]
    for query in queries:
        answer = await fleet[1].client.get(filled(path, wall.webhook) + query, headers=wall.headers)
        assert not [id_ for id_ in wall.foreign.values() if id_ in answer.text]


async def test_what_a_webhook_was_told_of_all_sessions_is_not_for_a_bound_key(fleet: Fleet, wall: Wall) -> None:
    path = f"/webhooks/{wall.webhook['webhook_id']}"
    told = (await fleet[1].get(f"{path}/deliveries")).json()["data"]
    assert wall.foreign["run_id"] in [delivery["data"].get("run_id") for delivery in told]
    answer = await fleet[1].get(f"{path}/deliveries", headers=wall.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "key_is_bound")
    assert (await fleet[1].get(path, headers=wall.headers)).status_code == 200


async def test_no_fork_is_made_of_a_session_of_another_profile(fleet: Fleet, wall: Wall) -> None:
    body = {"prompt": "say no", "session_id": wall.foreign["session_id"], "fork_session": True}
    answer = await fleet[1].post("/query", body, headers=wall.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "profile_not_permitted")


async def test_the_session_is_as_it_was_and_its_own_keys_use_it(fleet: Fleet, wall: Wall) -> None:
    state = (await fleet[1].get(f"/sessions/{wall.foreign['session_id']}")).json()
    assert (state["title"], state["num_turns"]) == ("foreign", 1)
    assert "mine" in (await fleet[1].ask(wall.foreign["session_id"], "say mine"))["result"]


async def test_lists_leave_out_what_a_bound_key_cannot_use(fleet: Fleet, wall: Wall) -> None:
    own = (await fleet[0].post("/sessions", {}, headers=wall.headers)).json()["session_id"]
    listed = (await fleet[1].get("/sessions?limit=200", headers=wall.headers)).json()["data"]
    assert own in [session["session_id"] for session in listed]
    assert {session["profile"] for session in listed} == {"readonly"}
    assert (await fleet[1].get("/requests?status=all", headers=wall.headers)).json()["data"] == []
    assert (await fleet[1].get("/agents", headers=wall.headers)).status_code == 200


async def test_usage_by_session_is_of_the_sessions_that_a_bound_key_may_use(fleet: Fleet, wall: Wall) -> None:
    await fleet[0].ask(wall.own["session_id"], "say mine")

    async def sessions_of(**headers: str) -> tuple[set[str], int]:
        report = (await fleet[1].get("/usage?group_by=session&limit=200", headers=headers)).json()
        return {row["session_id"] for row in report["data"]}, report["totals"]["runs"]

    seen, runs = await sessions_of(**wall.headers)
    everything, all_runs = await sessions_of()
    assert seen < everything
    assert wall.foreign["session_id"] in everything - seen
    assert 0 < runs < all_runs
    sums = [(await fleet[1].get("/usage", headers=headers)).json()["totals"] for headers in (wall.headers, {})]
    assert sums[0] == sums[1], "the tenant's sums are everybody's"


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
    ids = {"session_id": wall.foreign["session_id"]}
    url = fleet[1].url.replace("http", "ws") + "/api/v1/query/ws"
    messages: list[dict[str, Any]] = [
        {"type": "prompt", "prompt": "say no", **ids},
        {"type": "follow", **ids},
        {"type": "follow", **wall.own, "run_id": wall.foreign["run_id"]},
        {"type": "unfollow", **ids},
        {"type": "interrupt", **ids},
        {"type": "control", "model": "x", **ids},
        {"type": "answer", "answers": {"a": "b"}, **ids},
        {"type": "answer", "decision": "allow", "request_id": str(uuid4()), **ids},
        {"type": "tool_result", "content": "x", "request_id": str(uuid4()), **ids},
    ]
    assert {message["type"] for message in messages} == set(KINDS) - {"ping"}
    async with connect(url, additional_headers=wall.headers) as socket:
        for message in messages:
            await socket.send(json.dumps(message))
            answer = json.loads(await socket.recv())
            assert (answer["type"], answer["error"]["code"]) == ("error", "profile_not_permitted"), message
