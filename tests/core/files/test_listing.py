"""Signs of everything in a directory: told by `find` as this process would tell them itself."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.api.core.files import listing, trees
from apps.api.core.files.manifest import Entry
from tests.core.files.test_store import grow
from tests.core.files.travel import Store

MOST = 100_000
WAYS = {"this process": 0, "find": listing.MANY}
"""Who looks at the files, by how many are expected."""


@pytest.fixture(autouse=True)
def _there_is_a_find() -> None:
    assert listing.has_find(), "the tests need GNU find"


@pytest.mark.parametrize("seed", range(8))
def test_both_tell_the_same(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    grow(random.Random(seed), os.fsencode(root))
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    os.symlink("/", root / "out")
    (root / "hard").touch()
    os.link(root / "hard", root / "the same")
    told = {way: listing.below(root, "files", expected, MOST) for way, expected in WAYS.items()}
    assert told["find"] == told["this process"]
    names = [os.fsencode("files")]
    for above, directories, files in os.walk(os.fsencode(root)):
        names += [b"files" + os.path.join(above, name).removeprefix(os.fsencode(root)) for name in directories + files]
    assert sorted(map(os.fsencode, told["find"])) == sorted(names)
    places = {path: place for place, path in enumerate(told["find"])}
    assert all(places[path.rpartition("/")[0]] < place for path, place in places.items() if path != "files")
    assert {path for path, sign in told["find"].items() if listing.kind_of(sign) is None} == {
        "files/pipe",
        "files/socket",
    }


@pytest.mark.parametrize("expected", WAYS.values(), ids=WAYS)
def test_whatever_is_done_to_a_file_changes_its_sign(tmp_path: Path, expected: int) -> None:
    (file := tmp_path / "file").write_bytes(b"content")
    was = os.lstat(file)

    def sign() -> str:
        return listing.below(tmp_path, "files", expected, MOST)["files/file"]

    first = sign()
    assert first == sign() == listing.sign_of(os.lstat(file))
    assert (listing.kind_of(first), listing.size_of(first)) == ("file", 7)
    seen = {first}
    changes: list[Callable[[], object]] = [
        lambda: file.write_bytes(b"another"),
        lambda: os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns)),
        lambda: file.chmod(0o600),
        lambda: file.rename(tmp_path / "aside"),
    ]
    for number, change in enumerate(changes, start=2):
        before = os.lstat(file).st_ctime_ns
        change()
        if not file.exists():
            file.write_bytes(b"content")
        while os.lstat(file).st_ctime_ns == before:  # within one tick of the kernel's clock: see snapshots.TICK
            os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        seen.add(sign())
        assert len(seen) == number


@pytest.mark.parametrize("expected", WAYS.values(), ids=WAYS)
def test_what_is_too_much_is_not_looked_at(tmp_path: Path, expected: int) -> None:
    for number in range(20):
        (tmp_path / f"{number}").touch()
    assert len(listing.below(tmp_path, "files", expected, 20)) == 21
    with pytest.raises(trees.TooMuch):
        listing.below(tmp_path, "files", expected, 19)


@pytest.mark.parametrize("expected", WAYS.values(), ids=WAYS)
def test_as_deep_as_is_allowed(tmp_path: Path, expected: int) -> None:
    deepest = tmp_path.joinpath(*"d" * trees.MAX_DEPTH)
    deepest.mkdir(parents=True)
    (deepest / "file").touch()
    assert len(listing.below(tmp_path, "files", expected, MOST)) == trees.MAX_DEPTH + 2
    (deepest / "d").mkdir()
    with pytest.raises(trees.TooMuch):
        listing.below(tmp_path, "files", expected, MOST)


@pytest.mark.parametrize("expected", WAYS.values(), ids=WAYS)
def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path, expected: int) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(NotADirectoryError):
        listing.below(tmp_path / "link", "files", expected, MOST)
    with pytest.raises(FileNotFoundError):
        listing.below(tmp_path / "missing", "files", expected, MOST)


def test_of_long_names_none_is_cut(tmp_path: Path) -> None:
    """More than is read from `find` at once, so that one word in some is in two parts."""
    for number in range(9000):
        (tmp_path / f"{number:04}{'é' * 100}\n").touch()
    found = listing.below(tmp_path, "files", listing.MANY, MOST)
    assert found == listing.below(tmp_path, "files", 0, MOST)
    assert len(found) == 9001


async def test_of_many_files_each_change_is_seen(tmp_path: Path) -> None:
    store, root = Store(tmp_path / "store"), tmp_path / "root"
    for number in range(listing.MANY + 100):
        (root / f"{number % 10}").mkdir(parents=True, exist_ok=True)
        (root / f"{number % 10}" / f"{number}").write_text(f"{number}")
    (root / "link").symlink_to("0/0")
    old = os.stat(root / "0/0").st_mtime_ns - 10**12
    for path in root.rglob("*"):
        os.utime(path, ns=(old, old), follow_symlinks=False)
    known = await store.take({"files": root})
    while known is not None and (again := await store.take({"files": root}, known)) is not None:
        known = again  # until the kernel's clock has gone on
    assert known is not None
    before = known.entries
    (root / "0/10").write_text("11")
    (root / "0/20").unlink()
    (root / "1/1").chmod(stat.S_IRWXU)
    (root / "2/2").rename(root / "3/renamed")
    os.mkfifo(root / "2/2")
    (root / "4/4").unlink()
    (root / "4/4").mkdir()
    (root / "4/4/inner").write_text("inner")
    (root / "link").unlink()
    (root / "link").symlink_to("0/30")
    now = await store.take({"files": root}, known)
    assert now is not None
    fresh = await store.take({"files": root}, None)
    assert fresh is not None
    assert {path: entry._replace(pieces=()) for path, entry in now.entries.items()} == {
        path: entry._replace(pieces=()) for path, entry in fresh.entries.items()
    }

    def same(path: str) -> bool:
        return now.entries.get(path, Entry("file", 0, 0)).same_content(before.get(path))

    changed = {path for path in before.keys() | now.entries.keys() if not same(path)}
    gone, came = {"files/0/20", "files/2/2"}, {"files/3/renamed", "files/4/4/inner"}
    assert changed == gone | came | {"files/0/10", "files/1/1", "files/4/4", "files/link"}
