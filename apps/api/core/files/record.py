"""What a host knows of the copy of a session's files that it has: of which manifest it is one, and the signs of what is
in it; and whether an agent has begun to change this copy since.

Each is a file in `.stored` below WORKSPACES_DIR, which no agent can reach. Without it nothing is lost, only compared
anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import UUID

import orjson

from apps.api.core.files import manifest
from apps.api.core.files.snapshots import Known
from apps.api.settings import Settings

RECORDS = ".stored"
"""The directory of all records, in WORKSPACES_DIR."""


def files(settings: Settings, session_id: UUID) -> tuple[Path, Path, Path]:
    """Where it is, where it is written first, and what says that there may be more on this host."""
    above = settings.workspaces_root / RECORDS
    return above / str(session_id), above / f".{session_id}", above / f"{session_id}.touched"


def write(settings: Settings, session_id: UUID, known: Known) -> None:
    """Keep it. Blocks. Raises OSError."""
    file, draft, _ = files(settings, session_id)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        head = orjson.dumps(known.signs)
    except TypeError:  # a name that is no UTF-8
        head = json.dumps(known.signs).encode()
    with draft.open("wb") as made:
        made.writelines((orjson.dumps(known.name), b"\n", head, b"\n", *known.frames))
    draft.replace(file)
    settle(settings, session_id)


def read(settings: Settings, session_id: UUID) -> Known | None:
    """What was kept, if it can be read. Blocks."""
    try:
        name, head, entries = files(settings, session_id)[0].read_bytes().split(b"\n", 2)
        return Known(orjson.loads(name), manifest.loads(manifest.unpack(memoryview(entries))), json.loads(head))
    except (OSError, ValueError, KeyError, TypeError, manifest.Damaged):
        return None


def name(settings: Settings, session_id: UUID) -> str | None:
    """Of which manifest this host has a copy, if that was kept: without the rest, which takes as long as there are
    files. Blocks."""
    try:
        with files(settings, session_id)[0].open("rb") as kept:
            found = orjson.loads(kept.readline(1000))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def begin(settings: Settings, session_id: UUID) -> None:
    """An agent begins to change what is on this host. Blocks. Raises OSError."""
    _touched(settings, session_id).touch()


def settle(settings: Settings, session_id: UUID) -> None:
    """What is on this host is as it was stored. Blocks. Raises OSError."""
    _touched(settings, session_id).unlink(missing_ok=True)


def is_touched(settings: Settings, session_id: UUID) -> bool:
    """Whether there may be changes on this host that are not stored. Blocks."""
    return _touched(settings, session_id).exists()


def _touched(settings: Settings, session_id: UUID) -> Path:
    (file := files(settings, session_id)[2]).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return file


def forget(settings: Settings, session_id: UUID) -> None:
    """What is on this host is a copy of no manifest any more. Blocks. Raises OSError."""
    try:
        os.unlink(files(settings, session_id)[0])
    except FileNotFoundError:
        return
