"""Bodies of requests are bounded in bytes before they are read: by route, by key, for the instance, and in time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from apps.api.core.codec import MAX_VALUES
from apps.api.shares import Share
from apps.api.web.errors import install
from apps.api.web.middleware import SMALL, BoundedBody, body_of
from tests.conftest import NewKey
from tests.fleet import API_KEY, Fleet
from tests.web.test_doors import head, wire

LARGE = 7_900_000


async def test_a_route_that_takes_no_content_takes_no_large_body(fleet: Fleet) -> None:
    for path in ("/admin/tenants", "/admin/keys", "/webhooks"):
        answer = await fleet[0].post(path, {"name": "x" * SMALL})
        assert (answer.status_code, answer.json()["error"]["details"]) == (413, {"limit_bytes": SMALL}), path
    assert (await fleet[0].post("/sessions", {"system_prompt": "x" * 90_000})).status_code == 201


async def test_it_is_refused_before_it_has_come(fleet: Fleet) -> None:
    async with wire(fleet) as (reader, writer):
        writer.write(head("/api/v1/admin/tenants", f"Content-Length: {SMALL + 1}", f"X-API-Key: {API_KEY}"))
        assert b" 413 " in await reader.readuntil(b"\r\n\r\n")


async def test_bodies_in_flight_have_a_share_of_bytes(fleet: Fleet, new_key: NewKey) -> None:
    key, other = [(await new_key())["X-API-Key"] for _ in range(2)]

    async with AsyncExitStack() as stack:
        refused, count = b"", 0
        for _ in range(20):
            reader, writer = await stack.enter_async_context(wire(fleet))
            # It waits to be told, which says that the server has made room for it.
            writer.write(
                head("/api/v1/sessions", f"Content-Length: {LARGE}", f"X-API-Key: {key}", "Expect: 100-continue")
            )
            told = await reader.readuntil(b"\r\n\r\n")
            if b" 100 " not in told:
                refused = told + await reader.read()
                break
            count += 1
        assert 2 <= count <= 8
        assert b" 429 " in refused
        assert b"too_many_bytes" in refused
        assert b"retry-after: 1" in refused.lower()
        assert (await fleet[0].post("/sessions", {}, headers={"X-API-Key": other})).status_code == 201
    async with asyncio.timeout(30):
        while True:  # what was given up is given back
            answer = await fleet[0].post("/sessions", {"system_prompt": "x" * 90_000}, headers={"X-API-Key": key})
            if answer.status_code == 201:
                break


async def test_a_body_counts_no_more_once_it_is_answered() -> None:
    """An answer may be a stream that stands for hours."""
    share = Share("bytes", "too_many_bytes", {"instance": 1000})
    counted: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"0123456789", "more_body": False}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body_of(scope).is_held(1000)
        await receive()
        counted.append(share.total)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        counted.append(share.total)

    async def send(_message: Message) -> None: ...

    instance = SimpleNamespace(shares={"bodies": share, "open": share})
    state = SimpleNamespace(state=SimpleNamespace(instance=instance))
    scope = {"type": "http", "headers": [], "state": {}, "app": state}
    await BoundedBody(app, limit=1000)(scope, receive, send)
    assert counted == [10, 0]


async def test_between_two_large_bodies_the_loop_turns_to_everybody_else() -> None:
    """What is made of one takes a while."""
    turns, seen = 0, list[int]()

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(SMALL + 1), "more_body": False}

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        seen.append(turns)

    async def send(_message: Message) -> None: ...

    bounded = BoundedBody(app, limit=2 * SMALL)
    requests = [asyncio.create_task(bounded({"type": "http", "headers": []}, receive, send)) for _ in range(10)]
    async with asyncio.timeout(30):
        while len(seen) < len(requests):
            turns += 1
            await asyncio.sleep(0)
    assert sorted(set(seen)) == seen


async def test_many_values_are_refused_by_their_number(fleet: Fleet) -> None:
    bodies: list[dict[str, Any]] = [{"tags": [{}] * 2 * MAX_VALUES}, {str(n): 1 for n in range(MAX_VALUES + 2)}]
    for body in bodies:
        answer = await fleet[0].post("/sessions", body)
        assert answer.status_code == 422
        assert f"more than {MAX_VALUES} values" in answer.text


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def read(request: Request) -> Response:
        await request.body()
        return Response()

    told, answered = list[Message](), asyncio.Event()

    async def receive() -> Message:
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        told.append(message)
        answered.set()

    app = FastAPI()
    app.add_route("/", read, methods=["POST"])
    install(app)
    headers = [(b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b"", "state": {}}
    async with asyncio.timeout(30):
        await BoundedBody(app, limit=1000, seconds=0)(scope, receive, send)
    assert told[0]["status"] == 408
