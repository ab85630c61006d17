"""Archives as gzipped tar: written piece by piece, and read as what a stranger may have made.

Only files, directories and symbolic links, in the format of GNU tar, whose long names cost a bounded header. A reader
gets each member once, in order, and nothing of it is on a disk or in memory but what it reads. All of this blocks.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Literal

from apps.api.core.files import trees

PIECE = 1 << 20
"""Bytes of a file, or of lines, that are in memory at a time."""

MAX_NAME = 32_768
"""Bytes of a name, or of where a link leads. Agents can make trees.MAX_DEPTH levels of directories of 255 bytes."""

MAX_RATIO, RATIO_FROM = 200, 1 << 30
"""An archive may become so many times larger than it is, once it has become larger than RATIO_FROM bytes."""

MAX_SAID = 1_000
"""Characters of what is said of an archive."""

_KINDS: dict[bytes, Literal["file", "directory", "link"]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
}
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class BadArchive(Exception):
    """This is no archive of ours, or not all of it. The message says where, and why, on one line that any terminal can
    show: names and values in it are a stranger's."""

    def __init__(self, message: str) -> None:
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message[:MAX_SAID])
        super().__init__("".join(shown))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """What the modules for gzip and tar raise of bytes that are neither, as BadArchive."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, RecursionError, ValueError, OverflowError) as error:
        raise BadArchive(f"{where}: cannot be read: {error}") from error


# --- writing -------------------------------------------------------------------------------------------------------


class Packer:
    """Turns members into the bytes of an archive. Who calls it does so in a thread: it compresses.

    Attributes:
        members: how many there are.
    """

    def __init__(self) -> None:
        self._compress = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.members = 0

    def file(self, name: str, content: bytes) -> bytes:
        """A whole file."""
        return self.begin(name, len(content)) + self.piece(content) + self.end(len(content))

    def begin(self, name: str, size: int, mode: int = 0o600) -> bytes:
        """The head of a file; so many bytes follow, then `end`."""
        return self._head(name, tarfile.REGTYPE, size=size, mode=mode)

    def piece(self, data: bytes) -> bytes:
        """Some bytes of a file."""
        return self._compress.compress(data)

    def end(self, size: int) -> bytes:
        """The end of a file of so many bytes."""
        return self._compress.compress(bytes(-size % tarfile.BLOCKSIZE))

    def directory(self, name: str, mode: int) -> bytes:
        """A directory."""
        return self._head(name, tarfile.DIRTYPE, mode=mode)

    def link(self, name: str, leads: str) -> bytes:
        """A symbolic link."""
        return self._head(name, tarfile.SYMTYPE, linkname=leads)

    def finish(self) -> bytes:
        """The end of the archive."""
        return self._compress.compress(bytes(2 * tarfile.BLOCKSIZE)) + self._compress.flush()

    def _head(self, name: str, type_: bytes, **fields: Any) -> bytes:
        info = tarfile.TarInfo(name)
        info.type = type_
        for field, value in fields.items():
            setattr(info, field, value)
        self.members += 1
        return self._compress.compress(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))


def tree(packer: Packer, root: Path, name: str) -> Generator[bytes]:
    """A directory that an agent may be writing to, as a member `name`, and what is below it as members below that.

    Pipes, sockets and devices are left out. Raises trees.TooMuch, OSError.
    """
    yield packer.directory(name, 0o700)
    with closing(trees.walk(root)) as entries:
        for entry in entries:
            mode, member = entry.info.st_mode, f"{name}/{entry.path}"
            if stat.S_ISDIR(mode):
                yield packer.directory(member, stat.S_IMODE(mode) & 0o777)
            elif stat.S_ISLNK(mode):
                yield packer.link(member, trees.leads(entry))
            elif stat.S_ISREG(mode) and (opened := trees.open_entry(entry)) is not None:
                with opened:
                    yield from _file(packer, opened, member, stat.S_IMODE(mode) & 0o777)


def _file(packer: Packer, opened: BinaryIO, name: str, mode: int) -> Iterator[bytes]:
    """As long as it was at the beginning, whatever becomes of it: its size stands before it."""
    size = left = os.fstat(opened.fileno()).st_size
    yield packer.begin(name, size, mode)
    while left:
        data = opened.read(min(left, PIECE)) or bytes(min(left, PIECE))
        left -= len(data)
        yield packer.piece(data)
    yield packer.end(size)


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `content` can be read until the next one is asked for."""

    name: str
    kind: Literal["file", "directory", "link"]
    size: int
    mode: int
    leads: str
    content: IO[bytes]

    def pieces(self) -> Iterator[bytes]:
        """What is in it. Raises BadArchive when it ends too early."""
        left = self.size
        while left:
            with _readable(self.name):
                data = self.content.read(min(left, PIECE))
            if not data:
                raise BadArchive(f"{self.name}: the archive ends in the middle of it")
            left -= len(data)
            yield data

    def lines(self, longest: int) -> Iterator[tuple[int, bytes]]:
        """The lines of a text file, numbered from 1. Raises BadArchive for one of more than `longest` bytes."""
        number, begun = 1, bytearray()
        for piece in self.pieces():
            *ended, rest = piece.split(b"\n")
            for line in ended:
                begun += line
                self._bound(begun, number, longest)
                yield number, bytes(begun)
                number, begun = number + 1, bytearray()
            begun += rest
            self._bound(begun, number, longest)
        if begun:
            yield number, bytes(begun)

    def _bound(self, line: bytearray, number: int, longest: int) -> None:
        if len(line) > longest:
            raise BadArchive(f"{self.name} line {number}: more than {longest} bytes")

    def whole(self, longest: int) -> bytes:
        """All of it. Raises BadArchive when that is more than `longest` bytes."""
        if self.size > longest:
            raise BadArchive(f"{self.name}: more than {longest} bytes")
        return b"".join(self.pieces())


class _Head(tarfile.TarInfo):
    """Refuses what we do not write before tarfile acts on it: headers that are as long as they say, sparse files."""

    headers: ClassVar[tuple[bytes, ...]] = _LONG_NAMES

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Head:
        info = super().frombuf(buf, encoding, errors)
        if info.type in cls.headers:
            if not 0 <= info.size <= MAX_NAME:
                raise BadArchive(f"a name of {info.size} bytes")
        elif info.type not in _KINDS or info.size < 0:
            raise BadArchive(f"{info.name[:200]!r}: neither a file, a directory nor a link, or of another kind of tar")
        return info


class _AnyHead(_Head):
    """Takes also what other programs write before a member: its long name, its times (pax). Bounded as ours are."""

    headers = (*_LONG_NAMES, tarfile.XHDTYPE, tarfile.XGLTYPE)


class _Bounded(io.RawIOBase):
    """The bytes of an archive, unpacked: no more than may be."""

    def __init__(self, packed: BinaryIO, most: int) -> None:
        self._packed, self._most, self._seen = packed, most, 0
        self._unpacked = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._unpacked.read(min(size, PIECE) if size >= 0 else PIECE)
        self.spend(len(data))
        if self._seen > RATIO_FROM and self._seen > MAX_RATIO * self._packed.tell():
            raise BadArchive(f"becomes more than {MAX_RATIO} times as large as it is")
        return data

    def spend(self, count: int) -> None:
        self._seen += count
        if self._seen > self._most:
            raise BadArchive(f"more than {self._most} bytes, where each member counts {trees.BLOCK} more than it has")


def members(packed: BinaryIO, most: int, *, foreign: bool = False) -> Generator[Member]:
    """The members of an archive of at most so many bytes when it is unpacked, and trees.BLOCK more for each member.
    `foreign`: other programs may have made it.

    Raises BadArchive. It may end early without that: the archive's own last member says whether it is whole.
    """
    unpacked = _Bounded(packed, most)
    with (
        _readable("the archive"),
        tarfile.open(
            fileobj=unpacked,
            mode="r|",
            bufsize=PIECE,
            tarinfo=_AnyHead if foreign else _Head,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive,
    ):
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
            unpacked.spend(trees.BLOCK)
            if info.issparse():
                raise BadArchive(f"{info.name[:200]!r}: a file with holes")
            content = archive.extractfile(info) if info.isreg() else None
            kind = _KINDS[info.type]
            yield Member(info.name, kind, info.size, info.mode & 0o777, info.linkname, content or io.BytesIO())
        while unpacked.read():  # what gzip says of the whole stands at its very end
            pass


class Members:
    """The members of an archive in order, with a look at the next one. See `members`.

    Attributes:
        count: how many have been looked at.
    """

    def __init__(self, packed: BinaryIO, most: int) -> None:
        self._found = members(packed, most)
        self._ahead: Member | None = None
        self.count = 0

    def peek(self) -> Member:
        """The next one. Raises BadArchive at the end, which comes after the member that says so."""
        if self._ahead is None:
            self._ahead = next(self._found, None)
            if self._ahead is None:
                raise BadArchive("it ends before end.json: not all of it is here")
            self.count += 1
        return self._ahead

    def take(self, wanted: str | None = None) -> Member:
        """The next one, which is a file of that name if one is `wanted`. Raises BadArchive."""
        member = self.peek()
        if wanted is not None and (member.name, member.kind) != (wanted, "file"):
            raise BadArchive(f"{wanted} is missing; there is {member.name[:200]!r}")
        self._ahead = None
        return member

    def end(self) -> None:
        """Raises BadArchive if there is one more."""
        more = self._ahead or next(self._found, None)
        if more is not None:
            raise BadArchive(f"{more.name[:200]!r} comes after end.json")

    def close(self) -> None:
        """Read no more."""
        self._found.close()
