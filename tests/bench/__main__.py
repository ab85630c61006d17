"""`python -m tests.bench`: what this service costs on this machine, beside the SDK driven directly, and the targets."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import uvloop

from tests.bench import (
    admission,
    burst,
    decision,
    gateway,
    growth,
    idle,
    isolation,
    plots,
    relay,
    sdk,
    surfaces,
    turns,
    workspace,
)
from tests.bench.machine import Load
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk
from tests.bench.stage import AGENTS, Stage, opened

BUDGET, QUICK_BUDGET = 900.0, 53.0
"""Seconds for a round of everything: a slow machine's. What has not been measured by then is left out."""

PART_BUDGET = 7200.0
"""The same with `--part`: a large database takes long to fill."""

SECTIONS: tuple[str, ...] = (
    "idle",
    "cold",
    "isolation",
    "warm",
    "surfaces",
    "decision",
    "gateway",
    "burst",
    "delta",
    "relay",
    "admission",
    "workspace",
    "fleet",
    "growth",
)

Measure = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: numbers of samples, and seconds per series."""

    rounds: int
    warm_rounds: int
    decisions: int
    bursts: int
    words: int
    paced_words: int
    seconds: float
    streams: int
    idle_seconds: float
    files: int
    grown: float


FULL = Sizes(
    rounds=8,
    warm_rounds=80,
    decisions=30,
    bursts=3,
    words=20_000,
    paced_words=500,
    seconds=5,
    streams=1_000,
    idle_seconds=16,
    files=20_000,
    grown=0.02,
)
QUICK = Sizes(
    rounds=2,
    warm_rounds=8,
    decisions=5,
    bursts=1,
    words=5_000,
    paced_words=100,
    seconds=1.5,
    streams=200,
    idle_seconds=3,
    files=2_000,
    grown=0.005,
)


def sections(stage: Stage, driven: Sdk, report: Report, size: Sizes) -> dict[str, tuple[str, list[Measure]]]:
    """Title and measurements by the names in SECTIONS, in order."""
    shares = {1: 75.0, 4: 65.0}
    words, seconds = size.words, size.seconds
    return {
        "idle": (
            "Idle streams, on a fresh instance",
            [
                lambda: idle.instances(stage, report, seconds=size.idle_seconds / 4),
                lambda: idle.load(stage, report, seconds=size.idle_seconds / 4, turns=size.rounds),
                lambda: idle.streams(stage, report, count=size.streams, seconds=size.idle_seconds),
            ],
        ),
        "cold": ("First delta of a new session", [lambda: turns.cold(stage, driven, report, size.rounds)]),
        "isolation": ("The layers of isolation", [lambda: isolation.starts(driven, report, size.rounds)]),
        "warm": ("Warm turns", [lambda: turns.warm(stage, driven, report, size.warm_rounds)]),
        "surfaces": (
            "Surfaces for other clients",
            [lambda: surfaces.added(stage, report, min(size.warm_rounds, 40))],
        ),
        "decision": (
            "Permission requests, decided on another instance",
            [lambda: decision.decisions(stage, driven, report, size.decisions)],
        ),
        "gateway": (
            "The model gateway",
            [lambda: gateway.costs(stage, driven, report, rounds=size.warm_rounds, words=words)],
        ),
        "burst": (
            "Bursts, from the CLI to clients on another instance",
            [lambda: burst.bursts(stage, driven, report, words=words, shares=shares, rounds=size.bursts)],
        ),
        "delta": (
            "What the relay adds to a delta",
            [
                lambda: relay.paced(stage, report, seconds=seconds),
                lambda: burst.paced(stage, driven, report, count=4, words=size.paced_words),
            ],
        ),
        "relay": (
            "The relay under load",
            [
                lambda: relay.saturated(stage, report, seconds=seconds),
                lambda: relay.many(stage, report, seconds=seconds),
            ],
        ),
        "admission": (
            "Prompts and durable messages",
            [
                lambda: admission.queries(stage, report, seconds=seconds),
                lambda: admission.appends(stage, report, seconds=seconds),
            ],
        ),
        "workspace": (
            "Workspaces that travel",
            [
                lambda: workspace.travels(report, files=size.files),
                lambda: workspace.untouched(stage, report, files=size.files, rounds=size.warm_rounds // 2),
            ],
        ),
        "fleet": (
            "Three instances; idle sessions",
            [
                lambda: relay.more_instances(stage, report, seconds=seconds),
                lambda: idle.instances(stage, report, seconds=size.idle_seconds),
                lambda: idle.sessions(stage, report, count=5),
            ],
        ),
        "growth": (
            "Statements in a database that has grown",
            [lambda: growth.statements(stage, report, part=size.grown, rounds=size.rounds * 5)],
        ),
    }


def sync_ms(directory: Path, rounds: int = 50) -> float:
    """Median time of writing and syncing 8 KB: the least that a commit costs here."""
    sync = getattr(os, "fdatasync", os.fsync)
    taken = []
    with (directory / "sync").open("wb") as file:
        for _ in range(rounds):
            began = time.perf_counter()
            file.write(b"x" * 8192)
            file.flush()
            sync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return percentile(taken, 0.5)


def introduce(report: Report) -> None:
    """Say what is measured on what."""
    with tempfile.TemporaryDirectory() as directory:
        synced = sync_ms(Path(directory))
    names = ("claude-agent-sdk", "fastapi", "starlette", "uvicorn", "redis", "asyncpg", "uvloop")
    report.title(f"Claude Agent API, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    report.about(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}")
    report.about(", ".join(f"{name} {version(name)}" for name in names))
    report.about(f"writing and syncing 8 KB to the disk takes {synced:.2f} ms: the least that a commit costs here")
    report.about(
        "SDK and API: the same machine, demo model, event loop (uvloop) and CLI options. In favour of the SDK:"
    )
    report.about("its CLI starts without the guard process, and its transcripts go to memory instead of PostgreSQL.")


async def measure(report: Report, size: Sizes, only: list[str], wait: float, ends: float) -> None:
    """Start everything, and run the sections until `ends` (monotonic seconds)."""
    async with opened() as stage, sdk.opened(stage.settings(AGENTS), stage.directory / "sdk") as driven:
        for name, (title, parts) in sections(stage, driven, report, size).items():
            if only and name not in only:
                continue
            await Load.settled(min(wait, max(ends - time.monotonic(), 0)))
            report.title(f"{title} ({name})")
            load = Load.begin()
            try:
                async with asyncio.timeout(max(ends - time.monotonic(), 0)):
                    for part in parts:
                        await part()
            except TimeoutError:
                report.note("left out or cut off: the time was up")
            except (RuntimeError, OSError) as error:
                report.note(f"FAILED, and so left out: {error!r}")
            report.note(f"others kept {load.others():.2f} of {os.cpu_count()} cores busy meanwhile")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements, in less than a minute")
    parser.add_argument("--only", nargs="+", default=[], choices=SECTIONS, metavar="SECTION", help=" ".join(SECTIONS))
    parser.add_argument(
        "--wait", type=float, default=20, metavar="SECONDS", help="for a quiet machine before each section, at most"
    )
    parser.add_argument(
        "--part", type=float, metavar="PART", help="growth: so much of 1,000,000 sessions, 1 being all; takes its time"
    )
    often = "measure everything so often, each time on fresh servers (3; with --quick or --part 1)"
    parser.add_argument("--rounds", type=int, help=often)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="draw all figures there as well")
    parser.add_argument("--from", dest="kept", type=Path, metavar="FILE", help="measure nothing: figures of --json")
    chosen = parser.parse_args(words)
    chosen.rounds = chosen.rounds or (1 if chosen.quick or chosen.part is not None else 3)
    return chosen


def measured(chosen: argparse.Namespace) -> Report:
    """Measure what was chosen, and print it."""
    size = QUICK if chosen.quick else FULL
    budget = QUICK_BUDGET if chosen.quick else BUDGET
    if chosen.part is not None:
        size, budget = replace(size, grown=chosen.part), PART_BUDGET
    report = Report()
    introduce(report)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(chosen.rounds):
            runner.run(measure(report, size, chosen.only, chosen.wait, time.monotonic() + budget))
    return report


def main() -> None:
    """Measure and print. The exit status is 0 whether or not targets are met."""
    chosen = arguments()
    report = Report.read(chosen.kept) if chosen.kept else measured(chosen)
    report.summary()
    if chosen.json is not None:
        report.write(chosen.json)
    if chosen.svg is not None:
        for file in plots.write(report, chosen.svg):
            print(file)


if __name__ == "__main__":
    main()
