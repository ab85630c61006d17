"""Reading files that an agent may have made, without following where a link of its making leads."""

from __future__ import annotations

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
    with os.fdopen(found, "rb") as file:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return None
        content = file.read(limit + 1)
    return content if len(content) <= limit else None
