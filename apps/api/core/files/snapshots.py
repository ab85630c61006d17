"""Taking a snapshot: what has changed in a session's directories since the last one goes to the store.

What has not is told by what the kernel says of it (inode, time of change), without opening it. The rest is read once,
put into packs, and only packs that the store does not have are sent. Any of it may change meanwhile: what was read
while it changed is read again the next time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple
from uuid import UUID

from apps.api.core.files import listing, manifest, trees
from apps.api.core.files.listing import Sign
from apps.api.core.files.manifest import Entries, Entry, Piece
from apps.api.core.files.objects import Flight, Objects
from apps.api.threads import Threads

PACK = 8 << 20
"""Bytes of a pack, about, and of the pieces of a larger file."""

CUT_FROM, CUT_AT = 1 << 20, 16
"""From so many bytes on a pack ends after one file in so many, told by its content: so two sessions with mostly the
same files have mostly the same packs."""

AT_A_TIME = 4
"""Packs that are on their way to the store, each in memory twice at most."""

MAX_PATH = 4096
"""Bytes of a path. Linux takes no longer one at once (PATH_MAX)."""

TICK = 20_000_000
"""Nanoseconds within which two changes of a file may have the same time: two ticks of the slowest kernel's clock."""

FRESH = 3600.0
"""A pack that nobody may be using any more is believed to stay for so many seconds after it was stored. See
`garbage`."""

PROMPTLY = 3600.0
"""Seconds at most from the moment when a pack is believed to stay until the manifest is stored that names it."""


class TooLarge(Exception):
    """There is more than is kept. `code` says of what."""

    def __init__(self, code: Literal["workspace_too_large", "too_many_files", "path_too_long"], message: str) -> None:
        super().__init__(message)
        self.code = code


class Limits(NamedTuple):
    """Of one session: bytes of all files, and files, directories and links."""

    bytes: int
    entries: int


@dataclass(slots=True)
class Known:
    """What directories of this host had in them, when they were as a manifest says.

    Attributes:
        name: of the manifest.
        signs: of what is surely still as it was then, if it has the same sign.
        frames: the manifest, as it is stored; none where nobody has written it here.
    """

    name: str
    entries: Entries
    signs: dict[str, Sign]
    frames: Sequence[bytes] = ()


@dataclass(slots=True)
class _Scan:
    """What was found. `unread`: files whose content is not known."""

    entries: Entries
    signs: dict[str, Sign]
    unread: list[str] = field(default_factory=list)
    same: bool = True


class Taken(NamedTuple):
    """A snapshot whose packs are in the store. `entries`, `signs`: see `Known`."""

    entries: Entries
    signs: dict[str, Sign]


async def take(
    objects: Objects, threads: Threads, tenant_id: UUID, places: Mapping[str, Path], known: Known | None, limits: Limits
) -> Taken | None:
    """Store what is in a session's directories, but for the manifest. None: nothing has changed since `known`.

    Raises TooLarge, StoreFailed, OSError.
    """
    scan = await threads.run(_scan, places, known, limits)
    if scan.same and known is not None and len(scan.entries) == len(known.entries):
        return None
    reading = _read(places, scan, known, limits)
    async with Flight(AT_A_TIME) as flight:
        while (made := await threads.run(next, reading, None)) is not None:
            await flight.add(send(objects, threads, tenant_id, *made))
    return Taken(scan.entries, scan.signs)


async def send(objects: Objects, threads: Threads, tenant_id: UUID, pack: str, content: bytes) -> None:
    """Store a pack, unless it is there. Raises StoreFailed."""
    name = manifest.pack_name(tenant_id, pack)
    if not await objects.is_younger(name, FRESH):
        await objects.put(name, await threads.run(manifest.pack, content))


class Content(NamedTuple):
    """What is in a file that is in the store: bytes, SHA-256 in hexadecimal, and where."""

    size: int
    digest: str
    pieces: tuple[Piece, ...]


async def send_content(
    objects: Objects, threads: Threads, tenant_id: UUID, content: AsyncIterator[bytes], most: int
) -> Content:
    """Store a content as it comes. Raises TooLarge of more than `most` bytes, StoreFailed, what the content raises."""
    whole, pieces, size = hashlib.sha256(), list[Piece](), 0
    async for part in _parts(content):
        size += len(part)
        if size > most:
            raise TooLarge("workspace_too_large", f"More than {most} bytes.")
        await threads.run(whole.update, part)
        pack, data = await threads.run(packed, [part])
        await send(objects, threads, tenant_id, pack, data)
        pieces.append((pack, 0, len(part)))
    return Content(size, whole.hexdigest(), tuple(pieces))


async def _parts(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same in parts of PACK bytes, the last one of the rest."""
    held = bytearray()
    async for some in content:
        held += some
        while len(held) >= PACK:
            yield bytes(held[:PACK])
            del held[:PACK]
    if held:
        yield bytes(held)


def _by_digest(known: Known | None) -> dict[str, tuple[Piece, ...]]:
    entries = known.entries.values() if known else ()
    return {digest: pieces for kind, _, _, _, digest, pieces in entries if kind == "file"}


def _scan(places: Mapping[str, Path], known: Known | None, limits: Limits) -> _Scan:
    """What is there. Of what has not changed the entries are those of `known`. Blocks."""
    before, signs = (known.entries, known.signs) if known else ({}, {})
    there = dict[str, Sign]()
    try:
        for part, place in places.items():
            with suppress(FileNotFoundError):
                there |= listing.below(place, part, len(before), limits.entries)
    except trees.TooMuch as error:
        raise TooLarge("too_many_files", f"More than {limits.entries} files, or too deep.") from error
    scan = _Scan(dict(before), there)
    for path in before.keys() - there.keys():
        del scan.entries[path]
    changed = [path for path, sign in there.items() if signs.get(path) != sign]
    _look(places, changed, before, scan)
    if len(scan.entries) > limits.entries:
        raise TooLarge("too_many_files", f"More than {limits.entries} files.")
    if manifest.size_of(scan.entries.values()) > limits.bytes:
        raise TooLarge("workspace_too_large", f"More than {limits.bytes} bytes.")
    return scan


def _look(places: Mapping[str, Path], changed: list[str], before: Entries, scan: _Scan) -> None:
    """Replace the entries of what has changed, and the signs: none of what must be read, or may change unseen. Raises
    TooLarge of a path that is too long, OSError."""
    settled = time.time_ns() - TICK
    with trees.Places(places) as opened:
        for path in changed:
            if len(path) > MAX_PATH // 4 and len(os.fsencode(path)) > MAX_PATH:
                raise TooLarge("path_too_long", f"A path has more than {MAX_PATH} bytes.")
            sign = scan.signs.pop(path)
            if (kind := listing.kind_of(sign)) == "file":
                scan.entries[path] = Entry("file", 0, 0, listing.size_of(sign))
                scan.unread.append(path)
            elif kind is None or (found := _entry(opened, path)) is None:
                scan.entries.pop(path, None)
            else:
                scan.entries[path], info = found
                scan.same = scan.same and scan.entries[path] == before.get(path)
                if info.st_ctime_ns < settled:
                    scan.signs[path] = listing.sign_of(info)
    scan.same = scan.same and not scan.unread
    scan.unread.sort()


def _entry(opened: trees.Places, path: str) -> tuple[Entry, os.stat_result] | None:
    """A directory or link. None: it is none any more."""
    try:
        above, name = opened.above(path)
        info = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            return Entry("directory", stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime_ns), info
        return (Entry("link", 0, 0, 0, os.readlink(name, dir_fd=above)), info) if stat.S_ISLNK(info.st_mode) else None
    except OSError as error:
        if error.errno not in trees.CHANGED_MEANWHILE:
            raise
        return None


class Packer:
    """Puts contents into packs, in the order in which they come."""

    def __init__(self, stored: dict[str, tuple[Piece, ...]]) -> None:
        """`stored`: pieces of contents that are in the store, by their digest. Those of new ones are added."""
        self.stored = stored
        self._contents: list[bytes] = []
        self._waiting: list[tuple[str, int, int]] = []
        self._size = 0

    def add(self, digest: str, content: bytes) -> Iterator[tuple[str, bytes]]:
        """Add the content of a file of at most PACK bytes. Gives the pack that is full with it."""
        if digest in self.stored:
            return
        self._contents.append(content)
        self._waiting.append((digest, self._size, len(content)))
        self._size += len(content)
        self.stored[digest] = ()  # filled when the pack has a name
        if self._size >= PACK or (self._size >= CUT_FROM and int(digest[:8], 16) % CUT_AT == 0):
            yield from self.flush()

    def flush(self) -> Iterator[tuple[str, bytes]]:
        """The pack that is not full yet, if there is one."""
        if self._waiting:
            pack, content = packed(self._contents)
            for digest, at, length in self._waiting:
                self.stored[digest] = ((pack, at, length),) if length else ()
            self._contents, self._waiting, self._size = [], [], 0
            if content:
                yield pack, content


def packed(contents: list[bytes]) -> tuple[str, bytes]:
    """A pack of some contents, with its name."""
    whole = contents[0] if len(contents) == 1 else b"".join(contents)
    return hashlib.sha256(whole).hexdigest(), whole


def _read(places: Mapping[str, Path], scan: _Scan, known: Known | None, limits: Limits) -> Generator[tuple[str, bytes]]:
    """Read what has changed, and fill in the entries. Gives packs that the store may not have yet. Blocks."""
    packer, whole = Packer(_by_digest(known)), trees.Budget(limits.bytes)
    digests: dict[str, str] = {}
    for path in scan.unread:
        part, _, inside = path.partition("/")
        if (opened := trees.open_file(places[part], PurePosixPath(inside))) is None:
            del scan.entries[path]
            continue
        with opened:
            before = os.fstat(opened.fileno())
            try:
                whole.spend(before.st_size)
            except trees.TooMuch as error:
                raise TooLarge("workspace_too_large", f"More than {limits.bytes} bytes.") from error
            if before.st_size <= PACK:
                content = opened.read(before.st_size)
                digest, size = hashlib.sha256(content).hexdigest(), len(content)
                yield from packer.add(digest, content)
            else:
                digest, size = yield from _read_large(opened, before.st_size, packer)
            after = os.fstat(opened.fileno())
        scan.entries[path] = Entry("file", stat.S_IMODE(after.st_mode) & 0o777, after.st_mtime_ns, size)
        digests[path] = digest
        sign = listing.sign_of(after)
        if sign == listing.sign_of(before) and after.st_ctime_ns < time.time_ns() - TICK:
            scan.signs[path] = sign
    yield from packer.flush()
    for path, digest in digests.items():
        scan.entries[path] = scan.entries[path]._replace(digest=digest, pieces=packer.stored[digest])


def _read_large(opened: BinaryIO, size: int, packer: Packer) -> Generator[tuple[str, bytes], None, tuple[str, int]]:
    """A file of several pieces, each of which is a pack; what is appended later leaves the earlier ones as they are."""
    of_all, pieces, left = hashlib.sha256(), list[Piece](), size
    while left and (content := opened.read(min(left, PACK))):
        left -= len(content)
        of_all.update(content)
        pack, content = packed([content])
        pieces.append((pack, 0, len(content)))
        yield pack, content
    digest = of_all.hexdigest()
    packer.stored.setdefault(digest, tuple(pieces))
    return digest, size - left
