"""Archives of files that clients take and bring: gzipped tar, and zip. What they bring is a stranger's: names lead
nowhere else, sizes, numbers and ratios are bounded. What reads blocks."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Literal, NamedTuple

from apps.api.core.files import paths, tarball, trees
from apps.api.core.files.manifest import Kind
from apps.api.core.files.snapshots import Limits, TooLarge
from apps.api.core.files.tarball import MAX_RATIO, PIECE, RATIO_FROM, BadArchive, Packer
from apps.api.core.files.views import Item, Tree
from apps.api.errors import NotFound, ValidationError

Format = Literal["tar.gz", "zip"]

MAX_DIRECTORY = 32 << 20
"""Bytes of the list at the end of a zip: the library holds all of it in memory."""

_END = struct.Struct("<4s4H2LH")


class Brought(NamedTuple):
    """A member of an archive that came. `leads`: where a link leads."""

    path: str
    kind: Kind
    mode: int
    leads: str
    pieces: Iterator[bytes]


# --- giving --------------------------------------------------------------------------------------------------------


class _Sink:
    """Takes what zipfile writes, which cannot go back."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        return

    def take(self) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return held


async def packed(tree: Tree, items: list[Item], format_: Format) -> AsyncIterator[bytes]:
    """An archive of what is listed, piece by piece. What has gone meanwhile is left out; what has become shorter is
    filled with zeros. Raises what reading raises."""
    writing = _tar(tree, items) if format_ == "tar.gz" else _zip(tree, items)
    async for piece in writing:
        if piece:
            yield piece


async def _pieces(tree: Tree, item: Item) -> AsyncIterator[bytes] | None:
    reading = tree.read(item, 0, item.size)
    try:
        first = await anext(reading, b"")
    except NotFound:
        return None

    async def whole() -> AsyncIterator[bytes]:
        left, piece = item.size, first
        while left:
            yield (piece := piece[:left] or bytes(min(left, PIECE)))
            left -= len(piece)
            piece = await anext(reading, b"") if left else b""

    return whole()


async def _tar(tree: Tree, items: list[Item]) -> AsyncIterator[bytes]:
    packer = Packer()
    for item in items:
        if item.kind == "directory":
            yield packer.directory(item.path, 0o755)
        elif item.kind == "link":
            yield packer.link(item.path, item.leads)
        elif (pieces := await _pieces(tree, item)) is not None:
            yield packer.begin(item.path, item.size, 0o644)
            async for piece in pieces:
                yield packer.piece(piece)
            yield packer.end(item.size)
    yield packer.finish()


async def _zip(tree: Tree, items: list[Item]) -> AsyncIterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for item in items:
            name = paths.shown(item.path)
            if item.kind == "directory":
                archive.writestr(zipfile.ZipInfo(f"{name}/"), b"")
            elif item.kind == "link":
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, os.fsencode(item.leads))
            elif (pieces := await _pieces(tree, item)) is not None:
                info = zipfile.ZipInfo(name)
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with archive.open(info, "w", force_zip64=True) as member:
                    async for piece in pieces:
                        member.write(piece)
                        yield sink.take()
            yield sink.take()
    yield sink.take()


# --- taking --------------------------------------------------------------------------------------------------------


def unpack(archive: Path, into: Path, limits: Limits) -> int:
    """Place what is in an archive in a directory of the server's own, which no agent knows. Returns how many there are.

    Raises ValidationError for what is no such archive, or not all of it, or would lead out; TooLarge; OSError.
    """
    count = 0
    try:
        with archive.open("rb") as opened:
            for member in _members(opened, limits):
                if (count := count + 1) > limits.entries:
                    raise TooLarge("too_many_files", f"More than {limits.entries} files.")
                _place(into, member)
    except (BadArchive, FileExistsError, NotADirectoryError) as error:
        reason = str(error) if isinstance(error, BadArchive) else "a path is there twice, or below a file"
        raise ValidationError.of("body", reason) from error
    return count


def _members(opened: BinaryIO, limits: Limits) -> Iterator[Brought]:
    magic = opened.read(4)
    opened.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return _of_tar(opened, limits)
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        return _of_zip(opened, limits)
    raise BadArchive("is neither a gzipped tar nor a zip")


def _of_tar(opened: BinaryIO, limits: Limits) -> Iterator[Brought]:
    most = limits.bytes + limits.entries * trees.BLOCK
    for member in tarball.members(opened, most, foreign=True):
        name = member.name.removeprefix("./").rstrip("/")
        if name not in ("", "."):
            yield Brought(name, member.kind, member.mode, member.leads, member.pieces())


def _of_zip(opened: BinaryIO, limits: Limits) -> Iterator[Brought]:
    size = os.fstat(opened.fileno()).st_size
    opened.seek(max(0, size - 65_557))
    tail = opened.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + _END.size or _END.unpack_from(tail, at)[5] > MAX_DIRECTORY:
        raise BadArchive("the zip is cut off, or has too many members")
    try:
        with zipfile.ZipFile(opened) as archive:
            whole = sum(info.file_size for info in archive.infolist())
            if whole > RATIO_FROM and whole > MAX_RATIO * size:
                raise BadArchive(f"becomes more than {MAX_RATIO} times as large as it is")
            left = limits.bytes
            for info in archive.infolist():
                if (left := left - info.file_size) < 0:
                    raise TooLarge("workspace_too_large", f"More than {limits.bytes} bytes.")
                mode = info.external_attr >> 16
                name = info.filename.removeprefix("./")
                if info.is_dir():
                    yield Brought(name.rstrip("/"), "directory", mode & 0o777, "", iter(()))
                    continue
                with archive.open(info) as member:
                    if stat.S_ISLNK(mode):
                        leads = member.read(paths.MAX_BYTES).decode("utf-8", "replace")
                        yield Brought(name, "link", 0, leads, iter(()))
                    else:
                        yield Brought(name, "file", mode & 0o777 or 0o644, "", _bounded(member, info.file_size, name))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, UnicodeError) as error:
        raise BadArchive(f"the zip cannot be read: {error}") from error


def _bounded(member: IO[bytes], size: int, name: str) -> Iterator[bytes]:
    while data := member.read(PIECE):
        if (size := size - len(data)) < 0:
            raise BadArchive(f"{name}: is larger than it says")
        yield data


def _place(into: Path, member: Brought) -> None:
    try:
        path = PurePosixPath(paths.checked(member.path))
    except ValidationError as error:
        raise BadArchive(f"{member.path}: {error.message}") from error
    if member.kind == "directory":
        os.close(trees.place(into, path / "x"))
    elif member.kind == "file":
        trees.write_new(into, path, member.mode | 0o600, member.pieces)
    elif trees.stays_below(member.leads, len(path.parts) - 1):
        trees.link_new(into, path, member.leads)
    else:
        raise BadArchive(f"{member.path}: a link that leads out of the archive, or may")
