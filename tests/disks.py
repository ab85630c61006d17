"""Disks of their own for servers of one machine, at the same path, as on several hosts.

Each server sees another directory at WORKSPACES_DIR, in a mount namespace that it begins in and that ends with it: so
nothing is mounted for anybody else, and nothing must be unmounted. Where this user may not mount, all share the one
directory, which hides what is missing in the store, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_NEWNS, _BIND, _REC, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000

_SCRIPT = 'mount --bind "$0" "$1" && shift && exec "$@"'


def words(disk: Path, at: Path) -> list[str]:
    """Words before the command of a program that is to see `disk` at this path."""
    return ["unshare", "--mount", "sh", "-c", _SCRIPT, str(disk), str(at)]


def mount(disk: str, at: str) -> None:
    """The same for this process, from now on, and for all that it starts. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEWNS))
    _check(libc.mount(None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None))  # else others see what comes next
    _check(libc.mount(os.fsencode(disk), os.fsencode(at), None, ctypes.c_ulong(_BIND), None))


def _check(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@cache
def possible() -> bool:
    """Whether this user may mount."""
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory() as at:
        command = [*words(Path(disk), Path(at)), "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make(at: Path) -> Path:
    """A disk for one more server with this WORKSPACES_DIR: a directory beside it."""
    at.mkdir(parents=True, exist_ok=True)
    (above := at.with_name("disks")).mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=above))
