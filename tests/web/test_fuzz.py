"""Every text that a client may send, with texts that break things: nothing fails, nothing comes back changed."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from apps.api.auth import SCOPES
from apps.api.web.ws import TOO_LARGE, UNAUTHORIZED
from tests.conftest import NewKey
from tests.contract import everything
from tests.fleet import NO_TLS, Fleet
from tests.sockets import open_socket

pytestmark = pytest.mark.slow

TEXTS = [
    "\x00",
    "a\x00b",
    "\ud83d",
    "b\ude00a",
    "a\x85b",
    "a\u2028b",
    "\ufeffa",
    "字" * 100_000,
    "${HOME}",
    "a)",
    "a,b",
    "a\nb",
    "..",
    "../../x",
    "./a",
]
NUMBERS = [
    "18446744073709551616",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "-0",
    "1" * 30,
    "[" * 300 + "]" * 300,
]
KEYS = ['"a":1,"a":2', '"\\ud83d":1', '"\\u0000":1']

CONFIG: dict[str, Any] = {
    "model": "m",
    "fallback_model": "m",
    "system_prompt": "x",
    "system_prompt_append": "x",
    "tools": ["Read"],
    "allowed_tools": ["Read"],
    "ask_tools": ["Bash"],
    "disallowed_tools": ["Bash"],
    "permission_mode": "default",
    "effort": "low",
    "thinking": {"type": "adaptive", "display": "omitted"},
    "output_format": {"type": "json_schema", "schema": {"type": "object", "description": "x", "default": {"k": "x"}}},
    "mcp_servers": {"s": {"type": "http", "url": "http://127.0.0.1/x", "headers": {"A": "x"}}},
    "agents": {"helper": {"description": "x", "prompt": "x", "tools": ["Read"], "model": "m"}},
    "hooks": {"PreToolUse": [{"url": "http://127.0.0.1/x", "secret": "${A_SECRET}", "matcher": "Edit"}]},
    "betas": ["context-1m-2025-08-07"],
    "add_dirs": ["x"],
    "skills": "all",
    "cwd": "x",
    "env": {"A": "x"},
    "repository": {"url": "https://github.com/a/b", "ref": "main"},
}
LABELS = {"title": "x", "tags": ["x"], "metadata": {"k": "x"}}
NOBODY = str(uuid4())
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    # The session does not exist, so that nothing runs.
    ("post", "/api/v1/query"): {**LABELS, "prompt": "x", "session_id": NOBODY, "agent": "a", "profile": "p"},
    ("post", "/api/v1/query/single"): {"prompt": [{"type": "text", "text": "x"}], "session_id": NOBODY},
    ("post", "/api/v1/sessions/{session_id}/query"): {"prompt": "x", "on_busy": "reject"},
    ("post", "/api/v1/sessions/{session_id}/resume"): {"prompt": "x", "on_disconnect": "continue"},
    ("post", "/api/v1/sessions"): {**CONFIG, **LABELS},
    ("patch", "/api/v1/sessions/{session_id}"): LABELS,
    ("post", "/api/v1/sessions/{session_id}/fork"): {"message_uuid": NOBODY, "title": "x"},
    ("post", "/api/v1/sessions/{session_id}/permissions/{request_id}"): {
        "decision": "allow",
        "updated_input": {"k": "x", "in": [{"k": "x"}]},
    },
    ("post", "/api/v1/sessions/{session_id}/tool-results/{request_id}"): {
        "content": [{"type": "text", "text": "x"}],
        "is_error": True,
    },
    ("post", "/api/v1/sessions/{session_id}/answer"): {"answers": {"q": ["x"]}, "request_id": NOBODY},
    ("post", "/api/v1/sessions/{session_id}/control"): {
        "model": "m",
        "stop_task": "x",
        "mcp_reconnect": "s",
        "mcp_toggle": {"name": "s", "enabled": True},
    },
    ("post", "/api/v1/sessions/{session_id}/interrupt"): {"run_id": NOBODY},
    ("post", "/api/v1/sessions/{session_id}/reset"): {"mode": "soft"},
    ("post", "/api/v1/sessions/{session_id}/files/move"): {"source": "a", "target": "b"},
    ("post", "/api/v1/sessions/{session_id}/rewind"): {"checkpoint_id": NOBODY},
    ("post", "/api/v1/agents"): {"name": "n", "description": "x", "system_prompt": "x", "env": {"A": "x"}},
    ("put", "/api/v1/agents/{agent}"): {"description": "x"},
    ("patch", "/api/v1/agents/{agent}"): {"description": "x", "env": {"A": "x"}},
    ("post", "/api/v1/agents/preview"): {
        "prompt": "x",
        "model": "m",
        # Of a command that the operator of these instances does not allow.
        "mcp_servers": {"local": {"type": "stdio", "command": "x", "args": ["x"], "env": {"A": "x"}}},
    },
    ("put", "/api/v1/mcp-servers/{name}"): {"type": "http", "url": "http://127.0.0.1/x", "headers": {"A": "x"}},
    ("put", "/api/v1/skills/{name}"): {"description": "x", "content": "x", "files": {"a.md": "x"}},
    ("put", "/api/v1/commands/{name}"): {"description": "x", "content": "x"},
    ("put", "/api/v1/secrets/{name}"): {"value": "x"},
    ("post", "/api/v1/webhooks"): {"url": "http://127.0.0.1/x", "events": ["run.succeeded"], "description": "x"},
    ("patch", "/api/v1/webhooks/{webhook_id}"): {"url": "http://127.0.0.1/x", "description": "x"},
    ("post", "/api/v1/schedules"): {**LABELS, "cron": "0 0 1 1 *", "time_zone": "Europe/Berlin", "prompt": "x"},
    ("patch", "/api/v1/schedules/{schedule_id}"): {"name": "x", "prompt": "x", "cron": "0 0 1 1 *"},
    ("post", "/api/v1/admin/tenants"): {"name": "x"},
    ("put", "/api/v1/admin/tenants/{tenant}/limits"): {"streams": 100},
    ("put", "/api/v1/admin/tenants/{tenant}/model-credential"): {"api_key": "x"},
    ("put", "/api/v1/admin/tenants/{tenant}/retention"): {"events_days": 1, "usage_days": None},
    ("post", "/api/v1/admin/keys"): {"name": "x", "tenant": "default", "scopes": ["read"], "profiles": ["p"]},
    ("patch", "/api/v1/admin/keys/{key_id}"): {"name": "x", "scopes": ["read"]},
    ("post", "/api/v1/admin/keys/{key_id}/rotate"): {"overlap_seconds": 1},
    ("post", "/compat/chat-server/chat/{session_id}"): {"prompt": "x"},
    ("post", "/compat/code-server/session/{session_id}/query"): {"prompt": "x"},
    ("post", "/compat/openai/v1/conversations/{conversation_id}"): {"metadata": {"k": "x"}},
    ("post", "/compat/openai/v1/conversations/{conversation_id}/items"): {"items": [{"role": "user", "content": "x"}]},
    ("post", "/compat/openai/v1/conversations"): {"items": [{"role": "user", "content": "x"}], "metadata": {"k": "x"}},
    # There is no such model, so that nothing runs.
    ("post", "/compat/openai/v1/chat/completions"): {
        "model": "x",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "metadata": {"k": "x"},
        "user": "x",
    },
    ("post", "/compat/openai/v1/responses"): {
        "model": "x",
        "input": [{"role": "user", "content": "x"}],
        "instructions": "x",
        "metadata": {"k": "x"},
        "tools": [{"type": "function", "name": "x", "description": "x"}],
    },
    ("post", "/compat/managed-agents/v1/agents"): {
        "name": "x",
        "model": {"id": "m", "effort": "low"},
        "system": "x",
        "description": "x",
        "metadata": {"k": "x"},
        "tools": [{"type": "custom", "name": "t", "description": "x", "input_schema": {"type": "object"}}],
        "mcp_servers": [],
    },
    ("post", "/compat/managed-agents/v1/agents/{agent_id}"): {"name": "x", "metadata": {"k": "x"}, "version": 1},
    ("post", "/compat/managed-agents/v1/environments"): {
        "name": "x",
        "config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["a.com"]}},
    },
    ("post", "/compat/managed-agents/v1/environments/{environment_id}"): {"name": "x", "description": "x"},
    ("post", "/compat/managed-agents/v1/sessions"): {"agent": "x", "environment_id": "x", "title": "x"},
    ("post", "/compat/managed-agents/v1/sessions/{session_id}"): {"title": "x", "metadata": {"k": "x"}},
    ("post", "/compat/managed-agents/v1/sessions/{session_id}/resources"): {
        "type": "file",
        "file_id": "x",
        "mount_path": "x",
    },
    ("post", "/compat/managed-agents/v1/sessions/{session_id}/resources/{resource_id}"): {"authorization_token": "x"},
    ("post", "/compat/managed-agents/v1/deployments"): {
        "name": "x",
        "agent": {"type": "agent", "id": "x", "version": 1},
        "environment_id": "x",
        "initial_events": [{"type": "user.message", "content": [{"type": "text", "text": "x"}]}],
        "description": "x",
        "metadata": {"k": "x"},
        "schedule": {"type": "cron", "expression": "0 0 1 1 *", "timezone": "Europe/Berlin"},
        "vault_ids": ["x"],
    },
    ("post", "/compat/managed-agents/v1/deployments/{deployment_id}"): {
        "name": "x",
        "description": "x",
        "metadata": {"k": "x"},
        "environment_id": "x",
        "resources": [{"type": "file", "file_id": "x", "mount_path": "x"}],
    },
    ("post", "/compat/managed-agents/v1/vaults"): {"display_name": "x", "metadata": {"k": "x"}},
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}"): {"display_name": "x", "metadata": {"k": "x"}},
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}/credentials"): {
        "auth": {
            "type": "environment_variable",
            "secret_name": "A",
            "secret_value": "x",
            "networking": {"type": "unrestricted"},
        },
        "display_name": "x",
    },
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}/credentials/{credential_id}"): {
        "auth": {"type": "static_bearer", "token": "x"},
        "display_name": "x",
    },
    ("post", "/compat/managed-agents/v1/sessions/{session_id}/events"): {
        "events": [{"type": "user.tool_confirmation", "tool_use_id": "x", "result": "deny", "deny_message": "x"}]
    },
}
OPTIONS = {"prompt": "x", "initial_prompt": "x", "model": "m", "allowed_tools": ["Read"], "permission_mode": "default"}
STARTS_AN_AGENT: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/compat/chat-server/chat"): {"prompt": "x", "repo": "https://github.com/a/b"},
    ("post", "/compat/code-server/query"): OPTIONS,
    ("post", "/compat/code-server/session/start"): OPTIONS,
    ("post", "/compat/execute-server/execute/"): {**OPTIONS, "system_prompt": "x", "cwd": "x"},
    ("post", "/ui/chat"): {
        "id": "c",
        "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "x"}]}],
        "messageId": "m",
        "agent": "nobody",
        "profile": "p",
    },
    ("post", "/ag-ui/{agent}"): {
        "threadId": "t",
        "runId": "r",
        "messages": [{"id": "m", "role": "user", "content": "x"}],
        "tools": [{"name": "x", "description": "x", "parameters": {}}],
        "context": [{"description": "x", "value": "x"}],
        "state": {"k": "x"},
        "forwardedProps": {"model": "m", "profile": "p"},
    },
}
"""Each of their texts goes with others that are refused, so that no agent starts; it is looked at all the same."""
MESSAGES: list[dict[str, Any]] = [
    {"type": "prompt", "ref": "r", "prompt": "x", "session_id": NOBODY, "idempotency_key": "k", "agent": "a"},
    {"type": "follow", "ref": "r", "session_id": NOBODY, "run_id": NOBODY, "after": "1-1"},
    {"type": "unfollow", "ref": "r", "session_id": NOBODY, "run_id": NOBODY},
    {"type": "interrupt", "ref": "r", "session_id": NOBODY},
    {"type": "answer", "ref": "r", "session_id": NOBODY, "request_id": NOBODY, "answers": {"q": "x"}},
    {"type": "answer", "session_id": NOBODY, "request_id": NOBODY, "decision": "allow", "updated_input": {"k": "x"}},
    {"type": "control", "ref": "r", "session_id": NOBODY, "model": "m", "stop_task": "x"},
    {"type": "ping", "ref": "r"},
]

Path = tuple[str | int, ...]


def leaves(value: Any, place: Path = ()) -> Iterator[Path]:
    """Where texts stand."""
    if isinstance(value, str):
        yield place
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from leaves(inner, (*place, name))


def at(value: Any, place: Path) -> Any:
    for name in place:
        value = value[name]
    return value


def changed(body: dict[str, Any], place: Path, text: str) -> dict[str, Any]:
    made = copy.deepcopy(body)
    at(made, place[:-1])[place[-1]] = text
    return made


def name_for(path: str) -> str:
    """A name that fits the path, and that nobody else writes to meanwhile; one of few where a tenant may have few."""
    return "A_NAME" if "/secrets/" in path else f"A_{uuid4().hex}"


async def all_of(sending: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all, so that none is left when one has failed; then tell the first that did."""
    failed = [e for e in await asyncio.gather(*sending, return_exceptions=True) if isinstance(e, BaseException)]
    if failed:
        raise failed[0]


NO_HEADERS: Mapping[str, bytes] = {}


class Sender:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client, self._room = client, asyncio.Semaphore(8)
        self.sent = self.succeeded = self.taken = 0

    async def __call__(
        self,
        method: str,
        path: str,
        content: str | None,
        place: Path = (),
        text: str = "",
        headers: Mapping[str, bytes] = NO_HEADERS,
    ) -> None:
        there = re.sub(r"{(\w+)}", lambda m: str(uuid4()) if m[1].endswith("_id") else name_for(path), path)
        async with self._room:
            given: dict[str, bytes] = {"Content-Type": b"application/json"} if content else {}
            named = [(name.encode(), value) for name, value in {**given, **headers}.items()]
            answer = await self._client.request(method, there, content=content, headers=named)
        self.sent += 1
        self.succeeded += answer.status_code < 300
        assert answer.status_code < 500, (method, path, place, text[:20], answer.text[:300])
        if answer.status_code < 300 and place and answer.headers.get("content-type") == "application/json":
            self.taken += 1
            self._compare(answer.json(), place, text, (method, path))

    def _compare(self, shown: Any, place: Path, text: str, route: Any) -> None:
        if shown.get("ok") is False:
            return  # a preview, which says what is wrong
        for found in (shown, shown.get("config") or {}):
            try:
                value = at(found, place)
            except (KeyError, IndexError, TypeError):
                continue
            is_path = place in (("cwd",), ("add_dirs", 0))
            shortest = str(PurePosixPath(text)) if is_path else text  # as its description says
            assert value in (shortest, "***"), (route, place, text[:20], str(value)[:100])


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return everything()


@pytest.fixture
async def client(fleet: Fleet, new_key: NewKey) -> AsyncIterator[httpx.AsyncClient]:
    """One of a tenant of its own, which has the secret that CONFIG names: other tests see nothing of what is left."""
    headers = await new_key(scopes=SCOPES)
    async with httpx.AsyncClient(base_url=fleet[0].url, headers=headers, timeout=60, verify=NO_TLS) as client:
        answer = await client.put("/api/v1/secrets/A_SECRET", json={"value": "x" * 32})
        assert answer.status_code < 300, answer.text
        yield client


def test_every_route_with_a_body_is_tried(document: dict[str, Any]) -> None:
    found = {
        (m, p)
        for p, methods in document["paths"].items()
        for m, o in methods.items()
        if "application/json" in o.get("requestBody", {}).get("content", {})  # files may be anything
    }
    assert found == {*BODIES, *STARTS_AN_AGENT}


async def test_what_is_changed_here_is_taken_as_it_is(client: httpx.AsyncClient) -> None:
    for path in ("/sessions", "/agents", "/webhooks"):
        answer = await client.post(f"/api/v1{path}", json=BODIES["post", f"/api/v1{path}"])
        assert answer.status_code < 300, answer.text
    for path in ("/mcp-servers/{name}", "/skills/{name}", "/commands/{name}", "/secrets/{name}"):
        answer = await client.put(f"/api/v1{path.format(name=name_for(path))}", json=BODIES["put", f"/api/v1{path}"])
        assert answer.status_code < 300, answer.text


async def test_no_text_makes_a_route_fail_or_comes_back_changed(client: httpx.AsyncClient) -> None:
    send = Sender(client)
    await all_of(
        (
            send(method, path, json.dumps(changed(body, place, text)), place, text)
            for (method, path), body in BODIES.items()
            for place in leaves(body)
            for text in TEXTS
        )
    )
    assert send.sent > 500
    assert send.taken > 50


async def test_no_number_and_no_key_makes_a_route_fail(client: httpx.AsyncClient) -> None:
    send = Sender(client)
    for (method, path), body in BODIES.items():
        free = [place for place in leaves(body) if {"schema", "updated_input", "metadata", "env"} & set(place)]
        texts = [json.dumps(changed(body, place, "@@")) for place in {*free, *[*leaves(body)][:1]}]
        numbers = [text.replace('"@@"', number) for text in texts for number in NUMBERS]
        keys = [text.replace('"@@"', f"{{{key}}}") for text in texts[-3:] for key in KEYS]
        await all_of(send(method, path, text) for text in numbers + keys)
    assert send.sent > 300


FREE = {
    (
        "post",
        "/api/v1/sessions",
    ): '{"output_format": {"type": "json_schema", "schema": {"type": "object", "default": @}}}',
    (
        "post",
        "/api/v1/agents",
    ): '{"name": "x", "output_format": {"type": "json_schema", "schema": {"type": "object", "default": @}}}',
    (
        "post",
        f"/api/v1/sessions/{NOBODY}/permissions/{NOBODY}",
    ): '{"decision": "allow", "updated_input": {"default": @}}',
}


@pytest.mark.parametrize(
    "value", [*(n for n in NUMBERS if n != "-0"), '{"a":1,"a":2}', '{"b":[NaN]}'], ids=lambda v: v[:20]
)
async def test_a_free_document_that_json_does_not_know_is_refused_by_its_field(
    client: httpx.AsyncClient, value: str
) -> None:
    for (method, path), body in FREE.items():
        headers = {"Content-Type": "application/json"}
        answer = await client.request(method, path, content=body.replace("@", value), headers=headers)
        assert answer.status_code == 422, (path, answer.text)
        [problem] = answer.json()["error"]["details"]["errors"]
        assert problem["field"].startswith(("output_format.schema.default", "updated_input.default"))


async def test_no_text_makes_a_route_fail_that_starts_an_agent(client: httpx.AsyncClient) -> None:
    send = Sender(client)
    await all_of(
        send(method, path, json.dumps({**dict.fromkeys(body, 1), name: changed(body, place, text)[name]}))
        for (method, path), body in STARTS_AN_AGENT.items()
        for place in leaves(body)
        for name in [str(place[0])]
        for text in TEXTS
    )
    assert send.sent > 200
    assert not send.succeeded


def written(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


async def test_no_parameter_makes_a_route_fail(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    send = Sender(client)
    asked = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if (method, path) in STARTS_AN_AGENT:
                continue
            content = json.dumps(BODIES[method, path]) if (method, path) in BODIES else None
            for parameter in operation.get("parameters", ()):
                # All of them where one type of parameter after another is read; few where these come again.
                for text in (*TEXTS[:7], *TEXTS[8:]) if method == "get" else ("a\x00b", "\ud83d", "../../x"):
                    put = quote(written(text), safe="")
                    if parameter["in"] == "path":
                        asked.append((method, path.replace(f"{{{parameter['name']}}}", put), content))
                    elif parameter["in"] == "query":
                        asked.append((method, f"{path}?{parameter['name']}={put}", content))
    await all_of(send(*one) for one in asked)
    assert send.sent > 500


async def test_no_header_makes_a_route_fail(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    # HTTP itself lets no NUL and no end of a line stand in a header, and a server reads only so much of them.
    texts = [written(text[:2000]) for text in TEXTS if not {"\x00", "\n"} & set(text)]
    asked = [("get", "/api/v1/sessions", name) for name in ("X-Request-ID", "X-API-Key", "Authorization")]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if (method, path) not in STARTS_AN_AGENT:
                names = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"]
                asked += [(method, path, name) for name in names]
    assert {"idempotency-key", "last-event-id"} <= {name.lower() for _, _, name in asked}
    send = Sender(client)
    await all_of(
        send(method, path, content, headers={name: text})
        for method, path, name in asked
        for content in [json.dumps(BODIES[method, path]) if (method, path) in BODIES else None]
        for text in texts
    )


async def test_no_text_of_a_message_makes_a_websocket_fail(fleet: Fleet) -> None:
    async with open_socket(fleet[0]) as opened, asyncio.timeout(60):
        socket = opened.connection
        for message in MESSAGES:
            for place in leaves(message):
                for text in TEXTS:
                    await socket.send(json.dumps(changed(message, place, text)))
                    reply = json.loads(await socket.recv())
                    assert reply.get("status", 200) < 500, (message["type"], place, text[:20], reply)
                    if place == ("ref",):
                        assert reply["ref"] in (text, None), (message["type"], text[:20])


async def test_no_text_as_a_key_makes_a_websocket_fail(fleet: Fleet) -> None:
    for text in TEXTS:
        async with open_socket(fleet[0], headers={}) as socket, asyncio.timeout(60):
            await socket.send("auth", api_key=text)
            assert await socket.closed() in (UNAUTHORIZED, TOO_LARGE), text[:20]
