"""What stands in front of a fleet: each connection goes to the next instance that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from tests.fleet import Instance


class Balancer:
    """Passes bytes on, on a port of its own.

    Attributes:
        url: where it listens.
        instances: whom it asks, in turn; a test may leave some out.
        asked: how many connections each has had, by its URL.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = list(instances)
        self.asked = {instance.url: 0 for instance in instances}
        self.url = ""
        self._next = 0
        self._pumps: set[asyncio.Task[None]] = set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(len(self.instances)):
            instance = self.instances[self._next % len(self.instances)]
            self._next += 1
            with suppress(OSError):
                upstream, downstream = await asyncio.open_connection("127.0.0.1", int(instance.url.rpartition(":")[2]))
                self.asked[instance.url] += 1
                for source, sink in ((reader, downstream), (upstream, writer)):
                    self._pumps.add(pump := asyncio.create_task(_pump(source, sink)))
                    pump.add_done_callback(self._pumps.discard)
                return
        writer.transport.abort()

    async def drop(self) -> None:
        """Cut all that is connected; clients come again."""
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
    finally:
        sink.close()


@asynccontextmanager
async def balancing(instances: Sequence[Instance]) -> AsyncIterator[Balancer]:
    """One in front of these instances."""
    balancer = Balancer(instances)
    server = await asyncio.start_server(balancer._accept, "127.0.0.1", 0)
    balancer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield balancer
    finally:
        server.close()
        await balancer.drop()
