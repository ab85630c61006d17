"""A network that can fail between us and a server: a TCP port on loopback that leads to its unix socket or port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from apps.api.settings import Settings


class Proxy:
    """Forwards bytes both ways. `cut` loses the clients while the server keeps its ends of the connections.

    Attributes:
        requests, answers: set while bytes flow in that direction; cleared, they are held back and not lost.
        delay: seconds that each answer comes later that holds `delayed`.
        held: how many connections and directions have something that is held back.
        asked: how often something came from a client.
        accepted: how many clients there have been.
    """

    def __init__(self, target: Path | int) -> None:
        self._target = target
        self._clients: set[asyncio.StreamWriter] = set()
        self._servers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.requests, self.answers = asyncio.Event(), asyncio.Event()
        self.requests.set()
        self.answers.set()
        self.delay, self.delayed = 0.0, b""
        self.held = self.asked = self.accepted = 0
        self.port = 0

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Take no new connections until `start`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def cut(self) -> int:
        """Break every connection on the client's side; returns how many. Their servers do not notice."""
        clients, self._clients = self._clients, set()
        for writer in clients:
            writer.transport.abort()
        return len(clients)

    async def close(self) -> None:
        await self.refuse()
        self.cut()
        for writer in self._servers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self._target, int):
            upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target)
        else:
            upstream, downstream = await asyncio.open_unix_connection(self._target)
        self.accepted += 1
        self._clients.add(writer)
        self._servers.add(downstream)
        for pump in (
            self._pump(reader, downstream, self.requests, writer),
            self._pump(upstream, writer, self.answers, writer),
        ):
            self._tasks.add(asyncio.create_task(pump))

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        flows: asyncio.Event,
        client: asyncio.StreamWriter,
    ) -> None:
        try:
            while data := await source.read(65536):
                self.asked += flows is self.requests
                self.held += 1
                await flows.wait()
                if flows is self.answers and self.delay and self.delayed in data:
                    await asyncio.sleep(self.delay)
                self.held -= 1
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        if client in self._clients:  # ended in order, not cut
            sink.close()


@asynccontextmanager
async def postgres_proxy(settings: Settings) -> AsyncIterator[tuple[Proxy, Settings]]:
    """A proxy in front of the test's PostgreSQL, and settings that go through it."""
    url = urlsplit(settings.database_url.get_secret_value())
    proxy = Proxy(Path(parse_qs(url.query)["host"][0]) / ".s.PGSQL.5432")
    await proxy.start()
    through = f"postgresql://{url.username}:{url.password}@127.0.0.1:{proxy.port}{url.path}"
    try:
        yield proxy, changed(settings, database_url=through)
    finally:
        await proxy.close()


@asynccontextmanager
async def redis_proxy(settings: Settings) -> AsyncIterator[tuple[Proxy, Settings]]:
    """A proxy in front of the test's Redis, and settings that go through it."""
    url = urlsplit(settings.redis_url.get_secret_value())
    proxy = Proxy(Path(url.path))
    await proxy.start()
    try:
        yield proxy, changed(settings, redis_url=f"redis://:{url.password}@127.0.0.1:{proxy.port}/0")
    finally:
        await proxy.close()


def changed(settings: Settings, **more: object) -> Settings:
    """The same settings but for these."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(_env_file=None, **{**given, **more})
