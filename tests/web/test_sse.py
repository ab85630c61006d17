"""Event streams as an ASGI server sees them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message, Receive, Scope, Send

from apps.api.web import sse
from apps.api.web.middleware import BoundedBody
from apps.api.web.opened import Held
from apps.api.web.sse import EventStream
from tests.world import PATIENCE


class Kept:
    """Something that a request makes on its way."""


class Client:
    """Takes what is sent, or nothing until it is told to."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[bytes] = asyncio.Queue()
        self.reads, self.left = asyncio.Event(), asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.told.put_nowait(message.get("body", b"start"))


def scope() -> Scope:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {}}


async def chunks(count: int) -> AsyncGenerator[bytes]:
    for number in range(count):
        yield b"%d" % number


def stream(count: int) -> EventStream:
    return EventStream(chunks(count), Held(None, "read", lambda _: None), farewell=lambda _: b"")


async def test_a_stream_keeps_nothing_of_the_way_on_which_its_request_came() -> None:
    client, kept = Client(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        way = scope["way"] = Kept()
        kept.append(weakref.ref(way))
        await stream(3)(scope, receive, send)

    client.reads.clear()
    serving = asyncio.create_task(BoundedBody(app, 1024)(scope(), client.receive, client.send))
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert [each() for each in kept] == [None]
    client.reads.set()
    await asyncio.wait_for(serving, PATIENCE)
    assert [client.told.get_nowait() for _ in range(client.told.qsize())] == [b"start", b"0", b"1", b"2", b""]


async def test_without_such_a_server_a_stream_is_served_at_once() -> None:
    client = Client()
    await asyncio.wait_for(stream(1)(scope(), client.receive, client.send), PATIENCE)
    assert [client.told.get_nowait() for _ in range(client.told.qsize())] == [b"start", b"0", b""]


async def test_a_client_that_does_not_take_a_write_in_time_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "WRITE_TIMEOUT", 0.01)
    client, left = Client(), asyncio.Event()

    async def leave() -> None:
        left.set()

    async def endless() -> AsyncGenerator[bytes]:
        while True:
            client.reads.clear()  # it has taken one, and takes no other
            yield b"x"

    held = Held(None, "read", lambda _: None)
    cut = EventStream(endless(), held, farewell=lambda _: b"", left=leave)
    await asyncio.wait_for(cut(scope(), client.receive, client.send), PATIENCE)
    assert left.is_set()
    assert held.over.done()
