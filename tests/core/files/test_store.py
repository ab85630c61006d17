"""Files that are stored and restored: what comes back, what is sent again, and what is refused."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from apps.api.core.files import manifest, restoring, snapshots
from apps.api.core.files.manifest import Entry
from apps.api.core.files.objects import Objects, StoreFailed
from apps.api.core.files.snapshots import Limits, TooLarge
from apps.api.core.sessions import session_files
from apps.api.settings import Settings
from tests.core.files.travel import Store
from tests.world import until


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


def shown(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """All that must be the same: kinds, modes, times, contents, and where links lead."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for above, directories, files in os.walk(os.fsencode(root)):
        for name in [b".", *directories, *files]:
            path = os.path.join(above, name)
            info = os.lstat(path)
            content: Any = None
            if stat.S_ISLNK(info.st_mode):
                found[os.path.relpath(path, os.fsencode(root))] = ("link", os.readlink(path))
                continue
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[os.path.relpath(path, os.fsencode(root))] = (info.st_mode, info.st_mtime_ns, content)
    return found


NAMES = [
    b"a",
    b"B",
    b".hidden",
    b"with space",
    b"new\nline",
    b"\xff\xfe",
    "é".encode(),
    b"x" * 255,
    b"-rf",
    b"*",
    b"a.tar.gz",
]


def grow(rng: random.Random, above: bytes, depth: int = 0) -> None:
    """A tree of all that a tree may have in it."""
    for name in rng.sample(NAMES, rng.randint(0, 5)):
        path = os.path.join(above, name)
        kind = rng.choice(("file", "file", "file", "directory", "directory", "link"))
        if kind == "directory":
            os.mkdir(path)
            if depth < 5:
                grow(rng, path, depth + 1)
            os.chmod(path, rng.choice((0o755, 0o700, 0o777, 0o711)))
            os.utime(path, ns=(0, rng.randrange(2**60)))
        elif kind == "link":
            os.symlink(rng.choice([b"..", b"/etc/passwd", b"../../../../..", b"missing", *NAMES]), path)
        else:
            with open(path, "wb") as file:
                for _ in range(rng.randint(0, 3)):
                    file.write(rng.randbytes(rng.choice((0, 1, 4096, 70_000, 2_000_000))))
                    file.seek(rng.choice((0, 1, 300_000)), os.SEEK_CUR)
                file.truncate()
            os.chmod(path, rng.choice((0o644, 0o600, 0o755, 0o444)))
            os.utime(path, ns=(0, rng.randrange(2**60)))


@pytest.mark.parametrize("seed", range(12))
async def test_what_comes_back_is_what_was_stored(store: Store, source: Path, tmp_path: Path, seed: int) -> None:
    """Also on top of what was there before; and the copy is stored as the same, with nothing sent."""
    rng = random.Random(seed)
    grow(rng, os.fsencode(source))
    copy = {"files": tmp_path / "copy"}
    entries = await store.move({"files": source}, copy)
    assert shown(copy["files"]) == shown(source)
    known = await store.restore(entries, copy)
    packs = store.packs()
    assert await store.take(copy, known) is None
    assert store.packs() == packs

    os.makedirs(source / "later", exist_ok=True)
    grow(rng, os.fsencode(source / "later"))
    for path in sorted(copy["files"].rglob("*"))[:3]:  # what somebody has changed here meanwhile is not kept
        if path.is_file() and not path.is_symlink():
            path.write_bytes(b"changed")
    entries = await store.move({"files": source}, copy)
    assert shown(copy["files"]) == shown(source)


async def test_a_large_file_travels_in_pieces_and_only_new_ones_are_sent(
    store: Store, source: Path, tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(snapshots.PACK * 2 + 100_000)
    (source / "log").write_bytes(content)
    known = await store.take({"files": source})
    assert known is not None
    assert len(known.entries["files/log"].pieces) == 3
    before = store.packs()
    with (source / "log").open("ab") as log:
        log.write(b"one more line")
    entries = await store.move({"files": source}, {"files": tmp_path / "copy"})
    assert (tmp_path / "copy" / "log").read_bytes() == content + b"one more line"
    assert len(entries["files/log"].pieces) == 3
    assert len(store.packs().keys() - before.keys()) == 1


async def test_holes_stay_holes(store: Store, source: Path, tmp_path: Path) -> None:
    with (source / "sparse").open("wb") as file:
        file.seek(200_000_000)
        file.write(b"end")
    await store.move({"files": source}, {"files": tmp_path / "copy"})
    there = (tmp_path / "copy" / "sparse").stat()
    assert (there.st_size, there.st_blocks < 1000) == (200_000_003, True)
    assert sum(store.packs().values()) < 100_000


async def test_the_same_in_two_sessions_is_stored_once(store: Store, tmp_path: Path) -> None:
    rng = random.Random(2)
    contents = {f"file-{number:04d}": rng.randbytes(20_000) for number in range(600)}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file, content in contents.items():
            (tmp_path / name / file).write_bytes(content)
    assert await store.take({"files": tmp_path / "one"})
    stored = sum(store.packs().values())
    (tmp_path / "two" / "file-0300").write_bytes(b"another")
    assert await store.take({"files": tmp_path / "two"})
    assert sum(store.packs().values()) < 1.6 * stored, "one change makes one pack another one, not all"


async def test_only_what_has_changed_is_read_and_fetched(store: Store, source: Path, tmp_path: Path) -> None:
    for number in range(50):
        (source / f"{number}").write_text(f"content {number}")
    places, copy = {"files": source}, {"files": tmp_path / "copy"}
    first = await store.take(places)
    assert first is not None
    here = await store.restore(first.entries, copy)
    (source / "7").write_text("other")
    (source / "8").unlink()
    (source / "9").chmod(0o600)
    second = await store.take(places, first)
    assert second is not None
    planned = restoring.plan(copy, second.entries, here)
    assert sorted(planned.fetched) == ["files/7", "files/9"]
    assert sorted(planned.gone) == ["files/7", "files/8", "files/9"]
    await store.restore(second.entries, copy, here)
    assert shown(tmp_path / "copy") == shown(source)


async def test_a_content_that_changes_behind_its_size_and_time_is_seen(store: Store, source: Path) -> None:
    """As an agent would do it that wants a change to be missed."""
    (source / "a").write_text("one")
    before = (source / "a").stat()
    places = {"files": source}
    known = await store.take(places)
    (source / "a").write_text("two")
    os.utime(source / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await store.take(places, known) is not None


async def test_what_was_changed_just_before_is_read_again_the_next_time(store: Store, source: Path) -> None:
    """Another change within the same tick of the kernel's clock would leave the same sign."""
    for _ in range(100):
        (source / "a").write_text("one")
        changed = (source / "a").stat().st_ctime_ns
        known = await store.take({"files": source})
        if time.time_ns() - changed < snapshots.TICK:
            break
    assert known is not None
    assert "files/a" not in known.signs
    await until(lambda: time.time_ns() - changed > 2 * snapshots.TICK)
    again = await store.take({"files": source}, known)
    assert again is not None
    assert "files/a" in again.signs
    assert await store.take({"files": source}, again) is None


async def test_what_was_left_there_is_not_followed(store: Store, source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("theirs")
    (source / "way").mkdir()
    (source / "way" / "key").write_text("mine")
    (source / "gone").write_text("x")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "way").symlink_to(secret)
    (copy / "gone").symlink_to(secret / "key")
    os.mkfifo(copy / "pipe")
    (copy / "closed").mkdir()
    (copy / "closed" / "in").touch()
    (copy / "closed").chmod(0)
    await store.move({"files": source}, {"files": copy})
    assert shown(copy) == shown(source)
    assert (secret / "key").read_text() == "theirs"


async def test_what_is_no_file_is_left_out(store: Store, source: Path, tmp_path: Path) -> None:
    os.mkfifo(source / "pipe")
    (source / "a").touch()
    entries = await store.move({"files": source, "home": tmp_path / "missing"}, {"files": tmp_path / "copy"})
    assert sorted(entries) == ["files", "files/a"]


async def test_too_much_is_refused_and_not_read(store: Store, source: Path) -> None:
    places = {"files": source}
    (source / "huge").touch()
    os.truncate(source / "huge", 1 << 40)
    with pytest.raises(TooLarge) as refused:
        await store.take(places)
    assert refused.value.code == "workspace_too_large"
    (source / "huge").unlink()
    for number in range(30):
        (source / f"{number}").touch()
    with pytest.raises(TooLarge) as refused:
        await store.take(places, limits=Limits(1 << 30, 20))
    assert refused.value.code == "too_many_files"


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
async def test_a_path_that_is_too_long_is_refused(store: Store, source: Path, kind: str) -> None:
    """Made and found step by step: Linux takes no such path at once."""
    opened = os.open(source, os.O_RDONLY)
    for _ in range(15):
        os.mkdir("d" * 255, dir_fd=opened)
        above, opened = opened, os.open("d" * 255, os.O_RDONLY, dir_fd=opened)
        os.close(above)
    known = await store.take({"files": source})
    assert known is not None
    assert len(max(known.entries, key=len)) == len("files") + 15 * 256
    if kind == "file":
        os.close(os.open("x" * 255, os.O_WRONLY | os.O_CREAT, dir_fd=opened))
    elif kind == "directory":
        os.mkdir("x" * 255, dir_fd=opened)
    else:
        os.symlink("leads", "x" * 255, dir_fd=opened)
    os.close(opened)
    with pytest.raises(TooLarge) as refused:
        await store.take({"files": source}, known)
    assert refused.value.code == "path_too_long"


async def test_a_tree_that_is_too_deep_is_refused_and_replaced(store: Store, source: Path, tmp_path: Path) -> None:
    here, at = os.open(source, os.O_RDONLY), 0
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        at = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = at
    os.close(here)
    with pytest.raises(TooLarge) as refused:
        await store.take({"files": source})
    assert refused.value.code == "too_many_files"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("a")
    await store.move({"files": tmp_path / "other"}, {"files": source})
    assert os.listdir(source) == ["a"]


@pytest.mark.slow
async def test_a_hundred_thousand_entries_are_refused_and_replaced(store: Store, source: Path, tmp_path: Path) -> None:
    settings = Settings(_env_file=None)
    above = os.open(source, os.O_RDONLY)
    for number in range(settings.workspace_max_files + 1):
        os.symlink("elsewhere", f"{number}", dir_fd=above)
    os.close(above)
    with pytest.raises(TooLarge) as refused:
        await store.take({"files": source}, limits=session_files.limits(settings))
    assert refused.value.code == "too_many_files"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("a")
    await store.move({"files": tmp_path / "other"}, {"files": source})
    assert os.listdir(source) == ["a"]


async def test_a_damaged_pack_is_told(store: Store, source: Path, tmp_path: Path) -> None:
    (source / "a").write_text("a" * 1000)
    known = await store.take({"files": source})
    assert known is not None
    [pack] = store.directory.rglob("packs/*/*")
    pack.write_bytes(manifest.pack(b"b" * 1000))
    with pytest.raises(StoreFailed, match="is not what it was"):
        await store.restore(known.entries, {"files": tmp_path / "copy"})
    pack.unlink()
    with pytest.raises(restoring.Missing):
        await store.restore(known.entries, {"files": tmp_path / "copy"})
    with pytest.raises(restoring.Missing):
        await restoring.read(store.objects, store.threads, "tenants/x")


async def test_a_store_that_cannot_be_written_to_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    (source / "a").write_text("a")
    with pytest.raises(StoreFailed):
        await store.take({"files": source})


async def test_a_full_disk_is_told(source: Path, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path) -> None:
    (source / "a").write_text("a")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    entries = (await store.take({"files": source})).entries  # type: ignore[union-attr]
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        await store.restore(entries, {"files": tmp_path / "copy"})


def written(frames: list[bytes]) -> bytes:
    return manifest.unpack(memoryview(b"".join(frames)))


def test_a_manifest_is_read_as_it_was_written() -> None:
    entries = {
        "files": Entry("directory", 0o700, 1),
        "files/a": Entry("file", 0o644, 2, 3, "d" * 64, (("p" * 64, 0, 3),)),
        "files/\udcff\n": Entry("link", 0, 0, 0, "\udcfe/x"),
    }
    whole = written(manifest.frames(entries))
    assert manifest.loads(whole) == entries
    assert manifest.loads(written(manifest.frames({}))) == {}
    for wrong in (b"", b"[]", b"{}", b'{"version":2}', whole[:-2], b'{"version":1,"paths":[1]}', b'{"version":1}'):
        with pytest.raises(manifest.Damaged):
            manifest.loads(wrong)


def test_of_a_manifest_only_what_has_changed_is_written_anew() -> None:
    entries = {f"files/{number}": Entry("file", 0o644, number, 1, "d" * 64) for number in range(3 * manifest.PART + 7)}
    frames = manifest.frames(entries)
    assert len(frames) == 5
    changed = dict(entries)
    changed[f"files/{manifest.PART}"] = Entry("file", 0o600, 1, 1, "e" * 64)
    added = changed | {f"files/new/{number}": Entry("directory", 0o700, 1) for number in range(manifest.PART)}
    fewer = {path: entry for path, entry in added.items() if path not in ("files/0", "files/new/0")}
    for now in (changed, added, fewer, dict(reversed(added.items())), {}, entries):
        again = manifest.frames(now, entries, frames)
        assert again == manifest.frames(now)
        assert manifest.loads(written(again)) == now
    assert [is_new not in frames for is_new in manifest.frames(changed, entries, frames)] == [0, 1, 0, 0, 0]
    for lost in range(len(frames)):
        with pytest.raises(manifest.Damaged):
            manifest.loads(written([frame for number, frame in enumerate(frames) if number != lost]))


def test_no_secret_of_the_url_is_shown(tmp_path: Path) -> None:
    url = "s3://key:secret@bucket/some/prefix?token=hidden"
    given = {"database_url": "postgresql://h/d", "workspace_store_url": url}
    assert Objects.of(Settings(_env_file=None, **given)).shown == "s3://bucket/some/prefix"  # type: ignore[arg-type]
