"""What a rewind would change, as a patch: git itself takes it, whatever the files are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from apps.api.core.files.patches import Change, patches

CONTENTS = {
    "line ends": (b"a\r\nb\r\n", b"a\nb\n"),
    "and back": (b"a\nb\n", b"a\r\nb\r\n"),
    "one line end of several": (b"a\r\nb\nc\n", b"a\nb\nc\n"),
    "lone returns": (b"a\rb\rc", b"a\nb\nc"),
    "other separators": ("a\u2028b\x0cc\x1cd\u0085e\n".encode(), "a\nb\u2028c\n".encode()),
    "no newline at the end": (b"a", b"a\n"),
    "a newline less": (b"a\n", b"a"),
    "no newline in both": (b"one\ntwo", b"one\n2"),
    "NUL": (b"a\0b", b"a\0c"),
    "not UTF-8": (b"\xff\xfe text\n", b"\xff text\n"),
    "text becomes bytes": (b"text\n", b"\x80\x81"),
    "new": (None, b"a\nb"),
    "new and empty": (None, b""),
    "new bytes": (None, b"\0\xff"),
    "gone": (b"a\n", None),
    "gone and empty": (b"", None),
    "like a patch": (b"--- a/now/0\n+++ b/then/0\n@@ x\n", b"diff --git a/now/0 b/then/0\n@@ y\n"),
    "half a pair's bytes": (b"\xed\xa0\xbd\n", b"\n"),
}
NAMES = [
    "a.txt",
    "sub/a b.txt",
    'q"uo\\te',
    "new\nline",
    "tab\there",
    "ümlaut 字",
    " lead",
    "--- a",
    "\x01\x7f",
    ".gitattributes",
    "now/0",
]


def git(directory: Path, *arguments: str, given: str) -> None:
    # A patch goes in as bytes: nothing may translate its line ends.
    subprocess.run(["git", "apply", *arguments, "-"], cwd=directory, input=given.encode(), check=True, timeout=30)


def laid(directory: Path, changes: list[Change]) -> None:
    for change in changes:
        path = directory / change.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if change.now is not None:
            path.write_bytes(change.now)


@pytest.mark.parametrize("kind", CONTENTS)
def test_git_applies_the_patch_of_any_content(tmp_path: Path, kind: str) -> None:
    changes = [Change(f"d/{kind}", *CONTENTS[kind])]
    laid(tmp_path, changes)
    [patch] = patches(changes)
    git(tmp_path, "--check", given=patch)
    git(tmp_path, given=patch)
    path = tmp_path / f"d/{kind}"
    assert (path.read_bytes() if path.exists() else None) == CONTENTS[kind][1]


def test_git_applies_the_patches_of_files_of_any_name_at_once(tmp_path: Path) -> None:
    contents = list(CONTENTS.values())
    changes = [Change(name, *contents[number % len(contents)]) for number, name in enumerate(NAMES)]
    laid(tmp_path, changes)
    git(tmp_path, given="".join(patches(changes)))
    for change in changes:
        path = tmp_path / change.path
        assert (path.read_bytes() if path.exists() else None) == change.then, change.path


def test_attributes_and_names_of_an_agents_files_mean_nothing(tmp_path: Path) -> None:
    changes = [
        Change(".gitattributes", None, b"* text=auto -diff\n"),
        Change("a", b"x\r\n", b"x\n"),
        Change("b", b"1", b"1"),
    ]
    laid(tmp_path, changes)
    _, shown, same = patches(changes)
    assert ("-x\r\n+x\n" in shown, same) == (True, "")
