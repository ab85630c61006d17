"""Who asks is known before what is asked is read: strangers fill no memory and take no time."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from inspect import iscoroutinefunction
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute, iter_route_contexts
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from apps.api.core.config.limits import Limits
from apps.api.dialects.native.routes import routers as native
from apps.api.main import DIALECTS, create_app, descriptions
from apps.api.settings import Settings
from apps.api.web.callers import Caller
from apps.api.web.doors import Route, _calls
from tests.conftest import NewKey
from tests.fleet import API_KEY, Fleet, Shared

PATIENCE = 20.0
ROUTES = [
    "/api/v1/query",
    "/api/v1/sessions",
    "/compat/code-server/query",
    "/compat/chat-server/chat",
    "/compat/execute-server/execute/",
    "/ui/chat",
    "/ag-ui/helper",
]
MEGABYTES = b"[" + b"[]," * 2_500_000 + b"0]"


@asynccontextmanager
async def wire(fleet: Fleet) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(fleet[0].url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(PATIENCE):
            yield reader, writer
    finally:
        writer.close()


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines, "", "")).encode()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("length", ["Content-Length: 7000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("key", ["", "X-API-Key: cak_nobody"])
async def test_a_stranger_is_refused_before_any_of_its_body_has_come(
    fleet: Fleet, path: str, length: str, key: str
) -> None:
    async with wire(fleet) as (reader, writer):
        writer.write(head(path, length, *filter(None, [key])))
        answered = await reader.readuntil(b"\r\n\r\n")
        assert b" 401 " in answered
        assert b"connection: close" in answered.lower()


async def test_a_key_that_may_only_read_is_refused_before_its_body_has_come(fleet: Fleet) -> None:
    admin = {"name": "r", "tenant": "default", "scopes": ["read"]}
    made = (await fleet[0].post("/admin/keys", admin)).json()
    async with wire(fleet) as (reader, writer):
        writer.write(head("/api/v1/sessions", "Content-Length: 7000000", f"X-API-Key: {made['secret']}"))
        assert b" 403 " in await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(("length", "status"), [(7_000_000, b"401"), (9_000_000, b"401"), (10**12, b"413")])
async def test_a_client_that_waits_to_be_told_to_go_on_is_told_not_to(fleet: Fleet, length: int, status: bytes) -> None:
    async with wire(fleet) as (reader, writer):
        writer.write(head("/api/v1/sessions", f"Content-Length: {length}", "Expect: 100-continue"))
        answered = await reader.read()
        assert answered.startswith(b"HTTP/1.1 " + status)
        assert b"100 Continue" not in answered


async def test_a_client_that_is_told_to_go_on_is_heard(fleet: Fleet) -> None:
    async with wire(fleet) as (reader, writer):
        body = b'{"title":"' + b"x" * 150 + b'"}'
        writer.write(
            head("/api/v1/sessions", f"Content-Length: {len(body)}", "Expect: 100-continue", f"X-API-Key: {API_KEY}")
        )
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        assert b" 201 " in await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(("headers", "code"), [({}, 401), ({"X-API-Key": API_KEY}, 422)])
async def test_megabytes_of_nothing_are_refused_and_the_refusal_arrives(
    fleet: Fleet, headers: dict[str, str], code: int
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    async with httpx.AsyncClient(base_url=fleet[0].url, timeout=60) as client:
        refused = await client.post("/api/v1/query", content=MEGABYTES, headers=headers)
        assert refused.status_code == code, refused.text
        again = await client.get("/api/v1/whoami", headers={"X-API-Key": API_KEY})
        assert again.status_code == 200


async def test_a_body_that_grows_beyond_the_limit_is_refused_and_the_refusal_arrives(fleet: Fleet) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(150):
            yield b" " * 65_536

    async with httpx.AsyncClient(base_url=fleet[0].url, timeout=60) as client:
        headers = {"X-API-Key": API_KEY, "Content-Type": "application/json"}
        refused = await client.post("/api/v1/query", content=endless(), headers=headers)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "body_too_large"


def url_of(fleet: Fleet) -> str:
    return fleet[0].url.replace("http://", "ws://") + "/api/v1/query/ws"


AUTH = json.dumps({"type": "auth", "ref": "1", "api_key": API_KEY})
LARGE = json.dumps({"type": "ping", "ref": "2", "x": "x" * 1_000_000})


async def test_a_stranger_on_a_websocket_may_send_its_key_and_no_more(fleet: Fleet) -> None:
    for text in ("x" * 5_000, "x" * 3_000_000):
        async with asyncio.timeout(PATIENCE), connect(url_of(fleet)) as socket:
            with suppress(ConnectionClosed):
                await socket.send(text)
            await socket.wait_closed()
            assert socket.close_code in (1006, 1009)  # the first when it was still writing


async def test_what_follows_a_good_key_at_once_may_be_large(fleet: Fleet) -> None:
    async with asyncio.timeout(PATIENCE), connect(url_of(fleet)) as socket:
        await socket.send(AUTH)
        await socket.send(LARGE)
        assert '"ack"' in str(await socket.recv())
        assert "validation_error" in str(await socket.recv())  # it was read, and has a field too many


async def test_a_client_with_a_key_in_its_handshake_may_begin_with_a_large_message(fleet: Fleet) -> None:
    async with asyncio.timeout(PATIENCE), connect(url_of(fleet), additional_headers={"X-API-Key": API_KEY}) as socket:
        await socket.send(LARGE)
        assert "validation_error" in str(await socket.recv())


def test_every_route_that_asks_for_a_key_asks_before_it_reads() -> None:
    asking = 0
    for router in (*native, *(dialect.router for dialect in DIALECTS.values())):
        for route in router.routes:
            if isinstance(route, APIRoute) and any(isinstance(call, Caller) for call in _calls(route.dependant)):
                assert isinstance(route, Route), route.path
                asking += 1
    assert asking > 50


OPEN = {
    *("/", "/health", "/health/live", "/health/ready", "/api/v1/health", "/metrics", "/playground", "/console"),
    *(f"/console/{UUID(int=1)}", f"/console/assets/{UUID(int=1)}/{UUID(int=1)}"),
    *(f"{of}{path}" for of in descriptions() for path in ("/openapi.json", "/docs", f"/docs/{UUID(int=1)}")),
    *("/compat/code-server/", "/compat/code-server/health", "/compat/execute-server/"),
}
"""Paths that need no key."""


def table() -> tuple[list[tuple[str, str]], list[str]]:
    """Method and path of every route of a server, and the paths of its WebSockets, ids filled in."""
    http, sockets = list[tuple[str, str]](), list[str]()
    for route in iter_route_contexts(create_app(Settings(_env_file=None)).routes):
        assert route.path is not None
        path = re.sub(r"{\w+(:path)?}", str(UUID(int=1)), route.path.replace("{port}", "3000"))
        if isinstance(route.route, APIWebSocketRoute):
            sockets.append(path)
        else:
            http += [(method, path) for method in sorted(route.methods or ())]
    return http, sockets


async def test_every_route_that_needs_a_key_refuses_strangers_before_any_of_a_body_has_come(fleet: Fleet) -> None:
    http, _ = table()
    refused, let_in = 0, set[str]()
    for method, path in http:
        for key in ("", "X-API-Key: cak_nobody", "Authorization: Bearer cak_nobody"):
            lines = (f"{method} {path} HTTP/1.1", "Host: x", "Content-Length: 7000000", *filter(None, [key]), "", "")
            async with wire(fleet) as (reader, writer):
                writer.write("\r\n".join(lines).encode())
                answered = await reader.readuntil(b"\r\n\r\n")
            if b" 401 " in answered:
                assert b"connection: close" in answered.lower()
                refused += 1
            else:
                let_in.add(path)
    assert let_in == OPEN
    assert refused > 3 * 80


async def test_every_websocket_refuses_wrong_keys_in_its_handshake(fleet: Fleet) -> None:
    _, sockets = table()
    assert len(sockets) == 2
    base = fleet[0].url.replace("http://", "ws://")
    for path in sockets:
        with pytest.raises(InvalidStatus) as refused:
            async with asyncio.timeout(PATIENCE):
                await connect(base + path, additional_headers={"X-API-Key": "cak_nobody"})
        assert refused.value.response.status_code == 401, path


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/webhooks", {"url": "https://127.0.0.1:1/"}),
        ("PATCH", f"/webhooks/{UUID(int=1)}", {"url": "https://127.0.0.1:1/"}),
        ("PUT", "/mcp-servers/tickets", {"type": "http", "url": "https://127.0.0.1:1/"}),
        ("POST", "/agents", {"name": "reviewer"}),
        ("PUT", f"/agents/{UUID(int=1)}", {}),
        ("PATCH", f"/agents/{UUID(int=1)}", {}),
        ("POST", "/agents/preview", {}),
        ("POST", "/schedules", {"cron": "0 0 1 1 *", "prompt": "x"}),
        ("PATCH", f"/schedules/{UUID(int=1)}", {"name": "x"}),
    ],
)
async def test_a_key_has_names_looked_up_as_often_as_it_may_prompt(
    shared: Shared, new_key: NewKey, method: str, path: str, body: dict[str, Any]
) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    headers = await new_key("default", limits=Limits(runs_per_minute=1))
    answers = [await fleet[n].client.request(method, f"/api/v1{path}", json=body, headers=headers) for n in range(2)]
    assert [answer.status_code == 429 for answer in answers] == [False, True]
    assert answers[1].json()["error"]["code"] == "rate_limited"
    assert 1 <= int(answers[1].headers["Retry-After"]) <= 61
    prompt = {"prompt": "say hello", "session_id": session_id}
    assert (await fleet[0].post("/query/single", prompt, headers=headers)).status_code == 200


def test_nothing_that_a_route_depends_on_is_sent_to_a_thread() -> None:
    """FastAPI runs in a thread what is no coroutine: a tenth of the cost of a prompt."""
    in_threads = [
        call
        for router in (*native, *(dialect.router for dialect in DIALECTS.values()))
        for route in router.routes
        if isinstance(route, APIRoute)
        for call in _calls(route.dependant)
        if not (iscoroutinefunction(call) or iscoroutinefunction(getattr(call, "__call__", None)))  # noqa: B004
    ]
    assert in_threads == []
