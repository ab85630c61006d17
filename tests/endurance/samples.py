"""What a fleet uses, looked at again and again, and whether that levels off."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from prometheus_client.parser import text_string_to_metric_families

from apps.api.db import Database
from apps.api.models import Base
from apps.api.redis import Redis
from tests.endurance.traffic import Steady
from tests.faults.stage import Stage

MB = 1024 * 1024

TOLERANCE = 0.1
"""By so much, beside the slack of its kind, the median of the last third of a run may be above that of the middle third
and be level. The first third is for warming up."""

Unit = Literal["", "prompt", "stored prompt"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is looked at.

    Attributes:
        per: what it may grow with: every prompt there has been, or those of sessions that are there still.
        slack: a difference that says nothing.
    """

    title: str
    per: Unit = ""
    slack: float = 0.0


OF_INSTANCES = {
    "memory": Kind("memory, MB", slack=8),
    "descriptors": Kind("open descriptors", slack=10),
    "threads": Kind("threads", slack=4),
    "tasks": Kind("asyncio tasks", slack=20),
    "processes": Kind("processes of agents", slack=6),
}
OF_FLEET = {
    "backends": Kind("connections to PostgreSQL", slack=10),
    "redis": Kind("memory of Redis, MB", slack=2),
    "keys": Kind("keys in Redis", slack=40),
    "database": Kind("database, KB", "prompt", slack=5),
    "disks": Kind("files of sessions on the hosts, KB", "stored prompt", slack=5),
    "store": Kind("stored files of sessions, KB", "prompt", slack=5),
}
BY_STORED = frozenset({"events", "transcript_entries"})
"""Tables whose rows go with their session."""

BY_PROMPT = frozenset(
    {
        "sessions",
        "runs",
        "commands",
        "requests",
        "idempotency_keys",
        "usage",
        "model_calls",
        "spent",
        "files",
        "audit_log",
    }
)
"""Tables whose rows stay for an hour or longer."""


def kind_of(name: str) -> Kind:
    """Of a series, by the first word of its name."""
    what, _, rest = name.partition(" ")
    if what != "rows":
        return (OF_INSTANCES | OF_FLEET)[what]
    per: Unit = "stored prompt" if rest in BY_STORED else "prompt" if rest in BY_PROMPT else ""
    return Kind(f"rows of {rest}", per, slack=0.2 if per else 20)


@dataclass
class Samples:
    """Series by name, all as long as `seconds`, in which they were taken.

    Attributes:
        series: `memory 1` is that of the first instance, `rows events` of a table.
    """

    seconds: list[float] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)

    def judged(self) -> Iterator[tuple[str, float, float, bool]]:
        """Of each series its name, the medians of its middle and its last third, and whether it has levelled off."""
        for name, values in sorted(self.series.items()):
            middle, last = thirds(values)
            yield name, middle, last, last <= middle * (1 + TOLERANCE) + kind_of(name).slack


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the middle and of the last third."""
    third = max(len(values) // 3, 1)
    return statistics.median(values[third : 2 * third] or values), statistics.median(values[-third:])


class Sampler:
    """Looks at everything that runs."""

    def __init__(self, stage: Stage, traffic: Steady, db: Database, redis: Redis) -> None:
        self._stage, self._traffic, self._db, self._redis = stage, traffic, db, redis
        self._began = time.monotonic()
        self.samples = Samples()

    async def sample(self) -> None:
        """Add one sample of each series."""
        found: dict[str, float] = {}
        for host in self._stage.hosts:
            process, number = psutil.Process(host.instance.process.pid), host.number
            with process.oneshot():
                found[f"memory {number}"] = process.memory_info().rss / MB
                found[f"descriptors {number}"] = process.num_fds()
                found[f"threads {number}"] = process.num_threads()
            found[f"processes {number}"] = len(process.children(recursive=True))
            found[f"tasks {number}"] = _gauge((await host.instance.client.get("/metrics")).text, "asyncio_tasks")
        found["backends"] = await self._db.pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        )
        memory = await self._redis.client.info("memory")
        found["redis"], found["keys"] = memory["used_memory"] / MB, await self._redis.client.dbsize()
        found["database"] = await self._db.pool.fetchval("SELECT pg_database_size(current_database())") / 1024
        found["disks"] = sum(_bytes_below(host.instance.disk) for host in self._stage.hosts) / 1024
        found["store"] = _bytes_below(self._stage.directory / "store") / 1024
        for table in Base.metadata.tables:
            found[f"rows {table}"] = await self._db.pool.fetchval(f"SELECT count(*) FROM {table}")
        per = {"": 1, "prompt": max(self._traffic.prompts, 1), "stored prompt": max(self._traffic.stored, 1)}
        self.samples.seconds.append(round(time.monotonic() - self._began, 1))
        for name, value in found.items():
            self.samples.series.setdefault(name, []).append(round(value / per[kind_of(name).per], 3))


def _gauge(text: str, name: str) -> float:
    families = text_string_to_metric_families(text)
    return next(family.samples[0].value for family in families if family.name == f"claude_agent_api_{name}")


def _bytes_below(directory: Path) -> int:
    """What files take, as far as they are there to the end."""
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(above, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
