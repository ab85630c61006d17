"""The way to files that an agent may have made: no link of its making is followed, nothing waits, all is bounded.

Everything goes down by descriptors. The functions block: call them in a thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

BLOCK = 4096
"""Bytes that a file, directory or link counts at least: many small ones fill a disk, too."""

MAX_DEPTH = 100
"""Levels of directories that are walked: each holds two descriptors meanwhile."""

MAX_ENTRIES = 1_000_000
"""Files and directories that are walked."""

MAX_LINKS = 40
"""Links on one way, as many as Linux follows (path_resolution(7))."""

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CHANGED_MEANWHILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}


class TooMuch(Exception):
    """There is more than is allowed."""


class Budget:
    """Bytes or entries that may still be worked on."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        """Raises TooMuch when there are not so many left."""
        self.left -= count
        if self.left < 0:
            raise TooMuch


class Entry(NamedTuple):
    """What `walk` has found: `name` in the open directory `directory`, at `path` below the root."""

    directory: int
    name: str
    path: str
    info: os.stat_result


# --- one file or directory -----------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory of this user alone, and those above it, if it is not there. Raises OSError: also when it is a
    link."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, DIRECTORY_FLAGS))


def is_empty(directory: Path) -> bool:
    """Whether there is nothing in a directory, or no such directory. Raises OSError when it cannot be opened."""
    try:
        opened = os.open(directory, DIRECTORY_FLAGS)
    except FileNotFoundError:
        return True
    with closing_descriptor(opened), os.scandir(opened) as entries:
        return next(entries, None) is None


def is_directory(path: Path) -> bool:
    """Whether there is a directory; a link to one is none."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def exists(root: Path, path: PurePosixPath) -> bool:
    """Whether there is anything at `path` below `root`. Raises ValueError when `path` leads out of the root."""
    try:
        opened = _open_above(root, path)
    except OSError:
        return False
    with closing_descriptor(opened):
        try:
            os.stat(path.name, dir_fd=opened, follow_symlinks=False)
        except OSError:
            return False
    return True


def read(root: Path, path: PurePosixPath, limit: int) -> bytes | None:
    """The content of a regular file below `root`, or None when there is none, a link leads there, or it is larger
    than `limit` bytes.

    Raises ValueError when `path` leads out of the root.
    """
    if (opened := open_file(root, path)) is None:
        return None
    with opened:
        content = opened.read(limit + 1) if os.fstat(opened.fileno()).st_size <= limit else b""
        return content if os.fstat(opened.fileno()).st_size <= limit and len(content) <= limit else None


def open_file(root: Path, path: PurePosixPath) -> BinaryIO | None:
    """A regular file below `root`, opened, or None when there is none, or a link leads there.

    Raises ValueError when `path` leads out of the root.
    """
    try:
        opened = _open_above(root, path)
    except OSError:
        return None
    with closing_descriptor(opened):
        try:
            # Not blocking: opening a pipe would wait for whoever writes into it.
            found = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened)
        except OSError:
            return None
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        return None
    return os.fdopen(found, "rb")


def _open_above(root: Path, path: PurePosixPath) -> int:
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("not below the root")
    opened = os.open(root, DIRECTORY_FLAGS)
    for name in path.parts[:-1]:
        opened = _step(opened, name)
    return opened


def _step(opened: int, name: str) -> int:
    """Go down from an open directory, which is closed."""
    with closing_descriptor(opened):
        return os.open(name, DIRECTORY_FLAGS, dir_fd=opened)


@contextmanager
def closing_descriptor(opened: int) -> Iterator[int]:
    """Close a descriptor at the end of a block."""
    try:
        yield opened
    finally:
        os.close(opened)


def make_way(root: Path, path: PurePosixPath) -> Path:
    """The directory `path` below `root`, made if it is not there. Links on the way may lead about inside of the root.

    Returns the way without links. Raises ValueError when it leads out of the root, OSError.
    """
    ahead, way, links = deque(path.parts), list[str](), 0
    while ahead:
        name = ahead.popleft()
        if name == "..":
            if not way:
                raise ValueError("leads out of the root")
            way.pop()
            continue
        if (leads := _leads(root, way, name)) is None:
            way.append(name)
            continue
        links += 1
        target = PurePosixPath(leads)
        if target.is_absolute():
            if links > MAX_LINKS or not target.is_relative_to(root):
                raise ValueError("leads out of the root")
            target, way = target.relative_to(root), []
        elif links > MAX_LINKS:
            raise ValueError("leads in a circle")
        ahead.extendleft(reversed(target.parts))
    return root.joinpath(*way)


def _leads(root: Path, way: list[str], name: str) -> str | None:
    """Where a link leads; None of a directory, which is made if it is missing."""
    opened = os.open(root, DIRECTORY_FLAGS)
    for above in way:
        opened = _step(opened, above)
    with closing_descriptor(opened):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=opened)
        try:
            os.close(os.open(name, DIRECTORY_FLAGS, dir_fd=opened))
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise
            return os.readlink(name, dir_fd=opened)
    return None


def make_real(root: Path, name: str) -> Path:
    """The directory `name` in `root`, made if it is not there, and open to its owner alone; what else has that name
    is removed. Raises OSError."""
    with closing_descriptor(os.open(root, DIRECTORY_FLAGS)) as opened:
        try:
            os.mkdir(name, 0o700, dir_fd=opened)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=opened, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=opened)
                os.mkdir(name, 0o700, dir_fd=opened)
        with closing_descriptor(os.open(name, DIRECTORY_FLAGS, dir_fd=opened)) as made:
            os.fchmod(made, 0o700)
    return root / name


def open_directory(root: Path, path: PurePosixPath) -> int:
    """The directory `path` below `root`, opened; `.` is the root. Raises OSError, also where a link stands in the way;
    ValueError when `path` leads out of the root."""
    return _open_above(root, path / "x")


def make_open(above: int, name: str) -> None:
    """A directory in an open one, made if it is not there, that its owner may write to. Raises OSError."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    with closing_descriptor(os.open(name, DIRECTORY_FLAGS, dir_fd=above)) as made:
        os.fchmod(made, 0o700)


def place(root: Path, path: PurePosixPath) -> int:
    """The directory that `path` is to be in, below `root`, opened; what is missing on the way is made. Nobody's links
    are followed. Raises ValueError when `path` leads out of the root, OSError, which is also where a file or a link
    stands in the way."""
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("leads out of its directory")
    if len(path.parts) > MAX_DEPTH + 1:  # as deep as `walk` goes
        raise ValueError(f"is more than {MAX_DEPTH} directories deep")
    opened = os.open(root, DIRECTORY_FLAGS)
    for name in path.parts[:-1]:
        with closing_descriptor(opened):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=opened)
            opened = os.open(name, DIRECTORY_FLAGS, dir_fd=opened)
    return opened


def write_new(root: Path, path: PurePosixPath, mode: int, pieces: Iterable[bytes]) -> None:
    """Write a file that must not exist. Raises as `place`."""
    with closing_descriptor(place(root, path)) as opened:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path.name, flags, 0o600, dir_fd=opened), "wb") as made:
            for piece in pieces:
                made.write(piece)
            os.fchmod(made.fileno(), mode & 0o777)


def link_new(root: Path, path: PurePosixPath, leads: str) -> None:
    """Make a link that must not exist. Raises as `place`."""
    with closing_descriptor(place(root, path)) as opened:
        os.symlink(leads, path.name, dir_fd=opened)


def touch_all(directory: Path, limit: int) -> None:
    """Say of what is in a directory that it was used now, of `limit` entries at most. Raises OSError."""
    opened = os.open(directory, DIRECTORY_FLAGS)
    with closing_descriptor(opened), os.scandir(opened) as entries:
        for _, entry in zip(range(limit), entries, strict=False):
            with suppress(OSError):
                os.utime(entry.name, dir_fd=opened, follow_symlinks=False)


class Places:
    """The directories that files of a session are in, opened one at a time: neighbours come one after the other. Paths
    begin with which of the session's directories it is."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places, self._at, self._opened = places, "", -1  # nothing is above the session's directories

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened >= 0:
            os.close(self._opened)

    def above(self, path: str) -> tuple[int, str]:
        """The directory that something is in, opened, and its name there; of one of the session's directories itself
        that one, and `.`. Raises OSError."""
        above, _, name = path.rpartition("/") if "/" in path else (path, "", ".")
        if above != self._at:
            self.__exit__()
            self._at, self._opened = "", -1
            part, _, inside = above.partition("/")
            self._opened, self._at = open_directory(self._places[part], PurePosixPath(inside)), above
        return self._opened, name


# --- trees ---------------------------------------------------------------------------------------------------------


def walk(root: Path) -> Generator[Entry]:
    """Everything below a directory, also while it changes: a directory before what is in it, nothing through links.

    Raises TooMuch beyond MAX_DEPTH or MAX_ENTRIES, OSError.
    """
    with closing_descriptor(os.open(root, DIRECTORY_FLAGS)) as opened:
        yield from walk_from(opened)


def look_into(opened: int) -> Generator[Entry]:
    """What is in an open directory. Raises TooMuch beyond MAX_ENTRIES, OSError."""
    with os.scandir(opened) as entries:
        for count, found in enumerate(entries):
            if count >= MAX_ENTRIES:
                raise TooMuch
            try:
                yield Entry(opened, found.name, found.name, found.stat(follow_symlinks=False))
            except OSError as error:
                _raise(error)


def walk_from(root: int) -> Generator[Entry]:
    """As `walk`, of an open directory, which stays open."""
    count = 0
    stack: list[tuple[int, str, Any]] = []

    def enter(opened: int, inside: str) -> None:
        try:
            stack.append((opened, inside, os.scandir(opened)))
        except BaseException:
            os.close(opened)
            raise

    enter(os.dup(root), "")
    try:
        while stack:
            opened, inside, entries = stack[-1]
            for found in entries:
                if (count := count + 1) > MAX_ENTRIES:
                    raise TooMuch
                name = found.name
                path = inside + name
                try:
                    info = found.stat(follow_symlinks=False)
                    yield Entry(opened, name, path, info)
                    if stat.S_ISDIR(info.st_mode):
                        if len(stack) > MAX_DEPTH:
                            raise TooMuch
                        enter(os.open(name, DIRECTORY_FLAGS, dir_fd=opened), f"{path}/")
                        break
                except OSError as error:
                    _raise(error)
            else:
                stack.pop()
                os.close(opened)
    finally:
        for opened, _, entries in stack:
            entries.close()
            os.close(opened)


def _raise(error: OSError) -> None:
    if error.errno not in CHANGED_MEANWHILE:
        raise error


def size(root: Path) -> int:
    """Bytes on disk below a directory that may be written to; 0 when it is not there. Raises TooMuch, OSError."""
    try:
        with closing(walk(root)) as found:
            return sum(entry.info.st_blocks * 512 for entry in found)
    except FileNotFoundError:
        return 0


def stays_below(leads: str, depth: int) -> bool:
    """Whether a link, `depth` directories below a root, stays below it, if all the links on its way do: it is relative,
    and goes up only where it begins, where no link can have led it elsewhere."""
    parts = PurePosixPath(leads).parts
    ups = next((place for place, part in enumerate(parts) if part != ".."), len(parts))
    return not leads.startswith("/") and ups <= depth and ".." not in parts[ups:]


def leads(entry: Entry) -> str:
    """Where a link that was found leads. Raises OSError."""
    return os.readlink(entry.name, dir_fd=entry.directory)


def open_entry(entry: Entry) -> BinaryIO | None:
    """A file that was found, opened; None of what is no regular file any more. Raises OSError."""
    opened = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=entry.directory)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return None
    return os.fdopen(opened, "rb")
