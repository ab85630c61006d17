"""Target 4, with real agents: bursts as fast as the CLI can, and what the relay adds to paced deltas."""

from __future__ import annotations

import asyncio
import os
import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from claude_agent_sdk import ClaudeSDKClient

from tests.bench import sdk
from tests.bench.client import Connection, Feed, Frames
from tests.bench.machine import cpu_of
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk
from tests.bench.stage import Stage
from tests.bench.turns import PARTIAL

_CLOCK = re.compile(rb'event: partial\ndata: [^\n]*"text":"(\d+) ')


@dataclass(frozen=True, slots=True)
class Burst:
    """Deltas that arrived between the first and the last, over all runs of a burst; CPU of all processes involved."""

    deltas: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Deltas per second."""
        return self.deltas / self.seconds


class _Count:
    """Counts deltas of several runs and notes when the first and the last came."""

    def __init__(self) -> None:
        self.deltas = 0
        self.first = self.last = 0.0

    def add(self, deltas: int) -> None:
        if deltas:
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.deltas += deltas

    def result(self, cpu: float) -> Burst:
        return Burst(self.deltas, max(self.last - self.first, 1e-6), cpu)


@dataclass
class Agents:
    """The same number of live agents on both sides: clients of the SDK, and sessions with a connection each."""

    clients: list[ClaudeSDKClient]
    sessions: list[str]
    connections: list[Connection]

    async def alone(self, prompt: str) -> Burst:
        """The prompt to all clients of the SDK at once."""
        count, before = _Count(), cpu_of(os.getpid(), children=True)
        await asyncio.gather(*(sdk.ask(client, prompt, lambda _: count.add(1)) for client in self.clients))
        return count.result(cpu_of(os.getpid(), children=True) - before)

    async def through(self, prompt: str) -> Burst:
        """The prompt to all sessions at once, from clients on another instance."""
        count, before = _Count(), cpu_of(os.getpid(), children=True)
        await self.send(prompt, lambda block: count.add(block.count(PARTIAL)))
        return count.result(cpu_of(os.getpid(), children=True) - before)

    async def send(self, prompt: str, heard: Feed) -> None:
        """One turn of every session; `heard` gets the frames as they arrive."""

        async def turn(session_id: str, connection: Connection) -> None:
            request = connection.prepare("POST", f"/api/v1/sessions/{session_id}/resume", {"prompt": prompt})
            status, body = await connection.send(request, Frames(heard))
            if status != 200:
                raise RuntimeError(f"{status}: {body[:300]!r}")

        await asyncio.gather(*(turn(s, c) for s, c in zip(self.sessions, self.connections, strict=True)))


async def agents(stage: Stage, driven: Sdk, stack: AsyncExitStack, count: int) -> Agents:
    """Start `count` agents on each side, and have each do one short turn."""
    made = Agents([], [], [])
    for _ in range(count):
        made.clients.append(await stack.enter_async_context(driven.client()))
        session_id = await stage.front.session()
        stack.push_async_callback(stage.front.client.delete, f"/api/v1/sessions/{session_id}")
        made.sessions.append(session_id)
        connection = await stage.connect(stage.front)
        stack.callback(connection.close)
        made.connections.append(connection)
    await made.alone("say hello")
    await made.through("say hello")
    return made


async def bursts(
    stage: Stage, driven: Sdk, report: Report, *, words: int, shares: dict[int, float], rounds: int
) -> None:
    """Bursts of `words` words with each number of agents in `shares`, the targets in percent."""
    for count, wanted in shares.items():
        each_words = words // (2 if count > 1 else 1)
        prompt = f"stream {each_words} words"
        async with AsyncExitStack() as stack:
            pair = await agents(stage, driven, stack, count)
            alone, api = [], []
            for _ in range(rounds):
                alone.append(await pair.alone(prompt))
                api.append(await pair.through(prompt))
        report.head(f"burst of {each_words:,} words, {count} at once: deltas per second, all together")
        report.row("SDK alone", [each.rate for each in alone])
        report.row("API, clients on another instance", [each.rate for each in api])
        _note(report, "SDK alone", alone, count * each_words)
        _note(report, "API", api, count * each_words)
        share = percentile([each.rate for each in api], 0.5) / percentile([each.rate for each in alone], 0.5)
        report.at_least(f"4 burst with {count} CLI", 100 * share, wanted, "% of the SDK's rate (p50)")


def _note(report: Report, who: str, made: list[Burst], sent: int) -> None:
    cpu = sum(each.cpu for each in made) * 1e6 / max(sum(each.deltas for each in made), 1)
    lost = sum(sent - each.deltas for each in made)
    report.note(
        f"{who}: {cpu:.1f} µs of CPU per delta in all processes, {lost:,} of {sent * len(made):,} deltas missing"
    )


async def paced(stage: Stage, driven: Sdk, report: Report, *, count: int, words: int) -> None:
    """Deltas of `count` agents at 100/s each: from the model's clock to the SDK's callback, or the client's socket."""
    prompt = f"clock {words} words every 10 ms"
    alone: list[float] = []
    api: list[float] = []

    def heard(block: bytes) -> None:
        now = time.monotonic_ns()
        api.extend((now - int(stamp)) / 1e6 for stamp in _CLOCK.findall(block))

    async with AsyncExitStack() as stack:
        pair = await agents(stage, driven, stack, count)
        record = lambda text: alone.append((time.monotonic_ns() - int(text)) / 1e6)  # noqa: E731
        for _ in range(2):
            await asyncio.gather(*(sdk.ask(client, prompt, record) for client in pair.clients))
            await pair.send(prompt, heard)
    report.head(f"{count} agents × 100 deltas/s: ms from the model's socket")
    report.row("to the SDK's callback, SDK alone", alone)
    report.row("to the client's socket on another instance, API", api)
    for share, limit in ((0.5, 0.5), (0.99, 5)):
        added = percentile(api, share) - percentile(alone, share)
        report.at_most(f"4 added per delta, real agents, p{share * 100:.0f}", added, limit, "ms")
