"""A small client of the WebSocket for acceptance tests."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.contract import check_event
from tests.fleet import HEADERS, Instance

Message = dict[str, Any]


class Socket:
    """Keeps what it has read: `events` in the order in which they came."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[Message] = []
        self._replies: dict[str | None, Message] = {}
        self._refs = itertools.count(1)

    async def read(self) -> Message:
        """The next message, whatever it is."""
        message: Message = json.loads(await self.connection.recv())
        if "event" in message:
            check_event(message["event"], message["id"], message["data"])
            self.events.append(message)
        elif "ref" in message:
            self._replies[message["ref"]] = message
        return message

    async def send(self, type_: str, **fields: Any) -> str:
        """Send a message; returns its ref."""
        ref = f"r{next(self._refs)}"
        await self.connection.send(json.dumps({"type": type_, "ref": ref, **fields}))
        return ref

    async def reply(self, ref: str | None) -> Message:
        """The answer to a message; events that come before it are kept."""
        while ref not in self._replies:
            await self.read()
        return self._replies.pop(ref)

    async def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a message and get the result of its `ack`."""
        reply = await self.reply(await self.send(type_, **fields))
        assert reply["type"] == "ack", reply
        result: dict[str, Any] = reply["result"]
        return result

    async def refused(self, type_: str, **fields: Any) -> tuple[int, str]:
        """Send a message and get the status and code of its `error`."""
        reply = await self.reply(await self.send(type_, **fields))
        assert reply["type"] == "error", reply
        assert reply["request_id"]
        return reply["status"], reply["error"]["code"]

    async def event(self, wanted: Callable[[Message], bool]) -> Message:
        """The first event that is wanted, of those read already and those to come."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if wanted(event):
                    return event
            seen = len(self.events)
            await self.read()

    async def of_run(self, run_id: str, kind: str = "done") -> Message:
        """The first event of this kind and run."""
        return await self.event(lambda e: e["event"] == kind and e["data"]["run_id"] == run_id)

    async def closed(self) -> int | None:
        """Read to the end; the close code."""
        try:
            while True:
                await self.read()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else None


@asynccontextmanager
async def open_socket(instance: Instance, headers: dict[str, str] = HEADERS, query: str = "") -> AsyncIterator[Socket]:
    """A connection to this instance."""
    url = instance.url.replace("http://", "ws://") + "/api/v1/query/ws" + query
    async with connect(url, additional_headers=headers) as connection:
        yield Socket(connection)
