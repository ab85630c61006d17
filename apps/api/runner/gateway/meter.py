"""What a call to the model used, read out of the answer that passes by.

Sources: the Messages API's `usage` (of a message, and of the events `message_start` and `message_delta`, where figures
are totals so far).
"""

from __future__ import annotations

from typing import Any

import orjson

from apps.api.core.tenant.model_calls import Used

MAX_LINE_BYTES = 1_000_000
"""Of one event. The two that tell usage have some hundred."""

MAX_DOCUMENT_BYTES = 32_000_000
"""Of an answer that is no stream: the Messages API takes no larger request, and answers with less."""


# As a value of JSON, not in a text: there the marks at its ends are escaped.
_DELTA = b'"content_block_delta"'


class Meter:
    """Reads one answer while it passes. What it cannot read counts as nothing, and never raises."""

    def __init__(self, content_type: str) -> None:
        self.used = Used()
        self._streamed = content_type.startswith("text/event-stream")
        self._rest = b""
        self._whole = bytearray()
        self._too_long = False
        self._deltas = 0

    def feed(self, data: bytes) -> None:
        """The next bytes of the answer, without any encoding."""
        if not self._streamed:
            self._document(data)
            return
        self._deltas += data.count(_DELTA)
        if self._too_long:  # the rest of a line that was dropped
            _, found, data = data.partition(b"\n")
            self._too_long = not found
        data = self._rest + data if self._rest else data
        end = data.rfind(b"\n") + 1
        # Nearly all pieces end with an event, and hold no usage.
        if b'"usage"' in data:
            for line in data[:end].split(b"\n"):
                self._line(line)
        self._rest = data[end:]
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._too_long = b"", True

    def _document(self, data: bytes) -> None:
        if len(self._whole) + len(data) > MAX_DOCUMENT_BYTES:
            self._whole, self._too_long = bytearray(), True
        elif not self._too_long:
            self._whole += data

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:") or b'"usage"' not in line:
            return
        event = _read(line[5:])
        if event.get("type") == "message_start":
            self._message(event.get("message"))
        elif event.get("type") == "message_delta":
            self.used.take(event.get("usage"))
            self.used.complete = True

    def _message(self, message: Any) -> None:
        if isinstance(message, dict):
            model = message.get("model")
            self.used.model = model[:200] if isinstance(model, str) else self.used.model
            self.used.take(message.get("usage"))

    def end(self) -> Used:
        """What was used, now that the answer has ended, however."""
        if self._whole:
            message = _read(self._whole)
            self._message(message)
            self.used.complete = isinstance(message.get("usage"), dict)
        self._rest, self._whole = b"", bytearray()
        if not self.used.complete:
            self.used.output_tokens = max(self.used.output_tokens, self._deltas)
        return self.used


def _read(text: bytes | bytearray) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
