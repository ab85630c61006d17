"""Control groups: where they are found, what they hold agents to, and what becomes of an agent without them.

What the kernel does is seen where a part of the tree of version 2 is delegated to these tests. They move all that is in
that group into one below it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.guard import cgroups
from apps.api.runner.guard.cgroups import Group, Groups, NotDelegated, delegated
from apps.api.settings import Settings
from tests.layers import ISOLATED, WITH_NAMESPACES
from tests.runner.guard.test_program import AS_ANYBODY, SECONDS, Session, at_end, lines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")

MEMORY, PROCESSES = 500_000_000, 100
FILES = ("cgroup.procs", "cgroup.controllers", "cgroup.subtree_control", "memory.max", "pids.max")
FORK_BOMB = "b() { b | b & }; b 2>/dev/null; sleep 1000"


def given(**more: Any) -> Settings:
    limited = {"agent_memory_bytes": MEMORY, "agent_max_processes": PROCESSES, "runner_slots": 2}
    return Settings(_env_file=None, **(limited | more))


# --- where they are found ------------------------------------------------------------------------------------------


def machine(
    root: Path, own: str = "/", *, upper: str = "/", controllers: str = "cpu memory pids", at: str = "/sys/fs/cgroup"
) -> Path:
    """A machine whose processes are in a group. Returns the uppermost that is to be seen."""
    about = root / "proc/self"
    about.mkdir(parents=True)
    (about / "cgroup").write_text(f"9:name=systemd:/\n0::{own}\n")
    (about / "mountinfo").write_text(
        f"22 1 0:21 / /sys rw - sysfs s rw\n30 22 0:26 {upper} {at} rw shared:4 - cgroup2 c rw\n"
    )
    top = root / at.lstrip("/")
    below = Path(os.path.relpath(own, upper))
    for group in (top, *(top / part for part in reversed((below, *below.parents)) if ".." not in below.parts)):
        group.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (group / name).write_text(f"{controllers}\n" if name == "cgroup.controllers" else "")
    return top


def test_a_container_was_given_the_uppermost_group_that_it_sees(tmp_path: Path) -> None:
    top = machine(tmp_path)
    assert delegated(given(), tmp_path) == top == tmp_path / "sys/fs/cgroup"


def test_a_container_without_a_namespace_of_groups_has_the_path_of_the_host(tmp_path: Path) -> None:
    top = machine(tmp_path, "/docker/abc", upper="/docker/abc")
    assert delegated(given(), tmp_path) == top


def test_a_server_that_was_moved_already_has_the_group_above(tmp_path: Path) -> None:
    top = machine(tmp_path, "/server", at="/sys/fs/cgroup/unified")
    assert delegated(given(), tmp_path) == top


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_unit_was_given_its_group_if_that_above_is_not_this_users(tmp_path: Path) -> None:
    top = machine(tmp_path, "/system.slice/api.service")
    (top / "system.slice/cgroup.procs").chmod(0o444)
    assert delegated(given(), tmp_path) == top / "system.slice/api.service"


def test_a_group_below_one_of_this_user_was_given_if_systemd_says_so(tmp_path: Path) -> None:
    group = machine(tmp_path, "/user.slice/api.service") / "user.slice/api.service"
    with pytest.raises(NotDelegated, match="Delegate=yes"):
        delegated(given(), tmp_path)
    try:
        os.setxattr(group, "user.delegate", b"1")
    except OSError:
        pytest.skip("this file system has no attributes")
    assert delegated(given(), tmp_path) == group


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"own": "/a", "upper": "/b"}, "is not to be seen here"),
        ({"own": "/../a"}, "is not to be seen here"),
        ({"controllers": "cpu pids"}, "has no controllers for memory"),
        ({"controllers": "cpu"}, "has no controllers for memory, pids"),
    ],
)
def test_why_there_is_none_is_told(tmp_path: Path, there: dict[str, str], said: str) -> None:
    machine(tmp_path, **there)
    with pytest.raises(NotDelegated, match=said):
        Groups.found(given(), tmp_path)


def test_without_version_2_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotDelegated, match="there are no control groups"):
        delegated(given(), tmp_path)
    machine(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/\n1:cpu:/\n")
    with pytest.raises(NotDelegated, match="version 2 are not mounted"):
        delegated(given(), tmp_path)


def test_the_controller_of_the_cpu_is_needed_for_its_limit_only(tmp_path: Path) -> None:
    top = machine(tmp_path, controllers="memory pids")
    assert delegated(given(), tmp_path) == top
    with pytest.raises(NotDelegated, match="for cpu") as refused:
        delegated(given(agent_cpus=1.5), tmp_path)
    assert cgroups.warnings(given(agent_cpus=1.5), str(refused.value))
    assert not cgroups.warnings(given(), str(refused.value))
    assert not cgroups.warnings(given(agent_cpus=1.5), "")


def test_where_groups_cannot_be_made_that_is_told(tmp_path: Path) -> None:
    machine(tmp_path)
    with pytest.raises(NotDelegated, match="no others can be made"):
        Groups.found(given(), tmp_path)


def test_who_keeps_a_group_locked_stops_no_server_from_starting(tmp_path: Path) -> None:
    locked = os.open(machine(tmp_path), os.O_RDONLY)
    try:
        fcntl.flock(locked, fcntl.LOCK_EX)
        with pytest.raises(NotDelegated, match="somebody else has locked it"):
            Groups.found(given(), tmp_path)
    finally:
        os.close(locked)


def test_the_limits_are_those_of_the_settings() -> None:
    assert cgroups.limits(given()) == {"memory.max": "500000000", "memory.oom.group": "1", "pids.max": "100"}
    assert cgroups.limits(given(agent_cpus=1.5))["cpu.max"] == "150000 100000"
    assert cgroups.limits(given(agent_cpus=0.01))["cpu.max"] == "1000 100000"  # the kernel takes no less


# --- without the kernel ----------------------------------------------------------------------------------------------


def test_what_the_kernel_tells_of_memory_is_read(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert not group.ran_out_of_memory()
    (tmp_path / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 0\n")
    assert not group.ran_out_of_memory()
    (tmp_path / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 1\n")
    assert group.ran_out_of_memory()


def test_a_place_whose_group_cannot_be_made_has_none(tmp_path: Path) -> None:
    groups = Groups(tmp_path, given())  # there are no files for limits in its directories
    with closing(Scratch(groups)) as scratch:
        place = scratch.make()
        assert place.group is None
        assert place.tmp.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_an_agent_that_cannot_join_its_group_starts_without(tmp_path: Path) -> None:
    session = Session(tmp_path, overrides={"CLI_GUARD_GROUP": str(tmp_path / "none")})
    code, out, err = session.run("echo ran; exit 3")
    assert (code, out) == (3, "ran\n")
    assert "control group cannot be joined" in err


def test_without_a_file_to_kill_a_group_its_processes_are_killed_one_by_one(tmp_path: Path) -> None:
    """As before Linux 5.14. Other directories than groups are not empty then, and stay."""
    below = tmp_path / "group" / "1"
    below.mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as process:
        (below / "cgroup.procs").write_text(f"{process.pid}\n")
        (below / "pids.max").write_text("max")
        cgroups._kill(tmp_path / "group")
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert (below / "pids.max").read_text().startswith("0")


def test_what_dead_instances_left_is_removed_and_what_living_ones_have_is_not(tmp_path: Path) -> None:
    shared = tmp_path / "agents"
    shared.mkdir()
    (shared / "dead" / "1").mkdir(parents=True)
    one, other = Groups(shared, given()), Groups(shared, given())
    one.sweep()
    assert sorted(shared.iterdir()) == sorted((one._own, other._own))
    other.close()
    one.sweep()
    assert list(shared.iterdir()) == [one._own]
    one.close()


# --- with it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def groups() -> Iterator[Groups]:
    try:
        found = Groups.found(given(agent_cpus=8))
    except NotDelegated as error:
        pytest.skip(str(error))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(params=["off", WITH_NAMESPACES])
def grouped(groups: Groups, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Session, Group]:
    return within(groups, tmp_path, request.param)


@pytest.fixture(params=ISOLATED)
def confined(groups: Groups, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Session, Group]:
    return within(groups, tmp_path, request.param)


def within(groups: Groups, tmp_path: Path, layer: Any) -> tuple[Session, Group]:
    root = tmp_path / "mine"
    root.mkdir()
    group = groups.make()
    return Session(root, layer, overrides={"CLI_GUARD_GROUP": str(group.path)}), group


def read(group: Group, name: str) -> str:
    return (group.path / name).read_text().strip()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_limits_are_the_kernels(groups: Groups) -> None:
    group = groups.make()
    names = ("memory.max", "memory.oom.group", "pids.max", "cpu.max")
    # The kernel counts whole pages.
    assert [read(group, name) for name in names] == [str(MEMORY // 4096 * 4096), "1", "100", "800000 100000"]
    assert not (group.path / "memory.swap.max").exists() or read(group, "memory.swap.max") == "0"
    group.remove()
    assert not group.path.exists()


def test_all_that_an_agent_starts_is_in_its_group_and_the_guard_is_not(grouped: tuple[Session, Group]) -> None:
    session, group = grouped
    with session.started("sleep 1000 & setsid sleep 1000 & echo started; wait") as guard:
        assert lines(guard.stdout, 1) == ["started"]
        until(lambda: len(read(group, "cgroup.procs").split()) >= 3)
        assert str(guard.pid) not in read(group, "cgroup.procs").split()
        guard.terminate()
        assert at_end(guard.stdout)
    assert read(group, "cgroup.procs") == ""
    assert not group.ran_out_of_memory()


def test_an_agent_that_takes_too_much_memory_is_ended_with_all_that_it_started(grouped: tuple[Session, Group]) -> None:
    session, group = grouped
    # Two processes, each with less than it may have; in sessions of their own.
    take = f"{sys.executable} -c 'import time; kept = bytes([1]) * 350_000_000; time.sleep(1000)'"
    with session.started(f"setsid {take} & setsid {take} & setsid sleep 1000 & wait") as guard:
        assert at_end(guard.stdout)
        assert guard.wait(SECONDS) == -signal.SIGKILL  # bubblewrap, if there is one, among them
    assert group.ran_out_of_memory()
    assert read(group, "cgroup.procs") == ""


def test_files_in_memory_count(grouped: tuple[Session, Group]) -> None:
    session, group = grouped
    fill = "import os; [os.write(os.memfd_create('held'), bytes(2 << 20)) for _ in range(300)]"
    assert session.run(f'exec {sys.executable} -c "{fill}"')[0] == -signal.SIGKILL
    assert group.ran_out_of_memory()


def test_a_fork_bomb_has_a_bound_and_ends_at_once(grouped: tuple[Session, Group]) -> None:
    session, group = grouped
    with session.started(FORK_BOMB) as guard:
        until(lambda: "max 0" not in read(group, "pids.events"))
        for _ in range(20):
            assert int(read(group, "pids.current")) <= PROCESSES
            time.sleep(0.02)
        assert guard.poll() is None  # what it asks for beyond fails, and ends nothing
        began = time.monotonic()
        guard.terminate()
        assert at_end(guard.stdout)
        guard.wait(SECONDS)
        assert time.monotonic() - began < 5
    assert read(group, "cgroup.procs") == ""


def test_what_outlives_a_guard_that_was_killed_ends_with_the_group(groups: Groups, tmp_path: Path) -> None:
    session, group = within(groups, tmp_path, "off")
    with session.started(FORK_BOMB) as guard:
        until(lambda: "max 0" not in read(group, "pids.events"))
        guard.kill()
        guard.wait(SECONDS)
        group.remove()
        assert not group.path.exists()
        assert at_end(guard.stdout)


def test_an_agent_can_neither_change_its_group_nor_leave_it(confined: tuple[Session, Group]) -> None:
    session, group = confined
    server = group.path.parents[2] / cgroups.LEAF
    for made in (server, group.path.parent / "elsewhere"):
        made.mkdir(exist_ok=True)
    ways = (
        f"echo max > {group.path}/memory.max",
        f"echo max > {group.path}/pids.max",
        f"echo $$ > {server}/cgroup.procs",
        f"echo $$ > {group.path.parent}/elsewhere/cgroup.procs",
        f"mkdir {group.path}/below",
        f"rmdir {group.path.parent}/elsewhere",
        "mkdir here && mount -t cgroup2 c here",
    )
    script = "".join(f"({way}) 2>/dev/null && echo '{way.split('/')[0]}'\n" for way in ways)
    for prefix in ([], AS_ANYBODY) if session.layer == "landlock" else ([],):
        code, out, err = session.run(script + "echo ended", prefix=prefix)
        assert (code, out) == (0, "ended\n"), err
        assert "cannot be joined" not in err
    assert read(group, "pids.max") == "100"


VICTIM = """
import sys, time
from apps.api.runner.guard.cgroups import Groups
from apps.api.settings import Settings
group = Groups.found(Settings(_env_file=None)).make()
print(group.path, flush=True)
time.sleep(1000)
"""


@contextmanager
def another_instance() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", VICTIM], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_what_a_killed_instance_left_is_ended_and_what_a_living_one_has_is_not(groups: Groups) -> None:
    with another_instance() as (instance, path), subprocess.Popen(["sleep", "1000"]) as agent:
        assert path.parents[1] == groups._shared
        (path / "cgroup.procs").write_text(str(agent.pid))
        groups.sweep()
        assert agent.poll() is None
        assert path.is_dir()
        instance.kill()
        instance.wait(SECONDS)
        groups.sweep()
        assert agent.wait(SECONDS) == -signal.SIGKILL
        assert not path.parent.exists()
        assert groups._own.is_dir()


def test_a_group_that_is_gone_lets_an_agent_start_without(groups: Groups) -> None:
    own = Groups.found(given())
    with closing(Scratch(own)) as scratch:
        first = scratch.make()
        assert first.group is not None
        assert first.group.path.parents[1] == groups._shared
        first.group.remove()
        own._own.rmdir()
        assert scratch.make().group is None
