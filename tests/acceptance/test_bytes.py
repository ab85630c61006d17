"""What clients make an instance hold in memory: bounded in bytes for each of them, and given back."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import orjson
import psutil
import pytest

from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import Instance

pytestmark = pytest.mark.slow

MB = 1_000_000
PATIENCE = 120.0


def memory(instance: Instance) -> float:
    """Megabytes of the server itself."""
    return float(psutil.Process(instance.process.pid).memory_info().rss) / MB


async def test_bodies_that_are_refused(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    instance = fleet[0]
    async with database_of(fleet) as db:
        key = await make_key(db)
    run = await instance.prompt(await instance.session(), "stream 100 words slowly")
    bodies = [
        orjson.dumps({"tags": ["a"] * 1_900_000}),
        orjson.dumps({"metadata": {str(n): n for n in range(450_000)}}),
        orjson.dumps({"prompt": [{"type": "text", "text": "x" * 70_000}] * 100, "nonsense": 1}),
    ]
    statuses: Counter[int] = Counter()
    before, most = memory(instance), 0.0

    async def post(number: int) -> None:
        async with httpx.AsyncClient(base_url=instance.url, headers=key, timeout=60) as client:
            for turn in range(3):
                path = "/api/v1/query" if (number + turn) % 3 == 2 else "/api/v1/sessions"
                body = bodies[(number + turn) % 3]
                try:
                    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
                except httpx.TransportError:
                    statuses[0] += 1
                    continue
                statuses[answer.status_code] += 1

    async with asyncio.timeout(PATIENCE):
        posting = [asyncio.create_task(post(number)) for number in range(40)]
        while not all(task.done() for task in posting):
            assert (await instance.client.get("/health/live")).status_code == 200
            most = max(most, memory(instance))
            await asyncio.sleep(0.05)

        assert most - before < 500
        assert (await instance.follow(run))[-1].data["status"] == "succeeded"
