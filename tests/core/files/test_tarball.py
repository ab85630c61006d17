"""Archives: what is written comes back, and what a stranger has packed is refused before anything is made of it."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.api.core.files import tarball
from apps.api.core.files.tarball import BadArchive, Members, Packer, members, tree

ROOM = 1 << 30


def packed(*infos: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive that somebody else's program has made."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=format_) as archive:
        for info, content in infos:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, content: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for field, value in more.items():
        setattr(info, field, value)
    return info, content


def read(data: bytes, most: int = ROOM) -> list[tuple[str, str, bytes]]:
    return [(m.name, m.kind, m.whole(ROOM)) for m in members(io.BytesIO(data), most)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    deep = root.joinpath(*["d" * 200] * 12)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 3_000_000)
    (deep / "file").chmod(0o4755)
    (root / "empty").touch()
    os.symlink("../elsewhere", root / "link")
    os.mkfifo(root / "pipe")
    odd = os.fsencode(root) + b"/\xff \n"
    with open(odd, "wb") as file:
        file.write(b"odd")
    packer = Packer()
    data = b"".join([packer.file("first", b"1\n2"), *tree(packer, root, "tree"), packer.finish()])
    found = {m.name: (m.kind, m.mode, m.leads, m.whole(ROOM)) for m in members(io.BytesIO(data), ROOM)}
    assert found["first"] == ("file", 0o600, "", b"1\n2")
    assert found["tree"] == ("directory", 0o700, "", b"")
    assert found[f"tree/{deep.relative_to(root)}/file"] == ("file", 0o755, "", b"x" * 3_000_000)
    assert found["tree/empty"][0] == "file"
    assert found["tree/link"][::2] == ("link", "../elsewhere")
    assert found["tree/\udcff \n"][3] == b"odd"
    assert "tree/pipe" not in found
    assert len(found) == packer.members
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert len(archive.getnames()) == packer.members, "and by any other program"


def test_a_file_that_changes_is_as_long_as_it_said(tmp_path: Path) -> None:
    packer = Packer()
    (tmp_path / "shrinks").write_bytes(b"y" * 2_500_000)
    found = tree(packer, tmp_path, "t")
    begun = next(found) + next(found)
    (tmp_path / "shrinks").write_bytes(b"")
    [_, (_, _, content)] = read(begun + b"".join(found) + packer.finish())
    assert len(content) == 2_500_000


@pytest.mark.parametrize(
    ("type_", "named"),
    [
        (tarfile.LNKTYPE, "hard"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.CONTTYPE, "contiguous"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (tarfile.XHDTYPE, "pax"),
        (tarfile.XGLTYPE, "global"),
        (tarfile.SOLARIS_XHDTYPE, "solaris"),
        (b"V", "volume"),
    ],
)
def test_no_other_kind_of_member_is_read(type_: bytes, named: str) -> None:
    data = packed(member("fine"), member(named, type=type_, linkname="fine"))
    with pytest.raises(BadArchive, match=f"{named}.*neither a file"):
        read(data)


def test_pax_headers_are_not_obeyed() -> None:
    info, content = member("plain", b"x")
    info.pax_headers = {"path": "../../etc/passwd", "size": "1", "GNU.sparse.major": "1"}
    with pytest.raises(BadArchive, match="neither a file"):
        read(packed((info, content), format_=tarfile.PAX_FORMAT))


def header(**fields: Any) -> bytes:
    info, _ = member("x", **fields)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (header(type=tarfile.GNUTYPE_LONGNAME, size=tarball.MAX_NAME + 1), "a name of 32769 bytes"),
        (header(type=tarfile.GNUTYPE_LONGLINK, size=1 << 40), "a name of"),
        (header(type=tarfile.REGTYPE, size=-1), "neither a file"),
        (header(type=tarfile.REGTYPE, size=100) + b"short", "cannot be read|ends in the middle"),
        ((header(type=tarfile.GNUTYPE_LONGNAME, size=4) + b"name" + bytes(508)) * 3_000, "cannot be read"),
        (b"no tar" * 200, "cannot be read"),
    ],
    ids=["long name", "long link", "negative", "short", "name of a name", "no tar"],
)
def test_headers_that_lie_are_refused(raw: bytes, said: str) -> None:
    with pytest.raises(BadArchive, match=said):
        read(gzip.compress(raw))


def test_what_is_no_gzip_or_cut_off_is_refused_wherever_it_ends() -> None:
    packer = Packer()
    whole = packer.file("a", os.urandom(5_000_000)) + packer.file("b", b"2") + packer.finish()
    assert [name for name, _, _ in read(whole)] == ["a", "b"]
    for size in (0, 5, 10, 100, 20_000, 3_000_000, len(whole) - 40, len(whole) - 8, len(whole) - 1):
        with pytest.raises(BadArchive):
            read(whole[:size])
    for data in (b"x" * 1000, whole[:-8] + bytes(8), whole[:5_000] + b"\0\0\0" + whole[5_003:]):
        with pytest.raises(BadArchive):
            read(data)
    padded = gzip.compress(gzip.decompress(whole) + bytes(5_000_000))
    assert read(padded)
    with pytest.raises(BadArchive):
        read(padded[:-1])


def test_a_bomb_is_refused_before_it_has_unpacked() -> None:
    bomb = packed(member("large", bytes(50_000_000)))
    assert len(bomb) < 100_000
    with pytest.raises(BadArchive, match="more than 1000000 bytes"):
        read(bomb, 1_000_000)
    nested = gzip.compress(gzip.compress(bytes(10_000_000)))
    with pytest.raises(BadArchive):
        read(nested)


def test_an_archive_may_not_become_too_many_times_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarball, "RATIO_FROM", 1_000_000)
    with pytest.raises(BadArchive, match="200 times"):
        read(packed(member("large", bytes(50_000_000))))
    assert read(packed(member("large", os.urandom(2_000_000))))


def test_each_member_costs_more_than_it_has() -> None:
    packer = Packer()
    many = b"".join(packer.directory(f"d{number}", 0o700) for number in range(1_000)) + packer.finish()
    assert len(read(many, 5_000_000)) == 1_000
    with pytest.raises(BadArchive, match="each member counts 4096"):
        read(many, 4_000_000)


def test_lines_are_bounded_and_numbered() -> None:
    data = packed(member("lines", b"a" * 10 + b"\n" + b"b" * 3_000_000 + b"\n\nc"))
    [found] = [list(m.lines(3_000_000)) for m in members(io.BytesIO(data), ROOM)]
    assert [(number, len(line)) for number, line in found] == [(1, 10), (2, 3_000_000), (3, 0), (4, 1)]
    with pytest.raises(BadArchive, match="lines line 2: more than 2999999 bytes"):
        [list(m.lines(2_999_999)) for m in members(io.BytesIO(data), ROOM)]
    with pytest.raises(BadArchive, match="lines: more than 10 bytes"):
        [m.whole(10) for m in members(io.BytesIO(data), ROOM)]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda m: m.take("b"), "b is missing; there is 'a'"),
        (lambda m: [m.take(), m.end()], "'b' comes after"),
        (lambda m: [m.take(), m.peek(), m.end()], "'b' comes after"),
        (lambda m: [m.take(), m.take(), m.end(), m.take()], "ends before end.json"),
    ],
)
def test_members_come_in_order(act: Callable[[Members], Any], said: str) -> None:
    with pytest.raises(BadArchive, match=said):
        act(Members(io.BytesIO(packed(member("a"), member("b"))), ROOM))


def test_what_is_said_of_an_archive_is_one_line_for_any_terminal() -> None:
    with pytest.raises(BadArchive) as refused:
        read(packed(member("\x1b[2J\n\u202e\udcff" + "x" * 90, type=tarfile.FIFOTYPE)))
    assert str(refused.value).isprintable()
    assert str(BadArchive("\x1b[2J\n\u202e\udcff é")) == "\\x1b[2J\\n\\u202e\\udcff é"
    assert len(str(BadArchive("x" * 10_000))) == tarball.MAX_SAID
