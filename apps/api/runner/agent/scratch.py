"""What each process of an agent has for itself, and no longer than it lives: configuration, temporary files, gifts.

Each process gets directories of its own, with names that no earlier process could know or write to. So nothing that an
agent has written is there when the next one starts, and nothing of it is read by the server.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from apps.api.core.files import removal, trees
from apps.api.runner.guard.cgroups import Group, Groups
from apps.api.runner.guard.launcher import LeaseFile, install_guard

log = structlog.get_logger(__name__)

SWEEP_AGE = 60.0
"""Seconds after which a directory without a living owner is removed."""

MAX_TMP_BYTES = 60
"""Length of an agent's TMPDIR: a Unix socket's path has 107 bytes at most (unix(7)), and programs add names of their
own."""


@dataclass(frozen=True, slots=True)
class Place:
    """The directories of one process. Its agent writes to `config` and `tmp`, and only reads `given`.

    Attributes:
        group: the control group that it is to be in, where there are any.
    """

    root: Path
    group: Group | None = None

    @property
    def config(self) -> Path:
        """For CLAUDE_CONFIG_DIR."""
        return self.root / "config"

    @property
    def tmp(self) -> Path:
        """For TMPDIR."""
        return self.root / "tmp"

    @property
    def given(self) -> Path:
        """For what the server gives to the agent."""
        return self.root / "given"


class Scratch:
    """This instance's private directory: places of processes, the launcher, the lease that guards read.

    The lock file lets others on this host remove what a killed instance left.
    """

    def __init__(self, groups: Groups | None = None) -> None:
        """`groups`: makes control groups for processes, where there are any."""
        self._base, self._groups = _base(), groups
        self.root = Path(tempfile.mkdtemp(prefix="", dir=self._base))
        self._lock = _try_lock(self.root)
        self.launcher = install_guard(self.root)
        self.lease = LeaseFile(self.root / "lease")
        self._remover = ThreadPoolExecutor(1, "scratch-remover")
        self._closing = False

    def make(self) -> Place:
        """Empty directories for one process. Raises OSError."""
        place = Place(Path(tempfile.mkdtemp(prefix="", dir=self.root)), self._group())
        for directory in (place.config, place.tmp, place.given):
            directory.mkdir(mode=0o700)
        return place

    def forget(self, place: Place) -> None:
        """Have the directories of a process that has ended removed, soon."""
        if not self._closing:
            if place.group is not None:
                self._remover.submit(place.group.remove)
            self._remover.submit(self._remove, place.root)

    def sweep(self) -> None:
        """Remove what instances left that live no more. Blocks."""
        if self._groups is not None:
            try:
                self._groups.sweep()
            except OSError as error:
                log.warning("scratch.not_swept", path="control groups", error=error)
        before = Path(tempfile.gettempdir()) / f"claude-agent-api-{os.getuid()}"  # that of earlier versions
        for directory in (*_within(self._base), *_within(before)):
            try:
                # A young one may belong to an instance that is starting and has not locked it yet.
                if directory == self.root or time.time() - directory.lstat().st_mtime < SWEEP_AGE:
                    continue
                if not trees.is_directory(directory):
                    self._remove(directory)
                elif (lock := _try_lock(directory)) is not None:
                    self._remove(directory)
                    os.close(lock)
            except Exception as error:  # whatever is there: the rest is looked at
                log.warning("scratch.not_swept", path=str(directory), error=error)

    def close(self) -> None:
        """Remove everything. Blocks."""
        self._closing = True
        self._remover.shutdown(cancel_futures=True)
        if self._groups is not None:
            self._groups.close()
        self._remove(self.root, stopped=False)
        self.lease.close()
        if self._lock is not None:
            os.close(self._lock)

    def _group(self) -> Group | None:
        if self._groups is None:
            return None
        try:
            return self._groups.make()
        except OSError as error:  # the watchdog holds it to its limits then
            log.warning("scratch.no_control_group", error=error)
            return None

    def _remove(self, path: Path, *, stopped: bool = True) -> None:
        try:
            removal.remove(path, stopped=(lambda: self._closing) if stopped else None)
        except Exception as error:  # whatever an agent has left there: the next start tries again
            log.warning("scratch.not_removed", path=str(path), error=error)


def _base() -> Path:
    name = f"caa-{os.getuid()}"  # short: see MAX_TMP_BYTES
    wanted = Path(tempfile.gettempdir())
    below = len(os.fsencode(f"/{name}/xxxxxxxx/xxxxxxxx/tmp"))
    if len(os.fsencode(wanted)) + below > MAX_TMP_BYTES and os.access("/tmp", os.W_OK):  # noqa: S108
        wanted = Path("/tmp")  # noqa: S108
    base = wanted / name
    base.mkdir(mode=0o700, exist_ok=True)
    if not _is_ours(base):
        raise PermissionError(f"{base} belongs to somebody else")
    return base


def _is_ours(directory: Path) -> bool:
    return trees.is_directory(directory) and directory.lstat().st_uid == os.getuid()


def _within(base: Path) -> list[Path]:
    try:
        return [base / name for name in os.listdir(base)] if _is_ours(base) else []
    except OSError as error:
        log.warning("scratch.not_swept", path=str(base), error=error)
        return []


def _try_lock(directory: Path) -> int | None:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
