"""One event as it travels: encoded once by the owner, then shared as bytes by everybody who reads it.

A frame is an SSE message:

    id: 12-3
    event: partial
    data: {"session_id":"…36…","run_id":"…36…","seq":12,"created_at":"…", …the event's own fields…}

`12` is the number of the newest durable event, `-3` the third delta since the last message; a durable event has no
`-k`. The four leading fields always stand in this order, so that a relay can tell the run without parsing JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from apps.api import clock
from apps.api.core import codec
from apps.api.core.codec import encode, timestamp

_RUN_AT = len('{"session_id":"') + 36 + len('","run_id":')
_POSITION = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,9}))?")


class Position(NamedTuple):
    """Where a reader stands: after durable event `seq`, and after delta `part` of those since the last message."""

    seq: int
    part: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """`"12"` or `"12-3"`. Raises ValueError otherwise."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("expected SEQ or SEQ-PART, for example 12 or 12-3")
        return cls(int(match[1]), int(match[2] or 0))

    def __str__(self) -> str:
        return f"{self.seq}-{self.part}" if self.part else str(self.seq)


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded event.

    Attributes:
        part: 0 for a durable event.
        generation: of the owner that wrote it, where it came from that owner; 0 for one read from PostgreSQL.
    """

    seq: int
    part: int
    type: str
    raw: bytes
    generation: int = field(default=0, compare=False)

    @property
    def position(self) -> Position:
        return Position(self.seq, self.part)

    @property
    def data(self) -> bytes:
        """The JSON object of the `data:` line."""
        return self.raw[self.raw.index(b"\ndata: ") + 7 : -2]

    @property
    def created_at(self) -> bytes:
        """When the event was made, as text. Together with its number this tells it from any other, also from one that
        a database which went back gave the same number to."""
        begin = self.raw.find(b'"created_at":"') + 14
        return self.raw[begin : self.raw.index(b'"', begin)] if begin >= 14 else b""

    @property
    def made_at(self) -> float:
        """The same in seconds since 1970."""
        return _seconds(self.created_at)

    @property
    def run_id(self) -> str | None:
        """The run that the event belongs to, if any."""
        at = self.raw.index(b"\ndata: ") + 7 + _RUN_AT
        return self.raw[at + 1 : at + 37].decode() if self.raw[at : at + 1] == b'"' else None

    def belongs_to(self, run_id: bytes) -> bool:
        """Whether the event is one of this run, given as text in bytes. Asked for every frame and reader."""
        return self.raw.startswith(run_id, self.raw.index(b"\ndata: ") + 7 + _RUN_AT + 1)

    @classmethod
    def build(cls, position: Position, type_: str, data: bytes, generation: int = 0) -> Frame:
        """Wrap a complete `data` object, as `event_data()` makes it. Older versions stored them on several lines."""
        data = codec.one_line(data)
        raw = b"id: %s\nevent: %s\ndata: %s\n\n" % (str(position).encode(), type_.encode(), data)
        return cls(position.seq, position.part, type_, raw, generation)

    @classmethod
    def parse(cls, raw: bytes, generation: int = 0) -> Frame:
        """The inverse of `build`: of exactly one frame."""
        head, _, _ = raw.partition(b"\ndata: ")
        ident, _, type_ = head.partition(b"\nevent: ")
        seq, _, part = ident[4:].partition(b"-")
        return cls(int(seq), int(part or 0), type_.decode(), raw, generation)


def event_data(
    session_id: UUID, run_id: UUID | None, seq: int, created_at: datetime, fields: Mapping[str, Any]
) -> bytes:
    """The JSON of one event: the four common fields, then its own."""
    run = b'"%s"' % _text(run_id) if run_id else b"null"
    head = b'{"session_id":"%s","run_id":%s,"seq":%d,"created_at":"%s"' % (
        _text(session_id),
        run,
        seq,
        _time(created_at),
    )
    body = encode(fields)
    return head + (b"}" if body == b"{}" else b"," + body[1:])


# Each delta of a run has the same two ids, and many have the same time.


@lru_cache(maxsize=64)
def _seconds(moment: bytes) -> float:
    return datetime.fromisoformat(moment.decode()).timestamp()


@lru_cache(maxsize=4096)
def _text(id_: UUID) -> bytes:
    return str(id_).encode()


@lru_cache(maxsize=64)
def _time(moment: datetime) -> bytes:
    return timestamp(moment).encode()


def resync(session_id: UUID, seq: int, *, expired: bool = False) -> Frame:
    """What a reader is told who holds events that are not in the log, or lacks some that were removed for their age
    (`expired`): what follows comes after number `seq`."""
    why = {"reason": "expired" if expired else "lost"}
    return Frame.build(Position(seq), "resync", event_data(session_id, None, seq, clock.now(), why))


def write_batch(frames: Sequence[Frame]) -> bytes:
    """What is published of one owner's frames: its generation on a line, then they."""
    return b"%d\n%s" % (frames[0].generation, join(frames))


def parse_batch(payload: bytes) -> list[Frame]:
    """The inverse of `write_batch`. JSON holds no raw line break, so an empty line only ends a frame.

    Raises ValueError for what is no batch.
    """
    head, _, raws = payload.partition(b"\n")
    generation = int(head)
    return [Frame.parse(raw + b"\n\n", generation) for raw in raws.split(b"\n\n") if raw]


def join(frames: Iterable[Frame]) -> bytes:
    """Frames as one write."""
    return b"".join(frame.raw for frame in frames)
