"""Serve the demo model on loopback: `run()` for a process of its own, `serving()` inside a test or a tool."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from apps.demo_model.app import create_app

LOOPBACK = ("127.0.0.1", "localhost", "::1")

Wrap = Callable[[ASGIApp], ASGIApp]


class Server(uvicorn.Server):
    """A uvicorn server that stops at once, even while replies hang, and leaves signals to its caller."""

    def __init__(self, wrap: Wrap | None = None) -> None:
        app = create_app()
        served = wrap(app) if wrap else app
        super().__init__(uvicorn.Config(served, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
        self._closing = app.state.closing
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own version raises the signal again after a clean stop, and the exit code tells of a crash.
        yield


def run(host: str, port: int, port_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT. Prints the port and writes it to `port_file` once clients may connect."""
    with _listening(host, port) as listener:
        server = Server()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)
        bound = listener.getsockname()[1]
        if port_file is not None:
            # A reader that polls for the file must never see half a number.
            half = port_file.with_name(port_file.name + ".part")
            half.write_text(f"{bound}\n")
            half.replace(port_file)
        print(bound, flush=True)
        server.run([listener])


@contextlib.contextmanager
def serving(wrap: Wrap | None = None) -> Iterator[str]:
    """The demo model in a thread of this process, perhaps inside another app: yields its base URL."""
    server = Server(wrap)
    with _listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="demo-model")
        thread.start()
        try:
            if not server.ready.wait(10):
                raise RuntimeError("the demo model did not start within 10 s")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def _listening(host: str, port: int) -> socket.socket:
    if host not in LOOPBACK:
        raise ValueError(f"the demo model has no authentication and listens on loopback only, not on {host}")
    return socket.create_server((host, port), family=socket.AF_INET6 if host == "::1" else socket.AF_INET)
