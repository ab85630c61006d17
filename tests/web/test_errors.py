"""What is refused, how, and that nothing a client sends makes the server fail."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import orjson
import pytest
from fastapi import FastAPI

from apps.api.main import create_app
from apps.api.settings import Settings
from tests.conftest import NewKey
from tests.fleet import API_KEY, NO_TLS, Fleet, Sse, events_of

LONG_AGO, FAR_AWAY = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, whose shape is checked."""
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == response.headers["X-Request-ID"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["details"], dict)
    return error


class Caller:
    """Somebody with a key, or without."""

    def __init__(self, fleet: Fleet, key: str | None) -> None:
        self._url, self.headers = fleet[0].url, {"X-API-Key": key} if key else {}

    async def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        given = {**self.headers, **more.pop("headers", {})}
        headers = [(name.encode(), v if isinstance(v, bytes) else v.encode()) for name, v in given.items()]
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=60, verify=NO_TLS) as client:
            response = await client.request(method, f"/api/v1{path}", **more)
        assert response.status_code < 500, response.text
        assert response.headers["X-Request-ID"]
        return response


@pytest.fixture(scope="module")
def owner(fleet: Fleet) -> Caller:
    return Caller(fleet, API_KEY)


@pytest.fixture(scope="module")
async def stranger(fleet: Fleet, new_key: NewKey) -> Caller:
    """Somebody of another tenant, who may do everything there."""
    return Caller(fleet, (await new_key("strangers"))["X-API-Key"])


@pytest.fixture(scope="module")
async def onlooker(fleet: Fleet, new_key: NewKey) -> Caller:
    """Somebody of our tenant who may only read."""
    return Caller(fleet, (await new_key("default", scopes=("read",)))["X-API-Key"])


@pytest.fixture(scope="module")
async def ids(fleet: Fleet) -> dict[str, str]:
    """A session of ours with one run that is over."""
    answer = (await fleet[0].post("/query/single", {"prompt": "say hi"})).json()
    return {"session_id": answer["session_id"], "run_id": answer["run_id"]}


@pytest.fixture(scope="module")
def talk(ids: dict[str, str]) -> str:
    """A session of ours that tests go on with."""
    return ids["session_id"]


@pytest.fixture(scope="module")
async def document(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = (await fleet[0].client.get("/openapi.json")).json()
    return found


BODIES = {
    "PromptBody": {"prompt": "say hi"},
    "NextPromptBody": {"prompt": "say hi"},
    "SessionBody": {},
    "PatchBody": {"title": "mine"},
}
"""The least that each kind of body takes, where that is not its example."""


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and arguments of every route that needs a key."""
    for path, methods in document["paths"].items():
        if not path.startswith("/api/v1/"):  # the dialects have errors of their own: tests/dialects
            continue
        for method, operation in methods.items():
            if "security" not in operation:
                continue
            arguments = {}
            if "requestBody" in operation:
                arguments = _body(document, operation["requestBody"]["content"])
            yield method.upper(), path.removeprefix("/api/v1"), arguments


def _body(document: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    if "application/json" not in content:
        media, told = next(iter(content.items()))
        return {"content": told["example"].encode(), "headers": {"Content-Type": media}}
    kind = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return {"json": BODIES.get(kind) or _example(document["components"]["schemas"][kind])}


def _example(schema: dict[str, Any]) -> dict[str, Any]:
    """The example of a body, or of its fields."""
    if "examples" in schema:
        whole: dict[str, Any] = schema["examples"][0]
        return whole
    return {name: field["examples"][0] for name, field in schema["properties"].items() if "examples" in field}


class Ids(dict[str, str]):
    """Values for the parameters of a path: those given, and a name that fits everywhere for the others."""

    def __missing__(self, name: str) -> str:
        return str(uuid4()) if name.endswith("_id") else "A_NAME"


# --- keys ----------------------------------------------------------------------------------------------------------


async def test_every_route_but_health_asks_for_a_key(fleet: Fleet, document: dict[str, Any]) -> None:
    nobody, wrong = Caller(fleet, None), Caller(fleet, "cak_unknown")
    tried = 0
    for method, path, arguments in operations(document):
        there = path.format_map(Ids())
        for caller, code in ((nobody, "authentication_required"), (wrong, "invalid_api_key")):
            refused = await caller(method, there, **arguments)
            assert refused.status_code == 401, there
            assert method == "HEAD" or error_of(refused, 401, code)
        tried += 1
    assert tried >= 15


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-API-Key": ""}, "authentication_required"),
        ({"Authorization": ""}, "authentication_required"),
        ({"Authorization": "Bearer"}, "authentication_required"),
        ({"Authorization": f"Basic {API_KEY}"}, "authentication_required"),
        ({"Authorization": API_KEY}, "authentication_required"),
        ({"Cookie": f"api_key={API_KEY}"}, "authentication_required"),
        ({"X-API-Key": API_KEY[:-1]}, "invalid_api_key"),
        ({"X-API-Key": API_KEY.upper()}, "invalid_api_key"),
        ({"X-API-Key": b"\xe9\xff"}, "invalid_api_key"),
        ({"X-API-Key": "x" * 10_000}, "invalid_api_key"),
        ({"Authorization": "Bearer nobody"}, "invalid_api_key"),
        ({"X-API-Key": "wrong", "Authorization": f"Bearer {API_KEY}"}, "invalid_api_key"),
    ],
    ids=str,
)
async def test_a_wrong_key_is_refused(fleet: Fleet, headers: dict[str, str | bytes], code: str) -> None:
    error_of(await Caller(fleet, None)("GET", "/whoami", headers=headers), 401, code)


async def test_a_key_in_the_query_string_is_no_key(fleet: Fleet) -> None:
    for name in ("api_key", "key", "X-API-Key", "access_token"):
        refused = await Caller(fleet, None)("GET", "/whoami", params={name: API_KEY})
        error_of(refused, 401, "authentication_required")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_bearer_token_is_as_good_as_the_header(fleet: Fleet, scheme: str) -> None:
    answer = await Caller(fleet, None)("GET", "/whoami", headers={"Authorization": f"{scheme} {API_KEY}"})
    assert answer.status_code == 200
    assert answer.json()["tenant"] == "default"


async def test_a_key_is_checked_before_what_it_asks_for(fleet: Fleet) -> None:
    """Nobody learns what exists, or what would be valid, without a key."""
    nobody = Caller(fleet, None)
    for method, path, body in (
        ("POST", "/query", {"nonsense": 1}),
        ("GET", "/sessions/nonsense", None),
        ("GET", "/sessions?limit=nonsense", None),
    ):
        error_of(await nobody(method, path, json=body), 401, "authentication_required")


async def test_no_log_of_an_instance_holds_the_key(fleet: Fleet, owner: Caller) -> None:
    await owner("GET", "/whoami", headers={"Authorization": f"Bearer {API_KEY}"})
    for instance in fleet.instances:
        assert API_KEY not in instance.log.read_text()
    assert "/api/v1/whoami" in fleet[0].log.read_text()


# --- scopes and tenants --------------------------------------------------------------------------------------------


async def test_a_read_only_key_changes_nothing(onlooker: Caller, document: dict[str, Any], ids: dict[str, str]) -> None:
    tried = 0
    for method, path, arguments in operations(document):
        if method not in ("GET", "HEAD"):
            refused = await onlooker(method, path.format_map(Ids(ids)), **arguments)
            scope = "admin" if path.startswith("/admin/") else "write"
            assert f"'{scope}'" in error_of(refused, 403, "insufficient_scope")["message"]
            tried += 1
    assert tried >= 8


def known(path: str, ids: dict[str, str]) -> bool:
    """Whether all objects that the path names are ours; those that have names are tested with their routes."""
    return set(re.findall(r"{(\w+)}", path)) <= set(ids)


async def test_a_read_only_key_reads(onlooker: Caller, document: dict[str, Any], ids: dict[str, str]) -> None:
    for method, path, _ in operations(document):
        if method == "GET" and known(path, ids):
            answer = await onlooker(method, path.format(**ids), headers={"Accept": "application/json"})
            # A link to a port lets in whoever has it, and nothing that reads shows the files of an archive.
            refused = path.startswith("/admin/") or path.endswith(("/ports", "/export"))
            assert answer.status_code == (403 if refused else 200), path


async def test_another_tenants_object_is_not_found_on_every_route(
    owner: Caller, stranger: Caller, document: dict[str, Any], ids: dict[str, str]
) -> None:
    tried = 0
    for method, path, arguments in operations(document):
        if "{" not in path or not known(path, ids) or path.startswith("/admin/"):  # operators see every tenant
            continue
        foreign = await stranger(method, path.format(**ids), **arguments)
        unknown = await stranger(method, path.format_map(Ids()), **arguments)
        noun = "run" if "{run_id}" in path else "session"
        assert error_of(foreign, 404, f"{noun}_not_found") == error_of(unknown, 404, f"{noun}_not_found"), path
        tried += 1
    assert tried >= 10
    state = (await owner("GET", f"/sessions/{ids['session_id']}")).json()
    assert (state["title"], state["queued_runs"]) == (None, 0)
    assert len((await owner("GET", f"/sessions/{ids['session_id']}/runs")).json()["data"]) == 1


@pytest.mark.parametrize("path", ["/query", "/query/single"])
async def test_another_tenants_session_cannot_be_prompted(stranger: Caller, ids: dict[str, str], path: str) -> None:
    body = {"prompt": "recall", "session_id": ids["session_id"]}
    error_of(await stranger("POST", path, json=body), 404, "session_not_found")


async def test_a_run_of_another_session_is_not_found_under_this_one(owner: Caller, ids: dict[str, str]) -> None:
    mine = (await owner("POST", "/sessions", json={})).json()["session_id"]
    path = f"/sessions/{mine}/events"
    error_of(await owner("GET", path, params={"run_id": ids["run_id"]}), 404, "run_not_found")
    error_of(await owner("GET", path, params={"run_id": str(uuid4())}), 404, "run_not_found")


async def test_another_tenant_does_not_see_our_sessions_in_its_list(
    owner: Caller, stranger: Caller, ids: dict[str, str]
) -> None:
    ours = (await owner("GET", "/sessions", params={"limit": 200})).json()["data"]
    theirs = (await stranger("GET", "/sessions", params={"limit": 200})).json()["data"]
    assert ids["session_id"] in [session["session_id"] for session in ours]
    assert not {s["session_id"] for s in ours} & {s["session_id"] for s in theirs}


async def test_an_idempotency_key_of_another_tenant_is_another_key(owner: Caller, stranger: Caller) -> None:
    headers = {"Idempotency-Key": f"shared-{uuid4()}"}
    made = [(await caller("POST", "/sessions", json={}, headers=headers)) for caller in (owner, stranger, owner)]
    assert [response.status_code for response in made] == [201, 201, 201]
    one, theirs, again = (response.json()["session_id"] for response in made)
    assert one == again != theirs


# --- what is not valid ---------------------------------------------------------------------------------------------

PROMPT = {"prompt": "say hi"}
FIELDS: dict[str, tuple[str, Any]] = {
    # what is wrong: (the field that is named, the body of POST /query/single)
    "unknown field": ("promt", {**PROMPT, "promt": "say hi"}),
    "unknown field of the SDK": ("setting_sources", {**PROMPT, "setting_sources": []}),
    "no prompt": ("prompt", {}),
    "prompt null": ("prompt", {"prompt": None}),
    "prompt a number": ("prompt", {"prompt": 1}),
    "prompt empty": ("prompt", {"prompt": ""}),
    "prompt blank": ("prompt", {"prompt": " \n\t\u00a0\u2003"}),
    "prompt too long": ("prompt", {"prompt": "x" * 400_001}),
    "prompt without blocks": ("prompt", {"prompt": []}),
    "prompt of a blank block": ("prompt", {"prompt": [{"type": "text", "text": " "}]}),
    "prompt of an empty block": ("prompt.0.text", {"prompt": [{"type": "text", "text": ""}]}),
    "prompt of another block": ("prompt.0", {"prompt": [{"type": "audio", "text": "x"}]}),
    "prompt of too many blocks": ("prompt", {"prompt": [{"type": "text", "text": "x"}] * 101}),
    "prompt with half a pair in a block": (
        "prompt.0.text",
        {"prompt": [{"type": "text", "text": "\ud83d"}]},
    ),
    "session id": ("session_id", {**PROMPT, "session_id": "nope"}),
    "title empty": ("title", {**PROMPT, "title": ""}),
    "title too long": ("title", {**PROMPT, "title": "x" * 201}),
    "title with NUL": ("title", {**PROMPT, "title": "a\x00b"}),
    "title with half a pair": ("title", {**PROMPT, "title": "\ude00"}),
    "too many tags": ("tags", {**PROMPT, "tags": [f"t{n}" for n in range(33)]}),
    "tag empty": ("tags.0", {**PROMPT, "tags": [""]}),
    "tag with NUL": ("tags.1", {**PROMPT, "tags": ["fine", "a\x00b"]}),
    "tag with a comma": ("tags.0", {**PROMPT, "tags": ["a,b"]}),
    "tag with a line break": ("tags.0", {**PROMPT, "tags": ["a\n"]}),
    "tag with half a pair": ("tags.0", {**PROMPT, "tags": ["\ud83d"]}),
    "metadata of a list": ("metadata", {**PROMPT, "metadata": []}),
    "metadata of too many": ("metadata", {**PROMPT, "metadata": {f"k{n}": "v" for n in range(33)}}),
    "metadata that is no text": ("metadata.k", {**PROMPT, "metadata": {"k": 1}}),
    "metadata with NUL": ("metadata.k", {**PROMPT, "metadata": {"k": "a\x00b"}}),
    "metadata with half a pair": ("metadata.k", {**PROMPT, "metadata": {"k": "\ud83d"}}),
    "metadata too long": ("metadata.k", {**PROMPT, "metadata": {"k": "x" * 513}}),
    "metadata key with NUL": ("metadata.a\x00b", {**PROMPT, "metadata": {"a\x00b": "v"}}),
    "metadata key with a space": ("metadata.a b", {**PROMPT, "metadata": {"a b": "v"}}),
    "env reserved": ("env", {**PROMPT, "env": {"ANTHROPIC_API_KEY": "x"}}),
    "env reserved in lower case": ("env", {**PROMPT, "env": {"anthropic_base_url": "x"}}),
    "env that loads code": ("env", {**PROMPT, "env": {"LD_PRELOAD": "x"}}),
    "env that loads code into the CLI": ("env", {**PROMPT, "env": {"NODE_OPTIONS": "--require x"}}),
    "env that git runs": ("env", {**PROMPT, "env": {"GIT_SSH_COMMAND": "x"}}),
    "env PATH": ("env", {**PROMPT, "env": {"PATH": "."}}),
    "env of the server": ("env", {**PROMPT, "env": {"DATABASE_URL": "x"}}),
    "env with NUL": ("env.A", {**PROMPT, "env": {"A": "a\x00b"}}),
    "env name": ("env.A=B", {**PROMPT, "env": {"A=B": "x"}}),
    "cwd absolute": ("cwd", {**PROMPT, "cwd": "/etc"}),
    "cwd climbing out": ("cwd", {**PROMPT, "cwd": "../other"}),
    "cwd climbing out later": ("cwd", {**PROMPT, "cwd": "a/../../b"}),
    "cwd with NUL": ("cwd", {**PROMPT, "cwd": "a\x00b"}),
    "cwd with a line break": ("cwd", {**PROMPT, "cwd": "a\nb"}),
    "cwd with half a pair": ("cwd", {**PROMPT, "cwd": "\ud83d"}),
    "cwd too long": ("cwd", {**PROMPT, "cwd": "x" * 1001}),
    "model": ("model", {**PROMPT, "model": "--help"}),
    "model empty": ("model", {**PROMPT, "model": ""}),
    "system prompt with NUL": ("system_prompt", {**PROMPT, "system_prompt": "\x00"}),
    "permission mode": ("permission_mode", {**PROMPT, "permission_mode": "yolo"}),
    "tool": ("tools.0", {**PROMPT, "tools": ["-x"]}),
    "tool rule": ("allowed_tools.0", {**PROMPT, "allowed_tools": ["Bash(\n)"]}),
    "no turns": ("max_turns", {**PROMPT, "max_turns": 0}),
    "half a turn": ("max_turns", {**PROMPT, "max_turns": 1.5}),
    "more turns than a number holds": ("max_turns", {**PROMPT, "max_turns": 2**80}),
    "no budget": ("max_budget_usd", {**PROMPT, "max_budget_usd": 0}),
    "timeout of nothing": ("timeout_seconds", {**PROMPT, "timeout_seconds": 0}),
    "timeout too long": ("timeout_seconds", {**PROMPT, "timeout_seconds": 86_401}),
    "busy": ("on_busy", {**PROMPT, "on_busy": "explode"}),
}


def as_json(value: Any) -> dict[str, Any]:
    """A body that httpx itself would refuse to write."""
    return {"content": json.dumps(value).encode(), "headers": {"Content-Type": "application/json"}}


@pytest.mark.parametrize(("field", "body"), FIELDS.values(), ids=FIELDS)
async def test_a_wrong_field_is_refused_by_its_name(owner: Caller, field: str, body: Any) -> None:
    error = error_of(await owner("POST", "/query/single", **as_json(body)), 422, "validation_error")
    named = [problem["field"] for problem in error["details"]["errors"]]
    assert field in named
    assert all(problem["reason"] for problem in error["details"]["errors"])


@pytest.mark.parametrize("secret", [{"env": {"PATH": "s3cret"}}, {"metadata": {"k": "s3cret" * 100}}, {"s3": "s3cret"}])
async def test_a_refusal_does_not_repeat_what_was_sent(owner: Caller, secret: dict[str, Any]) -> None:
    refused = await owner("POST", "/query/single", json={**PROMPT, **secret})
    error_of(refused, 422, "validation_error")
    assert "s3cret" not in refused.text


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "say hi", "max_budget_usd": NaN}',
        b'{"prompt": "say hi", "max_budget_usd": Infinity}',
        b'{"prompt": "say hi", "timeout_seconds": NaN}',
        b'{"prompt": "say hi", "timeout_seconds": 1e999}',
        b'{"prompt": "say hi", "\\ud83d": 1}',
        b'{"prompt": "say hi", "metadata": {"\\ud83d": "v"}}',
        b'{"prompt": "say hi", "env": {"\\ud83d": "v"}}',
        b'{"prompt": "say hi", "prompt": ""}',
        b"[]",
        b'"say hi"',
        b"null",
        b"1",
        b"",
    ],
)
async def test_json_that_is_no_request_is_refused(owner: Caller, content: bytes) -> None:
    sent = {"content": content, "headers": {"Content-Type": "application/json"}}
    error_of(await owner("POST", "/query/single", **sent), 422, "validation_error")


@pytest.mark.parametrize(
    "content", [b"{", b'{"prompt": }', b"{'prompt': 'say hi'}", b'{"prompt": "say hi"} and more', b"prompt=say+hi"]
)
async def test_a_body_that_is_no_json_is_refused(owner: Caller, content: bytes) -> None:
    sent = {"content": content, "headers": {"Content-Type": "application/json"}}
    error_of(await owner("POST", "/query", **sent), 400, "invalid_json")


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "\xff\xfe"}', b"[" * 200_000, b'{"a":' * 100_000, b'{"max_turns": ' + b"9" * 5_000 + b"}"],
    ids=["not UTF-8", "deep list", "deep object", "huge number"],
)
async def test_a_body_that_cannot_be_read_is_refused(owner: Caller, content: bytes) -> None:
    refused = await owner("POST", "/query", content=content, headers={"Content-Type": "application/json"})
    error_of(refused, 400, refused.json()["error"]["code"])
    assert refused.json()["error"]["code"] in ("invalid_json", "bad_request")


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense"]
)
async def test_a_body_of_another_type_is_refused_with_the_type_that_is_wanted(owner: Caller, media: str) -> None:
    sent = {"content": b'{"prompt": "say hi"}', "headers": {"Content-Type": media}}
    error = error_of(await owner("POST", "/query", **sent), 422, "validation_error")
    assert "application/json" in error["message"]


POSITIONS = ["", "x", "-1", "1-", "-", "1-2-3", "1.5", "1e3", "+1", "1 2", "0x1", "9" * 19, "1-" + "9" * 10, "9" * 41]


@pytest.mark.parametrize("position", [*POSITIONS, "١", "1\x00"])
async def test_a_bad_after_is_refused(owner: Caller, ids: dict[str, str], position: str) -> None:
    for path in (f"/sessions/{ids['session_id']}/events", f"/runs/{ids['run_id']}/events"):
        error = error_of(await owner("GET", path, params={"after": position}), 422, "validation_error")
        assert "after" in error["message"]


@pytest.mark.parametrize("position", [*POSITIONS, b"\xe9"])
async def test_a_bad_last_event_id_is_refused(owner: Caller, ids: dict[str, str], position: str | bytes) -> None:
    for path in (f"/sessions/{ids['session_id']}/events", f"/runs/{ids['run_id']}/events"):
        refused = await owner("GET", path, headers={"Last-Event-ID": position})
        assert "last-event-id" in error_of(refused, 422, "validation_error")["message"].lower()


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


QUERIES: list[tuple[str, dict[str, str]]] = [
    ("/sessions", {"limit": "0"}),
    ("/sessions", {"limit": "201"}),
    ("/sessions", {"limit": "ten"}),
    ("/sessions", {"limit": "9" * 100}),
    ("/sessions", {"status": "asleep"}),
    ("/sessions", {"tag": "a\x00b"}),
    ("/sessions", {"tag": "x" * 65}),
    ("/sessions", {"search": "a\x00b"}),
    ("/sessions", {"search": "x" * 201}),
    ("/sessions", {"metadata.k": "a\x00b"}),
    ("/sessions", {"metadata.a\x00b": "v"}),
    ("/sessions", {"created_after": "yesterday"}),
    ("/sessions", {"created_after": "2026-01-31T12:00:00"}),
    ("/sessions", {"created_after": "0001-01-01T00:00:00+14:00"}),
    ("/sessions", {"created_after": "9999-12-31T23:59:59-14:00"}),
    ("/sessions", {"created_after": "9" * 30}),
    ("/sessions", {"cursor": "nonsense"}),
    ("/sessions", {"cursor": "ä"}),
    ("/sessions", {"cursor": "\x00"}),
    ("/sessions", {"cursor": ""}),
    ("/sessions", {"cursor": "x" * 201}),
    ("/sessions", {"cursor": cursor("2026-01-31T12:00:00+00:00")}),
    ("/sessions", {"cursor": cursor("2026-01-31T12:00:00+00:00|nope")}),
    ("/sessions", {"cursor": cursor(f"2026-01-31T12:00:00|{uuid4()}")}),
    ("/sessions", {"cursor": cursor(f"0001-01-01T00:00:00+14:00|{uuid4()}")}),
    ("/sessions/{session_id}/messages", {"cursor": "nonsense"}),
    ("/sessions/{session_id}/messages", {"cursor": "-1"}),
    ("/sessions/{session_id}/messages", {"cursor": "9" * 19}),
    ("/sessions/{session_id}/messages", {"cursor": "9" * 201}),
    ("/sessions/{session_id}/messages", {"limit": "0"}),
    ("/sessions/{session_id}/runs", {"cursor": "9" * 19}),
    ("/sessions/{session_id}/runs", {"cursor": "1.0"}),
    ("/sessions/{session_id}/runs", {"limit": "-1"}),
    ("/runs", {"cursor": "nonsense"}),
    ("/runs", {"status": "idle"}),
    ("/runs", {"error_code": "nonsense"}),
    ("/runs", {"created_after": "2026-01-31T12:00:00"}),
    ("/runs", {"created_before": "0001-01-01T00:00:00+14:00"}),
    ("/runs", {"agent": "a b"}),
    ("/webhooks", {"cursor": "nonsense"}),
    ("/schedules", {"cursor": "nonsense"}),
    ("/schedules", {"limit": "0"}),
    ("/schedules/nope", {}),
    ("/sessions/{session_id}/events", {"cursor": "nonsense"}),
    ("/sessions/{session_id}/events", {"until": "never"}),
    ("/sessions/{session_id}/events", {"run_id": "nope"}),
    ("/sessions/{session_id}/events", {"limit": "0"}),
    ("/sessions/nope", {}),
    ("/sessions/nope/events", {}),
    ("/sessions/%00", {}),
    ("/runs/1", {}),
    ("/runs/1/events", {}),
]


@pytest.mark.parametrize(("path", "params"), QUERIES)
async def test_a_wrong_question_is_refused(
    owner: Caller, ids: dict[str, str], path: str, params: dict[str, str]
) -> None:
    error = error_of(await owner("GET", path.format(**ids), params=params), 422, "validation_error")
    assert error["details"]["errors"]


@pytest.mark.parametrize(
    ("path", "name", "advice"),
    [
        ("/sessions", "limt", "no such parameter; did you mean limit?"),
        ("/sessions", "metadata", "no such parameter; there are: agent, created_after,"),
        ("/runs", "error", "no such parameter; did you mean error_code?"),
        ("/runs/{run_id}", "limit", "this route takes no parameters"),
        ("/usage", "form", "no such parameter; did you mean from?"),
        ("/whoami", "x" * 9000, "this route takes no parameters"),
    ],
    ids=lambda value: value[:20],
)
async def test_a_parameter_that_is_not_known_is_refused_with_the_one_that_was_meant(
    owner: Caller, ids: dict[str, str], path: str, name: str, advice: str
) -> None:
    error = error_of(await owner("GET", path.format(**ids), params={name: "1"}), 422, "validation_error")
    [found] = error["details"]["errors"]
    assert found["field"] == name[:100]
    assert found["reason"].startswith(advice)


async def test_no_route_takes_a_parameter_that_it_does_not_know(
    owner: Caller, document: dict[str, Any], ids: dict[str, str]
) -> None:
    tried = 0
    for method, path, arguments in operations(document):
        refused = await owner(method, path.format_map(Ids(ids)), params={"unknown_name": "1"}, **arguments)
        assert refused.status_code == 422, path
        assert method == "HEAD" or error_of(refused, 422, "validation_error")["message"].startswith("unknown_name: ")
        tried += 1
    assert tried > 90


@pytest.mark.parametrize("wait", ["-1", "301", "nan", "inf", "soon"])
async def test_a_wrong_wait_is_refused_and_nothing_is_queued(owner: Caller, ids: dict[str, str], wait: str) -> None:
    path = f"/sessions/{ids['session_id']}"
    refused = await owner("POST", f"{path}/query", params={"wait": wait}, json=PROMPT)
    error_of(refused, 422, "validation_error")
    assert len((await owner("GET", f"{path}/runs")).json()["data"]) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, b"\xe9"])
async def test_a_wrong_idempotency_key_is_refused(owner: Caller, key: str | bytes) -> None:
    refused = await owner("POST", "/sessions", json={}, headers={"Idempotency-Key": key})
    assert "idempotency-key" in error_of(refused, 422, "validation_error")["message"].lower()


async def test_a_label_is_refused_when_it_is_changed_as_when_it_is_given(owner: Caller, ids: dict[str, str]) -> None:
    path = f"/sessions/{ids['session_id']}"
    for body in ({"title": "a\x00b"}, {"tags": ["a\x00b"]}, {"metadata": {"k": "a\x00b"}}, {"model": "claude-x"}):
        error_of(await owner("PATCH", path, json=body), 422, "validation_error")
    state = (await owner("GET", path)).json()
    assert (state["title"], state["tags"], state["metadata"]) == (None, [], {})


async def test_the_working_directory_of_a_session_is_fixed(owner: Caller, ids: dict[str, str]) -> None:
    path = f"/sessions/{ids['session_id']}/query"
    error = error_of(await owner("POST", path, json={**PROMPT, "cwd": "elsewhere"}), 422, "validation_error")
    assert error["details"]["errors"][0]["field"] == "cwd"


# --- what is odd, but valid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/sessions", {"created_after": FAR_AWAY}),
        ("/sessions", {"search": "100%_\\'\"; DROP TABLE sessions --"}),
        ("/sessions", {"search": "no title has this"}),
        ("/sessions", {"tag": "{no,such}"}),
        ("/sessions", {"metadata.": "v"}),
        ("/sessions", {"metadata.k": "no such"}),
        ("/sessions", {"cursor": cursor(f"{LONG_AGO}|{uuid4()}")}),
        ("/sessions", {"status": "requires_action", "created_after": FAR_AWAY}),
        ("/sessions/{session_id}/messages", {"cursor": "9" * 18}),
        ("/sessions/{session_id}/runs", {"cursor": "0"}),
    ],
)
async def test_a_question_that_nothing_fits_has_an_empty_answer(
    owner: Caller, ids: dict[str, str], path: str, params: dict[str, str]
) -> None:
    answer = await owner("GET", path.format(**ids), params=params, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"data": [], "next_cursor": None}


async def test_the_beginning_of_time_is_a_moment_like_others(owner: Caller, ids: dict[str, str]) -> None:
    answer = await owner("GET", "/sessions", params={"created_after": LONG_AGO, "limit": 200})
    assert ids["session_id"] in [session["session_id"] for session in answer.json()["data"]]


@pytest.mark.parametrize(
    "text", ["a\x00b", "half \ud83d a pair", "\u2028 \x1b[31m 😀 \ufeff"], ids=["NUL", "lone surrogate", "controls"]
)
async def test_a_prompt_may_hold_any_character(owner: Caller, talk: str, text: str) -> None:
    answer = await owner("POST", "/query/single", **as_json({"prompt": f"say {text}", "session_id": talk}))
    assert answer.status_code == 200, answer.text
    page = (await owner("GET", f"/sessions/{talk}/messages", params={"limit": 200})).json()
    asked = [message["content"] for message in page["data"] if message["role"] == "user"]
    assert asked[-1] == [{"type": "text", "text": f"say {text}"}]


async def test_a_model_that_does_not_exist_is_the_clients_mistake(owner: Caller) -> None:
    refused = await owner("POST", "/query/single", json={**PROMPT, "model": "claude-unknown"})
    error = error_of(refused, 400, "model_not_found")
    run = (await owner("GET", f"/runs/{error['details']['run_id']}")).json()
    assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("failed", "model_not_found", False)


# --- positions that are gone ---------------------------------------------------------------------------------------


async def streamed(fleet: Fleet, path: str, **more: Any) -> list[Sse]:
    async with fleet[1].client.stream("GET", f"/api/v1{path}", **more) as response:
        assert response.status_code == 200
        return [event async for event in events_of(response)]


@pytest.mark.parametrize("position", ["100000", "9" * 18, f"{'9' * 18}-{'9' * 9}"])
@pytest.mark.parametrize("path", ["/sessions/{session_id}/events?until=idle", "/runs/{run_id}/events"])
async def test_a_position_beyond_the_end_is_told_where_the_end_is(
    fleet: Fleet, owner: Caller, ids: dict[str, str], path: str, position: str
) -> None:
    newest = (await owner("GET", f"/sessions/{ids['session_id']}")).json()["last_seq"]
    there = path.format(**ids)
    by_header = await streamed(fleet, there, headers={"Last-Event-ID": position})
    by_query = await streamed(fleet, f"{there}{'&' if '?' in there else '?'}after={position}")
    for events in (by_header, by_query):
        assert [(event.event, event.id, event.data["seq"]) for event in events] == [("resync", str(newest), newest)]
    as_page = {"Last-Event-ID": position, "Accept": "application/json"}
    page = (await owner("GET", there, headers=as_page)).json()
    [event] = page["data"]
    assert (event["event"], event["id"], event["data"]["seq"]) == ("resync", str(newest), newest)
    as_page["Last-Event-ID"] = page["next_cursor"]
    assert (await owner("GET", there, headers=as_page)).json() == {"data": [], "next_cursor": None}


# --- bodies that are too large -------------------------------------------------------------------------------------


async def test_a_body_that_is_announced_too_large_is_refused(owner: Caller, fleet: Fleet) -> None:
    error = error_of(await owner("POST", "/query", json={"prompt": "x" * 9_000_000}), 413, "body_too_large")
    assert error["details"]["limit_bytes"] == 8_000_000


async def test_a_body_that_turns_out_too_large_is_refused(owner: Caller) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(200):
            yield b"x" * 50_000
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    error_of(await owner("POST", "/query", content=chunks(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_other_methods_are_bounded_too(owner: Caller, ids: dict[str, str], method: str) -> None:
    content = b'{"title": "' + b"x" * 9_000_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    refused = await owner(method, f"/sessions/{ids['session_id']}", content=content, headers=headers)
    error_of(refused, 413, "body_too_large")


async def test_a_body_within_the_limit_may_be_sent_in_pieces(owner: Caller) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b'{"ti', b'tle": "in ', b'pieces"}'):
            yield piece

    made = await owner("POST", "/sessions", content=chunks(), headers={"Content-Type": "application/json"})
    assert made.json()["title"] == "in pieces"


# --- routes, request ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nope", "/", "", "/sessions/x/y/z", "/query/single/more"])
async def test_an_unknown_path_is_not_found(owner: Caller, path: str) -> None:
    error_of(await owner("GET", path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/query", {"POST"}),
        ("DELETE", "/query/single", {"POST"}),
        ("PUT", "/sessions", {"GET", "POST"}),
        ("POST", "/whoami", {"GET"}),
        ("TRACE", "/whoami", {"GET"}),
    ],
)
async def test_another_method_is_refused_with_those_that_there_are(
    owner: Caller, method: str, path: str, allowed: set[str]
) -> None:
    refused = await owner(method, path)
    error_of(refused, 405, "method_not_allowed")
    assert set(refused.headers["Allow"].split(", ")) <= allowed


ANSWERS = [("GET", "/whoami", 200), ("GET", "/nope", 404), ("PUT", "/whoami", 405), ("POST", "/query", 422)]


@pytest.mark.parametrize("given", ["abc", "a-B_9.z:1", "x" * 128])
@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
async def test_a_request_id_is_kept(owner: Caller, method: str, path: str, status: int, given: str) -> None:
    answer = await owner(method, path, headers={"X-Request-ID": given})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, given)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", 'a"b', b"\xe9", "a/b", "%0a"])
async def test_a_bad_request_id_is_replaced(owner: Caller, given: str | bytes) -> None:
    answers = [await owner("GET", "/nope", headers={"X-Request-ID": given}) for _ in range(2)]
    made = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(len(ident) == 32 and set(ident) <= set("0123456789abcdef") for ident in made)
    assert made[0] != made[1]


async def test_a_stream_carries_the_request_id_too(fleet: Fleet, ids: dict[str, str]) -> None:
    path = f"/api/v1/runs/{ids['run_id']}/events"
    async with fleet[0].client.stream("GET", path, headers={"X-Request-ID": "of-a-stream"}) as response:
        assert response.headers["X-Request-ID"] == "of-a-stream"
        assert [event.event async for event in events_of(response)][-1] == "done"


# --- when the server itself fails ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing() -> tuple[FastAPI, list[Exception]]:
    """An application whose `/fails` raises the exception in the list."""
    app, failures = create_app(Settings(_env_file=None)), list[Exception]()

    @app.get("/fails")
    async def fails() -> None:
        raise failures[0]

    return app, failures


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (RuntimeError("s3cret"), 500, "internal_error"),
        (asyncpg.UniqueViolationError("s3cret"), 500, "internal_error"),
        (asyncpg.ConnectionDoesNotExistError("s3cret"), 503, "dependency_unavailable"),
        (asyncpg.CannotConnectNowError("s3cret"), 503, "dependency_unavailable"),
        (ConnectionRefusedError("s3cret"), 503, "dependency_unavailable"),
        (TimeoutError("s3cret"), 503, "dependency_unavailable"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_a_failure_is_told_without_its_cause(
    failing: tuple[FastAPI, list[Exception]], failure: Exception, status: int, code: str
) -> None:
    app, failures = failing
    failures[:] = [failure]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", verify=NO_TLS) as client:
        response = await client.get("/fails", headers={"X-Request-ID": "of-a-failure"})
    error_of(response, status, code)
    assert response.headers["X-Request-ID"] == "of-a-failure"
    assert "s3cret" not in response.text
    if status == 503:
        assert int(response.headers["Retry-After"]) > 0
    assert orjson.loads(response.content)["error"]["details"] == {}
