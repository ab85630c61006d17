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
from tests.bench.machine import Meter, in_words
from tests.bench.owner import Done, Task
from tests.bench.report import Report, percentile
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


async def _until_heard(heard: Heard, done: Done) -> None:
    for _ in range(60):
        if heard.events >= done.events:
            return
        await asyncio.sleep(0.05)


async def run(stage: Stage, task: Task, instance: Instance | None = None) -> Outcome:
    """One client per session on `instance` (the synthetic node, unless given), then the task."""
    heard = Heard()
    async with owner(stage, task) as process:
        connections = await _follow(instance or stage.node, stage, [UUID(text) for text in task.sessions], heard)
        await asyncio.sleep(1)
        pids = {"redis": stage.valkey, "postgres": stage.postgres}
        servers = {f"instance {number}": each.process.pid for number, each in enumerate(stage.synthetic.instances, 1)}
        meter = Meter({**pids, **servers}, with_children=("postgres",))
        meter.start()
        done = await go(process)
        await _until_heard(heard, done)
        meter.stop()
        meter.used = {"owner": done.cpu, **meter.used}
        for connection in connections:
            connection.close()
    return Outcome(done, heard, meter)


async def paced(stage: Stage, report: Report, *, seconds: float) -> None:
    """Target 4 without agents: from the writer's call to the client's socket, 4 × 100 deltas/s."""
    sessions = [str(session_id) for session_id in await stage.make_sessions(4)]
    outcome = await run(stage, Task(sessions, rate=400, seconds=seconds))
    ms = outcome.heard.latency_ms
    report.head("4 synthetic runs × 100 deltas/s: ms from the owner's callback to a client's socket")
    report.row("other instance, one client each", ms)
    report.note(f"CPU per delta: {in_words(outcome.cpu())}")
    report.at_most("4 added per delta, synthetic, p50", percentile(ms, 0.5), 0.5, "ms")
    report.at_most("4 added per delta, synthetic, p99", percentile(ms, 0.99), 5, "ms")


async def saturated(stage: Stage, report: Report, *, seconds: float) -> None:
    """Target 5: CPU per event at 20,000 events per second, in few busy and in many slow runs."""
    report.head("20,000 deltas/s: ms from the owner's callback to a client's socket")
    for count in (20, 200):
        sessions = [str(session_id) for session_id in await stage.make_sessions(count)]
        outcome = await run(stage, Task(sessions, rate=20_000, seconds=seconds))
        report.row(f"{count} runs × {20_000 // count:,} deltas/s", outcome.heard.latency_ms)
        cpu = outcome.cpu()
        report.note(f"CPU per delta: {in_words(cpu)}; {outcome.rate:,.0f}/s reached; {_lost(outcome)}")
        report.at_most(f"5 relay CPU at 20,000 ev/s, {count} runs", cpu["all"] - cpu["postgres"], 35, "µs per event")


async def many(stage: Stage, report: Report, *, seconds: float, count: int = 150) -> None:
    """Target 5: many paced runs at once, with a stored message per run and second."""
    sessions = [str(session_id) for session_id in await stage.make_sessions(count)]
    outcome = await run(stage, Task(sessions, rate=100 * count, seconds=seconds, durable_every=100))
    ms = outcome.heard.latency_ms
    report.head(f"{count} synthetic runs × 100 deltas/s, each storing a message per second, ms")
    report.row("delta: owner's callback to a client's socket", ms)
    report.row("message: append to commit", outcome.done.append_ms)
    report.note(f"CPU per event: {in_words(outcome.cpu())}; {outcome.rate:,.0f}/s reached; {_lost(outcome)}")
    report.at_most(f"5 {count} runs × 100 ev/s, p99", percentile(ms, 0.99), 50, "ms")
    report.at_most(f"5 {count} runs × 100 ev/s, lost", outcome.done.events - outcome.heard.events, 0, "events")


def _lost(outcome: Outcome) -> str:
    return f"{outcome.done.events - outcome.heard.events:,} of {outcome.done.events:,} did not arrive"


async def more_instances(stage: Stage, report: Report, *, seconds: float) -> None:
    """Target 9: the same relay with one instance, and again after `stage` has started two more."""

    async def once() -> dict[str, float]:
        sessions = [str(session_id) for session_id in await stage.make_sessions(50)]
        return (await run(stage, Task(sessions, rate=5_000, seconds=seconds))).cpu()

    alone = await once()
    await stage.start_more()
    three = await once()
    report.note(f"5,000 deltas/s, CPU per delta, 1 instance:  {in_words(alone)}")
    report.note(f"5,000 deltas/s, CPU per delta, 3 instances: {in_words(three)}")
    report.at_most("9 CPU per event, 3 instances against 1", three["all"] / alone["all"], 1.1, "×")
