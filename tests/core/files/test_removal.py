"""Removing what agents have made: nothing is too deep, too much, or in the way of anything else."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.files import removal
from apps.api.core.files.trees import TooMuch
from apps.api.core.sessions import workspaces
from apps.api.settings import Settings
from tests.plants import dig, memory_directory

NOBODY = 65_534


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = {"database_url": "postgresql://h/d", "workspaces_dir": tmp_path / "workspaces"}
    return Settings(_env_file=None, **given)  # type: ignore[arg-type]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A directory that belongs to somebody else."""
    directory = tmp_path / "kept"
    directory.mkdir()
    (directory / "file").write_text("theirs")
    return directory


def test_depth_and_number_cost_neither_memory_nor_descriptors() -> None:
    above = Path(memory_directory())
    tree = above / "tree"
    dig(tree, levels=3_000, entries=5_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2 * removal.MAX_OPEN + 8, hard))
    tracemalloc.start()
    try:
        removal.remove(tree)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    above.rmdir()
    assert peak < 1 << 20


def test_links_are_removed_and_not_followed(tmp_path: Path, kept: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    for place in (tree, tree / "a", tree / "a" / "b"):
        (place / "link").symlink_to(kept)
        os.mkfifo(place / "pipe")
    removal.remove(tree)
    removal.remove(tree)
    (tmp_path / "alone").symlink_to(kept)
    removal.remove(tmp_path / "alone")
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    assert os.listdir(kept) == ["file"]


def test_directories_that_their_owner_has_closed_are_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b" / "c").mkdir(parents=True)
    for place in (tree / "a" / "b" / "c", tree / "a" / "b", tree / "a", tree):
        place.chmod(0)
    removing = multiprocessing.get_context("fork").Process(target=_remove_as_nobody, args=(tmp_path, tree))
    removing.start()
    removing.join()
    assert removing.exitcode == 0
    assert not tree.exists()


def _remove_as_nobody(above: Path, tree: Path) -> None:
    if os.geteuid() == 0:  # who may do everything needs no right
        for path in (above, *(Path(where) for where, _, _ in os.walk(tree))):
            os.chown(path, NOBODY, NOBODY)
        opened = os.open(above, os.O_RDONLY)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.fchdir(opened)  # those above it are root's alone
        tree = Path(tree.name)
    removal.remove(tree)


def test_what_cannot_be_removed_is_out_of_the_way_and_tried_again_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = uuid4(), uuid4()
    for one in (session, other):
        workspaces.create(settings, one, None)
    real = os.unlink

    def refuse(name: str, **more: int) -> None:
        if name == "stays":
            raise PermissionError(errno.EPERM, "immutable")
        real(name, **more)

    (settings.workspaces_root / str(session) / "stays").touch()
    monkeypatch.setattr(os, "unlink", refuse)  # the file system, which refuses a file that root has made immutable
    for one in (session, other):
        workspaces.remove(settings, one)
    workspaces.discard_forgotten(settings)
    graves = settings.workspaces_root / ".removed"
    assert workspaces.present(settings) == []
    assert [name.split("-")[0] for name in os.listdir(graves)] == ["later"]
    monkeypatch.undo()
    workspaces.discard_forgotten(settings)
    assert len(os.listdir(graves)) == 1  # not again at once
    (grave,) = graves.iterdir()
    grave.rename(graves / f"later-1-{grave.name}")
    workspaces.discard_forgotten(settings)
    assert os.listdir(graves) == []


NASTY_NAMES = [
    "later-²-x",
    "later-٣-x",
    f"later-{'9' * 200}-x",
    "later--x",
    "later-",
    "later-1",
    "later-1-x\ny",
    os.fsdecode(b"later-\xff-x"),
    "-" * 255,
    "\u2028",
]


def test_a_sweep_survives_every_name_and_every_exception(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    session = UUID(int=7)
    places = [settings.workspaces_root / name for name in (".imports", ".exports", ".clones", ".removed")]
    for place in places:
        for name in NASTY_NAMES:
            (place / name).mkdir(parents=True)
            os.utime(place / name, (0, 0))
    (settings.workspaces_root / str(session)).mkdir()
    (settings.workspaces_root / ".homes").mkdir()
    scan = os.scandir

    def closed(path: Any) -> Any:
        if path == settings.workspaces_root / ".homes":
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    real = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name == NASTY_NAMES[0] and path.parent != places[3]:
            raise RuntimeError(path)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    workspaces.discard_forgotten(settings)
    assert [os.listdir(place) for place in places] == [*[NASTY_NAMES[:1]] * 3, []]
    assert workspaces.present(settings) == [session]


def test_more_than_the_limit_is_left(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    dig(tree, levels=2, entries=50)
    with pytest.raises(TooMuch):
        removal.remove(tree, limit=20)
    with pytest.raises(TooMuch):
        removal.remove(tree, stopped=lambda: True)
    removal.remove(tree)
    assert not tree.exists()
