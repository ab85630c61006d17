"""One instance with few descriptors, and clients that want them all: everybody else goes on being served."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import Fleet, Instance

DESCRIPTORS = 300
PATIENCE = 60.0


@pytest.fixture
async def tight(start_fleet: StartFleet) -> Fleet:
    """Of one instance."""
    made = await start_fleet(0)
    made.prefix = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    await made.start(1)
    return made


async def goes_on(instance: Instance, run: str) -> None:
    """Whether a run that was under way, a cold one, and looks at the instance are what they always are."""
    assert (await instance.client.get("/health/live")).status_code == 200
    assert (await instance.ask(await instance.session(), "say hello"))["status"] == "succeeded"
    state = (await instance.get(f"/runs/{run}?")).json()
    assert state["status"] in ("running", "succeeded"), state
    health = (await instance.client.get("/health")).json()
    assert health["status"] == "ok", health


async def follow(instance: Instance, key: dict[str, str]) -> bytes:
    """A request for the events of a session."""
    session = (await instance.post("/sessions", {}, headers=key)).json()["session_id"]
    lines = [f"GET /api/v1/sessions/{session}/events HTTP/1.1", "Host: x", f"X-API-Key: {key['X-API-Key']}"]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.slow
async def test_neither_silence_nor_streams_take_an_instance_away(tight: Fleet) -> None:
    instance = tight[0]
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        run = await instance.prompt(await instance.session(), "stream 600 words slowly")
        url = httpx.URL(instance.url)
        for _ in range(DESCRIPTORS + 100):
            _, writer = await asyncio.open_connection(url.host, url.port)
            stack.callback(writer.close)
        await goes_on(instance, run)

        async with database_of(tight) as db:
            keys = [await make_key(db) for _ in range(2)]
        asked = [await follow(instance, key) for key in keys]
        statuses: Counter[bytes] = Counter()
        for number in range(DESCRIPTORS + 100):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            stack.callback(writer.close)
            writer.write(asked[number % 2])
            statuses[(await reader.readuntil(b"\r\n\r\n")).split()[1]] += 1
        assert statuses.keys() <= {b"200", b"429", b"503"}
        assert 0 < statuses[b"200"] <= DESCRIPTORS - 64
        assert statuses[b"429"]
        await goes_on(instance, run)
        await instance.post(f"/runs/{run}/cancel")
