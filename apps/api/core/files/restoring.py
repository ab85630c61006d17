"""Making a session's directories what a manifest says.

What is there already and surely the same stays, the rest is removed or fetched. Nothing that an agent left there is
followed, and none of the session's is at work meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from uuid import UUID

from apps.api.core.files import listing, manifest, removal, trees
from apps.api.core.files.listing import Sign
from apps.api.core.files.manifest import Damaged, Entries, Entry, Piece
from apps.api.core.files.objects import Flight, Objects, StoreFailed
from apps.api.core.files.snapshots import AT_A_TIME, Known
from apps.api.threads import Threads

HOLE = 65_536
"""Bytes of zeros that become a hole in a file, as they were in what was stored or might as well have been."""

_ZEROS = bytes(HOLE)


class Missing(StoreFailed):
    """The store does not have this: it is another one, or something was removed from it."""


class Plan(NamedTuple):
    """What a restoration will do. Paths are those of `manifest.Entries`.

    Attributes:
        fetched: files whose content comes from the store.
        size: bytes of these.
    """

    gone: list[str]
    made: list[str]
    fetched: list[str]
    size: int


async def read(objects: Objects, threads: Threads, name: str) -> Entries:
    """A manifest. Raises Missing, StoreFailed."""
    if (data := await objects.get(name)) is None:
        raise Missing(f"{name}: is not there")
    try:
        return await threads.run(_manifest, data)
    except Damaged as error:
        raise StoreFailed(f"{name}: {error}") from error


def _manifest(data: memoryview) -> Entries:
    return manifest.loads(manifest.unpack(data))


def plan(places: Mapping[str, Path], entries: Entries, known: Known | None) -> Plan:
    """What must be done to get from what is there to `entries`. Blocks. Raises OSError."""
    before, signs = (known.entries, known.signs) if known else ({}, {})
    kept, gone = set[str](), list[str]()
    for part, place in places.items():
        try:
            there = listing.below(place, part, len(before), trees.MAX_ENTRIES)
        except FileNotFoundError:
            continue
        except (trees.TooMuch, NotADirectoryError):
            gone.append(part)
            continue
        for path, sign in there.items():
            wanted, kind = entries.get(path), listing.kind_of(sign)
            sure = signs.get(path) == sign and wanted == before.get(path)
            if wanted is not None and kind == wanted.kind and (sure or kind == "directory"):
                kept.add(path)
            else:
                gone.append(path)
    made = [path for path, entry in entries.items() if entry.kind == "directory" or path not in kept]
    fetched = [path for path in made if entries[path].kind == "file"]
    return Plan(gone, sorted(made), fetched, manifest.size_of(entries[path] for path in fetched))


async def restore(
    objects: Objects, threads: Threads, tenant_id: UUID, places: Mapping[str, Path], entries: Entries, planned: Plan
) -> dict[str, Sign]:
    """Do what was planned. Returns the signs of what was done. Raises Missing, StoreFailed, OSError."""
    await threads.run(_prepare, places, entries, planned)
    wanted = await threads.run(_by_pack, entries, planned)

    async def fetch(pack: str, pieces: list[tuple[str, int, Piece]]) -> None:
        await threads.run(_write, places, await fetch_pack(objects, threads, tenant_id, pack), pieces)

    async with Flight(AT_A_TIME) as flight:
        for pack, pieces in wanted.items():
            await flight.add(fetch(pack, pieces))
    return await threads.run(_finish, places, entries, planned)


def _by_pack(entries: Entries, planned: Plan) -> dict[str, list[tuple[str, int, Piece]]]:
    """Of each pack what is wanted of it: the file, where in it, and the piece."""
    wanted = defaultdict[str, list[tuple[str, int, Piece]]](list)
    for path in planned.fetched:
        at = 0
        for piece in entries[path].pieces:
            wanted[piece[0]].append((path, at, piece))
            at += piece[2]
    return wanted


async def fetch_pack(objects: Objects, threads: Threads, tenant_id: UUID, pack: str) -> bytes:
    """What is in a pack. Raises Missing, StoreFailed."""
    name = manifest.pack_name(tenant_id, pack)
    data = await objects.get(name)
    if data is None and (data := await objects.get(manifest.removed_name(tenant_id, pack))) is None:
        raise Missing(f"{name}: is not there")
    try:
        return await threads.run(_content, data, pack)
    except Damaged as error:
        raise StoreFailed(f"{name}: {error}") from error


async def read_pieces(
    objects: Objects, threads: Threads, tenant_id: UUID, pieces: Sequence[Piece], start: int, length: int
) -> AsyncIterator[bytes]:
    """So many bytes of a content that is stored in these pieces. Raises Missing, StoreFailed."""
    at, end = 0, start + length
    for pack, offset, size in pieces:
        first, last = max(start, at), min(end, at + size)
        if first < last:
            content = await fetch_pack(objects, threads, tenant_id, pack)
            yield content[offset + first - at : offset + last - at]
        at += size


def _content(data: memoryview, pack: str) -> bytes:
    content = manifest.unpack(data)
    if hashlib.sha256(content).hexdigest() != pack:
        raise Damaged("is not what it was")
    return content


def _prepare(places: Mapping[str, Path], entries: Entries, planned: Plan) -> None:
    """Remove what goes, and make directories and links."""
    with trees.Places(places) as opened:
        for path in planned.gone:
            with suppress(FileNotFoundError, NotADirectoryError):
                if "/" in path:
                    removal.remove_in(*opened.above(path))
                else:
                    removal.remove(places[path])
    with trees.Places(places) as opened:
        for path in planned.made:
            entry = entries[path]
            if "/" not in path:
                trees.make_directory(places[path])
                os.chmod(places[path], 0o700)
            elif entry.kind == "directory":
                trees.make_open(*opened.above(path))
            elif entry.kind == "link":
                above, name = opened.above(path)
                os.symlink(entry.digest, name, dir_fd=above)


def _write(places: Mapping[str, Path], content: bytes, pieces: list[tuple[str, int, Piece]]) -> None:
    whole = memoryview(content)
    with trees.Places(places) as opened:
        for path, at, (_, begin, size) in pieces:
            with trees.closing_descriptor(_open(*opened.above(path))) as file:
                _put(file, whole[begin : begin + size], at)


def _open(above: int, name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=above)


def _put(file: int, data: memoryview, at: int) -> None:
    """Write where there are not only zeros. Where nothing is written a new file has zeros."""
    for begin in range(0, len(data), HOLE):
        some = data[begin : begin + HOLE]
        if len(some) < HOLE or some != _ZEROS:
            while some:
                written = os.pwrite(file, some, at + begin)
                some, begin = some[written:], begin + written


def _finish(places: Mapping[str, Path], entries: Entries, planned: Plan) -> dict[str, Sign]:
    """Give what was made its size, mode and time; directories last, the deepest first."""
    signs, directories = dict[str, Sign](), list[str]()
    with trees.Places(places) as opened:
        for path in planned.made:
            entry = entries[path]
            if entry.kind == "directory":
                directories.append(path)
            elif entry.kind == "file":
                with trees.closing_descriptor(_open(*opened.above(path))) as file:
                    os.ftruncate(file, entry.size)
                    signs[path] = _settle(file, entry)
            else:
                above, name = opened.above(path)
                signs[path] = listing.sign_of(os.stat(name, dir_fd=above, follow_symlinks=False))
    for path in reversed(directories):
        part, _, inside = path.partition("/")
        with trees.closing_descriptor(trees.open_directory(places[part], PurePosixPath(inside))) as directory:
            signs[path] = _settle(directory, entries[path])
    return signs


def _settle(opened: int, entry: Entry) -> Sign:
    os.fchmod(opened, entry.mode)
    os.utime(opened, ns=(entry.mtime, entry.mtime))
    return listing.sign_of(os.fstat(opened))
