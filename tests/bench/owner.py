"""A synthetic owner, `python -m tests.bench.owner`: the service's own Writer and Publisher, with no agent behind them.

It reads one JSON object from stdin (the fields of `Task`), prints a line when it is ready, starts at the next line of
stdin, and prints its `Done` as JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from uuid import UUID, uuid4

import orjson
import structlog
import uvloop

from apps.api.core.events.batches import Batches
from apps.api.core.events.log import Event, Writer
from apps.api.core.events.relay import Publisher
from apps.api.core.fleet import instances
from apps.api.core.lease import Lease
from apps.api.db import Database
from apps.api.redis import Redis, open_redis
from apps.api.settings import Settings

LEASE_SECONDS = 300.0
TICK = 0.001
"""Seconds between looks at what is due; a real owner hears of each delta when its agent sends it."""


@dataclass
class Task:
    """What to do.

    Attributes:
        sessions: their ids; one writer each.
        rate: deltas per second, over all sessions, round robin.
        seconds: for how long.
        durable_every: of each session, every how many deltas a message is stored; 0 means never.
        append_only: store messages as fast as possible instead, each session one after the other.
    """

    sessions: list[str]
    rate: float = 0
    seconds: float = 5
    durable_every: int = 0
    append_only: bool = False


@dataclass
class Done:
    """What was done. Times are seconds; `cpu` is this process's, and `events` counts deltas and stored messages."""

    events: int
    stored: int
    seconds: float
    cpu: float
    dropped: int
    append_ms: list[float]


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


class Owner:
    """Writers of all sessions, as one instance holds them."""

    def __init__(self, task: Task, writers: list[Writer], publisher: Publisher) -> None:
        self._task, self._writers, self._publisher = task, writers, publisher
        self._run_ids = [uuid4() for _ in writers]
        # Staggered, or all sessions would store at the same moment.
        self._counts = [which * task.durable_every // len(writers) for which in range(len(writers))]
        self._pending: set[asyncio.Task[None]] = set()
        self._append_ms: list[float] = []
        self.sent = 0

    def _delta(self, which: int) -> None:
        fields = {
            "index": 0,
            "delta": {"type": "text", "text": " word12345"},
            "parent_tool_use_id": None,
            "t": time.monotonic_ns(),
        }
        self._writers[which].delta("partial", self._run_ids[which], fields)
        self.sent += 1
        self._counts[which] += 1
        if self._task.durable_every and self._counts[which] % self._task.durable_every == 0:
            storing = asyncio.create_task(self._store(which), name="store")
            self._pending.add(storing)
            storing.add_done_callback(self._pending.discard)

    async def _store(self, which: int) -> None:
        fields = {"role": "assistant", "content": [{"type": "text", "text": "word " * 20}], "parent_tool_use_id": None}
        began = time.perf_counter()
        await self._writers[which].append(Event("message", fields, None))
        self._append_ms.append((time.perf_counter() - began) * 1000)

    async def _stream(self) -> None:
        began, number = time.monotonic(), 0
        while (passed := time.monotonic() - began) < self._task.seconds:
            while number < passed * self._task.rate:
                self._delta(number % len(self._writers))
                number += 1
            await asyncio.sleep(max(TICK, 1 / self._task.rate))
        await asyncio.gather(*self._pending)

    async def _append(self, which: int) -> None:
        began = time.monotonic()
        while time.monotonic() - began < self._task.seconds:
            await self._store(which)

    async def run(self) -> Done:
        """Do the task. CPU and time end when everything has been handed to Redis."""
        began, cpu = time.monotonic(), _cpu()
        if self._task.append_only:
            await asyncio.gather(*(self._append(which) for which in range(len(self._writers))))
        else:
            await self._stream()
        await self._publisher.flushed()
        stored = len(self._append_ms)
        spent = time.monotonic() - began, _cpu() - cpu
        return Done(self.sent + stored, stored, *spent, self._publisher.dropped, self._append_ms)


async def _own(db: Database, lease: Lease, session_ids: list[UUID]) -> dict[UUID, tuple[UUID, int, int]]:
    """Take the sessions; their tenant, generation and newest position by id."""
    rows = await db.pool.fetch(
        "UPDATE sessions SET owner_id = $1, generation = generation + 1 WHERE id = ANY($2::uuid[])"
        " RETURNING id, tenant_id, generation, last_seq",
        lease.instance_id,
        session_ids,
    )
    return {row["id"]: (row["tenant_id"], row["generation"], row["last_seq"]) for row in rows}


def _writer(
    db: Database,
    redis: Redis,
    publisher: Publisher,
    lease: Lease,
    batches: Batches,
    session_id: UUID,
    held: tuple[UUID, int, int],
) -> Writer:
    tenant_id, generation, last_seq = held
    return Writer(
        db,
        redis,
        publisher,
        lease,
        batches,
        tenant_id=tenant_id,
        session_id=session_id,
        generation=generation,
        last_seq=last_seq,
    )


@asynccontextmanager
async def opened(task: Task, settings: Settings) -> AsyncIterator[Owner]:
    """An owner of the task's sessions, with a lease and running publisher; it gives them back at the end."""
    async with Database.open(settings) as db, open_redis(settings) as redis:
        lease = Lease(uuid4(), LEASE_SECONDS)
        await instances.register(db, lease, hostname="bench", version="0", slots=0)
        publisher = Publisher(redis)
        publishing = asyncio.create_task(publisher.run(), name="publisher")
        ids = [UUID(text) for text in task.sessions]
        held = await _own(db, lease, ids)
        try:
            batches = Batches(db)
            yield Owner(task, [_writer(db, redis, publisher, lease, batches, i, held[i]) for i in ids], publisher)
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE owner_id = $1", lease.instance_id)
            await instances.unregister(db, lease.instance_id)


async def main() -> None:
    """Read the task, wait for the start, do it, tell."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    loop = asyncio.get_running_loop()
    task = Task(**orjson.loads(sys.stdin.readline()))
    async with opened(task, Settings(_env_file=None)) as owner:
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        done = await owner.run()
    print(orjson.dumps(asdict(done)).decode(), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
