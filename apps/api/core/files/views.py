"""A workspace as clients see it: what may be asked of it, wherever its files are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from apps.api.core.files import paths
from apps.api.core.files.manifest import Kind
from apps.api.errors import Conflict, NotFound, PreconditionFailed


@dataclass(frozen=True, slots=True)
class Item:
    """A file, directory or link.

    Attributes:
        path: below the workspace.
        size: bytes of a file.
        mtime: in nanoseconds since 1970.
        leads: where a link leads.
    """

    path: str
    kind: Kind
    size: int
    mtime: int
    leads: str = ""

    @property
    def etag(self) -> str | None:
        """What changes with a file's content: made of time and size, which travel with it from host to host."""
        return f'"{self.mtime:x}-{self.size:x}"' if self.kind == "file" else None

    @property
    def modified_at(self) -> datetime:
        """When its content was changed last, as far as a date can tell."""
        return datetime.fromtimestamp(min(max(self.mtime / 1e9, 0), 253_402_300_799), UTC)


@dataclass(frozen=True, slots=True)
class Condition:
    """Under which a file may be changed: `If-Match` and `If-None-Match` (RFC 9110, section 13.1). None: any."""

    match: tuple[str, ...] | None = None
    none_match: tuple[str, ...] | None = None

    def check(self, item: Item | None) -> None:
        """Raises PreconditionFailed. `item`: what is there now."""
        etag = item.etag if item is not None else None
        if self.match is not None and (item is None or not {"*", etag} & {*self.match}):
            raise PreconditionFailed("The file is not the one that If-Match names.", details={"etag": etag})
        if self.none_match is not None and item is not None and {"*", etag} & {*self.none_match}:
            raise PreconditionFailed("The file is one that If-None-Match names.", details={"etag": etag})


class Tree(Protocol):
    """A workspace. Paths have been checked: see `paths.checked`. All raise NotFound, Conflict, PreconditionFailed, and
    what the place of the files raises when it fails: OSError, StoreFailed, TooMuch, TooLarge."""

    async def items(self, below: str, *, recursive: bool) -> list[Item]:
        """What is in a directory, or in all below it, in the order of paths."""

    async def item(self, path: str) -> Item:
        """One of them."""

    def read(self, item: Item, start: int, length: int) -> AsyncIterator[bytes]:
        """So many bytes of a file."""

    async def write(self, path: str, content: AsyncIterator[bytes], when: Condition) -> tuple[Item, bool]:
        """Store a file, whole or not at all, and the directories above it. Returns whether there was none before."""

    async def remove(self, path: str, when: Condition, *, recursive: bool) -> None:
        """Remove a file, a link or an empty directory; with `recursive` any directory."""

    async def move(self, source: str, target: str, when: Condition, *, overwrite: bool) -> Item:
        """Give something another path. `overwrite`: a file or link that is there goes."""

    async def merge(self, draft: Path) -> None:
        """Take in all that is in a directory of the server's own, at the same paths: files replace files and links."""


def not_found(path: str) -> NotFound:
    """There is nothing at a path."""
    return NotFound(f"No such file: {paths.shown(path)}", code="file_not_found")


def in_the_way(path: str) -> Conflict:
    """What is at a path is no directory, and would have to be one."""
    return Conflict(
        f"Is no directory: {paths.shown(path)}", code="not_a_directory", details={"path": paths.shown(path)}
    )


def no_file(item: Item) -> Conflict:
    """What is at a path is no file, and would have to be one."""
    message = f"Is a {item.kind}, not a file: {paths.shown(item.path)}"
    return Conflict(message, code="not_a_file", details={"path": paths.shown(item.path), "type": item.kind})


def not_empty(path: str) -> Conflict:
    """A directory has something in it."""
    message = f"The directory is not empty: {paths.shown(path)}. Ask with recursive=true."
    return Conflict(message, code="directory_not_empty", details={"path": paths.shown(path)})


def exists(path: str) -> Conflict:
    """There is something already where something is to go."""
    return Conflict(f"Exists already: {paths.shown(path)}", code="file_exists", details={"path": paths.shown(path)})
