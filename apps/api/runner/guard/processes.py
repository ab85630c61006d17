"""The processes of this machine, as a tree by parent pid, and what they take.

Part of the guard's start: standard library only, and of that as little as possible (see program.py).

Sources: proc_pid_stat(5), proc_pid_status(5), proc_pid_smaps(5), Documentation/filesystems/proc.rst of the kernel.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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
    return by_parent(every())


def by_parent(found: Iterable[tuple[int, int, int, int]]) -> dict[int, list[int]]:
    """The tree of what `every` has found."""
    children: dict[int, list[int]] = {}
    for pid, parent, _, _ in found:
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


def every() -> Iterator[tuple[int, int, int, int]]:
    """Of every process pid, pid of its parent, threads, and bytes of memory, counting what it shares as its own.

    Elsewhere than on Linux the last two are 1 and 0.
    """
    if sys.platform != "linux":
        import subprocess

        listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        yield from ((int(pid), int(parent), 1, 0) for pid, parent in map(str.split, listing.splitlines()))
        return
    page = os.sysconf("SC_PAGE_SIZE")
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent, threads, pages = _stat(name)
            if state == b"Z" and threads > 1:
                pages = _stat(_thread_with_memory(name))[3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(name), parent, threads, pages * page


def _stat(pid: str) -> tuple[bytes, int, int, int]:
    """State, pid of the parent, threads and pages of memory."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The program's name, in parentheses, may itself hold spaces and parentheses.
        fields = stat.read().rpartition(b")")[2].split()
    return fields[0], int(fields[1]), int(fields[17]), int(fields[21])


def _thread_with_memory(pid: str) -> str:
    """Of a process whose first thread has ended, which takes its memory out of the process's figures: one that goes on.

    Raises:
        FileNotFoundError, ProcessLookupError: the process has ended.
    """
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            if _stat(thread)[0] not in b"ZX":
                return thread
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise ProcessLookupError(pid)


def share_of_memory(pid: int) -> int | None:
    """Bytes that a process takes, of what it shares only its part; 0 when it has ended, None when nobody may look."""
    try:
        return _share(str(pid))
    except ProcessLookupError:
        pass
    except OSError as error:
        return 0 if isinstance(error, FileNotFoundError) else None
    try:
        return _share(_thread_with_memory(str(pid)))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return None


def _share(pid: str) -> int:
    with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith(b"Pss:"))


def threads_of_user(uid: int) -> int:
    """Processes and threads that a user has on this machine, as RLIMIT_NPROC counts them."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ()):
        try:
            with open(f"/proc/{name}/status", "rb") as status:
                facts = dict(line.split(b":", 1) for line in status.read().splitlines() if b":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(facts[b"Uid"].split()[0]) == uid:
            found += int(facts[b"Threads"])
    return found
