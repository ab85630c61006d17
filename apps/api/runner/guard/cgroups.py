"""Control groups of agents, where a part of their tree is delegated to this server: what the kernel itself holds an
agent to, however many processes it has, and the end of all of them at once.

A group that shares something out can have no processes of its own. So the server moves what is in the group that it was
given into one below, `server`, and makes beside that `agents/<instance>/<number>` for each process of an agent. The
guard puts the CLI there before it executes it, and stays outside itself. Instances that were given the same group share
it; each holds a lock on its directory, so that others know what it has left when it was killed.

Sources: Documentation/admin-guide/cgroup-v2.rst of Linux 6.18, systemd's CGROUP_DELEGATION.md, flock(2).
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from apps.api.settings import Settings

log = structlog.get_logger(__name__)

LEAF, AGENTS = "server", "agents"

NEEDED, WANTED = frozenset(("memory", "pids")), frozenset(("cpu",))
"""Controllers. With that of the CPU the server also gets its part of it beside all agents, whatever these do."""

PERIOD = 100_000
"""Microseconds, in which an agent has its part of the CPUs."""

REMOVAL_SECONDS = 2.0
"""For processes to end that were killed."""

LOCK_SECONDS = 2.0
"""For other instances to be done. Agents can read these directories, and so could lock them for good."""

MOVES = 100
"""Looks at a group that is to be emptied: what was just forked may be there again."""


class NotDelegated(Exception):
    """There is no group in which this server may make others. The message is for operators."""


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one process of an agent."""

    path: Path

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended it for that."""
        with suppress(OSError, ValueError):
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            return int(events["oom_kill"]) > 0
        return False

    def remove(self) -> None:
        """End what is in it, and remove it. Blocks, for REMOVAL_SECONDS at most; what is left another start removes."""
        _remove(self.path)


class Groups:
    """Makes groups for the agents of one instance."""

    def __init__(self, shared: Path, settings: Settings) -> None:
        """`shared`: the group that shares out to instances, in which nobody else makes any now. Raises OSError."""
        self._shared = shared
        self._own = Path(tempfile.mkdtemp(prefix="", dir=shared))
        self._lock = os.open(self._own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._numbers = itertools.count(1)
        self._limits = limits(settings)

    @classmethod
    def found(cls, settings: Settings, root: Path = Path("/")) -> Groups:
        """Those in the group that this process was given. Moves all that is in it. `root`: where `proc` and `sys` lie.

        Raises NotDelegated.
        """
        given = delegated(settings, root)
        try:
            with _alone(given):
                controllers = _controllers(given) & (NEEDED | WANTED)
                _empty(given)
                _share_out(given, controllers)
                shared = given / AGENTS
                shared.mkdir(exist_ok=True)
                _share_out(shared, controllers)
                groups = cls(shared, settings)
            try:
                _share_out(groups._own, controllers)
                groups.make().remove()
            except OSError:
                groups.close()
                raise
        except OSError as error:
            raise NotDelegated(f"in the control group {given} no others can be made: {error}") from error
        return groups

    def make(self) -> Group:
        """A group with the limits, which nobody is in. Raises OSError."""
        group = Group(self._own / str(next(self._numbers)))
        group.path.mkdir()
        try:
            for name, value in self._limits.items():
                _write(group.path / name, value)
            with suppress(FileNotFoundError):  # a kernel that does not count swap
                _write(group.path / "memory.swap.max", "0")
        except OSError:
            group.remove()
            raise
        return group

    def sweep(self) -> None:
        """End and remove what instances have left that live no more. Blocks. Raises OSError."""
        dead = []
        with _alone(self._shared.parent):
            for path in filter(Path.is_dir, self._shared.iterdir()):
                opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if _locked(opened):
                    dead.append((path, opened))
                else:  # it lives, or somebody else removes it
                    os.close(opened)
        for path, opened in dead:
            _remove(path)
            os.close(opened)

    def close(self) -> None:
        """End and remove what is left of this instance's. Blocks."""
        _remove(self._own)
        os.close(self._lock)


def limits(settings: Settings) -> dict[str, str]:
    """What the files of an agent's group are to hold, by their names."""
    held = {
        "memory.max": str(settings.agent_memory_bytes),
        "memory.oom.group": "1",
        "pids.max": str(settings.agent_max_processes),
    }
    if settings.agent_cpus is not None:
        held["cpu.max"] = f"{round(settings.agent_cpus * PERIOD)} {PERIOD}"
    return held


def delegated(settings: Settings, root: Path = Path("/")) -> Path:
    """The group that was given to this server, or in LEAF of which it is. Changes nothing.

    `root`: where `proc` and `sys` lie. Raises NotDelegated.
    """
    own, top = _own(root)
    given = own.parent if own.name == LEAF and own != top else own
    needed = NEEDED | (WANTED if settings.agent_cpus is not None else frozenset())
    try:
        if lacking := needed - _controllers(given):
            raise NotDelegated(f"the control group {given} has no controllers for {', '.join(sorted(lacking))}")
    except OSError as error:
        raise NotDelegated(f"the control group {given} cannot be read: {error}") from error
    if not os.access(given, os.W_OK) or not os.access(given / "cgroup.subtree_control", os.W_OK):
        raise NotDelegated(f"the control group {given} cannot be written to by this user")
    # Who may write above it, as root may, was not given this one in particular: it may be a manager's that did not
    # mean to, with others' processes in it. A container sees nothing above its own.
    if given != top and os.access(given.parent / "cgroup.procs", os.W_OK) and not _is_marked(given):
        raise NotDelegated(f"the control group {given} was not delegated (systemd: Delegate=yes)")
    return given


def find(settings: Settings) -> tuple[Groups | None, str]:
    """What `Groups.found` returns, or nothing and the reason. Tells it in the log."""
    groups, lacking = None, ""
    if settings.runner_slots:
        try:
            groups = Groups.found(settings)
        except NotDelegated as error:
            lacking = str(error)
        log.info("agents.limits", held_by="control groups" if groups else "watchdog", lacking=lacking or None)
    return groups, lacking


def warnings(settings: Settings, lacking: str) -> list[str]:
    """What was asked for and only control groups can do, where they are lacking for that reason."""
    return [f"AGENT_CPUS is without effect: {lacking}"] if lacking and settings.agent_cpus is not None else []


def _own(root: Path) -> tuple[Path, Path]:
    """This process's group in the one hierarchy of version 2, and the uppermost that is to be seen here."""
    try:
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        raise NotDelegated(f"there are no control groups: {error}") from error
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    mounted = [fields[3:5] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if path is None or not mounted:
        raise NotDelegated("control groups of version 2 are not mounted")
    for upper, at in mounted:
        top, below = root / at.lstrip("/"), os.path.relpath(path, upper)
        # With `..` in it a path leads out of this process's namespace of groups.
        if ".." not in (*path.split("/"), *upper.split("/"), *below.split("/")) and (top / below).is_dir():
            return top / below, top
    raise NotDelegated(f"the control group of this process, {path}, is not to be seen here")


def _controllers(group: Path) -> frozenset[str]:
    return frozenset((group / "cgroup.controllers").read_text().split())


def _is_marked(group: Path) -> bool:
    """Whether systemd says that it has given it away."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


@contextmanager
def _alone(group: Path) -> Iterator[None]:
    """One instance after the other. Raises OSError, after LOCK_SECONDS too."""
    opened, until = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), time.monotonic() + LOCK_SECONDS
    try:
        while not _locked(opened):
            if time.monotonic() > until:
                raise TimeoutError(errno.ETIMEDOUT, "somebody else has locked it", str(group))
            time.sleep(0.02)
        yield
    finally:
        os.close(opened)


def _locked(opened: int) -> bool:
    """Lock a directory, if nobody else has. Raises OSError where there are no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _empty(group: Path) -> None:
    """Move what is in a group into LEAF. Raises OSError."""
    if not (group / "cgroup.type").exists():  # the root of all: its processes may stay
        return
    leaf = group / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(MOVES):
        pids = (group / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(group))


def _share_out(group: Path, controllers: frozenset[str]) -> None:
    _write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))


def _write(file: Path, value: str) -> None:
    """Write to a file that is there. Raises OSError."""
    opened = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(opened, value.encode())
    finally:
        os.close(opened)


def _remove(group: Path) -> None:
    """End what is in a group and in those below it, and remove them, within REMOVAL_SECONDS."""
    until = time.monotonic() + REMOVAL_SECONDS
    try:
        while group.is_dir():
            _kill(group)
            _remove_empty(group)
            if time.monotonic() > until:
                raise TimeoutError(errno.EBUSY, "processes that were killed do not end", str(group))
            time.sleep(0.01)
    except OSError as error:
        log.warning("cgroups.not_removed", path=str(group), error=error)


def _kill(group: Path) -> None:
    """Kill all that is in a group and below it. Raises OSError."""
    with suppress(FileNotFoundError):  # before Linux 5.14
        _write(group / "cgroup.kill", "1")
        return
    for below in filter(Path.is_dir, group.iterdir()):
        _kill(below)
    with suppress(FileNotFoundError):
        _write(group / "pids.max", "0")  # so that nothing is forked meanwhile
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _remove_empty(group: Path) -> None:
    for below in filter(Path.is_dir, group.iterdir()):
        _remove_empty(below)
    with suppress(OSError):
        group.rmdir()
