"""How many CPUs and how much memory this process may use, by the cgroups of a machine, and what follows from it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from apps.api.machine import agents, ahead, cpus, free_memory, memory, slots
from apps.api.shares import descriptors, most_descriptors, raise_descriptors

MINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HALF = ("50000", "100000")


def machine(root: Path, cgroup: str, **files: tuple[str, str]) -> Path:
    """A machine with these quotas: the group's folder below /sys/fs/cgroup → quota and period."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for folder, (quota, period) in files.items():
        group = root / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        if folder.startswith("cpu"):
            (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (group / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (group / "cpu.max").write_text(f"{quota} {period}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {".": HALF}),
        ("0::/a/b\n", {"a/b": ("max", "100000"), "a": HALF}),
        ("0::/a/b\n", {"a/b": HALF, "a": ("800000", "100000")}),
        ("0::/of/the/host\n", {".": HALF}),
        ("3:cpuset:/\n2:cpu,cpuacct:/docker/x\n", {"cpu,cpuacct/docker/x": HALF}),
        ("2:cpu,cpuacct:/docker/x\n", {"cpu,cpuacct": HALF}),
        ("1:cpu:/box\n0::/\n", {"cpu/box": HALF}),
        ("2:cpu,cpuacct:/x\n", {"cpu/x": HALF}),
    ],
    ids=["v2", "v2, above", "v2, own", "v2, no namespace", "v1", "v1, no namespace", "hybrid", "v1, by its other name"],
)
def test_a_quota_of_a_cgroup_is_what_there_is(tmp_path: Path, cgroup: str, files: dict[str, tuple[str, str]]) -> None:
    assert cpus(machine(tmp_path, cgroup, **files)) == 1


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {".": ("max", "100000")}),
        ("0::/\n", {".": ("99900000", "100000")}),
        ("2:cpu:/\n", {"cpu": ("-1", "100000")}),
        ("0::/\n", {}),
        ("0::/\n", {".": ("nonsense", "0")}),
        ("2:memory:/a\n", {"memory/a": HALF}),
    ],
    ids=["max", "more than there are", "v1, none", "no file", "nonsense", "another controller"],
)
def test_without_a_quota_it_is_the_cpus_that_the_process_may_run_on(
    tmp_path: Path, cgroup: str, files: dict[str, tuple[str, str]]
) -> None:
    assert cpus(machine(tmp_path, cgroup, **files)) == MINE


def test_a_machine_without_cgroups_has_its_cpus(tmp_path: Path) -> None:
    assert cpus(tmp_path) == MINE


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cpus_that_the_process_may_not_run_on_do_not_count(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


MIB = 1 << 20
GIB = 1 << 30
FULL = "9223372036854771712"  # what version 1 says where there is no limit


def with_memory(root: Path, cgroup: str, has: int, free: int, files: dict[str, str]) -> Path:
    """A machine with this memory in bytes, and these files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/meminfo").write_text(f"MemTotal: {has // 1024} kB\nMemFree: 1 kB\nMemAvailable: {free // 1024} kB\n")
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"memory.max": str(GIB)}),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": str(GIB)}),
        ("0::/a/b\n", {"a/b/memory.max": str(GIB), "a/memory.max": str(2 * GIB)}),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.high": str(GIB)}),
        ("0::/of/the/host\n", {"memory.max": str(GIB)}),
        ("4:memory:/docker/x\n", {"memory/docker/x/memory.limit_in_bytes": str(GIB)}),
        ("4:memory:/a/b\n", {"memory/a/b/memory.limit_in_bytes": FULL, "memory/a/memory.limit_in_bytes": str(GIB)}),
        ("4:memory:/docker/x\n", {"memory/memory.limit_in_bytes": str(GIB)}),
        ("4:memory:/box\n0::/\n", {"memory/box/memory.limit_in_bytes": str(GIB)}),
    ],
    ids=["v2", "v2, above", "v2, own", "v2, high", "v2, no namespace", "v1", "v1, above", "v1, no namespace", "hybrid"],
)
def test_a_limit_of_a_cgroup_is_the_memory_that_there_is(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    assert memory(with_memory(tmp_path, cgroup, 64 * GIB, 32 * GIB, files)) == GIB


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"memory.max": "max", "memory.high": "max"}),
        ("0::/\n", {"memory.max": str(128 * GIB)}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": FULL}),
        ("0::/\n", {}),
        ("0::/\n", {"memory.max": "nonsense"}),
        ("2:cpu:/a\n", {"cpu/a/memory.limit_in_bytes": str(GIB)}),
    ],
    ids=["max", "more than there is", "v1, none", "no file", "nonsense", "another controller"],
)
def test_without_a_limit_it_is_that_of_the_machine(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    assert memory(with_memory(tmp_path, cgroup, 64 * GIB, 32 * GIB, files)) == 64 * GIB


def test_nothing_is_limited_by_what_cannot_be_read(tmp_path: Path) -> None:
    assert memory(tmp_path) == free_memory(tmp_path) == 1 << 62


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        (
            "0::/a\n",
            {
                "a/memory.max": str(4 * GIB),
                "a/memory.current": str(3 * GIB),
                "a/memory.stat": f"anon 1\ninactive_file {512 * MIB}\nactive_file {GIB}",
            },
        ),
        (
            "4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": str(4 * GIB),
                "memory/a/memory.usage_in_bytes": str(3 * GIB),
                "memory/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {512 * MIB}",
            },
        ),
    ],
    ids=["v2", "v1"],
)
def test_what_a_cgroup_has_left_is_what_is_free_and_the_files_that_the_kernel_would_drop(
    tmp_path: Path, cgroup: str, files: dict[str, str]
) -> None:
    assert free_memory(with_memory(tmp_path / "roomy", cgroup, 64 * GIB, 32 * GIB, files)) == 1536 * MIB
    assert free_memory(with_memory(tmp_path / "tight", cgroup, 64 * GIB, GIB, files)) == GIB


@pytest.mark.parametrize(
    ("limit", "quota", "expected"),
    [
        (GIB, 1, (1, 1, 0)),
        (2 * GIB, 1, (5, 2, 1)),
        (8 * GIB, 1, (26, 2, 1)),
        (2 * GIB, MINE, (5, min(5, max(2, 2 * MINE)), 1)),
        (256 * MIB, 1, (1, 1, 0)),
    ],
    ids=["1 GB", "2 GB", "8 GB", "2 GB, all CPUs", "too little for one"],
)
def test_an_instance_takes_what_its_cgroup_has_not_what_the_host_has(
    tmp_path: Path, limit: int, quota: int, expected: tuple[int, int, int]
) -> None:
    files = {"memory.max": str(limit), "cpu.max": f"{quota * 100_000} 100000"}
    root = with_memory(tmp_path, "0::/\n", 512 * GIB, 256 * GIB, files)
    assert (agents(root), slots(root), ahead(root)) == expected


def test_a_server_asks_for_all_descriptors_that_it_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        raise_descriptors()
        assert descriptors() == most_descriptors() > 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
