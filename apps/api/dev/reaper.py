"""A small child process that ends what its supervisor started, however the supervisor died.

Started by `processes.Reaper` as `python -I -S reaper.py`; standard library only, so that it is up in some
milliseconds and stays small. It reads one JSON list per line from stdin:

    ["guard", pid, stage, signal, grace]   a process group leader; grace in seconds until SIGKILL
    ["forget", pid]                        it has ended
    ["remove", path]                       a directory to delete when all else is done

At the end of the file nobody is left to stop these processes in order, so this process does it: stage by
stage in ascending order, the leader first with its own signal, then the whole group with SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Guarded(NamedTuple):
    """A process group leader and the polite way to end it. `grace` is in seconds."""

    pid: int
    stage: int
    signal: int
    grace: float


def is_alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not: in a container without an init nobody may ever reap it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        # No /proc (macOS), or gone since: the caller asks again.
        return True


def end(group: list[Guarded]) -> None:
    """End the processes of one stage together, then whatever is left of their groups."""
    for guarded in group:
        _send(os.kill, guarded.pid, guarded.signal)
    started = time.monotonic()
    while any(is_alive(g.pid) and time.monotonic() - started < g.grace for g in group):
        time.sleep(0.02)
    for guarded in group:
        _send(os.killpg, guarded.pid, signal.SIGKILL)


def _send(how: Callable[[int, int], None], pid: int, signum: int) -> None:
    try:
        how(pid, signum)
    except (ProcessLookupError, PermissionError):
        # Gone already. macOS answers EPERM for a group of zombies.
        return


def watch(lines: Iterable[str]) -> tuple[list[Guarded], list[str]]:
    """Read until the supervisor is gone. Returns what is left to end and the directories to remove."""
    guarded: dict[int, Guarded] = {}
    directories: list[str] = []
    for line in lines:
        match json.loads(line):
            case ["guard", int(pid), int(stage), int(signum), int() | float() as grace]:
                guarded[pid] = Guarded(pid, stage, signum, grace)
            case ["forget", int(pid)]:
                guarded.pop(pid, None)
            case ["remove", str(path)]:
                directories.append(path)
    return list(guarded.values()), directories


def main() -> None:
    """Wait for the end of stdin, then clean up."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    left, directories = watch(sys.stdin)
    for stage in sorted({g.stage for g in left}):
        end([g for g in left if g.stage == stage])
    if directories:
        import shutil

        for path in directories:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
