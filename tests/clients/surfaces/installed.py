"""The clients of others, as the registry has them: where this machine has node and npm, and a registry answers."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALL_SECONDS = 300


def installed(directory: Path = HERE) -> Path:
    """A directory with what its lock file names; where it has none, with the newest of what its package.json asks for,
    as a reader gets it. Skips the test where that cannot be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if why := _install(directory):
        pytest.skip(f"npm has not installed what {directory.name} needs: {why}")
    return directory


@cache
def _install(directory: Path) -> str:
    lock = directory / "package-lock.json"
    pinned = lock.exists()
    lock = lock if pinned else directory / "package.json"
    note, wanted = directory / "node_modules/.made-of", hashlib.sha256(lock.read_bytes()).hexdigest()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if note.exists() and note.read_text() == wanted:
            return ""
        how = ("ci",) if pinned else ("install", "--no-package-lock")
        words = ("npm", *how, "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", "--fetch-retries=1")
        try:
            found = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            return "no answer"
        if found.returncode:
            return found.stderr[-500:]
        note.write_text(wanted)
        return ""
