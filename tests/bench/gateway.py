"""What the model gateway costs: to the first byte of an answer, and for each delta, beside the model asked directly."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import httpx2
import uvloop

from apps.api.core.network import model_api
from apps.api.core.network.model_api import ModelApi
from apps.api.core.tenant.model_calls import Call
from apps.api.runner.gateway.gateway import Gateway
from apps.api.runner.gateway.holder import Holder
from apps.api.settings import Settings
from tests.bench import sdk
from tests.bench.machine import cpu_of
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk
from tests.bench.stage import Stage

HISTORY = "x" * 80_000
"""Characters of a request: what a short conversation of the CLI has, with its tools."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gateway in a process of its own."""

    url: str
    token: str
    pid: int


@asynccontextmanager
async def _started(model_url: str) -> AsyncIterator[Gate]:
    words = [sys.executable, "-m", "tests.bench.gateway", model_url]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            url, token = (await process.stdout.readline()).decode().split()
        yield Gate(url, token, process.pid)
    finally:
        process.terminate()
        await process.wait()


async def costs(stage: Stage, driven: Sdk, report: Report, *, rounds: int, words: int) -> None:
    """First bytes of `rounds` answers each, by turns; then two streams of `words` words through a real CLI."""
    async with _started(stage.model_url) as gate:
        direct: list[float] = []
        through: list[float] = []
        async with httpx2.AsyncClient(timeout=30) as client:
            for _ in range(rounds):
                direct.append(await _first_byte(client, stage.model_url, "any"))
                through.append(await _first_byte(client, gate.url, gate.token))
        report.head("ms to the first byte of an answer")
        report.row("the model asked directly", direct)
        report.row("through the gateway", through)
        added = percentile(through, 0.5) - percentile(direct, 0.5)
        report.at_most("gateway, added to the first byte, p50", added, 1, "ms")
        settings = driven.settings.model_copy(update={"anthropic_base_url": gate.url})
        async with replace(driven, settings=settings, token=gate.token).client() as agent:
            await sdk.ask(agent, "say hello", lambda _: None)
            cli = agent._transport._process.pid  # type: ignore[union-attr]
            before, heard = (cpu_of(gate.pid), cpu_of(cli, children=True)), [0]
            for _ in range(2):
                await sdk.ask(agent, f"stream {words} words", lambda _: heard.append(1))
            spent = cpu_of(gate.pid) - before[0], cpu_of(cli, children=True) - before[1]
        deltas = len(heard) - 1
        report.note(f"CPU per delta: gateway {spent[0] * 1e6 / deltas:.1f} µs, CLI {spent[1] * 1e6 / deltas:.1f} µs")
        report.at_most("gateway, CPU per delta", 100 * spent[0] / spent[1], 15, "% of the CLI's own")


async def _first_byte(client: httpx2.AsyncClient, url: str, key: str) -> float:
    messages = [{"role": "user", "content": HISTORY}, {"role": "user", "content": "say hello"}]
    body = {"model": "claude-sonnet-5-5", "max_tokens": 100, "stream": True, "messages": messages}
    began = time.monotonic()
    async with client.stream("POST", f"{url}/v1/messages", json=body, headers={"x-api-key": key}) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        seconds = time.monotonic() - began
        async for _ in pieces:
            pass
    return seconds * 1000


async def _serve(model_url: str) -> None:
    async def noted(_call: Call) -> None:
        return

    settings = Settings(_env_file=None, anthropic_base_url=model_url, anthropic_api_key="any")

    async def api_of(_tenant_id: UUID) -> ModelApi:
        return model_api.of(settings)

    async def listed(*_of: object) -> list[list[str]]:
        return [["claude-*"]]  # so that requests are read, and written anew

    gateway = Gateway(settings, api_of, noted, listed)
    await gateway.start()
    holder = gateway.admit(Holder(uuid4(), uuid4(), lambda: None, lambda _: None))
    print(gateway.url, holder.token, flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    await gateway.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
