"""Reads the figures for `/metrics` that parts of an instance keep by themselves."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from apps.api import clock, instruments
from apps.api.core.context import Core
from apps.api.core.fleet import places
from apps.api.core.lease import Lease
from apps.api.core.network.calls import Calls
from apps.api.core.tasks import Loop, Loops
from apps.api.core.tenant.deliveries import Deliveries
from apps.api.core.tenant.model_calls import Call
from apps.api.core.tenant.usage import TOKENS
from apps.api.db import PASSING, Database
from apps.api.runner.session.watch import Watch
from apps.api.runner.session.ways import Ways
from apps.api.runner.worker import Worker
from apps.api.web.opened import Opened

QUEUE_SECONDS = 15.0
"""For which what the database said of the queue is told again."""

ANSWER_SECONDS = 2.0
"""For the database to say it. Else nothing is told: what was is no answer to what is."""

TICK, WINDOW = 0.25, 15.0
"""Seconds between two looks at how late the event loop is; and for which the worst of them is told, at least."""


class Queue:
    """What waits in the whole fleet, asked of the database while somebody asks this instance, and not more often than
    every QUEUE_SECONDS, however many do."""

    def __init__(self, db: Database) -> None:
        self._db, self._lock, self._asked_at = db, asyncio.Lock(), -QUEUE_SECONDS
        self._found: places.InAll | None = None
        instruments.QUEUED.read = lambda: self._found.queued if self._found else None
        instruments.OLDEST.read = lambda: self._found.oldest_seconds if self._found else None

    async def look(self) -> None:
        """Ask, if it is time to."""
        async with self._lock:
            if time.monotonic() - self._asked_at < QUEUE_SECONDS:
                return
            self._found = None
            with suppress(*PASSING):
                async with asyncio.timeout(ANSWER_SECONDS):
                    self._found = await places.in_all(self._db)
            self._asked_at = time.monotonic()


class Lateness:
    """How late the event loop comes to what is due: while it is, nobody here is served."""

    def __init__(self) -> None:
        self._late = self._worst = self._before = 0.0
        self._since = time.monotonic()

    def run_in(self, loops: Loops) -> None:
        """Start the loop."""
        instruments.LOOP_LAG.read = lambda: max(self._worst, self._before)
        loops.start("event-loop-lag", self._note, self._tick)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        self._late = loop.time() - due

    async def _note(self, _loop: Loop) -> None:
        if (now := time.monotonic()) - self._since >= WINDOW:
            self._since, self._before, self._worst = now, self._worst, 0.0
        self._worst = max(self._worst, self._late)


def measure(
    core: Core, worker: Worker, watch: Watch, lease: Lease, opened: Opened, deliveries: Deliveries, loops: Loops
) -> None:
    """Tell of these from now on."""
    m = instruments
    m.LOOP_FAILING.read = lambda: {loop.name: loop.failing_since is not None for loop in loops.all}
    m.LOOP_FAILURES.read = lambda: {loop.name: loop.failures for loop in loops.all}
    m.LOOP_ITEM_FAILURES.read = lambda: {loop.name: loop.sick for loop in loops.all}
    m.TASKS.read = lambda: len(asyncio.all_tasks())
    m.SLOTS.read = lambda: core.settings.runner_slots
    m.RUNNING.read = lambda: worker.running
    m.LIVE.read = lambda: worker.live
    m.AGENTS.read = lambda: sum(e.process is not None for e in worker.executions.values()) + worker.ahead.count
    m.MEMORY.read = lambda: watch.memory
    m.AHEAD.read = lambda: worker.ahead.count
    m.AHEAD_TAKEN.read = lambda: worker.ahead.hits
    m.AHEAD_MISSED.read = lambda: worker.ahead.misses
    m.STREAMS.read = lambda: opened.count("streams")
    m.SOCKETS.read = lambda: opened.count("sockets") + opened.count("strangers")
    m.CLOCK.read = clock.offset
    m.UNFIT.read = lambda: len(worker.host.unfit)
    m.STARTS_FAILED.read = lambda: worker.host.failed
    m.LEASE.read = lambda: max(lease.remaining(), 0)
    m.DROPPED.read = lambda: core.publisher.dropped
    m.CONNECTIONS.read = lambda: {pool: used for pool, (used, _) in core.db.in_use().items()}
    m.CONNECTIONS_MAX.read = lambda: {pool: most for pool, (_, most) in core.db.in_use().items()}
    m.WEBHOOK_ATTEMPTS.read = lambda: {
        "delivered": deliveries.sent,
        "failed": deliveries.failed,
        "given_up": deliveries.given_up,
    }
    outbound_calls(core.outbound.calls)
    _ways(worker.ways)


def _ways(ways: Ways) -> None:
    ways.gateway.observe = model_call
    ways.gateway.differs = lambda direction: instruments.COST_DIFFERS.labels(direction).inc()
    instruments.NETWORK_DENIED.read = lambda: ways.proxy.refused
    instruments.NETWORK_SENT.read = lambda: ways.proxy.sent
    instruments.NETWORK_RECEIVED.read = lambda: ways.proxy.received
    instruments.NETWORK_OPEN.read = lambda: ways.proxy.open


def outbound_calls(calls: Calls) -> None:
    """Tell of these from now on."""
    calls.observe = lambda kind, outcome: instruments.OUTBOUND.labels(kind, outcome).inc()
    instruments.OUTBOUND_OPEN.read = lambda: {str(kind): count for kind, count in calls.open.items()}


def model_call(call: Call) -> None:
    """Count a call that has ended."""
    status = call.status if call.status in instruments.STATUSES else instruments.OTHER
    instruments.MODEL_CALLS.labels(call.kind, status).inc()
    if call.first_byte_seconds is not None:
        instruments.MODEL_FIRST_BYTE.labels(call.kind).observe(call.first_byte_seconds)
    for name in TOKENS:
        instruments.MODEL_TOKENS.labels(name.removesuffix("_tokens")).inc(getattr(call.used, name))
    instruments.MODEL_COST.inc(call.cost_usd)
    if not call.priced:
        instruments.UNPRICED.inc()
