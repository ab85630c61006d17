"""What a session's files were at one moment: names, kinds, modes, times, and where the content of each is stored.

A manifest is one object: lines of JSON, each compressed by itself. Content is in packs: objects of some megabytes,
named by the SHA-256 of what is in them, so that what many sessions of a tenant have is stored once.

| object | what it is |
|---|---|
| `tenants/ID/packs/ab/HASH` | a pack, compressed (zstd) |
| `tenants/ID/removed/HASH` | a pack that no manifest named when it was looked for, for some hours: see `garbage` |
| `tenants/ID/sessions/ID/GENERATION-UUID` | a manifest, compressed; the generation is that of who stored it |

Which manifest is a session's the database says (`sessions.stored`), to which only the owner of that generation can
write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

import orjson

from apps.api.core.files.trees import BLOCK

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Kind = Literal["file", "directory", "link"]

VERSION = 1

PART = 500
"""Entries that are written together."""

LEVEL = 1
"""Of compression: what it takes is waited for at the end of each run."""


Piece = tuple[str, int, int]
"""So many bytes of a file: the name of their pack, where in its content they begin, and how many there are."""


class Entry(NamedTuple):
    """A file, directory or link.

    Attributes:
        mode: the lowest nine bits of its mode; 0 of a link.
        mtime: in nanoseconds since 1970; 0 of a link.
        size: bytes of a file.
        digest: SHA-256 of a file's content, in hexadecimal; where a link leads.
    """

    kind: Kind
    mode: int
    mtime: int
    size: int = 0
    digest: str = ""
    pieces: tuple[Piece, ...] = ()

    def same_content(self, other: Entry | None) -> bool:
        """Whether there is the same in both, whatever their times."""
        return other is not None and (self.kind, self.mode, self.digest) == (other.kind, other.mode, other.digest)


Entries = dict[str, Entry]
"""By path: which of the session's directories, and the path in it: `files/src/main.py`. The directories themselves are
among them. Names that are no UTF-8 have surrogates, as os.fsdecode makes them."""


class Damaged(Exception):
    """These are not the bytes that were stored."""


def size_of(entries: Iterable[Entry]) -> int:
    """Bytes of all files."""
    return sum(entry.size for entry in entries)


def weight_of(entries: Iterable[Entry]) -> int:
    """Bytes that all of this takes on a disk at most, holes of files filled, where the least thing takes a block."""
    return sum(BLOCK + entry.size for entry in entries)


def name_of(tenant_id: UUID, session_id: UUID, generation: int) -> str:
    """A new name for a manifest of a session."""
    return f"{below_session(tenant_id, session_id)}/{generation:012d}-{uuid4().hex}"


def below_tenant(tenant_id: UUID) -> str:
    """What the names of all objects of a tenant begin with."""
    return f"tenants/{tenant_id}"


def below_session(tenant_id: UUID, session_id: UUID) -> str:
    """What the names of a session's manifests begin with."""
    return f"{below_tenant(tenant_id)}/sessions/{session_id}"


def pack_name(tenant_id: UUID, pack: str) -> str:
    """The object that is a pack."""
    return f"{below_tenant(tenant_id)}/packs/{pack[:2]}/{pack}"


def removed_name(tenant_id: UUID, pack: str) -> str:
    """Where a pack is that was taken for garbage."""
    return f"{below_tenant(tenant_id)}/removed/{pack}"


def frames(entries: Entries, before: Entries | None = None, written: Sequence[bytes] = ()) -> list[bytes]:
    """A manifest in parts, which are one after the other what is stored.

    Args:
        before, written: another one, and its parts: of those that have the same entries in both nothing is written
            anew.
    """
    made, old = list[bytes](), _parts(before or {})
    for number, part in enumerate(_parts(entries)):
        same = part == next(old, None) and number < len(written) - 1
        made.append(written[number] if same else pack(_line(dict(part))))
    return [*made, pack(orjson.dumps({"version": VERSION, "count": len(entries)}))]


def _parts(entries: Entries) -> Iterator[list[tuple[str, Entry]]]:
    items = iter(entries.items())
    while part := list(islice(items, PART)):
        yield part


def _line(entries: Entries) -> bytes:
    """As JSON: paths, and a list for each attribute, which is many times faster to write than a list for each path."""
    columns = dict(zip(Entry._fields, zip(*entries.values(), strict=True), strict=True))
    whole = {"version": VERSION, "paths": list(entries), **columns}
    try:
        return orjson.dumps(whole, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a name that is no UTF-8
        return json.dumps(whole, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def loads(data: bytes) -> Entries:
    """What `frames` has made, unpacked. Raises Damaged."""
    try:
        entries, count = Entries(), None
        for line in data.splitlines():
            whole = _read(line)
            count = whole.get("count")
            if paths := whole.get("paths"):
                entries |= zip(paths, _rows(whole), strict=True)
        if count != len(entries):
            raise Damaged("not all of a manifest")
        return entries
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"no manifest: {error}") from error


def _read(line: bytes) -> Any:
    try:
        whole: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        whole = json.loads(line)
    if whole["version"] != VERSION:
        raise Damaged(f"a manifest of version {whole['version']}")
    return whole


def _rows(whole: Any) -> Iterator[Entry]:
    whole["pieces"] = [tuple((pack, at, size) for pack, at, size in pieces) for pieces in whole["pieces"]]
    return map(Entry._make, zip(*(whole[field] for field in Entry._fields), strict=True))


def pack(data: bytes) -> bytes:
    """Compressed."""
    return zstd.compress(data, LEVEL)


def encode(entries: Entries) -> bytes:
    """A manifest, as it is stored."""
    return b"".join(frames(entries))


def unpack(data: memoryview) -> bytes:
    """What `pack` has made. Raises Damaged."""
    try:
        return zstd.decompress(data)
    except zstd.ZstdError as error:
        raise Damaged(str(error)) from error
