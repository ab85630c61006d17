"""Child processes in sessions of their own, which outlive neither an orderly stop nor the supervisor's death.

A session of its own keeps the terminal's Ctrl-C away from a child: the supervisor decides who stops when.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import orjson
import psutil

from apps.api.dev.datadir import DevError

POLL_SECONDS = 0.02

ABANDONED_GRACE = 45.0
"""Seconds that a child has at most when the supervisor was killed: the next start waits for the end of all."""


class Stage(IntEnum):
    """The order in which things end: who is served goes before who serves."""

    SERVERS = 0
    MODEL = 1
    POSTGRES = 2
    VALKEY = 3


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ends: its signal, and the seconds after which its whole group gets SIGKILL."""

    stage: Stage
    signal: signal.Signals
    grace: float


@dataclass(slots=True)
class Child:
    """A running child. `log` has its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ending: Ending

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def how_it_ended(self) -> str:
        """`exit code 1` or `signal SIGKILL`, for a message."""
        code = self.process.poll()
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"

    def ask_to_stop(self) -> None:
        if self.is_alive():
            self.process.send_signal(self.ending.signal)

    def kill(self) -> None:
        """SIGKILL for the whole group, whether or not its leader is still there."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # The group is empty. macOS answers EPERM for a group of zombies.
            return

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return tail(self.log, lines)


class Reaper:
    """Starts children and has them ended when this process is gone. See reaper.py for the other end.

    Args:
        log: the file for its own errors.
        lock: the descriptor of the data directory's lock. The reaper shares it, so that nobody else uses the
            directory before the clean-up is done.
        doomed: directories to delete in the end.
    """

    def __init__(self, log: Path, lock: int, doomed: Sequence[Path] = ()) -> None:
        program = Path(__file__).with_name("reaper.py")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd="/",
                env=plain_environment(),
                pass_fds=(lock,),
                start_new_session=True,
            )
        for path in doomed:
            self._tell("remove", str(path))

    def start(
        self,
        name: str,
        command: Sequence[str],
        ending: Ending,
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        stdin: bytes = b"",
        **popen: Any,
    ) -> Child:
        """Start and register a child. `environment` replaces ours; by default it is a plain one without secrets.

        Raises:
            DevError: the program cannot be started, or the reaper is gone.
        """
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    env=plain_environment() if environment is None else environment,
                    start_new_session=True,
                    **popen,
                )
            except OSError as error:
                raise DevError(f"cannot start {name}: {error}") from error
        child = Child(name, process, log, ending)
        try:
            grace = min(ending.grace, ABANDONED_GRACE)
            self._tell("guard", child.pid, int(ending.stage), int(ending.signal), grace)
            _feed(process, stdin)
        except OSError as error:
            child.kill()
            process.wait()
            raise DevError(f"cannot start {name}: {error}. {child.tail()}") from error
        return child

    def forget(self, child: Child) -> None:
        """The child has ended; its pid may soon belong to another process."""
        with suppress(BrokenPipeError):
            self._tell("forget", child.pid)

    def stop(self, child: Child) -> None:
        """End one child and wait for it. Takes up to its grace."""
        child.ask_to_stop()
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(child.ending.grace)
        child.kill()
        child.process.wait()
        self.forget(child)

    def close(self) -> None:
        """Send the reaper home. It ends what is still registered, so stop the children first."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, *message: str | int | float) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe, see __init__
        self._process.stdin.write(orjson.dumps(message) + b"\n")
        self._process.stdin.flush()


@dataclass(slots=True)
class Deadline:
    """A bound on a wait, in seconds from its making."""

    seconds: float
    _started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        return time.monotonic() - self._started > self.seconds


def await_ready(child: Child, is_ready: Callable[[], bool], seconds: float) -> None:
    """Block until a child that was just started answers.

    Raises:
        DevError: it died or did not answer in time; the message ends with the tail of its log.
    """
    deadline = Deadline(seconds)
    while not is_ready():
        if not child.is_alive():
            raise DevError(f"{child.name} ended with {child.how_it_ended()} while starting.\n{child.tail()}")
        if deadline.passed:
            raise DevError(f"{child.name} did not answer within {seconds:.0f} s.\n{child.tail()}")
        time.sleep(POLL_SECONDS)


def accepts(path: Path) -> bool:
    """Whether somebody listens on this unix socket; a killed server leaves the file behind."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(path))
    except OSError:
        return False
    return True


def plain_environment() -> dict[str, str]:
    """What programs need that are not to see our secrets: an agent can read /proc/PID/environ of its own user."""
    kept = ("HOME", "PATH", "TMPDIR", "TZ", "LANG", "PYTHONPATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"}


def tail(log: Path, lines: int) -> str:
    """The last lines of a log file, `(no output)` when there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"({log}: {error.strerror})"
    return "\n".join(text.splitlines()[-lines:]) or "(no output)"


def end_stale(pid: int, marks: Sequence[str], polite: signal.Signals, grace: float) -> None:
    """End a process that an earlier run left behind, if it is that: its command line must contain every mark."""

    def ours() -> psutil.Process | None:
        # A bare pid proves nothing: after a restart it may belong to anybody.
        try:
            process = psutil.Process(pid)
            line = " ".join(process.cmdline())
        except psutil.Error:
            return None
        return process if line and all(mark in line for mark in marks) else None

    for signum, seconds in ((polite, grace), (signal.SIGKILL, 5.0)):
        deadline = Deadline(seconds)
        if process := ours():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
        while ours() and not deadline.passed:
            time.sleep(POLL_SECONDS)


def remove(path: Path) -> None:
    """Delete a file or a directory, whether or not it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _feed(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - it is a pipe, see start()
    with process.stdin as pipe:
        pipe.write(stdin)
