"""How many CPUs this process may use, by the cgroups of a machine."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from apps.api.machine import cpus
from apps.api.shares import descriptors, most_descriptors, raise_descriptors

MINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
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


def test_a_server_asks_for_all_descriptors_that_it_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        raise_descriptors()
        assert descriptors() == most_descriptors() > 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
