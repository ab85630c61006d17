"""Copying and reading what an agent may have made: links lead nowhere, and nothing is unbounded."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from apps.api.core.files import trees
from apps.api.core.files.trees import Budget, TooMuch


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


def test_a_tree_is_copied_with_its_modes_times_and_links(source: Path, secret: Path, tmp_path: Path) -> None:
    run = source / "run.sh"
    run.write_text("true")
    run.chmod(0o4755)
    os.utime(run, ns=(1_000_000_000, 2_000_000_000))
    (source / "inside").symlink_to("deep/er")
    (source / "outside").symlink_to(secret)
    os.mkfifo(source / "pipe")
    copy = tmp_path / "copy"
    trees.copy_tree(source, copy, Budget(1 << 20))
    assert sorted(os.listdir(copy)) == ["deep", "inside", "outside", "run.sh"]
    assert (copy / "deep" / "er" / "a.txt").read_text() == "a"
    assert ((copy / "run.sh").stat().st_mode & 0o7777, (copy / "run.sh").stat().st_mtime_ns) == (0o755, 2_000_000_000)
    assert (os.readlink(copy / "inside"), os.readlink(copy / "outside")) == ("deep/er", str(secret))


def test_a_directory_that_becomes_a_link_is_not_gone_into(
    source: Path, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def swap(path: Any, *args: Any, **more: Any) -> os.stat_result:
        found = real(path, *args, **more)
        if path == "deep" and (source / "deep").is_dir() and not (source / "deep").is_symlink():
            (source / "deep").rename(tmp_path / "moved")
            (source / "deep").symlink_to(secret)
        return found

    monkeypatch.setattr(os, "stat", swap)  # the agent, between the look and the step
    trees.copy_tree(source, tmp_path / "copy", Budget(1 << 20))
    monkeypatch.undo()
    assert list((tmp_path / "copy" / "deep").iterdir()) == []


def test_nothing_is_written_through_a_link_that_becomes_a_directory(
    source: Path, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "way").symlink_to(secret)
    real = os.readlink

    def swap(path: str, *, dir_fd: int) -> str:
        leads = real(path, dir_fd=dir_fd)
        (source / "way").unlink()
        (source / "way").mkdir()
        (source / "way" / "planted.txt").touch()
        return leads

    monkeypatch.setattr(os, "readlink", swap)  # the agent, once its link has been read
    trees.copy_tree(source, tmp_path / "copy", Budget(1 << 20))
    assert sorted(os.listdir(secret)) == ["secret.txt"]


def test_more_than_the_budget_is_not_copied(source: Path, tmp_path: Path) -> None:
    (source / "big").write_bytes(b"x" * 50_000)
    with pytest.raises(TooMuch):
        trees.copy_tree(source, tmp_path / "copy", Budget(50_000))
    trees.copy_tree(source, tmp_path / "again", Budget(50_000 + 10 * trees.BLOCK))


def test_many_small_files_and_deep_directories_are_too_much(tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(20):
        (many / str(number)).touch()
    with pytest.raises(TooMuch):
        trees.copy_tree(many, tmp_path / "copy", Budget(19 * trees.BLOCK))
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * (trees.MAX_DEPTH + 5)).mkdir(parents=True)
    with pytest.raises(TooMuch):
        trees.copy_tree(deep, tmp_path / "other", Budget(1 << 30))


def test_only_regular_files_below_the_root_are_read(source: Path, secret: Path) -> None:
    (source / "link").symlink_to(secret / "secret.txt")
    (source / "way").symlink_to(secret)
    os.mkfifo(source / "pipe")
    assert trees.read(source, PurePosixPath("deep/er/a.txt"), 10) == b"a"
    for path in ("link", "way/secret.txt", "pipe", "deep", "missing", "deep/missing/a"):
        assert trees.read(source, PurePosixPath(path), 10) is None
    (source / "long").write_text("x" * 11)
    assert trees.read(source, PurePosixPath("long"), 10) is None
    for path in ("../theirs/secret.txt", str(secret / "secret.txt"), "."):
        with pytest.raises(ValueError, match="not below"):
            trees.read(source, PurePosixPath(path), 10)


def test_links_into_what_is_copied_lead_into_the_copy(tmp_path: Path) -> None:
    source = tmp_path / "before"
    (source / "a" / "b" / "before").mkdir(parents=True)
    (source / "x").touch()
    (source / "a" / "x").touch()
    (source / "way").symlink_to("a/b")
    links = {
        "a/b/whole": (f"{source}", "../../."),
        "a/b/below": (f"{source}/a/x", "../../a/x"),
        "a/b/again": ("../../../before/a/x", "../../a/x"),
        "a/b/round": ("../c/../../../before/x", "../../x"),
        "a/b/about": (f"{source}/../before/x", "../../x"),
        "a/b/plain": ("../y", "../y"),
        "a/b/missing": (f"{source}/../before/y", f"{tmp_path}/after/../after/y"),
        "own": ("a/b/before", "a/b/before"),
        "other": ("way/before", "way/after"),
        "home": (f"{tmp_path}/homes/before/.cache", f"{tmp_path}/homes/after/.cache"),
        "spelt": (f"/proc/self/root/{source}/./x", f"/proc/self/root/{tmp_path}/after/./x"),
        "out": ("/etc/passwd", "/etc/passwd"),
    }
    for name, (leads, _) in links.items():
        (source / name).symlink_to(leads)
    copy = tmp_path / "copy"
    trees.copy_tree(source, copy, Budget(1 << 20), {"before": "after"})
    assert {name: os.readlink(copy / name) for name in links} == {name: leads for name, (_, leads) in links.items()}


def test_a_file_of_ten_gigabytes_without_content_is_too_much_at_once(source: Path, tmp_path: Path) -> None:
    (source / "sparse").touch()
    os.truncate(source / "sparse", 10 << 30)
    with pytest.raises(TooMuch):
        trees.copy_tree(source, tmp_path / "copy", Budget(1 << 30))
    assert trees.read(source, PurePosixPath("sparse"), 1 << 20) is None


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
