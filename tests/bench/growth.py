"""What statements on hot paths cost in a database that has grown: time, pages, and what is read to its end."""

from __future__ import annotations

import time
from uuid import uuid4

from apps.api import migrate
from apps.api.db import Database
from apps.api.redis import open_redis
from tests import growth
from tests.bench.report import Report, figure, percentile
from tests.bench.stage import Stage
from tests.world import World

MOST_MS = 10.0
"""For each statement, p99."""


async def statements(stage: Stage, report: Report, *, part: float, rounds: int) -> None:
    """Fill `part` of `growth.FULL`, and carry each statement out `rounds` times: with its plan, and undone again."""
    scale = growth.FULL.times(part)
    settings = await stage.new_database(f"grown_{uuid4().hex}")
    await migrate.upgrade(settings)
    began = time.monotonic()
    await growth.fill(settings, scale)
    report.note(
        f"{scale.sessions:,} sessions, {scale.sessions * scale.events:,} events, {scale.queued:,} queued runs of"
        f" {scale.tenants:,} tenants, {scale.instances:,} instances; filled in {time.monotonic() - began:.0f} s"
    )
    report.head("ms; pages of 8 KB")
    slow, scanning, counted = list[str](), list[str](), 0
    async with Database.open(settings) as db, open_redis(settings) as redis:
        world = World(settings, db, redis, uuid4())
        async for name, found in growth.costs(world, scale, rounds):
            for number, (_, cost) in enumerate(found, start=1):
                label = f"{name} ({number} of {len(found)})" if len(found) > 1 else name
                counted += 1
                report.row(f"{label}: {cost.pages:,}", cost.ms)
                # One that can be carried out once was also prepared in that time.
                if len(cost.ms) > 1 and percentile(cost.ms, 0.99) > MOST_MS:
                    slow.append(f"{label}, {figure(percentile(cost.ms, 0.99))} ms")
                scanning += [f"{label}, {table}" for table in cost.scans]
    for what, named in (("longer than 10 ms at p99", slow), ("reading a growing table to its end", scanning)):
        if named:
            report.note(f"{what}: {'; '.join(named)}")
        report.at_most(f"statements {what}", len(named), 0, f"of {counted}")
