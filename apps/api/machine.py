"""What this process may use of the machine, which in a container is less than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
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
