"""Leave processes behind that want to live on, as an agent's tool does it; standard library only.

    lasting.py BEATS

BEATS: a directory in which each of them writes to a file of its own for as long as it lives, so that whoever looks
there sees the quickest, too. Prints `left` and how many. None lives for more than SECONDS, whatever ends it or not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

NEWUSER, NEWPID = 0x10000000, 0x20000000
DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)
SECONDS = 60.0

until = time.monotonic() + SECONDS


def beat(file: int) -> None:
    os.pwrite(file, str(time.monotonic_ns()).encode(), 0)
    if time.monotonic() > until:
        os._exit(0)


def beating(file: int) -> None:
    while True:
        beat(file)
        time.sleep(0.05)


def renamed(file: int) -> None:
    """With a name that looks like the end of one in /proc/PID/stat."""
    ctypes.CDLL(None).prctl(15, b") S 1 1 (x", 0, 0, 0)
    beating(file)


def running_away(file: int) -> None:
    """A new process every moment, each the child of one that has ended, in a session of its own."""
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
        beat(file)


def guarded(file: int) -> None:
    """Two of it watch each other: when one is ended, the other makes a new one."""
    while True:
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                beat(file)
                time.sleep(0.001)
        else:
            os.wait()


def adopting(file: int) -> None:
    """Whatever is orphaned below it is its own child, not the guard's."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    if os.fork() == 0:
        running_away(file)
    while True:
        os.wait()


def hidden(file: int) -> None:
    """In a namespace of processes of its own, where it can be made."""
    if ctypes.CDLL(None).unshare(NEWUSER | NEWPID) == 0 and os.fork():
        os.wait()
    beating(file)


KINDS: tuple[Callable[[int], None], ...] = (beating, renamed, *[running_away] * 2, guarded, adopting, hidden)


def leave(kind: Callable[[int], None], file: Path) -> None:
    """Begin it as nobody's child, in a session of its own, deaf to what can be ignored, without our descriptors."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in DEAF:
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    kind(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    os._exit(0)


def main() -> None:
    beats = Path(sys.argv[1])
    beats.mkdir()
    for number, kind in enumerate(KINDS):
        leave(kind, beats / f"{number}-{kind.__name__}")
    while len(os.listdir(beats)) < len(KINDS):
        time.sleep(0.01)
    print("left", len(KINDS))


if __name__ == "__main__":
    main()
