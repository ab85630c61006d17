"""Look for secrets in all that a process can read, as an agent's tool does it; standard library only.

    hunting.py FACTS RESULTS

FACTS: a JSON file: `hidden`, the secrets by their names, each disguised so that the file itself does not hold it;
`roots` of the trees to look through; `files`, and `pids` of processes, that are worth a look; `since`, when the secrets
were made: nothing older holds one. RESULTS: where the names of what was found are written, as JSON, each with where.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MASK = 0x5A
"""With which every byte is disguised."""

MAX_BYTES, MAX_SECONDS, PIECE = 4 << 20, 90.0, 1 << 20
"""Of a file, and for all."""

OF_PROCESS = ("environ", "cmdline", "maps", "mem", "stack", "status", "mountinfo")


def disguised(text: bytes) -> str:
    return bytes(byte ^ MASK for byte in text).hex()


def plain(text: str) -> bytes:
    return bytes(byte ^ MASK for byte in bytes.fromhex(text))


def spellings(secret: bytes) -> set[bytes]:
    """How it may be written."""
    encoded = base64.b64encode(secret).rstrip(b"=")[:-1]
    return {secret, secret[::-1], secret.hex().encode(), encoded, secret.replace(b"-", b"%2D")}


def trees(roots: list[str], since: float, until: float) -> Iterator[Path]:
    """New files below directories that can be listed. No links are followed."""
    for root in roots:
        for above, directories, names in os.walk(root):
            if time.time() > until:
                return
            # What is of processes is looked at by itself.
            directories[:] = [name for name in directories if os.path.join(above, name) not in ("/proc", "/sys")]
            for name in names:
                path = Path(above, name)
                try:
                    found = path.lstat()
                except OSError:
                    continue
                if stat.S_ISREG(found.st_mode) and found.st_mtime > since:
                    yield path


def processes(pids: list[int]) -> Iterator[Path]:
    for pid in ["self", os.getppid(), *pids, *(name for name in listed("/proc") if name.isdigit())]:
        yield from (Path("/proc", str(pid), name) for name in OF_PROCESS)
        yield from (Path("/proc", str(pid), "fd", name) for name in listed(f"/proc/{pid}/fd"))


def listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def contents(path: Path) -> Iterator[bytes]:
    """A file in pieces; of another process's memory what it writes to."""
    if path.name == "mem":
        if path.parent.name == "self":
            return  # the secrets are there, now
        for line in Path(path.parent, "maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found:
                start, end = int(found[1], 16), int(found[2], 16)
                yield from _of_memory(path, start, min(end, start + (64 << 20)))
        return
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW * (path.parent.name != "fd"))
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return
        for _ in range(MAX_BYTES // PIECE):
            if not (piece := os.read(opened, PIECE)):
                return
            yield piece
    finally:
        os.close(opened)


def _of_memory(path: Path, start: int, end: int) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as memory:
        for at in range(start, end, PIECE):
            try:
                memory.seek(at)
                yield memory.read(min(PIECE, end - at))
            except (OSError, ValueError, OverflowError):
                return


def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    wanted = {name: spellings(plain(text)) for name, text in facts["hidden"].items()}
    found: dict[str, str] = {}
    read = 0

    def look(where: str, text: bytes) -> None:
        for name, words in wanted.items():
            if name not in found and any(word in text for word in words):
                found[name] = where

    for name, value in os.environb.items():
        look(f"variable {os.fsdecode(name)}", value)
    until = time.time() + MAX_SECONDS
    own = [os.environ[name] for name in ("HOME", "TMPDIR", "CLAUDE_CONFIG_DIR") if name in os.environ]
    for path in (*processes(facts["pids"]), *map(Path, facts["files"])):
        read += _looked(path, look)
    for path in trees([*own, *facts["roots"]], facts["since"], until):
        if time.time() > until:
            break
        read += _looked(path, look)
    Path(sys.argv[2]).write_text(json.dumps({"found": found, "read": read, "whole": time.time() < until}))
    print("looked at", read)


def _looked(path: Path, look: object) -> int:
    assert callable(look)
    before = b""
    try:
        for piece in contents(path):
            look(str(path), before[-200:] + piece)
            before = piece
    except OSError:
        return 0
    return bool(before)


if __name__ == "__main__":
    main()
