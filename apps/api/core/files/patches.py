"""Patches that `git apply` takes, made by git itself: whatever the line ends, the names and the bytes of the files.

git sees copies under numbers, in a directory of the server's own: neither the names nor the attributes of an agent's
files mean anything to it. Sources: git-diff(1), "GENERATING PATCH TEXT WITH -P"; gitattributes(5).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SECONDS = 10.0
"""For all files of one answer."""

_GIT = ["git", "-c", "core.attributesFile=attributes", "-c", "core.autocrlf=false", "diff", "--no-index", "--binary"]
_GIT += ["--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "now", "then"]

_HEAD = re.compile(rb"^diff --git a/(?:now|then)/(\d+) b/(?:now|then)/\d+\n", re.MULTILINE)
_NAME = re.compile(r"^(---|\+\+\+) ([ab])/(?:now|then)/\d+$", re.MULTILINE)
_PLAIN = re.compile(r'[^\x00-\x1f"\\\x7f]*')
_ESCAPES = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Change:
    """What a file is now and what it was; None where there is or was none."""

    path: str
    now: bytes | None
    then: bytes | None


def patches(changes: Sequence[Change]) -> list[str]:
    """The patch of each change, in order; empty where nothing differs.

    Blocking. Raises OSError, subprocess.SubprocessError.
    """
    with tempfile.TemporaryDirectory(prefix="diff-") as made:
        root = Path(made)
        for side in ("now", "then"):
            (root / side).mkdir()
        as_bytes = []
        for number, change in enumerate(changes):
            for side, content in (("now", change.now), ("then", change.then)):
                if content is not None:
                    (root / side / str(number)).write_bytes(content)
                    as_bytes += [] if _is_text(content) else [f"*/{number} -diff\n"]
        (root / "attributes").write_text("".join(as_bytes))
        told = subprocess.run(  # noqa: S603 - arguments of ours alone
            _GIT,
            cwd=root,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": made, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    if told.returncode > 1:
        raise subprocess.SubprocessError(told.stderr.decode(errors="replace")[:300])
    found = [""] * len(changes)
    _, *parts = _HEAD.split(told.stdout)
    for which, body in zip(parts[::2], parts[1::2], strict=True):
        found[int(which)] = _named(changes[int(which)].path, body.decode())
    return found


def joined(changes: Sequence[Change], limit: int) -> tuple[str, bool]:
    """One patch of at most so many characters, and whether something was left out of it. Blocking."""
    try:
        made = patches(changes)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("patches.none", error=error)
        return "", True
    parts, left, omitted = list[str](), limit, False
    for part in made:
        if len(part) > left:
            omitted = True
            continue
        parts.append(part)
        left -= len(part)
    return "".join(parts), omitted


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except ValueError:
        return False
    return True


def _named(path: str, body: str) -> str:
    head, at, rest = body.partition("@@ ")
    space = "\t" if " " in path else ""  # tells where the name ends
    head = _NAME.sub(lambda found: f"{found[1]} {_quoted(f'{found[2]}/{path}')}{space}", head)
    return f"diff --git {_quoted(f'a/{path}')} {_quoted(f'b/{path}')}\n{head}{at}{rest}"


def _quoted(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    return '"' + "".join(map(_escaped, name)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return "\\" + _ESCAPES[character]
    return character if character.isprintable() or ord(character) > 0x7F else f"\\{ord(character):03o}"
