"""What this process may use of the machine, which in a container is less than the machine has; and what is left."""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path


def cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use, at least 1: those that it may run on, and no more than its cgroups' quotas.

    A quota of half a CPU counts as one. Of the quotas of a cgroup and those above it the smallest holds.

    Args:
        root: where `proc` and `sys` lie.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs by each quota (cgroup v2: docs.kernel.org/admin-guide/cgroup-v2.html, v1: scheduler/sched-bwc.html)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # v2; beside v1 it lies in `unified`
            mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"]
        else:
            continue
        for mount in mounts:
            # In a container without a namespace for cgroups the path is the host's, and its own group is the root.
            folder = root / mount / path.lstrip("/").replace("../", "")
            for group in (folder, *folder.parents):
                if group == root / "sys/fs":
                    break
                quota = _quota(group)
                if quota is not None:
                    yield quota


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or `max`: no quota
        return None


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process and its children may still take: of the machine (`MemAvailable`, proc_meminfo(5)), and of
    its cgroups' limits (memory.max, v2), if there are any. What cannot be read limits nothing."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        groups = [
            line.split(":", 2)[2] for line in (root / "proc/self/cgroup").read_text().splitlines() if "::" in line
        ]
    except (OSError, ValueError):
        return 1 << 62
    mount = root / "sys/fs/cgroup"
    for path in (line.removeprefix("0::") for line in groups if line.startswith("0::")):
        own = mount / path.lstrip("/").replace("../", "")
        for group in (own, *own.parents):
            if not group.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):  # no such file, or `max`: no limit
                limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                free.append(limit - used)
    return min(free, default=1 << 62)


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
