"""Target 7: how fast prompts are accepted and messages are stored."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress

from apps.api.db import Database
from tests.bench import floor
from tests.bench.client import Connection
from tests.bench.machine import Meter, in_words
from tests.bench.owner import Task
from tests.bench.relay import go, owner
from tests.bench.report import Report, figure, percentile
from tests.bench.stage import SYNTHETIC, Stage

CLIENTS = 16
SESSIONS = 400
WRITERS = 10
TAKE_EVERY = 0.1
"""Seconds between removals of what has been queued: somebody else takes the runs, as in a fleet that keeps up."""


async def _take_runs(db: Database) -> None:
    while True:
        await asyncio.sleep(TAKE_EVERY)
        await db.pool.execute("DELETE FROM runs WHERE status = 'queued'")


async def _post(connection: Connection, requests: itertools.cycle[bytes], until: float, ms: list[float]) -> None:
    while (began := time.monotonic()) < until:
        status, body = await connection.send(next(requests))
        if status != 202:
            raise RuntimeError(f"{status}: {body[:300]!r}")
        ms.append((time.monotonic() - began) * 1000)


async def queries(stage: Stage, report: Report, *, seconds: float) -> None:
    """POST /sessions/{id}/query on one pure API node, which executes nothing."""
    session_ids = await stage.make_sessions(SESSIONS)
    connections = [await stage.connect(stage.node) for _ in range(CLIENTS)]
    made = [
        connections[0].prepare("POST", f"/api/v1/sessions/{session_id}/query", {"prompt": "say hello"})
        for session_id in session_ids
    ]
    requests = itertools.cycle(made)
    pids = {"instance": stage.node.process.pid, "postgres": stage.postgres, "redis": stage.valkey}
    meter = Meter(pids, with_children=("postgres",))
    ms: list[float] = []
    async with Database.open(stage.settings(SYNTHETIC)) as db:
        taking = asyncio.create_task(_take_runs(db), name="take-runs")
        until = time.monotonic() + 1
        await asyncio.gather(*(_post(connection, requests, until, []) for connection in connections))
        meter.start()
        began = time.monotonic()
        await asyncio.gather(*(_post(connection, requests, began + seconds, ms) for connection in connections))
        meter.stop()
        rate = len(ms) / (time.monotonic() - began)
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
        await db.pool.execute("DELETE FROM runs WHERE status = 'queued'")
    for connection in connections:
        connection.close()
    bare = await _floor(stage, seconds)
    report.head(f"POST /sessions/{{id}}/query → 202, {CLIENTS} clients, ms")
    report.row("request to answer", ms)
    cpu = meter.per(len(ms))
    report.note(f"{figure(rate)} requests/s; CPU per request: {in_words(cpu)}")
    report.note(f"a bare FastAPI application that stores one row: {figure(bare)} µs of its CPU; the instance has")
    report.note(f"{cpu['instance'] / bare:.1f} times as much to do, in key, limits, queue, idempotency and wake-up")
    report.at_least("7 prompts accepted per second and process", rate, 3_000, "requests/s")
    report.at_most("7 CPU of the instance per prompt", cpu["instance"], 350, "µs")


async def _floor(stage: Stage, seconds: float) -> float:
    """µs of CPU per prompt that the least of all applications needs, asked as we are."""
    async with floor.served(stage) as bare:
        connections = [await bare.connect() for _ in range(CLIENTS)]
        requests = itertools.cycle([connections[0].prepare("POST", "/prompts", {"prompt": "say hello"})])
        meter, ms = Meter({"floor": bare.pid}), list[float]()
        until = time.monotonic() + 1
        await asyncio.gather(*(_post(connection, requests, until, []) for connection in connections))
        meter.start()
        until = time.monotonic() + seconds
        await asyncio.gather(*(_post(connection, requests, until, ms) for connection in connections))
        meter.stop()
        for connection in connections:
            connection.close()
    return meter.per(len(ms))["floor"]


async def appends(stage: Stage, report: Report, *, seconds: float) -> None:
    """Durable appends by writers of different sessions in one process, each one after the other."""
    ids = [str(session_id) for session_id in await stage.make_sessions(WRITERS)]
    async with owner(stage, Task(ids, seconds=seconds, append_only=True)) as process:
        meter = Meter({"postgres": stage.postgres, "redis": stage.valkey}, with_children=("postgres",))
        meter.start()
        done = await go(process)
        meter.stop()
    rate = done.stored / done.seconds
    report.head(f"durable append of one message, {WRITERS} writers, ms")
    report.row("append to commit", done.append_ms)
    cpu = {"owner": done.cpu * 1e6 / max(done.stored, 1), **meter.per(done.stored)}
    cpu["all"] += cpu["owner"]
    report.note(f"{figure(rate)} transactions/s; CPU per transaction: {in_words(cpu)}")
    report.at_least(f"7 durable appends with {WRITERS} runs", rate, 6_000, "tx/s")
    report.at_most(f"7 durable append with {WRITERS} runs, p99", percentile(done.append_ms, 0.99), 5, "ms")
