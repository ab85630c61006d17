"""More than a share of the machine. Each takes a bounded amount, far beyond what one session needs; of memory and
processes no more than is allowed, since more ends the attacker: see tests/acceptance/test_greed.py."""

from __future__ import annotations

import mmap
import os
import resource
import time
from pathlib import Path

from .table import Facts, attack

PROCESSES, NAMES, MEMORY, SPARSE, ROOM, DESCRIPTORS = 600, 2_000, 1 << 30, 1 << 40, 256 << 20, 20_000
"""What is tried to be taken: processes, names, bytes of memory, of a file without content, of files, descriptors."""


@attack("have any number of processes", "limits", by_kernel=True)
def _(facts: Facts) -> object:
    """They wait for a pipe to be closed, which it is when this one ends."""
    reader, writer = os.pipe()
    made = 0
    try:
        for _ in range(PROCESSES):
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            made += 1
    finally:
        os.close(writer)
        for _ in range(made):
            os.wait()
    return f"{made} processes"


@attack("have any amount of memory", "limits")
def _(facts: Facts) -> object:
    """Pages that are used, not only asked for."""
    held = mmap.mmap(-1, MEMORY)
    for at in range(0, MEMORY, mmap.PAGESIZE):
        held[at] = 1
    time.sleep(2)  # whoever watches may do so once a second
    return f"{MEMORY >> 20} MB"


@attack("have a file of any size", "guard")
def _(facts: Facts) -> object:
    path = Path(f"sparse-{os.getpid()}")
    path.touch()
    try:
        os.truncate(path, SPARSE)
        return f"{path.stat().st_size >> 30} GB"
    finally:
        path.unlink()


@attack("have any number of open files", "guard", by_kernel=True)
def _(facts: Facts) -> object:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(DESCRIPTORS)]
    return f"{len(opened)} descriptors"


@attack("fill the disk", "quota")
def _(facts: Facts) -> object:
    path, piece = Path(f"large-{os.getpid()}"), bytes(1 << 20)
    try:
        with path.open("wb") as file:
            for _ in range(ROOM >> 20):
                file.write(piece)
        return f"{ROOM >> 20} MB"
    finally:
        path.unlink()


@attack("take all names of the disk", "quota")
def _(facts: Facts) -> object:
    """They are left: the server removes them with the session."""
    directory = Path(f"names-{os.getpid()}")
    directory.mkdir()
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(NAMES):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=opened))
    return f"{NAMES} files"
