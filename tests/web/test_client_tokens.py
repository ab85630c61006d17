"""A client token opens what it names of one session, and nothing else: every route that there is, and the WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from apps.api import clock
from apps.api.core.config import grants
from apps.api.core.config.grants import ACTIONS, Grant
from apps.api.core.config.limits import Limits
from apps.api.db import Database
from apps.api.dialects.native.ws import KINDS
from tests.acceptance.asking import asked as permission
from tests.conftest import NewKey
from tests.fleet import HEADERS, NO_TLS, Fleet
from tests.web.test_bound_keys import ROUTES, filled

P = "/api/v1/sessions/{session_id}"
OPEN = {
    ("GET", P): "read",
    ("GET", f"{P}/events"): "read",
    ("GET", f"{P}/messages"): "read",
    ("GET", f"{P}/runs"): "read",
    ("GET", f"{P}/requests"): "read",
    ("GET", "/api/v1/runs/{run_id}"): "read",
    ("GET", "/api/v1/runs/{run_id}/events"): "read",
    ("POST", "/api/v1/query"): "prompt",
    ("POST", "/api/v1/query/single"): "prompt",
    ("POST", f"{P}/query"): "prompt",
    ("POST", f"{P}/resume"): "prompt",
    ("POST", f"{P}/interrupt"): "prompt",
    ("POST", "/api/v1/runs/{run_id}/cancel"): "prompt",
    ("POST", f"{P}/permissions/{{request_id}}"): "decide",
    ("POST", f"{P}/answer"): "decide",
    ("POST", f"{P}/tool-results/{{request_id}}"): "decide",
    ("GET", f"{P}/files"): "files",
    ("GET", f"{P}/files/{{path:path}}"): "files",
    ("HEAD", f"{P}/files/{{path:path}}"): "files",
    ("PUT", f"{P}/files/{{path:path}}"): "files",
}
"""All that a client token may open, and what it must allow for that."""

REFUSED = "client_token_not_permitted"


@dataclass(frozen=True)
class Held:
    """A session with a run, a token that allows everything of it, and another session with a run."""

    session_id: str
    run_id: str
    token: str
    other: dict[str, str]

    @property
    def own(self) -> dict[str, str]:
        return {"session_id": self.session_id, "run_id": self.run_id}


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


async def made(fleet: Fleet, session_id: str, key: dict[str, str] = HEADERS, **body: Any) -> dict[str, Any]:
    answer = await fleet[0].post(f"/sessions/{session_id}/client-tokens", body, headers=key)
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def token_of(fleet: Fleet, session_id: str, *allow: str, key: dict[str, str] = HEADERS, **body: Any) -> str:
    return str((await made(fleet, session_id, key, allow=list(allow or ACTIONS), **body))["token"])


@pytest.fixture
async def bare(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an instance that did not make the tokens, without a key of its own."""
    async with httpx.AsyncClient(base_url=fleet[1].url, verify=NO_TLS, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
async def held(fleet: Fleet) -> Held:
    session_id, other = await fleet[0].session(title="own"), await fleet[0].session(title="other")
    run = await fleet[0].ask(session_id, "say mine")
    foreign = await fleet[0].ask(other, "say theirs")
    names = {"session_id": other, "run_id": str(foreign["run_id"])}
    return Held(session_id, str(run["run_id"]), await token_of(fleet, session_id), names)


async def asked(
    client: httpx.AsyncClient, method: str, url: str, token: str | None, body: Any = None
) -> httpx.Response:
    headers = bearer(token) if token else {}
    accept = {"Accept": "application/json"} if method == "GET" else {}
    return await client.request(method, url, headers={**headers, **accept}, json=body)


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


# --- every route ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [(r.method, r.path) for r in ROUTES if (r.method, r.path) not in OPEN and r.method != "WEBSOCKET"],
)
async def test_a_route_that_is_not_named_here_is_closed_to_tokens(
    bare: httpx.AsyncClient, held: Held, method: str, path: str
) -> None:
    url = filled(path, held.own)
    answer = await asked(bare, method, url, held.token, {"prompt": "say no"} if method == "POST" else None)
    if answer.status_code != 403:
        # Then it is open to everybody.
        anybody = await asked(bare, method, url, None)
        assert anybody.status_code not in (401, 403), (path, answer.status_code)
        assert answer.status_code == anybody.status_code
    elif method != "HEAD" and not path.startswith("/compat/"):
        assert code_of(answer) == REFUSED


def test_what_is_open_to_tokens_is_there() -> None:
    assert set(OPEN) <= {(route.method, route.path) for route in ROUTES}
    assert set(OPEN.values()) == set(ACTIONS)


@pytest.mark.parametrize(("method", "path"), OPEN)
async def test_a_route_is_open_to_the_session_and_the_action_that_a_token_names(
    fleet: Fleet, bare: httpx.AsyncClient, held: Held, method: str, path: str
) -> None:
    body = {"prompt": "say hello", "session_id": held.session_id} if "/query" in path else {}
    if "{session_id}" in path and "query" in path:
        body.pop("session_id")
    mine = await asked(bare, method, filled(path, held.own), held.token, body if method in ("POST", "PUT") else None)
    assert mine.status_code not in (401, 403), mine.text
    # Nothing of another session, whether there is one or not.
    for ids in (held.other, {"session_id": str(uuid4()), "run_id": str(uuid4())}):
        if "session_id" in body:
            body["session_id"] = ids["session_id"]
        theirs = await asked(bare, method, filled(path, ids), held.token, body if method in ("POST", "PUT") else None)
        assert theirs.status_code == 404, theirs.text
        if method != "HEAD":
            assert code_of(theirs) == ("run_not_found" if "{run_id}" in path else "session_not_found")
    others = [action for action in ACTIONS if action != OPEN[method, path]]
    lesser = await token_of(fleet, held.session_id, *others)
    refused = await asked(bare, method, filled(path, held.own), lesser)
    assert refused.status_code == 403
    if method != "HEAD":
        assert code_of(refused) == REFUSED


async def test_the_websocket_does_for_a_token_what_its_routes_do(fleet: Fleet, held: Held) -> None:
    def messages(session_id: str) -> dict[str, dict[str, Any]]:
        return {
            "prompt": {"prompt": "say hello", "session_id": session_id},
            "follow": {"session_id": session_id},
            "unfollow": {"session_id": session_id},
            "interrupt": {"session_id": session_id},
            "answer": {"session_id": session_id, "answers": {"a": "b"}},
            "tool_result": {"session_id": session_id, "request_id": str(uuid4()), "content": "x"},
            "control": {"session_id": session_id, "model": "x"},
            "ping": {},
        }

    assert set(messages("")) == set(KINDS)
    url = fleet[1].url.replace("http", "ws") + "/api/v1/query/ws"

    async def told(token: str, session_id: str) -> dict[str, tuple[Any, ...]]:
        found = dict[str, tuple[Any, ...]]()
        async with connect(url, additional_headers=bearer(token)) as connection:
            for kind, message in messages(session_id).items():
                await connection.send(json.dumps({"type": kind, "ref": kind, **message}))
                while (answer := json.loads(await connection.recv())).get("ref") != kind:
                    continue
                error = answer.get("error", {})
                found[kind] = answer["type"], error.get("code")
        return found

    mine = await told(held.token, held.session_id)
    assert mine["control"] == ("error", REFUSED)
    assert [kind for kind in mine if mine[kind][1] == REFUSED] == ["control"]
    assert mine["prompt"][0] == mine["follow"][0] == "ack"
    theirs = await told(held.token, held.other["session_id"])
    assert {kind for kind in theirs if theirs[kind] == ("error", "session_not_found")} == set(KINDS) - {
        "ping",
        "control",
    }
    reader = await token_of(fleet, held.session_id, "read")
    assert {k for k, (_, code) in (await told(reader, held.session_id)).items() if code == REFUSED} == {
        *("prompt", "interrupt", "answer", "tool_result", "control")
    }


async def test_a_token_is_shown_in_the_first_message_of_a_websocket(fleet: Fleet, held: Held) -> None:
    url = fleet[1].url.replace("http", "ws") + "/api/v1/query/ws"
    long = await token_of(fleet, held.session_id, end_user="\N{BANKNOTE WITH EURO SIGN}" * 200)
    async with connect(url) as connection:
        await connection.send(json.dumps({"type": "auth", "api_key": long}))
        assert json.loads(await connection.recv())["type"] == "ack"


# --- what a token is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl_seconds": 0},
        {"ttl_seconds": 3601},
        {"allow": []},
        {"allow": ["admin"]},
        {"allow": ["read", "read"]},
        {"end_user": ""},
        {"end_user": "x" * 201},
        {"end_user": "a\nb"},
        {"origin": "https://a.example/path"},
        {"origin": "null"},
        {"scope": "x"},
    ],
)
async def test_what_cannot_be_a_token_is_refused(fleet: Fleet, held: Held, wrong: dict[str, Any]) -> None:
    answer = await fleet[0].post(f"/sessions/{held.session_id}/client-tokens", wrong)
    assert answer.status_code == 422, answer.text


async def test_a_token_of_the_longest_life_is_made(fleet: Fleet, held: Held) -> None:
    told = await made(fleet, held.session_id, ttl_seconds=3600)
    assert told["allow"] == ["read"]
    assert told["session_id"] == held.session_id


async def test_no_token_is_made_for_a_session_of_another_tenant(fleet: Fleet, held: Held, new_key: NewKey) -> None:
    answer = await fleet[0].post(f"/sessions/{held.session_id}/client-tokens", {}, headers=await new_key())
    assert (answer.status_code, code_of(answer)) == (404, "session_not_found")


async def test_a_key_that_may_only_read_makes_none(fleet: Fleet, new_key: NewKey, held: Held) -> None:
    reader = await new_key("default", scopes=("read",))
    answer = await fleet[0].post(f"/sessions/{held.session_id}/client-tokens", {}, headers=reader)
    assert (answer.status_code, code_of(answer)) == (403, "insufficient_scope")


async def test_a_token_that_was_changed_is_a_wrong_key(bare: httpx.AsyncClient, held: Held) -> None:
    middle = len(held.token) // 2
    for at in (len("cat_"), middle, len(held.token) - 2):
        changed = held.token[:at] + ("A" if held.token[at] != "A" else "B") + held.token[at + 1 :]
        answer = await asked(bare, "GET", f"/api/v1/sessions/{held.session_id}", changed)
        assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")


async def test_a_token_ends_with_its_time(fleet: Fleet, bare: httpx.AsyncClient, held: Held) -> None:
    short = await made(fleet, held.session_id, ttl_seconds=1)
    async with bare.stream(
        "GET", f"/api/v1/sessions/{held.session_id}/events", headers=bearer(short["token"])
    ) as open_:
        assert open_.status_code == 200
        async with asyncio.timeout(30):  # and what it has opened ends
            assert "client_token_expired" in "".join([text async for text in open_.aiter_text()])
    answer = await asked(bare, "GET", f"/api/v1/sessions/{held.session_id}", short["token"])
    assert (answer.status_code, code_of(answer)) == (401, "client_token_expired")


async def test_a_websocket_ends_with_the_time_of_its_token(fleet: Fleet, held: Held) -> None:
    token = await token_of(fleet, held.session_id, ttl_seconds=2)
    url = fleet[1].url.replace("http", "ws") + "/api/v1/query/ws"
    async with connect(url, additional_headers=bearer(token)) as connection, asyncio.timeout(30):
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "client_token_expired")


async def test_a_token_ends_with_its_key(fleet: Fleet, bare: httpx.AsyncClient, new_key: NewKey) -> None:
    key = await new_key("default")
    session_id = (await fleet[0].post("/sessions", {}, headers=key)).json()["session_id"]
    token = await token_of(fleet, session_id, key=key)
    assert (await asked(bare, "GET", f"/api/v1/sessions/{session_id}", token)).status_code == 200
    key_id = (await fleet[0].get("/whoami", headers=key)).json()["key_id"]
    assert (await fleet[0].post(f"/admin/keys/{key_id}/revoke")).status_code == 200
    answer = await asked(bare, "GET", f"/api/v1/sessions/{session_id}", token)
    assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")


async def test_a_token_ends_with_its_session(fleet: Fleet, bare: httpx.AsyncClient) -> None:
    session_id = await fleet[0].session()
    run = await fleet[0].ask(session_id, "say hello")
    token = await token_of(fleet, session_id)
    assert (await fleet[0].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    for method, path in OPEN:
        ids = {"session_id": session_id, "run_id": str(run["run_id"])}
        body = {"prompt": "say no", **({"session_id": session_id} if path.startswith("/api/v1/query") else {})}
        answer = await asked(
            bare, method, filled(path, ids), token, body if path.endswith(("query", "resume", "single")) else None
        )
        assert answer.status_code in (404, 409, 422), (method, path, answer.status_code)
        if answer.status_code == 409 and method != "HEAD":
            assert code_of(answer) == "session_deleted"


async def test_a_token_may_never_do_more_than_its_key(
    fleet: Fleet, bare: httpx.AsyncClient, new_key: NewKey, held: Held
) -> None:
    key = await new_key("default", scopes=("write",))
    key_id = (await fleet[0].get("/whoami", headers=key)).json()["key_id"]
    token = await token_of(fleet, held.session_id, key=key)
    url = f"/api/v1/sessions/{held.session_id}"
    # What is taken from the key afterwards is taken from its tokens.
    changed = await fleet[0].client.patch(f"/api/v1/admin/keys/{key_id}", json={"scopes": ["read"]})
    assert changed.status_code == 200, changed.text
    answer = await asked(bare, "POST", f"{url}/query", token, {"prompt": "say no"})
    assert (answer.status_code, code_of(answer)) == (403, "insufficient_scope")
    changed = await fleet[0].client.patch(f"/api/v1/admin/keys/{key_id}", json={"profiles": ["readonly"]})
    assert changed.status_code == 200, changed.text
    answer = await asked(bare, "GET", url, token)
    assert (answer.status_code, code_of(answer)) == (403, "profile_not_permitted")
    changed = await fleet[0].client.patch(
        f"/api/v1/admin/keys/{key_id}", json={"profiles": None, "networks": ["203.0.113.0/24"]}
    )
    assert changed.status_code == 200, changed.text
    answer = await asked(bare, "GET", url, token)
    assert (answer.status_code, code_of(answer)) == (403, "address_not_permitted")


async def test_a_token_ends_no_later_than_its_key_may_be_used(fleet: Fleet, new_key: NewKey, held: Held) -> None:
    ends = clock.now() + timedelta(seconds=60)
    key = await new_key("default", expires_at=ends)
    told = await made(fleet, held.session_id, key, ttl_seconds=3600)
    assert told["expires_at"] == ends.isoformat().replace("+00:00", "Z")


def test_a_token_outlives_the_rotation_of_the_servers_key_and_not_its_removal() -> None:
    old, new = (SecretStr(Fernet.generate_key().decode()) for _ in range(2))
    grant = Grant(uuid4(), ("read",), clock.now())
    token = grants.seal([old], "hash", grant)
    assert grants.unseal([new, old], token) == ("hash", grant)
    assert grants.unseal([new], token) is None
    assert grants.unseal([], token) is None
    # What is sealed with the same key for another purpose is none.
    assert grants.unseal([old], "cat_" + Fernet(old.get_secret_value()).encrypt(b"{}").decode()) is None
    assert grants.unseal([old], "cat_" + "x" * 10_000) is None
    assert grants.unseal([old], "cat_é") is None


# --- origins --------------------------------------------------------------------------------------------------------


async def test_a_page_of_another_origin_cannot_use_a_token_that_names_one(
    fleet: Fleet, bare: httpx.AsyncClient, held: Held
) -> None:
    token = await token_of(fleet, held.session_id, origin="https://app.example.com")
    url = f"/api/v1/sessions/{held.session_id}"
    for origin, status in (("https://app.example.com", 200), ("https://evil.example.com", 403), ("null", 403)):
        answer = await bare.get(url, headers=bearer(token, Origin=origin))
        assert answer.status_code == status
    assert code_of(answer) == "origin_not_permitted"
    assert (await bare.get(url, headers=bearer(token))).status_code == 200, "no page sends no origin"


async def test_a_page_of_an_origin_that_is_not_allowed_opens_no_websocket(fleet: Fleet, held: Held) -> None:
    url = fleet[1].url.replace("http", "ws") + "/api/v1/query/ws"
    for headers in (bearer(held.token), HEADERS, {}):
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers={**headers, "Origin": "https://evil.example.com"})
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "origin_not_permitted"
    async with connect(url, additional_headers={**HEADERS, "Origin": fleet[1].url}) as connection:
        await connection.send('{"type":"ping"}')
        assert json.loads(await connection.recv())["type"] == "pong"


# --- prompts --------------------------------------------------------------------------------------------------------


async def test_a_prompt_is_for_the_tokens_end_user(fleet: Fleet, bare: httpx.AsyncClient) -> None:
    session_id = await fleet[0].session(end_user="owner-1")
    token = await token_of(fleet, session_id, end_user="user-1")
    url = f"/api/v1/sessions/{session_id}/query?wait=60"
    done = await asked(bare, "POST", url, token, {"prompt": "say hello"})
    assert done.status_code == 200, done.text
    assert (await fleet[0].get(f"/runs/{done.json()['run_id']}")).json()["end_user"] == "user-1"
    assert (await fleet[0].get(f"/sessions/{session_id}")).json()["end_user"] == "owner-1"
    answer = await asked(bare, "POST", url, token, {"prompt": "say hello", "end_user": "user-2"})
    assert (answer.status_code, code_of(answer)) == (403, REFUSED)
    mute = await token_of(fleet, session_id)
    answer = await asked(bare, "POST", url, mute, {"prompt": "say hello", "end_user": "user-2"})
    assert (answer.status_code, code_of(answer)) == (403, REFUSED)


@pytest.mark.parametrize(
    "beyond",
    [
        {"permission_mode": "bypassPermissions"},
        {"system_prompt": "x"},
        {"allowed_tools": ["Bash"]},
        {"profile": "dev"},
        {"title": "x"},
        {"metadata": {"a": "b"}},
        {"fork_session": True},
        {"expand_prompt": True},
        {"session_id": None},
    ],
)
async def test_a_prompt_of_a_token_changes_nothing_else(
    bare: httpx.AsyncClient, held: Held, beyond: dict[str, Any]
) -> None:
    body = {"prompt": "say no", "session_id": held.session_id, **beyond}
    answer = await asked(bare, "POST", "/api/v1/query", held.token, body)
    assert (answer.status_code, code_of(answer)) == (403, REFUSED)
    assert answer.json()["error"]["details"]["errors"][0]["field"] == next(iter(beyond))


async def test_a_token_does_not_show_what_its_maker_has_configured(
    fleet: Fleet, bare: httpx.AsyncClient, held: Held
) -> None:
    session_id = await fleet[0].session(system_prompt="a secret of ours", metadata={"tier": "gold"})
    token = await token_of(fleet, session_id, "read")
    state = await asked(bare, "GET", f"/api/v1/sessions/{session_id}", token)
    assert (state.json()["config"], state.json()["metadata"]) == ({}, {})
    assert "secret of ours" not in state.text


async def test_prompts_of_tokens_count_for_their_key(
    fleet: Fleet, bare: httpx.AsyncClient, fleet_db: Database, held: Held, new_key: NewKey
) -> None:
    key = await new_key("default", limits=Limits(runs_per_minute=1000))
    key_id = (await fleet[0].get("/whoami", headers=key)).json()["key_id"]
    token = await token_of(fleet, held.session_id, key=key)
    answer = await asked(bare, "POST", f"/api/v1/sessions/{held.session_id}/query?wait=60", token, {"prompt": "say x"})
    assert "ratelimit-remaining" in answer.headers
    counted = await fleet_db.pool.fetchval("SELECT api_key_id FROM runs WHERE id = $1", UUID(answer.json()["run_id"]))
    assert str(counted) == key_id


async def test_the_audit_log_names_the_end_user(fleet: Fleet, bare: httpx.AsyncClient) -> None:
    session_id = await fleet[0].session()
    token = await token_of(fleet, session_id, "decide", end_user="user-9")
    run_id = await fleet[0].prompt(session_id, "run: touch it.txt")
    request = await permission(fleet[0], run_id)
    url = f"/api/v1/sessions/{session_id}/permissions/{request.data['request_id']}"
    decided = await asked(bare, "POST", url, token, {"decision": "deny"})
    assert decided.status_code == 200, decided.text
    resolved = next(event for event in await fleet[0].follow(run_id) if event.event == "action_resolved")
    assert resolved.data["by"]["end_user"] == "user-9"
    log = (await fleet[0].get("/admin/audit?limit=200")).json()["data"]
    lines = {line["action"]: line for line in reversed(log) if line["details"].get("end_user") == "user-9"}
    assert set(lines) == {"client_token.created", "request.answered"}
    assert lines["client_token.created"]["target"] == session_id
