"""What a hostile agent leaves where it can write: trees without end, links, pipes, forged files."""

from __future__ import annotations

import os
from pathlib import Path


def dig(tree: Path, *, levels: int, entries: int) -> None:
    """Make a tree of that depth, and a directory of that many empty ones and files in it."""
    tree.mkdir()
    many = tree / "many"
    many.mkdir()
    opened = os.open(many, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(entries):
        if number % 10:
            os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=opened))
        else:
            os.mkdir(str(number), dir_fd=opened)
    os.close(opened)
    above = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=above)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
