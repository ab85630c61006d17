"""What the model gateway costs: to the first byte of an answer, and for each delta, beside the model asked directly."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import orjson
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

LISTED = ("claude-*",)
"""The models of a tenant that may use only some."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gateway in a process of its own."""

    url: str
    token: str
    pid: int


@asynccontextmanager
async def _started(model_url: str, *models: str) -> AsyncIterator[Gate]:
    words = [sys.executable, "-m", "tests.bench.gateway", model_url, *models]
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
    async with _started(stage.model_url) as gate, _started(stage.model_url, *LISTED) as listed:
        asked = {
            "the model asked directly": await Asking.open(stage.model_url, "any"),
            "through the gateway": await Asking.open(gate.url, gate.token),
            "through it, of a tenant with a list of models": await Asking.open(listed.url, listed.token),
        }
        taken: dict[str, list[float]] = {what: [] for what in asked}
        for _ in range(rounds):
            for what, asking in asked.items():
                taken[what].append(await asking.first_byte() * 1000)
        report.head("ms to the first byte of an answer")
        for what, values in taken.items():
            report.row(what, values)
            asked[what].close()
        direct, through, _ = (percentile(values, 0.5) for values in taken.values())
        report.at_most("gateway, added to the first byte, p50", through - direct, 1, "ms")
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


class Asking:
    """One connection over which the same is asked again and again, each time in one piece, as the CLI does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader, self._writer = reader, writer
        messages = [{"role": "user", "content": HISTORY}, {"role": "user", "content": "say hello"}]
        asked = {"model": "claude-sonnet-5-5", "max_tokens": 100, "stream": True, "messages": messages}
        body = orjson.dumps(asked)
        lines = ["POST /v1/messages HTTP/1.1", "host: localhost", f"x-api-key: {key}", f"content-length: {len(body)}"]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body

    @classmethod
    async def open(cls, url: str, key: str) -> Asking:
        """To a server on this machine."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port), key)

    async def first_byte(self) -> float:
        """Seconds to the first byte of an answer's body; what follows is read, too."""
        async with asyncio.timeout(30):
            began = time.monotonic()
            self._writer.write(self._request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            size = await self._size()
            await self._reader.readexactly(1)
            seconds = time.monotonic() - began
            await self._reader.readexactly(size + 1)
            while size := await self._size():
                await self._reader.readexactly(size + 2)
            await self._reader.readline()
        return seconds

    async def _size(self) -> int:
        return int(await self._reader.readline(), 16)

    def close(self) -> None:
        """End it."""
        self._writer.close()


async def _serve(model_url: str, lists: list[list[str]]) -> None:
    async def noted(_call: Call) -> None:
        return

    settings = Settings(_env_file=None, anthropic_base_url=model_url, anthropic_api_key="any")

    async def api_of(_tenant_id: UUID) -> ModelApi:
        return model_api.of(settings)

    async def listed(*_of: object) -> list[list[str]]:
        return lists  # with one requests are read, and written anew

    gateway = Gateway(settings, api_of, noted, listed)
    await gateway.start()
    holder = gateway.admit(Holder(uuid4(), uuid4(), lambda: None, lambda _: None))
    print(gateway.url, holder.token, flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    await gateway.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], [sys.argv[2:]] if sys.argv[2:] else []))
