"""The processes of this machine, as a tree by parent pid.

Part of the guard's start: standard library only, and of that as little as possible (see program.py).

Source: proc_pid_stat(5).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def below(ancestor: int) -> list[int]:
    """Pids of all descendants of a process, whatever session and group they have made their own."""
    return descendants(tree(), ancestor)


def children(pid: int) -> list[int]:
    """Pids of a process's children; none where the kernel does not list them. Takes no longer for others' processes."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as listed:
            return [int(child) for child in listed.read().split()]
    except OSError:
        return []


def tree() -> dict[int, list[int]]:
    """Pid → its children."""
    children: dict[int, list[int]] = {}
    for pid, parent in _every():
        children.setdefault(parent, []).append(pid)
    return children


def descendants(children: dict[int, list[int]], ancestor: int) -> list[int]:
    """Pids below a process, in a tree as it was."""
    found, unseen = [], [ancestor]
    while unseen:
        direct = children.get(unseen.pop(), [])
        found += direct
        unseen += direct
    return found


def _every() -> Iterator[tuple[int, int]]:
    if sys.platform != "linux":
        import subprocess

        listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        yield from ((int(pid), int(parent)) for pid, parent in map(str.split, listing.splitlines()))
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                # The program's name, in parentheses, may itself hold spaces and parentheses.
                yield int(name), int(stat.read().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
