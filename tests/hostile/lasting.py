"""Leave processes behind that want to live on, as an agent's tool does it; standard library only.

    lasting.py MARK

MARK is an argument of each of them. Prints `left` and how many, once they are there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

NEWUSER, NEWPID = 0x10000000, 0x20000000
DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)


def sleeping() -> None:
    time.sleep(1000)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    sleeping()


def renamed() -> None:
    """With a name that looks like the end of one in /proc/PID/stat."""
    ctypes.CDLL(None).prctl(15, b") S 1 1 (x", 0, 0, 0)
    sleeping()


def running_away() -> None:
    """A new process every moment, each the child of one that has ended."""
    while True:
        if os.fork():
            os._exit(0)


def multiplying() -> None:
    """Two of it watch each other: when one is ended, the other makes a new one."""
    while True:
        child = os.fork()
        if child == 0:
            parent = os.getppid()
            while os.getppid() == parent:
                time.sleep(0.001)
        else:
            os.waitpid(child, 0)


def hidden() -> None:
    """In a namespace of its own, where it can be made."""
    if ctypes.CDLL(None).unshare(NEWUSER | NEWPID) == 0 and os.fork() == 0:
        os.setsid()
    sleeping()


KINDS: tuple[Callable[[], None], ...] = (sleeping, stopped, renamed, running_away, running_away, multiplying, hidden)


def leave(kind: Callable[[], None]) -> None:
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
    kind()
    os._exit(0)


def main() -> None:
    for kind in KINDS:
        leave(kind)
    print("left", len(KINDS))


if __name__ == "__main__":
    main() if len(sys.argv) == 2 else sys.exit("lasting.py MARK")
