"""Targets 6 and 8: what idle event streams and idle sessions cost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from apps.api.db import Database
from apps.api.redis import open_redis
from tests.bench import floor
from tests.bench.client import Connection
from tests.bench.machine import Meter, rss_of
from tests.bench.report import Report
from tests.bench.stage import AGENTS, IDLE_SECONDS, OWNER_SLOTS, SYNTHETIC, Stage

BATCH = 50
TARGET_STREAMS = 3_000
TRANSACTIONS = "transactions"
TOLD_WITHIN = 11.0
"""Seconds after which PostgreSQL's sessions have told what they have done: ten, when they do nothing any more."""


async def _open(connect: Callable[[], Awaitable[Connection]], paths: Sequence[str]) -> list[Connection]:
    """A stream from each path, all connected."""
    connections = []
    for start in range(0, len(paths), BATCH):
        opened = await asyncio.gather(*(connect() for _ in paths[start : start + BATCH]))
        connected = []
        for path, connection in zip(paths[start : start + BATCH], opened, strict=True):
            seen = asyncio.Event()
            request = connection.prepare("GET", path)
            connection.follow(request, lambda _data, seen=seen: seen.set())  # type: ignore[misc]
            connected.append(seen.wait())
        await asyncio.wait_for(asyncio.gather(*connected), 30)
        connections += opened
    await asyncio.sleep(1)  # until the subscriptions are confirmed
    return connections


async def sessions(stage: Stage, report: Report, *, count: int) -> None:
    """Target 8: what sessions leave behind that had one turn each, once their instance has given them up."""
    runner = stage.synthetic[-1]
    session_ids = [await runner.session() for _ in range(count)]
    for session_id in session_ids:
        await runner.ask(session_id, "say hello")
    await asyncio.sleep(4 * IDLE_SECONDS)
    processes = len(runner.descendants())
    used, lifetimes = 0, [0]
    async with open_redis(stage.settings(SYNTHETIC)) as redis:
        async for key in redis.client.scan_iter(match="*", count=1_000):
            if any(session_id in key.decode() for session_id in session_ids):
                used += await redis.client.memory_usage(key) or 0
                lifetimes.append(await redis.client.ttl(key))
    report.note(f"{count} sessions after one turn each; their keys in Redis live for {max(lifetimes)} s more at most")
    report.at_most("8 processes of idle sessions", processes, 0, "processes")
    report.at_most("8 Redis per idle session", used / count / 1024, 5, "KB")


@asynccontextmanager
async def _counted(stage: Stage, name: str, seconds: float) -> AsyncIterator[Callable[[], Awaitable[Counter[str]]]]:
    """What PostgreSQL has been asked for in one of the two databases, in transactions, and Redis in all, by command."""
    async with Database.open(stage.settings(name)) as db, open_redis(stage.settings(name)) as redis:

        async def count() -> Counter[str]:
            await asyncio.sleep(min(seconds, TOLD_WITHIN))
            told = await redis.client.info("commandstats")
            commands = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in told.items()}
            query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
            return Counter({TRANSACTIONS: await db.pool.fetchval(query), **commands})

        yield count


def _told(asked: Mapping[str, float]) -> str:
    transactions = asked.get(TRANSACTIONS, 0.0)
    commands = {name: each for name, each in asked.items() if name not in (TRANSACTIONS, "info") and each >= 0.05}
    named = ", ".join(f"{each:.1f} {name}" for name, each in sorted(commands.items(), key=lambda one: -one[1]))
    return f"{transactions:.1f} transactions of PostgreSQL, {sum(commands.values()):.1f} commands of Redis ({named})"


async def instances(stage: Stage, report: Report, *, seconds: float) -> None:
    """What instances ask of PostgreSQL and Redis that have nothing to do. No target: docs/performance.md reckons with
    it."""
    async with _counted(stage, SYNTHETIC, seconds) as count:
        before, began = await count(), time.monotonic()
        await asyncio.sleep(seconds)
        asked, took = await count() - before, time.monotonic() - began
    idle = len(stage.synthetic.instances)
    everybody = idle + len(stage.agents.instances)  # who have one Redis
    rates = {name: n / took / (idle if name == TRANSACTIONS else everybody) for name, n in asked.items()}
    report.note(f"each of {idle} idle instances, per second: {_told(rates)}")


async def load(stage: Stage, report: Report, *, seconds: float, turns: int, words: int = 100) -> None:
    """The same of an owner of sessions, of warm turns, and of pieces of an answer."""
    owner = stage.owner
    async with _counted(stage, AGENTS, seconds) as count:

        async def rates(what: str) -> dict[str, float]:
            before, began = await count(), time.monotonic()
            await asyncio.sleep(seconds)
            asked, took = await count() - before, time.monotonic() - began
            found = {name: n / took for name, n in asked.items()}
            report.note(f"{what}, per second: {_told(found)}")
            return found

        await rates(f"{len(stage.agents.instances)} instances without sessions")
        session_ids = [await owner.session() for _ in range(OWNER_SLOTS)]
        for session_id in session_ids:
            await owner.ask(session_id, "say hello")
        idle = await rates(f"the same, one of them the owner of {OWNER_SLOTS} sessions with idle agents")
        for prompt in ("say hello", f"stream {words} words"):
            before, began = await count(), time.monotonic()
            for _ in range(turns):
                await owner.ask(session_ids[0], prompt)
            asked, took = await count() - before, time.monotonic() - began
            each = {name: max(n - idle.get(name, 0) * took, 0) / turns for name, n in asked.items()}
            report.note(f"each warm turn `{prompt}`, on top: {_told(each)}")
    for session_id in session_ids:  # their agents would take part in all that is measured later
        await owner.client.delete(f"/api/v1/sessions/{session_id}")


async def _watched(
    pid: int, connect: Callable[[], Awaitable[Connection]], paths: Sequence[str], seconds: float
) -> tuple[float, float]:
    """KB of RSS that each of these idle streams costs process `pid`, and the share of a core that all of them do."""
    warm_up = await _open(connect, paths[:BATCH])  # buffers and code that the first streams bring with them
    for connection in warm_up:
        connection.close()
    await asyncio.sleep(1)
    meter, before = Meter({"instance": pid}), rss_of(pid)
    meter.start()
    await asyncio.sleep(seconds / 2)
    none = meter.stop()["instance"] / (seconds / 2)
    connections = await _open(connect, paths[BATCH:])
    per_stream = (rss_of(pid) - before) / len(connections) / 1024
    meter.start()
    began = time.monotonic()
    await asyncio.sleep(seconds)
    some = meter.stop()["instance"] / (time.monotonic() - began)
    for connection in connections:
        connection.close()
    return per_stream, max(some - none, 0)


async def streams(stage: Stage, report: Report, *, count: int, seconds: float) -> None:
    """Target 6: `count` idle streams, each of a session of its own, watched for `seconds`; beside them those of a bare
    application."""
    paths = [f"/api/v1/sessions/{session_id}/events" for session_id in await stage.make_sessions(count + BATCH)]
    here, share = await _watched(stage.node.process.pid, partial(stage.connect, stage.node), paths, seconds)
    async with floor.served(stage) as bare:
        least, least_share = await _watched(bare.pid, bare.connect, ["/events"] * len(paths), seconds)
    scaled = 100 * TARGET_STREAMS / count
    cpu, least_cpu = share * scaled, least_share * scaled
    many = f"{TARGET_STREAMS:,} idle streams (scaled from {count:,})"
    report.note(f"{count:,} idle streams of {count:,} sessions: {here:.1f} KB of RSS each")
    report.note(f"those of a bare FastAPI application: {least:.1f} KB; {many}: {least_cpu:.2f} % of a core")
    report.at_most("6 memory per idle stream", here, 22, "KB RSS")
    report.at_most(f"6 CPU of {many}", cpu, 0.5, "% of a core")
