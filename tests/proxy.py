"""A network that can fail between us and a server: a TCP port on loopback that leads to its unix socket or port."""

from __future__ import annotations

import asyncio
import re
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
        loses: a direction, and what is lost there, once, with the connection that it comes by.
        held: how many connections and directions have something that is held back.
        asked: how often something came from a client.
        accepted: how many clients there have been.
    """

    def __init__(self, target: Path | int) -> None:
        self._target = target
        self._clients: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._lost: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.requests, self.answers = asyncio.Event(), asyncio.Event()
        self.requests.set()
        self.answers.set()
        self.delay, self.delayed = 0.0, b""
        self.loses: tuple[asyncio.Event, re.Pattern[bytes]] | None = None
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
        clients, self._clients = self._clients, {}
        self._lost.update(clients.values())
        for writer in clients:
            writer.transport.abort()
        return len(clients)

    def forget(self) -> None:
        """Break the server's ends of connections whose clients were lost, as its keep-alive would in the end."""
        lost, self._lost = self._lost, set()
        for writer in lost:
            writer.transport.abort()

    async def close(self) -> None:
        await self.refuse()
        self.cut()
        self.forget()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._target, int):
                upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target)
            else:
                upstream, downstream = await asyncio.open_unix_connection(self._target)
        except OSError:  # nobody is there: so it is for the client
            writer.transport.abort()
            return
        self.accepted += 1
        self._clients[writer] = downstream
        for pump in (
            self._pump(reader, downstream, self.requests, writer),
            self._pump(upstream, writer, self.answers, writer),
        ):
            self._tasks.add(task := asyncio.create_task(pump))
            task.add_done_callback(self._tasks.discard)

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
                if self.loses and self.loses[0] is flows and self.loses[1].search(data):
                    self.loses = None
                    if client in self._clients:
                        self._lost.add(self._clients.pop(client))
                    client.transport.abort()
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        if client in self._clients:  # ended in order, not cut
            sink.close()
            if flows is self.answers:
                self._clients.pop(client).close()


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
