"""The TypeScript client, built as its users get it: with node and npm, where this machine has them."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients/typescript"
INSTALL_SECONDS = 150


def run(*command: str, seconds: float = 120, cwd: Path = CLIENT) -> subprocess.CompletedProcess[str]:
    """A program in the client's folder, to its end."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds)


def installed() -> None:
    """Have the compiler that the lock file names. Skips the test where there is no node, or no registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if why := _install():
        pytest.skip(f"npm has not installed what package-lock.json names: {why}")


def built() -> Path:
    """The folder with the compiled client. Skips as `installed`; what does not compile fails the test."""
    installed()
    assert not (wrong := _build()), wrong
    return CLIENT / "dist"


@cache
def _install() -> str:
    return _once("node_modules", [CLIENT / "package-lock.json"], _npm_ci)


@cache
def _build() -> str:
    sources = [*sorted((CLIENT / "src").iterdir()), CLIENT / "tsconfig.json", CLIENT / "package-lock.json"]
    return _once("dist", sources, _tsc)


def _npm_ci() -> str:
    try:
        found = run("npm", "ci", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1", seconds=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return "no answer"
    return found.stderr[-500:] if found.returncode else ""


def _tsc() -> str:
    found = run("node_modules/.bin/tsc", "--noEmitOnError")
    return found.stdout + found.stderr if found.returncode else ""


def _once(directory: str, sources: Iterable[Path], make: Callable[[], str]) -> str:
    """Make a directory anew where it was not made of these files; returns what is wrong. One process at a time."""
    sum_of_sources = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    note = CLIENT / directory / ".made-of"
    with (CLIENT / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if note.exists() and note.read_text() == sum_of_sources:
            return ""
        shutil.rmtree(CLIENT / directory, ignore_errors=True)
        if wrong := make():
            return wrong
        note.write_text(sum_of_sources)
        return ""
