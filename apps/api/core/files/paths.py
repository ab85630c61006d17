"""Names of files, as clients give them and are told them."""

from __future__ import annotations

import os

from apps.api.core.files.trees import MAX_DEPTH
from apps.api.errors import ValidationError

MAX_BYTES, MAX_NAME_BYTES = 4000, 255
"""Of a path, and of a name in it: what Linux takes, with room for the directory above the workspace."""


def checked(path: str, field: str = "path", *, root: bool = False) -> str:
    """A path below a workspace, as it was given. `root`: an empty one is the workspace itself.

    Raises ValidationError: it is absolute, leads out, or is no name that a file can have.
    """
    reason = None
    names = path.split("/")
    if not path and root:
        return path
    if not path:
        reason = "must not be empty"
    elif path.startswith("/"):
        reason = "must be relative to the workspace"
    elif ".." in names:
        reason = "must not lead out of the workspace"
    elif "" in names or "." in names:
        reason = "must have a name between any two slashes, and after the last one"
    elif not path.isprintable() and any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or c == "\x7f" for c in path):
        reason = "must have no control characters"
    elif len(names) > MAX_DEPTH:
        reason = f"is more than {MAX_DEPTH} directories deep"
    elif len(path.encode()) > MAX_BYTES or any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        reason = f"has more than {MAX_BYTES} bytes, or a name of more than {MAX_NAME_BYTES}"
    if reason is not None:
        raise ValidationError.of(field, reason)
    return path


def shown(path: str) -> str:
    """A path as it is told: what is no UTF-8 in a name that an agent has given is replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
