"""The files of the console, as they are in the package: read once, and kept compressed, too."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable

KINDS = {
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
"""Media types by how a name ends. What ends otherwise is not served."""

WORTH_IT = 1024
"""Bytes from which on a file is sent compressed."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file.

    Attributes:
        packed: the same content by gzip, where that is shorter.
    """

    media_type: str
    content: bytes
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class Assets:
    """All of them.

    Attributes:
        page: the template of the page.
        files: by their path below `static`.
        digest: stands for the content of all of them. It is in their URLs, so that browsers keep them for ever, and
            never mix files of two releases.
    """

    page: str
    files: dict[str, Asset]
    digest: str

    def modules(self) -> list[str]:
        """Paths of the scripts, which a browser would else find one after the other."""
        return [path for path, asset in self.files.items() if asset.media_type.startswith("text/javascript")]

    def styles(self) -> list[str]:
        """Paths of the style sheets, in the order in which they hold."""
        return [path for path, asset in self.files.items() if asset.media_type.startswith("text/css")]


@cache
def load() -> Assets:
    """Read them, about half a megabyte, at the first call."""
    root = resources.files(__package__).joinpath("static")
    files = {path: _asset(path, file.read_bytes()) for path, file in sorted(_below(root, "")) if _kind(path)}
    page = root.joinpath("page.html").read_text(encoding="utf-8")
    whole = sha256(page.encode())
    for path, asset in files.items():
        whole.update(f"\0{path}\0".encode() + asset.content)
    return Assets(page, files, whole.hexdigest()[:16])


def _below(directory: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry


def _kind(path: str) -> str | None:
    return KINDS.get(path.rpartition(".")[2])


def _asset(path: str, content: bytes) -> Asset:
    packed = gzip.compress(content, mtime=0) if len(content) >= WORTH_IT else content
    return Asset(_kind(path) or "", content, packed if len(packed) < len(content) else None)
