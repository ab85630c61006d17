"""Where a reader stands in a log, and what of that which comes is new to it."""

from __future__ import annotations

from collections.abc import Callable

from apps.api.core.codec import decode
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.log import ENDS_OF_DELTAS
from apps.api.core.events.replay import Head, continues

TOLD = 32
"""Events of which a reader remembers when they were made: where the database has lost the newest ones, it goes on from
what it still has. A standby lags by less than so many, as a rule; beyond that the reader begins again."""


class Deltas:
    """Which deltas continue what a reader was told. After a hole none of a message does, until that has come whole."""

    def __init__(self, last: int = 0) -> None:
        """`last`: the last delta that the reader has."""
        self._last = last
        self._in_message = self._holed = False
        self._whole: set[str | None] = set()  # callers whose message has come since the hole

    def lost(self) -> None:
        """What follows was stored: the deltas between are gone, of a message that had begun."""
        if self._in_message:
            self._hole()

    def _hole(self) -> None:
        self._holed = True
        self._whole.clear()

    def admits(self, frame: Frame) -> bool:
        """Whether the frame may be told."""
        if frame.part:
            self._in_message = True
            if frame.part != self._last + 1:
                self._hole()
            self._last = frame.part
            return not self._holed or decode(frame.data).get("parent_tool_use_id") in self._whole
        if frame.type in ENDS_OF_DELTAS:
            self._last = 0
        if frame.type == "done":
            self._in_message = self._holed = False
        elif frame.type == "message":
            self._in_message = False
            data = decode(frame.data) if self._holed else {}
            if data.get("role") == "assistant":
                self._whole.add(data.get("parent_tool_use_id"))
        return True


class Place:
    """Where a reader stands in a log, of which it has been told a part.

    Attributes:
        told: the newest events that it has been told, by number and time: see `Frame.created_at`.
        generation: of the owner that the log had at the last look at the database.
    """

    __slots__ = ("deltas", "generation", "position", "told")

    def __init__(self, position: Position, deltas: Deltas | None = None) -> None:
        self.position, self.deltas = position, deltas
        self.told: list[tuple[int, bytes]] = []
        self.generation = 0

    def is_lost(self, head: Head) -> bool:
        """Whether the log does not have, or not have any more, what the reader has."""
        if self.position.seq > head.last_seq:
            return True
        told = self.told[-1] if self.told else None
        return told is not None and told[0] == head.seq and head.created_at not in (b"", told[1])

    def go_back(self, seq: int) -> None:
        """To after this event, which the reader has and the log, too."""
        self.position = Position(seq)
        while self.told and self.told[-1][0] > seq:
            self.told.pop()
        if self.deltas is not None:
            self.deltas.lost()

    def skip(self, seq: int) -> None:
        """To after this event: those up to it were removed."""
        self.position = Position(seq)
        self.told.clear()
        if self.deltas is not None:
            self.deltas.lost()

    def begin(self, head: Head) -> None:
        """Go on in the log as `head` shows it."""
        self.generation = head.generation
        if not self.told and head.created_at and self.position.seq == head.seq:
            self.told.append((head.seq, head.created_at))

    def move(self, frames: list[Frame], gap: Callable[[], None]) -> list[Frame]:
        """What is new to the reader. At a hole in the numbers, and at the first frame of another owner, it stops and
        calls `gap`, since a replay has to follow: the database may have lost what the reader has."""
        fresh = []
        for frame in frames:
            if frame.generation not in (0, self.generation):
                gap()
                break
            position = frame.position
            if position <= self.position:
                continue
            if not continues(frame, self.position):
                gap()
                break
            if self.deltas is None or self.deltas.admits(frame):
                fresh.append(frame)
            if not frame.part and frame.created_at:
                self.told.append((frame.seq, frame.created_at))
                del self.told[:-TOLD]
            self.position = position
        return fresh
