"""Ids with prefixes, as this API's clients know them: `agent_…`, `sesn_…`. Each is one of ours, written otherwise, so
that nobody keeps a table of both.

What is behind the prefix is base32 (RFC 4648, lower case, without padding) of the 16 bytes of a UUID, or of what makes
an event the one that it is: see `Part`.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import NamedTuple
from uuid import UUID

PREFIXES = {
    "agent_id": "agent",
    "environment_id": "env",
    "session_id": "sesn",
    "vault_id": "vlt",
    "credential_id": "vcrd",
    "deployment_id": "depl",
    "deployment_run_id": "drun",
}
"""Parameter of a path → the prefix of what it names."""

NOBODY = UUID(int=0)
"""What no id of ours is: whatever is looked up by it is not there."""

_TEXT = re.compile(r"[a-z2-7]{1,80}")


def _write(prefix: str, data: bytes) -> str:
    return f"{prefix}_{base64.b32encode(data).decode().rstrip('=').lower()}"


def _read(prefix: str, text: object) -> bytes | None:
    """What `_write` was given, if it made this text."""
    if not isinstance(text, str) or not text.startswith(f"{prefix}_"):
        return None
    digits = text[len(prefix) + 1 :]
    if not _TEXT.fullmatch(digits):
        return None
    try:
        data = base64.b32decode(digits.upper() + "=" * (-len(digits) % 8))
    except binascii.Error:
        return None
    return data if _write(prefix, data) == text else None  # nothing has two ids


def write(prefix: str, id_: UUID | str) -> str:
    """The id of a thing of ours."""
    return _write(prefix, (id_ if isinstance(id_, UUID) else UUID(id_)).bytes)


def read(prefix: str, text: object) -> UUID:
    """Whose id this is; NOBODY's, if it is none. The native API's own form is understood, too."""
    data = _read(prefix, text)
    if data is not None:
        return UUID(bytes=data) if len(data) == 16 else NOBODY
    try:
        found = UUID(text) if isinstance(text, str) and len(text) == 36 else NOBODY
    except ValueError:
        return NOBODY
    return found if str(found) == text else NOBODY


class Part(NamedTuple):
    """What a stored event tells here: the event's number in its session, and which of the things that it tells."""

    session_id: UUID
    seq: int
    nth: int


_PART = struct.Struct(">16sQH")
EVENT, THREAD = "sevt", "sthr"


def of_part(prefix: str, session_id: UUID, seq: int, nth: int = 0) -> str:
    """The id of a thing that a session's log tells. The same on every instance and at any time."""
    return _write(prefix, _PART.pack(session_id.bytes, seq, nth))


def part(prefix: str, text: object) -> Part | None:
    """What `of_part` was given, if it made this text."""
    data = _read(prefix, text)
    if data is None or len(data) != _PART.size:
        return None
    session, seq, nth = _PART.unpack(data)
    return Part(UUID(bytes=session), seq, nth) if seq < 2**63 else None


def of_client(kind: str, id_: UUID | str) -> str:
    """The id of an event that a client sends, before the log has it: by the run that it queues (`m`) or interrupts
    (`i`), or the request that it answers (`r`)."""
    return _write(EVENT, kind.encode() + (id_ if isinstance(id_, UUID) else UUID(id_)).bytes)
