"""Server processes forked from one that has imported everything: importing takes 3 s of a core, and a test's fleet of
two would spend most of its time on it. A forked server is the same program from `main` on; its environment, arguments
and log are its own, but `/proc/PID/environ` and `cmdline` are its parent's: what looks at these starts a program."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import IO, NoReturn

from tests import disks

BOUND = 180.0
"""Seconds for the first of a process, which imports what all need."""


class Forked:
    """As much of `subprocess.Popen` as the tests use."""

    def __init__(self, pid: int, ended: int) -> None:
        """`ended`: a pipe from which the exit code can be read once there is one."""
        self.pid, self._ended = pid, ended
        self._code: int | None = None
        self._reading = Lock()  # several threads may wait, and the code can be read once

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        if self._code is None:
            poll = select.poll()  # `select` takes no descriptor beyond 1023
            poll.register(self._ended, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("claude-agent-api", timeout or 0)
            with self._reading:
                if self._code is None:
                    self._code = int(os.read(self._ended, 16))
                    os.close(self._ended)
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(arguments: Sequence[str], env: Mapping[str, str], output: IO[bytes], binds: disks.Binds = ()) -> Forked:
    """Run `claude-agent-api` with these arguments, this environment and this file as its output.

    `binds`: what it is to see elsewhere, see `tests.disks`.
    """
    connection = _parent()
    ended, ending = os.pipe()
    seen = [[str(path) for path in bind] for bind in binds]
    message = json.dumps({"arguments": list(arguments), "env": dict(env), "binds": seen}).encode()
    socket.send_fds(connection, [len(message).to_bytes(4)], [output.fileno(), ending])
    os.close(ending)
    connection.sendall(message)
    return Forked(int.from_bytes(_exactly(connection, 4)), ended)


@cache
def _parent() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    ours.settimeout(BOUND)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _exactly(connection: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        more = connection.recv(count - len(read))
        if not more:
            raise EOFError
        read += more
    return read


def _serve(connection: socket.socket) -> None:
    """Fork whenever asked, and tell the codes, until the tests have closed their end."""
    for module in ("apps.api.cli", "apps.api.main", "apps.api.server"):
        importlib.import_module(module)
    gc.freeze()
    running: dict[int, int] = {}
    woken, waking = os.pipe()
    for end in (woken, waking):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a whole group: the tests are told so, too, and end everything
    signal.set_wakeup_fd(waking)
    while True:
        ready, _, _ = select.select([connection.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            _reap(running)
        if connection.fileno() in ready:
            size, (output, ending), _, _ = socket.recv_fds(connection, 4, 2)
            message = json.loads(_exactly(connection, int.from_bytes(size)))
            pid = os.fork()
            if pid == 0:
                for inherited in (*running.values(), woken, waking, ending, connection.fileno()):
                    os.close(inherited)
                _run(message["arguments"], message["env"], output, message["binds"])
            os.close(output)
            running[pid] = ending
            connection.sendall(pid.to_bytes(4))


def _reap(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        ending = running.pop(pid)
        os.write(ending, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(ending)


def _run(arguments: list[str], env: dict[str, str], output: int, binds: list[list[str]]) -> NoReturn:
    """Become the server, as `exec` would make it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.clear()
    os.environ.update(env)
    gc.unfreeze()
    sys.argv = ["claude-agent-api", *arguments]
    code = 1
    try:
        if binds:
            disks.mount(binds)
        importlib.import_module("apps.api.cli").main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with suppress(EOFError, OSError, ValueError), socket.socket(fileno=int(sys.argv[1])) as opened:
        _serve(opened)
