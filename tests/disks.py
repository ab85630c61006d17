"""Disks of their own for servers of one machine, at the same path, as on several hosts.

Each server sees another directory at WORKSPACES_DIR, in a mount namespace that it begins in and that ends with it: so
nothing is mounted for anybody else, and nothing must be unmounted. Where this user may not mount, all share the one
directory, which hides what is missing in the store, and nothing else. Other files can be others' for one server, too.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_NEWNS, _BIND, _REC, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000

_SCRIPT = 'while [ "$1" != -- ]; do mount --rbind "$1" "$2" || exit; shift 2; done; shift; exec "$@"'

Binds = Sequence[tuple[Path, Path]]
"""Files or directories, each with the path at which it is to be seen, one after the other."""


def words(binds: Binds) -> list[str]:
    """Words before the command of a program that is to see these."""
    return ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", *(str(path) for bind in binds for path in bind), "--"]


def mount(binds: Sequence[Sequence[str]]) -> None:
    """The same for this process, from now on, and for all that it starts. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEWNS))
    _check(libc.mount(None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None))  # else others see what comes next
    for what, at in binds:
        _check(libc.mount(os.fsencode(what), os.fsencode(at), None, ctypes.c_ulong(_BIND | _REC), None))


def _check(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@cache
def possible() -> bool:
    """Whether this user may mount."""
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory() as at:
        command = [*words([(Path(disk), Path(at))]), "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make(at: Path) -> Path:
    """A disk for one more server with this WORKSPACES_DIR: a directory beside it."""
    at.mkdir(parents=True, exist_ok=True)
    (above := at.with_name("disks")).mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=above))
