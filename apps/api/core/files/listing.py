"""Signs of everything in a directory: enough to tell what has changed there, without opening any of it.

Of many files GNU find tells faster than Python can, and in a process of its own, so that nobody else in this one waits
meanwhile. Of few it is not worth starting; where it is not installed this module looks at all of them itself.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO

from apps.api.core.files import trees
from apps.api.core.files.manifest import Kind

Sign = str
"""Of a file, directory or link: its kind, size in bytes, inode and time of change. Whoever changes anything in a file
changes one of the last two, and cannot set them."""

MANY = 1000
"""From so many files on `find` is the faster one: it takes some milliseconds to start."""

_KINDS: dict[str, Kind] = {"f": "file", "d": "directory", "l": "link"}
_FIND = (
    *("find", "-P", ".", "-ignore_readdir_race", "-mindepth", "1", "-maxdepth", str(trees.MAX_DEPTH + 1)),
    *("-printf", r"%P\0%y %s %i %C@\0"),
)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""All that it is told: no secret of this process."""
_READ = 1 << 20


def sign_of(info: os.stat_result) -> Sign:
    """As `find` writes it."""
    kind = stat.filemode(info.st_mode)[0].replace("-", "f")
    seconds, rest = divmod(info.st_ctime_ns, 10**9)
    return f"{kind} {info.st_size} {info.st_ino} {seconds}.{rest:09}0"


def kind_of(sign: Sign) -> Kind | None:
    """None of a pipe, socket or device."""
    return _KINDS.get(sign[0])


def size_of(sign: Sign) -> int:
    """In bytes."""
    return int(sign.split(" ", 2)[1])


def below(place: Path, name: str, expected: int, most: int) -> dict[str, Sign]:
    """Everything below a directory, and the directory itself, by paths that begin with `name`: a directory before what
    is in it.

    Args:
        expected: about how many there are.
        most: how many there may be.

    Blocks. Raises FileNotFoundError when there is no such directory, OSError, TooMuch.
    """
    with trees.closing_descriptor(trees.open_directory(place, PurePosixPath("."))) as opened:
        signs = {name: sign_of(os.fstat(opened))}
        if expected < MANY or not has_find() or not _find(opened, f"{name}/", most, signs):
            with closing(trees.walk_from(opened)) as entries:
                for count, entry in enumerate(entries):
                    if count >= most:
                        raise trees.TooMuch
                    signs[f"{name}/{entry.path}"] = sign_of(entry.info)
    return signs


@cache
def has_find() -> bool:
    """Whether this machine has a `find` that can tell what is asked of it. Blocks."""
    try:
        version = subprocess.run(  # noqa: S603 - nothing here that anybody else has said
            (_FIND[0], "--version"), env=_ENVIRONMENT, capture_output=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"GNU findutils" in version.stdout


def _find(opened: int, above: str, most: int, signs: dict[str, Sign]) -> bool:
    """Add what is below an open directory to `signs`. Returns whether `find` could look at everything."""
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 - the same
        _FIND, cwd=f"/proc/self/fd/{opened}", env=_ENVIRONMENT, stdin=nowhere, stdout=pipe, stderr=nowhere, bufsize=0
    ) as finding:
        try:
            assert finding.stdout is not None  # noqa: S101 - for the type checker
            for paths, found in _told(finding.stdout):
                if len(signs) + len(paths) > most + 1 or _too_deep(paths, found):
                    raise trees.TooMuch
                signs.update(zip([above + path for path in paths], found, strict=True))
        except BaseException:
            finding.kill()
            raise
        return finding.wait() == 0


def _told(output: IO[bytes]) -> Iterator[tuple[list[str], list[Sign]]]:
    """Paths and signs, as they come."""
    rest = b""
    while data := output.read(_READ):
        whole, _, rest = (rest + data).rpartition(b"\0")
        if not whole:
            continue
        words = os.fsdecode(whole).split("\0")
        if len(words) % 2:
            rest = os.fsencode(words.pop()) + b"\0" + rest
        yield words[::2], words[1::2]


def _too_deep(paths: list[str], found: list[Sign]) -> bool:
    """As `trees.walk` has it: it would have to go into more than MAX_DEPTH directories."""
    return max(map(len, paths), default=0) >= 2 * trees.MAX_DEPTH and any(
        kind.startswith("d") and path.count("/") >= trees.MAX_DEPTH for path, kind in zip(paths, found, strict=True)
    )
