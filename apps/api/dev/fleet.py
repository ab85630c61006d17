"""The API servers of the local mode: N processes on consecutive ports, each in a session of its own."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from apps.api.dev.datadir import DataDir, DevError, RefusedError
from apps.api.dev.processes import Child, Deadline, Ending, Reaper, Stage

READY_TIMEOUT = 60.0
"""Seconds for all servers to be ready. One is ready in about two on a small machine."""

STOP_MARGIN = 10.0
"""Seconds on top of SHUTDOWN_GRACE_SECONDS in which a server writes the end of its runs and closes its connections."""

PROBE_INTERVAL = 0.15
"""Seconds. Ten a second is what the servers' rate limit for public routes allows."""


@dataclass(slots=True)
class Server:
    """One server process. `instance_id` is known once it is ready."""

    number: int
    url: str
    child: Child
    instance_id: str | None = None


def refuse_busy_ports(host: str, ports: range) -> None:
    """Find out before anything is started.

    Raises:
        RefusedError: a port is in use, out of range or forbidden, or the host is not one of this machine.
    """
    if ports[-1] > 65535:
        raise RefusedError(f"port {ports[-1]} does not exist: choose a smaller --port.")
    for port in ports:
        try:
            address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            with socket.socket(address[0], socket.SOCK_STREAM) as probe:
                # Like the servers: a connection that was closed a minute ago does not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address[4])
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RefusedError(f"port {port} is in use by another program. Stop it, or choose --port.") from error
            raise RefusedError(f"cannot listen on {host} port {port}: {error.strerror or error}.") from error


class Fleet:
    """Starts, awaits and stops the servers.

    Args:
        grace: SHUTDOWN_GRACE_SECONDS.
    """

    def __init__(self, home: DataDir, reaper: Reaper, host: str, grace: float) -> None:
        self._home, self._reaper, self._host = home, reaper, host
        self._ending = Ending(Stage.SERVERS, signal.SIGTERM, grace + STOP_MARGIN)
        self.servers: list[Server] = []

    def start(self, ports: range, environment: Mapping[str, str]) -> None:
        """Start one server for each port. They are not ready yet.

        Raises:
            DevError: a process cannot be started.
        """
        for number, port in enumerate(ports, start=1):
            log = self._home.logs / f"instance-{number}.log"
            log.unlink(missing_ok=True)
            command = [sys.executable, "-m", "apps.api.cli", "serve", "--host", self._host, "--port", str(port)]
            child = self._reaper.start(f"server {number}", command, self._ending, log, environment)
            self.servers.append(Server(number, f"http://{_reachable(self._host)}:{port}", child))

    async def ready(self) -> None:
        """Wait until every server is ready, then tell others by instances.json.

        Raises:
            DevError: one died or is not ready in time; the message has the tail of its log.
        """
        deadline = Deadline(READY_TIMEOUT)
        await asyncio.gather(*(self._ready(server, deadline) for server in self.servers))
        rows = [{"instance_id": s.instance_id, "url": s.url, "pid": s.child.pid} for s in self.servers]
        _write_atomically(self._home.instances, orjson.dumps(rows, option=orjson.OPT_INDENT_2) + b"\n")

    async def stop(self, hurry: asyncio.Event) -> None:
        """Let all servers drain at the same time, for as long as they may and until `hurry` is set."""
        self._home.instances.unlink(missing_ok=True)
        for server in self.servers:
            server.child.ask_to_stop()
        waits = (asyncio.to_thread(s.child.process.wait) for s in self.servers)
        drained = asyncio.gather(*waits, return_exceptions=True)
        hurried = asyncio.create_task(hurry.wait(), name="hurry")
        either: set[asyncio.Future[Any]] = {drained, hurried}
        await asyncio.wait(either, timeout=self._ending.grace, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for server in self.servers:
            server.child.kill()
        await drained
        for server in self.servers:
            self._reaper.forget(server.child)

    async def _ready(self, server: Server, deadline: Deadline) -> None:
        while (ident := await asyncio.to_thread(_probe, server.url)) is None:
            child = server.child
            if not child.is_alive():
                raise DevError(f"{child.name} ended with {child.how_it_ended()} while starting.\n{child.tail()}")
            if deadline.passed:
                raise DevError(f"{child.name} was not ready within {READY_TIMEOUT:.0f} s.\n{child.tail()}")
            await asyncio.sleep(PROBE_INTERVAL)
        server.instance_id = ident


def _probe(url: str) -> str | None:
    """The instance id of a server that is ready, else None."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=3)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return str(orjson.loads(body)["instance_id"]) if response.status == 200 else None


def _reachable(host: str) -> str:
    """The host part of a URL for an address to listen on."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"[{host}]" if ":" in host else host


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
