"""Where a scenario plays: three instances behind a balancer, a gate, and a front that answers in their place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.balancer import Balancer
from tests.fleet import API_KEY, Fleet, Instance
from tests.receiver import Received, Receiver, Reply, receiving

Drive = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Plays a scenario with one client: its name and its parameters, and what the driver printed."""

ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}
"""A browser's page that asks another origin reads the answer only with this."""


HOP_BY_HOP = ("connection", "content-length", "keep-alive", "transfer-encoding")


@dataclass
class Gate:
    """Where a driver says that it has come to a point, by a GET that is answered when the test lets it go on.

    Attributes:
        url: for the driver.
    """

    url: str
    _came: asyncio.Queue[asyncio.Event] = field(default_factory=asyncio.Queue)

    async def answer(self, _request: Received) -> Reply:
        go_on = asyncio.Event()
        self._came.put_nowait(go_on)
        await go_on.wait()
        return Reply(b"{}", headers={**ANY_ORIGIN, "Content-Type": "application/json"})

    async def held(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        """Wait until the driver is there, do something, and let it go on."""
        async with asyncio.timeout(90):
            go_on = await self._came.get()
        try:
            await meanwhile()
        finally:
            go_on.set()


@asynccontextmanager
async def gate() -> AsyncIterator[Gate]:
    async with receiving() as receiver:
        made = Gate(receiver.url("/gate"))
        receiver.answer = made.answer
        yield made


@dataclass
class Stage:
    """What the scenarios are given.

    Attributes:
        balancer: its `url` is where clients connect.
        drive: plays a scenario with the client under test.
    """

    fleet: Fleet
    balancer: Balancer
    drive: Drive

    def common(self, **more: Any) -> dict[str, Any]:
        """The parameters that every scenario has, and its own."""
        return {"base_url": self.balancer.url, "api_key": API_KEY, **more}

    async def living(self) -> Instance:
        return next(i for i in self.fleet.instances if i.process.poll() is None)

    async def get(self, path: str, **more: Any) -> Any:
        """What the API answers, asked without a client."""
        response = await (await self.living()).get(path, headers={"Accept": "application/json"}, **more)
        assert response.status_code == 200, response.text
        return response.json()

    async def stored_events(self, run_id: str) -> list[tuple[str, str]]:
        """Id and name of each event of a run that is over."""
        found, more = list[tuple[str, str]](), {"limit": "200"}
        while True:
            page = await self.get(f"/runs/{run_id}/events", params=more)
            found += [(event["id"], event["event"]) for event in page["data"]]
            if page["next_cursor"] is None:
                return found
            more["cursor"] = page["next_cursor"]

    async def during(self, driving: Awaitable[dict[str, Any]], *faults: Awaitable[None]) -> dict[str, Any]:
        """What a driver printed, while these faults happen one after the other."""

        async def happen() -> None:
            for fault in faults:
                await fault

        async with asyncio.TaskGroup() as together:
            driven = together.create_task(_waited(driving))
            together.create_task(happen())
        return driven.result()

    async def restore(self) -> None:
        """Start anew who was killed."""
        for instance in self.fleet.instances:
            if instance.process.poll() is not None:
                await self.fleet.again(instance)


async def _waited(driving: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await driving


@asynccontextmanager
async def front(target: str, first: Sequence[Reply]) -> AsyncIterator[Receiver]:
    """Stands before an instance: answers the first requests to the API itself, and passes the others on, whole.

    Its `received` has all of them. Streams come at their end: for short ones only.
    """
    left = list(first)
    async with receiving() as receiver:

        async def answer(request: Received) -> Reply:
            asks = request.target.startswith("/api/") and request.method != "OPTIONS"  # which a browser does of itself
            return left.pop(0) if left and asks else await _passed_on(target, request)

        receiver.answer = answer
        yield receiver


async def _passed_on(target: str, request: Received) -> Reply:
    async with httpx.AsyncClient(base_url=target, timeout=90) as client:
        kept = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        answer = await client.request(request.method, request.target, headers=kept, content=request.body)
    headers = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
    return Reply(answer.content, answer.status_code, headers)


def busy(status: int, code: str, retry_after: int) -> Reply:
    """An error of the API's own that says how long to wait."""
    error = {"error": {"code": code, "message": "Wait.", "details": {}}, "request_id": "from-the-test"}
    headers = {"Retry-After": str(retry_after), "Content-Type": "application/json", "X-Request-ID": "from-the-test"}
    exposed = {**ANY_ORIGIN, "Access-Control-Expose-Headers": "Retry-After, X-Request-ID"}
    return Reply(json.dumps(error).encode(), status, {**headers, **exposed})
