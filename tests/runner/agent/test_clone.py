"""Git within its bounds, against a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from apps.api.core.tenant.repositories import Source
from apps.api.runner.agent.clone import CloneFailed, Git
from tests.git_server import GitServer, git_serving


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitServer]:
    with git_serving(tmp_path / "git") as server:
        yield server


def cloning(url: str, tmp_path: Path, *, seconds: float = 60, max_bytes: int = 10**8) -> Git:
    draft = tmp_path / "draft"
    draft.mkdir()
    parts = urlsplit(url)
    source = Source(url, parts.hostname or "", parts.port or 0, ("127.0.0.1",), None, None)
    return Git(source, draft, seconds, max_bytes)


async def test_links_that_lead_out_are_not_kept(git: GitServer, tmp_path: Path) -> None:
    links = {"out": "/etc/passwd", "up": "../..", "in": "a.txt", "directory": "/etc"}
    clone = cloning(git.repository("links.git", {"a.txt": "a"}, links), tmp_path)
    await clone.clone()
    assert {p.name for p in clone.files.iterdir()} == {".git", "a.txt", "in"}
    assert (clone.files / "in").read_text() == "a"


async def test_a_host_that_renames_within_itself_is_found(git: GitServer, tmp_path: Path) -> None:
    clone = cloning(git.repository("plain.git", {"a.txt": "a"}).removesuffix(".git"), tmp_path)
    assert await clone.clone()
    assert git.asked[0][0].startswith("/plain/")


async def test_a_clone_that_is_too_large_ends(git: GitServer, tmp_path: Path) -> None:
    url = git.repository("large.git", {"zeros": "\0" * 20_000_000})
    with pytest.raises(CloneFailed):
        await cloning(url, tmp_path, max_bytes=1_000_000).clone()


async def test_a_clone_that_takes_too_long_ends(git: GitServer, tmp_path: Path) -> None:
    with pytest.raises(CloneFailed, match="longer than"):
        await cloning(git.repository("slow.git", {"a": "a"}), tmp_path, seconds=0).clone()
