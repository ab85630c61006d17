"""Targets 4, 5 and 9: latency and CPU of the relay, from a synthetic owner to SSE clients of another instance."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from uuid import UUID

import orjson

from tests.bench.client import Connection, Frames
from tests.bench.machine import Meter
from tests.bench.owner import Done, Task
from tests.bench.stage import SYNTHETIC, Stage, python_module
from tests.fleet import Instance

_STAMP = re.compile(rb'"t":(\d+)')
_STORED = b"event: message\n"


@dataclass
class Heard:
    """What the clients of one run received."""

    latency_ms: list[float] = field(default_factory=list)
    stored: int = 0

    @property
    def events(self) -> int:
        return len(self.latency_ms) + self.stored

    def __call__(self, block: bytes) -> None:
        now = time.monotonic_ns()
        self.latency_ms += [(now - int(stamp)) / 1e6 for stamp in _STAMP.findall(block)]
        self.stored += block.count(_STORED)


@dataclass(frozen=True)
class Outcome:
    """One run: what the owner did, what the clients heard, CPU seconds by process."""

    done: Done
    heard: Heard
    meter: Meter

    @property
    def rate(self) -> float:
        """Events per second that the owner achieved."""
        return self.done.events / self.done.seconds

    def cpu(self) -> dict[str, float]:
        """µs per event."""
        return self.meter.per(self.done.events)


@asynccontextmanager
async def owner(stage: Stage, task: Task) -> AsyncIterator[asyncio.subprocess.Process]:
    """The synthetic owner, ready to start."""
    settings = stage.settings(SYNTHETIC)
    env = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "REDIS_KEY_PREFIX": settings.redis_key_prefix,
    }
    async with python_module("tests.bench.owner", env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(orjson.dumps(asdict(task)) + b"\n")
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        if line != b"ready\n":
            raise RuntimeError("the synthetic owner did not start")
        yield process


async def go(process: asyncio.subprocess.Process) -> Done:
    """Start it and wait for what it did."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"go\n")
    return Done(**orjson.loads(await process.stdout.readline()))


async def _follow(instance: Instance, stage: Stage, session_ids: list[UUID], heard: Heard) -> list[Connection]:
    connections = []
    for session_id in session_ids:
        connection = await stage.connect(instance)
        request = connection.prepare("GET", f"/api/v1/sessions/{session_id}/events")
        connection.follow(request, Frames(heard))
        connections.append(connection)
    return connections


async def run(stage: Stage, task: Task, instance: Instance | None = None) -> Outcome:
    """One client per session on `instance` (the synthetic node, unless given), then the task."""
    heard = Heard()
    async with owner(stage, task) as process:
        connections = await _follow(instance or stage.node, stage, [UUID(text) for text in task.sessions], heard)
        await asyncio.sleep(1)
        pids = {"owner": process.pid, "redis": stage.valkey, "postgres": stage.postgres}
        servers = {f"instance {number}": each.process.pid for number, each in enumerate(stage.synthetic.instances)}
        meter = Meter({**pids, **servers}, with_children=("postgres",))
        meter.start()
        done = await go(process)
        deadline = time.monotonic() + 3
        while heard.events < done.events and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        meter.used = meter.stop()
        meter.used["owner"] = done.cpu
        for connection in connections:
            connection.close()
    return Outcome(done, heard, meter)
