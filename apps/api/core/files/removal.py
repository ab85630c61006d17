"""Removing what an agent may have made, however much and however deep it is. It blocks: call it in a thread."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from apps.api.core.files.trees import CHANGED_MEANWHILE, DIRECTORY_FLAGS, Budget, TooMuch, closing_descriptor

MAX_REMOVED = 20_000_000
"""Entries that are removed in one go: whoever still writes there must not keep it going for ever."""

MAX_OPEN = 30
"""Levels of directories that are open at a time, with two descriptors each."""


def remove(path: Path, limit: int = MAX_REMOVED, stopped: Callable[[], bool] | None = None) -> None:
    """Remove whatever is at `path`, if anything: a file, a link, a directory with all that is in it.

    Depth and number of what is in it cost neither memory nor descriptors.

    Raises TooMuch after `limit` entries or when `stopped` says so; OSError when something stays:
    the rest is gone then.
    """
    with closing_descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as above:
        remove_in(above, path.name, limit, stopped)


def remove_in(above: int, name: str, limit: int = MAX_REMOVED, stopped: Callable[[], bool] | None = None) -> None:
    """The same of what has that name in an open directory."""
    opened = _open_to_empty(above, name)
    if opened is None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above)
        return
    with closing_descriptor(opened):
        removal = _Removal(opened, Budget(limit), stopped)
        removal.run()
    try:
        os.rmdir(name, dir_fd=above)
    except OSError as error:
        raise removal.failure or error from None


class _Removal:
    """Empties a directory, MAX_OPEN levels at a time: what is found deeper is moved to its top, and that emptied until
    nothing is left. `failure` is the last thing that could not be removed."""

    def __init__(self, top: int, budget: Budget, stopped: Callable[[], bool] | None) -> None:
        self._top, self._budget, self._stopped = top, budget, stopped
        self.failure: OSError | None = None

    def run(self) -> None:
        while self._empty(self._top, 0):
            continue

    def _empty(self, directory: int, level: int) -> bool:
        """Remove what is in a directory. Returns whether anything has changed."""
        changed = False
        with os.scandir(directory) as entries:
            for entry in entries:
                self._budget.spend(1)
                if self._stopped is not None and self._stopped():
                    raise TooMuch
                try:
                    if entry.is_dir(follow_symlinks=False):
                        changed |= self._remove(directory, entry.name, level)
                    else:
                        os.unlink(entry.name, dir_fd=directory)
                        changed = True
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self.failure = error
        return changed

    def _remove(self, directory: int, name: str, level: int) -> bool:
        below = _open_to_empty(directory, name)
        if below is None:  # it has become something else: the next look sees what
            return False
        with closing_descriptor(below):
            if level == MAX_OPEN:
                os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=directory, dst_dir_fd=self._top)
                return True
            changed = self._empty(below, level + 1)
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:  # not empty: something has come meanwhile, or stays
            if error.errno != errno.ENOTEMPTY:
                raise
            return changed
        return True


def _open_to_empty(above: int, name: str) -> int | None:
    """A directory, opened, and made writable by its owner; None when `name` is none. Raises OSError."""
    try:
        opened = os.open(name, DIRECTORY_FLAGS, dir_fd=above)
    except PermissionError:
        opened = _open_closed(above, name)
    except OSError as error:
        if error.errno not in CHANGED_MEANWHILE:
            raise
        return None
    mode = stat.S_IMODE(os.fstat(opened).st_mode)
    if mode & 0o700 != 0o700:
        with suppress(OSError):  # another user's: then it stays
            os.fchmod(opened, mode | 0o700)
    return opened


def _open_closed(above: int, name: str) -> int:
    """Open a directory whose owner has taken its own right to read it."""
    if hasattr(os, "O_PATH"):
        with closing_descriptor(
            os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        ) as known:
            os.chmod(f"/proc/self/fd/{known}", 0o700)  # the one way to change by such a descriptor
    else:
        os.chmod(name, 0o700, dir_fd=above, follow_symlinks=False)
    return os.open(name, DIRECTORY_FLAGS, dir_fd=above)
