"""Reading and copying files that an agent may have made, without following where a link of its making leads."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath


def read(root: Path, path: PurePosixPath, limit: int) -> bytes | None:
    """The content of a regular file below `root`, or None when there is none, a link leads there, or it is larger
    than `limit` bytes.

    Raises ValueError when `path` leads out of the root.
    """
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("not below the root")
    opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in path.parts[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened)
            os.close(opened)
            opened = below
        # Not blocking: opening a pipe would wait for whoever writes into it.
        found = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened)
    except OSError:
        return None
    finally:
        os.close(opened)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        return None
    with os.fdopen(found, "rb") as file:
        content = file.read(limit + 1)
    return content if len(content) <= limit else None


BLOCK = 4096
"""Bytes that a file, directory or link counts at least: many small ones fill a disk, too."""


class TooMuch(Exception):
    """There is more to copy than is allowed."""


class Budget:
    """Bytes that may still be copied."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        """Raises TooMuch when there are not so many left."""
        self.left -= count
        if self.left < 0:
            raise TooMuch


MAX_DEPTH = 100
"""Levels of directories: each holds a descriptor while it is walked."""

_CHANGED_MEANWHILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}


def copy_tree(source: Path, target: Path, budget: Budget) -> None:
    """Copy a directory, also while an agent changes it. Links are copied as they are; pipes, sockets and devices are
    left out. `target` must not exist, and nobody else may write there.

    Raises TooMuch, OSError; then a part of it may be there.
    """
    target.mkdir(mode=0o700)
    # It goes down by descriptors, and not into what has become a link since it looked.
    for path, directories, names, opened in os.fwalk(source, onerror=_raise, follow_symlinks=False):
        inside = os.path.relpath(path, source)
        if inside.count(os.sep) >= MAX_DEPTH:
            raise TooMuch
        # Nor may we write through a link that we have copied.
        directories[:] = [name for name in directories if _copy(opened, name, target / inside / name, budget)]
        for name in names:
            _copy(opened, name, target / inside / name, budget)


def _raise(error: OSError) -> None:
    if error.errno not in _CHANGED_MEANWHILE:
        raise error


def _copy(directory: int, name: str, target: Path, budget: Budget) -> bool:
    """Copy what `name` is. Returns whether it is a directory, which is made without what is in it."""
    budget.spend(BLOCK)
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            target.mkdir(mode=0o700)
            return True
        if stat.S_ISLNK(mode):
            target.symlink_to(os.readlink(name, dir_fd=directory))
        elif stat.S_ISREG(mode):
            _copy_file(directory, name, target, budget)
    except OSError as error:
        _raise(error)
    return False


def _copy_file(directory: int, name: str, target: Path, budget: Budget) -> None:
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    info = os.fstat(opened)
    if not stat.S_ISREG(info.st_mode):
        os.close(opened)
        return
    with os.fdopen(opened, "rb") as source, target.open("xb") as copy:
        while chunk := source.read(1 << 20):
            budget.spend(len(chunk))
            copy.write(chunk)
        os.fchmod(copy.fileno(), stat.S_IMODE(info.st_mode) & 0o777)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
