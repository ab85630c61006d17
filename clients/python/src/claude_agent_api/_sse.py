"""Server-sent events out of bytes, however they are cut: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT_BYTES = 256 * 1024 * 1024
"""An event may be that large: beyond all that the server sends, and a bound for what is none."""

_END_OF_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """One event as it came; `id` None: it had none."""

    id: str | None
    event: str
    data: str


class EventTooLarge(Exception):
    """What comes is not a stream of events."""


class Parser:
    """Feed it what comes; it gives what is complete."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._looked = 0  # so far there is no end of a line in the rest
        self._begun = False
        self._after_cr = False  # an LF that comes next belongs to it
        self._size = 0
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Raw]:
        """The events that are complete with this. Raises EventTooLarge."""
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        self._rest += chunk
        if not self._begun:
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return []
            self._begun = True
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        found = [event for line in self._lines() if (event := self._take(line)) is not None]
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge
        return found

    def _lines(self) -> list[bytes]:
        lines, start, at = [], 0, self._looked
        while match := _END_OF_LINE.search(self._rest, at):
            lines.append(bytes(self._rest[start : match.start()]))
            start = at = match.end()
            self._after_cr = match[0] == b"\r" and start == len(self._rest)
        del self._rest[:start]
        self._looked = len(self._rest)
        return lines

    def _take(self, line: bytes) -> Raw | None:
        if not line:
            return self._dispatch()
        self._size += len(line)
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None  # a comment, or a field that we do not know

    def _dispatch(self) -> Raw | None:
        raw = Raw(self._id, self._event or "message", "\n".join(self._data)) if self._data else None
        self._id, self._event, self._data, self._size = None, "", [], 0
        return raw
