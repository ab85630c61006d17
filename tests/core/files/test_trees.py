"""Copying and reading what an agent may have made: links lead nowhere, and nothing is unbounded."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from apps.api.core.files import trees


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory that belongs to somebody else."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    (directory / "secret.txt").write_text("secret")
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "er" / "a.txt").write_text("a")
    return directory


def test_only_regular_files_below_the_root_are_read(source: Path, secret: Path) -> None:
    (source / "link").symlink_to(secret / "secret.txt")
    (source / "way").symlink_to(secret)
    os.mkfifo(source / "pipe")
    assert trees.read(source, PurePosixPath("deep/er/a.txt"), 10) == b"a"
    for path in ("link", "way/secret.txt", "pipe", "deep", "missing", "deep/missing/a"):
        assert trees.read(source, PurePosixPath(path), 10) is None
    (source / "long").write_text("x" * 11)
    (source / "sparse").touch()
    os.truncate(source / "sparse", 10 << 30)
    for path in ("long", "sparse"):
        assert trees.read(source, PurePosixPath(path), 10) is None
    for path in ("../theirs/secret.txt", str(secret / "secret.txt"), "."):
        with pytest.raises(ValueError, match="not below"):
            trees.read(source, PurePosixPath(path), 10)


def test_a_way_is_made_inside_of_the_root_alone(source: Path, secret: Path) -> None:
    (source / "here").symlink_to("deep/er")
    (source / "there").symlink_to(source / "deep")
    (source / "up").symlink_to("../theirs")
    (source / "out").symlink_to(secret)
    (source / "a").symlink_to("b")
    (source / "b").symlink_to("a")
    (source / "file").touch()
    assert trees.make_way(source, PurePosixPath("here/new")) == source / "deep" / "er" / "new"
    assert trees.make_way(source, PurePosixPath("there/er/../new")) == source / "deep" / "new"
    assert trees.make_way(source, PurePosixPath(".")) == source
    for path in ("up", "out", "a", "../theirs", "here/../../..", "out/new"):
        with pytest.raises(ValueError, match="leads"):
            trees.make_way(source, PurePosixPath(path))
    with pytest.raises(OSError):  # noqa: PT011 - whichever the system has for it
        trees.make_way(source, PurePosixPath("file/new"))
    assert os.listdir(secret) == ["secret.txt"]


def test_what_is_in_the_way_of_a_directory_makes_room(source: Path, secret: Path) -> None:
    (source / "out").symlink_to(secret)
    os.mkfifo(source / "pipe")
    for name in ("out", "pipe", "deep", "new"):
        assert trees.make_real(source, name).lstat().st_mode & 0o777 == 0o700
    assert os.listdir(secret) == ["secret.txt"]
    assert os.listdir(source / "deep") == ["er"]
