"""Two tenants with the same names, tags and labels: for neither is there anything of the other's.

From the application's own document: whatever can be named in a path, a query or a body is asked for with what the other
tenant has, by every kind of key, and the answer is the one for what nobody has. A new route, parameter or field of a
body fails here until it is said what it names.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from apps.api.dialects.native.ws import KINDS
from apps.api.main import descriptions
from tests.conftest import NewKey
from tests.contract import everything
from tests.fleet import NO_TLS, Fleet
from tests.hostile.tenants import COMMAND, NAME, Tenant, snapshot, two
from tests.receiver import receiving
from tests.sockets import Socket, open_socket
from tests.web.test_bound_keys import ROUTES

IN_PATHS = {
    "session_id": "session_id",
    "agent_id": "agent_id",
    "environment_id": "environment_id",
    "thread_id": "thread_id",
    "vault_id": "vault_id",
    "credential_id": "credential_id",
    "deployment_id": "deployment_id",
    "deployment_run_id": "deployment_run_id",
    "resource_id": "resource_id",
    "run_id": "run_id",
    "request_id": "request_id",
    "agent": "agent",
    "name": "name",
    "webhook_id": "webhook_id",
    "delivery_id": "delivery_id",
    "schedule_id": "schedule_id",
    "key_id": "key_id",
    "file_id": "file_id",
    "path": "marker",
    "tenant": "tenant",
    "response_id": "response_id",
    "conversation_id": "conversation_id",
    "item_id": "item_id",
    "model": "agent",
    "chat_id": "marker",
}
"""Parameter of a path → what it names."""

PROFILES = "/api/v1/profiles/{name}"
"""Those are the operator's, for all tenants."""

IN_QUERIES = {
    "actor": "key_id",
    "agent_id": "agent_id",
    "agent": "agent",
    "checkpoint_id": "checkpoint_id",
    "cursor": "cursor",
    "deployment_id": "deployment_id",
    "ids": "file_id",
    "ids[]": "file_id",
    "key_id": "key_id",
    "run_id": "run_id",
    "scope_id": "managed_session_id",
    "search": "marker",
    "session_id": "session_id",
    "tag": "marker",
    "tenant": "tenant",
}
PLAIN_QUERIES = """
    action after agent_version beta created_after created_at[gt] created_at[gte] created_at[lt] created_at[lte]
    created_before end_user error_code event_deltas event_deltas[] expires_in_seconds format from
    group_by has_error include_archived limit max_age_hours memory_store_id model name order page path recursive since
    starting_after status statuses statuses[] stream to trigger_type types types[] until version wait
"""
"""What names nothing that a tenant has."""

IN_BODIES: dict[str, tuple[str, Any]] = {
    # field → what it names, and how it is written
    "session_id": ("session_id", "{}"),
    "run_id": ("run_id", "{}"),
    "request_id": ("request_id", "{}"),
    "message_uuid": ("message_uuid", "{}"),
    "user_message_uuid": ("message_uuid", "{}"),
    "resume_session_at": ("message_uuid", "{}"),
    "checkpoint_id": ("checkpoint_id", "{}"),
    "agent": ("agent", "{}"),
    "environment_id": ("environment_id", "{}"),
    "file_id": ("file_id", "{}"),
    "vault_ids": ("vault_id", ["{}"]),
    "tenant": ("tenant", "{}"),
    "skills": ("name", ["tenant:{}"]),
    "mcp_reconnect": ("name", "{}"),
    "mcp_toggle": ("name", {"name": "{}", "enabled": True}),
    "stop_task": ("run_id", "{}"),
    "hooks": ("secret", {"PreToolUse": [{"url": "http://127.0.0.1/x", "secret": "${{{}}}"}]}),
    "mcp_servers": ("secret", {"s": {"type": "http", "url": "http://127.0.0.1/x", "headers": {"A": "${{{}}}"}}}),
    "agents": ("name", {"helper": {"description": "x", "prompt": "x", "skills": ["tenant:{}"]}}),
    "resources": ("file_id", [{"file_id": "{}"}]),
    "headers": ("secret", {"A": "${{{}}}"}),
    "previous_response_id": ("response_id", "{}"),
    "conversation": ("conversation_id", "{}"),
}
PLAIN_FIELDS = """
    add_dirs allow allowed_tools answers api_key args ask_tools at_seq auth auth_token authorization_token
    background betas budget client_tools command concurrent_runs config content context context_window cron cwd
    decision description disallowed_tools display_name dry_run effort enable_file_checkpointing enabled end_user env
    events events_days execution_identity expand_prompt expires_at expires_in_seconds fallback_model file file_bytes
    files fork_session forward_subagent_text forwardedProps id idle_sessions_days include include_partial_messages
    initial_events initial_prompt input instructions interrupt is_error items jitter_seconds limits live_sessions
    max_budget_usd max_session_usd max_turns message messageId messages metadata mode model models mount_path
    multiagent name networks on_busy on_disconnect on_owner_lost origin output_format overlap overlap_seconds
    overwrite parallel_tool_calls pause_after_failures permission_mode profile profiles prompt prompts_per_minute
    queued_runs reasoning reasoning_effort remember repo repository response_format resume runId runs_per_minute
    safety_identifier schedule scope scopes session source state store stream stream_options streams system
    system_prompt system_prompt_append tags target task_budget text thinking threadId time_zone timeout_seconds title
    tokens_per_day tokens_per_month tool_choice tools transcripts_days trigger ttl_seconds type unattended
    updated_input updated_permissions url usage_days usd_per_day usd_per_month user value vault_ids version wait
    workspace_bytes workspaces_days
"""
"""What names nothing that a tenant has."""

UNIQUE = "a name that nobody has"
BODIES: dict[str, Mapping[str, Any]] = {
    # The least of those that have required fields; no agent starts for what is refused.
    "prompt": {"prompt": "say no"},
    "PUT /api/v1/mcp-servers/{name}": {"type": "http", "url": "http://127.0.0.1/x"},
    "PUT /api/v1/skills/{name}": {"description": "x", "content": "x"},
    "PUT /api/v1/commands/{name}": {"description": "x", "content": "x"},
    "PUT /api/v1/secrets/{name}": {"value": "x" * 20},
    "POST /api/v1/agents": {"name": UNIQUE},
    "POST /api/v1/webhooks": {"url": "http://127.0.0.1:9/x"},
    "POST /api/v1/schedules": {"cron": "0 0 1 1 *", "prompt": "say no"},
    "POST /api/v1/admin/tenants": {"name": "x"},
    "POST /api/v1/admin/keys": {"name": "x", "scopes": ["read"], "tenant": "x"},
    "PUT /api/v1/admin/tenants/{tenant}/model-credential": {"api_key": "x"},
    "PUT /api/v1/admin/tenants/{tenant}/limits": {},
    "POST /api/v1/sessions/{session_id}/permissions/{request_id}": {"decision": "allow"},
    "POST /api/v1/sessions/{session_id}/tool-results/{request_id}": {"content": "x"},
    "POST /api/v1/sessions/{session_id}/answer": {"answers": {"q": "x"}},
    "POST /api/v1/sessions/{session_id}/reset": {"mode": "soft"},
    "POST /api/v1/sessions/{session_id}/files/move": {"source": "a", "target": "b"},
    "POST /api/v1/sessions/{session_id}/control": {"model": "m"},
    "POST /compat/openai/v1/responses": {"model": "claude-sonnet-5-5", "input": "say no"},
    "POST /compat/openai/v1/conversations/{conversation_id}": {"metadata": {}},
    "POST /compat/openai/v1/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "x"}]},
    "POST /ui/chat": {"id": "none", "messages": [{"id": "m", "role": "assistant", "parts": []}]},
    "POST /ag-ui/{agent}": {"threadId": "none", "runId": "r", "messages": []},
    "POST /compat/managed-agents/v1/agents": {"name": UNIQUE, "model": "m"},
    "POST /compat/managed-agents/v1/environments": {"name": UNIQUE},
    "POST /compat/managed-agents/v1/sessions": {"agent": "agent_x", "environment_id": "env_x"},
    "POST /compat/managed-agents/v1/sessions/{session_id}/resources": {"type": "file", "file_id": "file_x"},
    "POST /compat/managed-agents/v1/sessions/{session_id}/resources/{resource_id}": {"authorization_token": "x"},
    "POST /compat/managed-agents/v1/deployments": {
        "name": UNIQUE,
        "agent": "agent_x",
        "environment_id": "env_x",
        "initial_events": [{"type": "user.message", "content": [{"type": "text", "text": "say no"}]}],
    },
    "POST /compat/managed-agents/v1/vaults": {"display_name": UNIQUE},
    "POST /compat/managed-agents/v1/vaults/{vault_id}/credentials": {
        "auth": {"type": "static_bearer", "mcp_server_url": "https://a.example/mcp", "token": "x"}
    },
    "POST /compat/managed-agents/v1/sessions/{session_id}/events": {"events": [{"type": "user.interrupt"}]},
}
HIDDEN = {
    ("GET", "/"),
    ("GET", "/playground"),
    ("GET", "/console"),
    ("GET", "/console/{path:path}"),
    ("GET", "/console/assets/{digest}/{path:path}"),
    *(("GET", f"{of}{path}") for of in descriptions() for path in ("/openapi.json", "/docs", "/docs/{name}")),
    ("POST", "/mcp"),
    ("WEBSOCKET", "/api/v1/query/ws"),
    ("GET", "/compat/openai/v1/models/{model:path}"),  # in the document without what kind it is
    ("WEBSOCKET", "/preview/{session_id}/{port}/{path:path}"),
    *((m, "/preview/{session_id}/{port}/{path:path}") for m in "DELETE GET HEAD OPTIONS PATCH POST PUT".split()),  # noqa: SIM905
}
"""Routes that are not in the document, which have tests of their own below."""

DIALECTS = {
    "/compat/code-server": "code_session_id",
    "/compat/execute-server": "execute_session_id",
    "/compat/managed-agents": "managed_session_id",
}
KINDS_OF_KEYS = ("full", "bound", "read")


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    parameters: tuple[str, ...]
    queries: tuple[str, ...]
    fields: tuple[str, ...]
    has_body: bool
    needs_key: bool

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def body(self) -> dict[str, Any] | None:
        """The least that it takes."""
        if not self.has_body:
            return None
        if self.label in BODIES:
            given = BODIES[self.label].items()
            return {name: f"made-{uuid4().hex[:8]}" if value == UNIQUE else value for name, value in given}
        return {name: "say no" for name in ("prompt", "initial_prompt") if name in self.fields}


def operations(document: dict[str, Any]) -> list[Operation]:
    schemas = document["components"]["schemas"]
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            given = operation.get("parameters", ())
            body = operation.get("requestBody", {}).get("content", {})
            fields = {name for content in body.values() for name in _fields(content["schema"], schemas)}
            found.append(
                Operation(
                    method.upper(),
                    path,
                    tuple(re.findall(r"{(\w+)}", path)),
                    tuple(one["name"] for one in given if one["in"] == "query"),
                    tuple(sorted(fields)),
                    bool(body),
                    "security" in operation,
                )
            )
    return found


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    """Names of the fields of a body, at its top."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    yield from schema.get("properties", ())
    for kind in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(kind, ()):
            yield from _fields(one, schemas)


class Asker:
    """Asks as one tenant for what another one has, and for what nobody has."""

    def __init__(self, client: httpx.AsyncClient, one: Tenant, other: Tenant) -> None:
        self._client, self._one, self._other = client, one, other
        self.asked = 0

    def known(self, kind: str, whose: str, path: str = "") -> str:
        """An id or name of what the `one` has, or the `other`, or what `nobody` has."""
        if whose == "nobody":
            ids = kind.endswith(("_id", "_uuid"))
            return (
                str(uuid4())
                if ids
                else f"NONE_{uuid4().hex[:8].upper()}"
                if kind == "secret"
                else f"none-{uuid4().hex[:8]}"
            )
        tenant = self._one if whose == "one" else self._other
        if kind == "session_id":
            prefix = next((prefix for prefix in DIALECTS if path.startswith(prefix)), "")
            asks = "/permissions/" in path or "/tool-results/" in path or path.endswith("/answer")
            return tenant.ids[DIALECTS[prefix] if prefix else "asking_session_id" if asks else "session_id"]
        if kind in ("tenant", "marker"):
            return tenant.name if kind == "tenant" else tenant.marker
        if "/commands/" in path:
            return tenant.names["command"] if whose == "one" else COMMAND
        if kind in tenant.names:
            return tenant.names[kind] if whose == "one" else NAME
        return tenant.ids[kind]

    async def answer(
        self, operation: Operation, whose: Mapping[str, str], key: str, query: str = "", field: str = ""
    ) -> tuple[int, Any]:
        """Status and what is said, without what names that request. `whose`: by parameter, or by the query or field."""
        values = {
            name: self.known(IN_PATHS[name], whose.get(name, "other"), operation.path) for name in operation.parameters
        }
        params, body = {}, operation.body
        if query:
            params[query] = values[f"?{query}"] = self.known(IN_QUERIES[query], whose[f"?{query}"], operation.path)
        if field:
            kind, written = IN_BODIES[field]
            values[f".{field}"] = value = self.known(kind, whose[f".{field}"], operation.path)
            body = {**(body or {}), field: _filled(written, value)}
        url = re.sub(r"{(\w+)}", lambda found: values[found[1]], operation.path)
        headers = self._other.keys[key]
        answer = await self._client.request(operation.method, url, params=params, json=body, headers=headers)
        self.asked += 1
        assert answer.status_code < 500, (operation.label, answer.text)
        if operation.method == "PUT" and answer.is_success and not field:  # it is the other's own now
            await self._client.delete(url, headers=self._other.keys["full"])
        hidden = {trace for trace in self._one.traces if not any(trace in value for value in values.values())}
        shown = answer.text + json.dumps(dict(answer.headers))
        assert not [trace for trace in hidden if trace in shown], (operation.label, whose, answer.text)
        return answer.status_code, _told(answer, values)


def _filled(written: Any, value: str) -> Any:
    if isinstance(written, str):
        return written.format(value)
    if isinstance(written, dict):
        return {name: _filled(inner, value) for name, inner in written.items()}
    return [_filled(inner, value) for inner in written] if isinstance(written, list) else written


def _told(answer: httpx.Response, values: Mapping[str, str]) -> Any:
    """What an answer says, but for the request's own id and values; of a success that it is one."""
    if answer.is_success:
        return "a success"
    text = answer.text
    for name, value in values.items():
        text = text.replace(value, f"<{name}>")
    try:
        told = json.loads(text)
    except ValueError:
        return text
    told.pop("request_id", None)
    return told


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return everything()


@pytest.fixture(scope="module")
async def tenants(fleet: Fleet, new_key: NewKey) -> AsyncIterator[tuple[Tenant, Tenant]]:
    async with receiving() as receiver, two(fleet, new_key, receiver) as made:
        yield made


@pytest.fixture(scope="module")
async def asker(fleet: Fleet, tenants: tuple[Tenant, Tenant]) -> AsyncIterator[Asker]:
    async with httpx.AsyncClient(base_url=fleet[1].url, timeout=60, verify=NO_TLS) as client:
        yield Asker(client, *tenants)


def test_it_is_known_what_everything_names(document: dict[str, Any]) -> None:
    for operation in operations(document):
        assert set(operation.parameters) <= set(IN_PATHS), operation.label
        assert set(operation.queries) <= {*IN_QUERIES, *PLAIN_QUERIES.split()}, operation.label
        assert set(operation.fields) <= {*IN_BODIES, *PLAIN_FIELDS.split()}, operation.label
    documented = {(operation.method, operation.path) for operation in operations(document)}
    whole = {"/files/{path}": "/files/{path:path}", "{chat_id}": "{chat_id:path}"}  # of these the rest of the path
    known = documented | {(m, path.replace(name, rest)) for m, path in documented for name, rest in whole.items()}
    hidden = {(route.method, route.path) for route in ROUTES} - known
    assert hidden <= HIDDEN


@pytest.fixture
async def unchanged(fleet: Fleet, tenants: tuple[Tenant, Tenant]) -> AsyncIterator[None]:
    """Whatever is tried, the one tenant has what it had."""
    before = await snapshot(fleet, tenants[0])
    yield
    assert await snapshot(fleet, tenants[0]) == before


async def compared(
    asker: Asker, tried: Iterable[tuple[Operation, dict[str, str]]], query: str = "", field: str = ""
) -> None:
    """Each is answered as if what the one tenant has were not there at all, whatever the key."""
    differing = []
    for operation, foreign in tried:
        unknown = {name: "nobody" if whose == "one" else whose for name, whose in foreign.items()}
        for key in KINDS_OF_KEYS:
            told = [await asker.answer(operation, whose, key, query, field) for whose in (foreign, unknown)]
            if told[0] != told[1]:
                differing.append((operation.label, foreign, key, *told))
    assert differing == []


async def test_no_path_leads_to_what_another_tenant_has(
    document: dict[str, Any], asker: Asker, unchanged: None
) -> None:
    tried = [
        (operation, dict(zip(operation.parameters, combination, strict=True)))
        for operation in operations(document)
        if operation.path != PROFILES
        for combination in itertools.product(("one", "other"), repeat=len(operation.parameters))
        if "one" in combination
    ]
    assert len(tried) > 60
    await compared(asker, tried)


async def test_no_query_leads_to_what_another_tenant_has(
    document: dict[str, Any], asker: Asker, unchanged: None
) -> None:
    tried = 0
    for operation in operations(document):
        for name in set(operation.queries) & set(IN_QUERIES):
            tried += 1
            if name == "cursor":  # a place in one's own list, whoever was given it
                await asker.answer(operation, {"?cursor": "one"}, "full", query=name)
            else:
                await compared(asker, [(operation, {f"?{name}": "one"})], query=name)
    assert tried > 15


async def test_no_body_leads_to_what_another_tenant_has(
    document: dict[str, Any], asker: Asker, unchanged: None
) -> None:
    tried = 0
    for operation in operations(document):
        for name in set(operation.fields) & set(IN_BODIES):
            tried += 1
            await compared(asker, [(operation, {f".{name}": "one"})], field=name)
    assert tried > 50


async def test_a_revoked_key_opens_nothing_of_its_own_tenant(
    document: dict[str, Any], fleet: Fleet, tenants: tuple[Tenant, Tenant], unchanged: None
) -> None:
    one = replace(tenants[0], keys={"full": tenants[0].keys["revoked"]})
    async with httpx.AsyncClient(base_url=fleet[1].url, timeout=60, verify=NO_TLS) as client:
        own = Asker(client, tenants[1], one)
        for operation in operations(document):
            if operation.needs_key:
                status, _ = await own.answer(operation, {}, "full")
                assert status == 401, operation.label
        assert own.asked > 70


async def test_a_key_that_only_reads_changes_nothing_of_its_own_tenant(
    document: dict[str, Any], fleet: Fleet, tenants: tuple[Tenant, Tenant], unchanged: None
) -> None:
    async with httpx.AsyncClient(base_url=fleet[1].url, timeout=60, verify=NO_TLS) as client:
        own = Asker(client, tenants[1], tenants[0])
        for operation in operations(document):
            if operation.method not in ("GET", "HEAD"):
                status, _ = await own.answer(operation, {}, "read")
                assert status == 403, operation.label


async def test_no_message_of_a_websocket_leads_to_what_another_tenant_has(
    fleet: Fleet, tenants: tuple[Tenant, Tenant], unchanged: None
) -> None:
    one, other = tenants

    def messages(ids: Mapping[str, str], agent: str) -> list[dict[str, Any]]:
        session = {"session_id": ids["session_id"]}
        mine = {"session_id": other.ids["session_id"]}
        return [
            {"type": "prompt", "prompt": "say no", **session},
            {"type": "prompt", "prompt": "say no", "agent": agent},
            {"type": "follow", **session},
            {"type": "follow", **mine, "run_id": ids["run_id"]},
            {"type": "unfollow", **session},
            {"type": "interrupt", **session},
            {"type": "interrupt", **mine, "run_id": ids["run_id"]},
            {"type": "control", "model": "x", **session},
            {"type": "answer", "answers": {"a": "b"}, **session},
            {"type": "answer", "decision": "allow", "request_id": ids["request_id"], **mine},
            {"type": "tool_result", "content": "x", "request_id": ids["request_id"], **session},
            {"type": "tool_result", "content": "x", "request_id": ids["request_id"], **mine},
        ]

    nobody = {name: str(uuid4()) for name in one.ids}
    foreign, unknown = messages(one.ids, one.names["agent"]), messages(nobody, "none")
    assert {message["type"] for message in foreign} == set(KINDS) - {"ping"}
    for key in KINDS_OF_KEYS:
        async with open_socket(fleet[1], headers=other.keys[key]) as socket:
            for asked in zip(foreign, unknown, strict=True):
                told = [await _said(socket, message, one) for message in asked]
                assert told[0] == told[1], (key, asked)
    with pytest.raises(InvalidStatus) as refused:
        await connect(fleet[1].url.replace("http", "ws") + "/api/v1/query/ws", additional_headers=one.keys["revoked"])
    assert refused.value.response.status_code == 401


async def _said(socket: Socket, message: dict[str, Any], one: Tenant) -> dict[str, Any]:
    said = await socket.reply(await socket.send(message["type"], **{k: v for k, v in message.items() if k != "type"}))
    asked, text = json.dumps(message), json.dumps(said)
    assert not [trace for trace in one.traces if trace in text and trace not in asked], said
    for name in ("session_id", "run_id", "request_id", "agent"):
        text = text.replace(str(message.get(name, said["ref"])), f"<{name}>")
    return {name: value for name, value in json.loads(text).items() if name not in ("ref", "request_id")}


@pytest.mark.parametrize("key", KINDS_OF_KEYS)
async def test_no_preview_is_of_another_tenants_session(fleet: Fleet, tenants: tuple[Tenant, Tenant], key: str) -> None:
    one, other = tenants
    told = []
    for session_id in (one.ids["session_id"], str(uuid4())):
        answer = await fleet[1].client.get(f"/preview/{session_id}/8000/", headers=other.keys[key])
        told.append((answer.status_code, answer.text.replace(answer.headers["X-Request-ID"], "")))
    assert told[0] == told[1]
    assert told[0][0] in (403, 404)
    revoked = await fleet[1].client.get(f"/preview/{one.ids['session_id']}/8000/", headers=one.keys["revoked"])
    assert revoked.status_code == 401


async def test_a_repeated_request_of_another_tenant_is_a_request_of_its_own(
    fleet: Fleet, tenants: tuple[Tenant, Tenant]
) -> None:
    made = []
    for path, body in (("/sessions", {}), ("/webhooks", {"url": "http://127.0.0.1:9/x"})):
        again = {"Idempotency-Key": uuid4().hex}
        for tenant in tenants:
            answer = await fleet[1].post(path, body, headers={**tenant.keys["full"], **again})
            assert answer.status_code == 201, answer.text
            made.append(answer.json().get("session_id") or answer.json()["webhook_id"])
    assert len(set(made)) == 4
