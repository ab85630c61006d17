"""The directories of agents' processes: how long their names are, and who removes what nobody owns any more."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apps.api.core.files import removal
from apps.api.runner.agent.scratch import Scratch

MAX_TMP = 60
"""Bytes that leave room for the name of a socket: unix(7) allows 107."""


@pytest.fixture
def system_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """Make a directory whose path has so many bytes the one for temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s") as above:

        def use(length: int) -> Path:
            made = Path(above, "x" * (length - len(above) - 1))
            made.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(made))
            return made

        yield use


@contextmanager
def scratch() -> Iterator[Scratch]:
    made = Scratch()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("length", [20, *range(27, 34), 200])
def test_the_temporary_directory_of_an_agent_leaves_room_for_sockets(
    system_tmp: Callable[[int], Path], length: int
) -> None:
    wanted = system_tmp(length)
    with scratch() as made:
        place = made.make()
        assert len(os.fsencode(place.tmp)) <= MAX_TMP
        assert place.tmp.is_dir()
        assert place.tmp.is_relative_to(wanted) or length > 27


@pytest.mark.parametrize("base", ["caa", "claude-agent-api"])
def test_what_dead_instances_of_this_and_of_earlier_versions_left_is_removed(
    system_tmp: Callable[[int], Path], base: str
) -> None:
    above = system_tmp(25) / f"{base}-{os.getuid()}"
    dead, young, living = (above / name for name in ("dead", "young", "living"))
    for directory in (dead, young, living):
        (directory / "some" / "config").mkdir(parents=True)
        (directory / "lock").touch()
    (dead / "kept").symlink_to(young)
    for directory in (dead, living):
        os.utime(directory, (0, 0))
    with scratch() as made, (living / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.sweep()
        assert {path.name for path in above.iterdir()} - {made.root.name} == {"young", "living"}
        assert (young / "some" / "config").is_dir()
    removal.remove(above)


def test_nothing_that_a_sweep_finds_keeps_the_rest_from_being_looked_at(
    system_tmp: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    above = system_tmp(25) / f"caa-{os.getuid()}"
    for name in ("broken", "dead"):
        (above / name).mkdir(parents=True)
        os.utime(above / name, (0, 0))
    real, listed = Path.lstat, os.listdir

    def broken(path: Path) -> os.stat_result:
        if path.name == "broken":
            raise RuntimeError(path)
        return real(path)

    def closed(path: str | Path) -> list[str]:
        if "claude-agent-api" in str(path):
            raise PermissionError(path)
        return listed(path)

    (above.parent / f"claude-agent-api-{os.getuid()}").mkdir()
    with scratch() as made:
        monkeypatch.setattr(Path, "lstat", broken)
        monkeypatch.setattr(os, "listdir", closed)
        made.sweep()
        monkeypatch.undo()
        assert {path.name for path in above.iterdir()} == {"broken", made.root.name}
    removal.remove(above)


def test_a_link_or_file_by_the_name_of_an_earlier_version_leads_nowhere(
    system_tmp: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    os.utime(tmp_path / "theirs", (0, 0))
    former = system_tmp(25) / f"claude-agent-api-{os.getuid()}"
    former.symlink_to(tmp_path)
    with scratch() as made:
        made.sweep()
        assert (tmp_path / "theirs").is_dir()
        former.unlink()
        former.touch()
        made.sweep()
        assert former.is_file()
