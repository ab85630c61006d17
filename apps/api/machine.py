"""What this process may use of the machine, which in a container is less than the machine has; and what is left."""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

UNLIMITED = 1 << 62
"""Bytes, where nothing is known of memory: it limits nothing."""

OWN_BYTES = 500_000_000
"""What an instance needs itself, with room for the database's answers and the files that clients send."""

AGENT_BYTES = 300_000_000
"""What an agent takes after a long conversation; a new one takes 110 MB."""


def cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use, at least 1: those that it may run on, and no more than its cgroups' quotas.

    A quota of half a CPU counts as one. Of the quotas of a cgroup and those above it the smallest holds.

    Args:
        root: where `proc` and `sys` lie.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (quota for group in _groups("cpu", root) if (quota := _quota(group)) is not None)
    return max(1, math.ceil(min([allowed, *quotas])))


def memory(root: Path = Path("/")) -> int:
    """Bytes that this process and its children may have: those of the machine, and no more than its cgroups' limits."""
    limits = (limit for group in _groups("memory", root) for limit in _limits(group))
    return min([_meminfo("MemTotal", root), *limits])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process and its children may still take: of the machine (`MemAvailable`, proc_meminfo(5)), and of
    its cgroups' limits, in which files that the kernel would drop first count as free."""
    return min([_meminfo("MemAvailable", root), *_left(root)])


@cache
def agents(root: Path = Path("/")) -> int:
    """Processes of agents that memory is enough for beside an instance, at least 1. Looked at once."""
    return max(1, (memory(root) - OWN_BYTES) // AGENT_BYTES)


def slots(root: Path = Path("/")) -> int:
    """Runs that an instance may execute at once: two for each CPU, at least 2, and no more than it has memory for."""
    return min(max(2, cpus(root) * 2), agents(root))


def ahead(root: Path = Path("/")) -> int:
    """Agents that it may start ahead: one for each CPU, and in a quarter of the memory for agents."""
    return min(cpus(root), agents(root) // 4, 100)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Directories of this process's cgroups and those above, of version 2 (docs.kernel.org/admin-guide/cgroup-v2.html)
    and of the controller's own hierarchy of version 1 (admin-guide/cgroup-v1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # v2; beside v1 it lies in `unified`
            mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"]
        else:
            continue
        for mount in mounts:
            # In a container without a namespace for cgroups the path is the host's, and its own group is the root.
            folder = root / mount / path.lstrip("/").replace("../", "")
            for group in (folder, *folder.parents):
                if group == root / "sys/fs":
                    break
                yield group


def _quota(group: Path) -> float | None:
    """CPUs by a cgroup's quota (version 1: scheduler/sched-bwc.html)."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or `max`: no quota
        return None


def _limits(group: Path) -> Iterator[int]:
    """Bytes by a cgroup's limits of memory. Above `memory.high` it is slowed down until it hardly goes on."""
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or `max`: no limit
            yield int((group / name).read_text())


def _left(root: Path) -> Iterator[int]:
    for group in _groups("memory", root):
        second = (group / "memory.current").exists()
        used, dropped = "memory.current" if second else "memory.usage_in_bytes", 0
        with suppress(OSError, ValueError):
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            dropped = int(stat.get("inactive_file" if second else "total_inactive_file", 0))
        for limit in _limits(group):
            with suppress(OSError, ValueError):
                yield limit - int((group / used).read_text()) + dropped


def _meminfo(name: str, root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, ValueError, StopIteration):
        return UNLIMITED


LOW = 0.05
"""Part of what there is below which something counts as used up."""

AMPLE_BYTES, AMPLE_FILES = 1 << 30, 10_000
"""Room on a file system that is enough for an hour's work, however small a part of it that is."""


def shortages(places: Mapping[str, Path]) -> list[str]:
    """What this process has nearly used up, in words for an operator: room, inodes (statvfs(3)), descriptors.

    Args:
        places: directories by name; of one that is not there, the one above it is looked at.
    """
    found = [words for name, path in places.items() for words in _short_of_room(name, path)]
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = _descriptors()
    if limit != resource.RLIM_INFINITY and used > limit * (1 - LOW):
        found.append(f"{used} of {limit} descriptors are in use (ulimit -n)")
    return found


def _short_of_room(name: str, path: Path) -> Iterator[str]:
    try:
        there = next(at for at in (path, *path.absolute().parents) if at.exists())
        room = os.statvfs(there)
    except OSError as error:
        yield f"{name} cannot be looked at: {error.strerror} ({path})"
        return
    free = room.f_bavail * room.f_frsize
    if free < min(room.f_blocks * room.f_frsize * LOW, AMPLE_BYTES):
        yield f"{name} has no room: {free >> 20} MB are free ({path})"
    # Some file systems have as many inodes as they have room, and say 0.
    if room.f_files and room.f_favail < min(room.f_files * LOW, AMPLE_FILES):
        yield f"{name} has no inodes: {room.f_favail} are free ({path})"


def _descriptors() -> int:
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(directory))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0
