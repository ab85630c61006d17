"""JSON and text at the edges: what is sent as lines, what PostgreSQL can hold, what a client may send.

Three rules, one place each. `one_line`: what is sent as a line is one line for every reader. `clean`: what agents, MCP
servers and webhooks say is made storable. `parse` and `check`: what clients say is refused where readers of JSON would
not agree on what it means (RFC 8259, section 9, lets a reader set such limits; RFC 7493 names most of them).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import Any, NoReturn

import orjson

MAX_DEPTH = 100
"""Lists and objects inside one another. PostgreSQL, pydantic and orjson each give up somewhere above."""

MAX_VALUES = 20_000
"""Values in one document: a tenth of a second of work and 10 MB, which would be seconds and gigabytes were they as many
as the bytes of a body allow. What an agent can be given has some thousand."""

LARGE = 64 * 1024
"""Bytes of a document that take long enough to be read in a thread."""

_INTEGERS = range(-(2**63), 2**64)
"""Whole numbers that come back as they were from every part of this server."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_STRING_OR_COMMA = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|,', re.DOTALL)


# --- lines ---------------------------------------------------------------------------------------------------------


def one_line(data: bytes) -> bytes:
    """JSON in UTF-8 without the ends of lines that JSON lets stand in strings: U+0085, U+2028 and U+2029.

    `str.splitlines`, and with it the line readers of httpx and others, splits there. The values stay the same. What
    else some reader takes for an end of a line (U+000A to U+000D, U+001C to U+001E) must be escaped in any JSON.
    """
    if data.isascii():
        return data
    data = data.replace(b"\xc2\x85", b"\\u0085")
    return data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


# --- what agents say -----------------------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """The text with U+FFFD for what PostgreSQL cannot hold: NUL and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def clean(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A value of JSON, whatever an agent made of it, as jsonb can hold it and JSON can write it.

    Text as `clean_text`; whole numbers beyond 64 bits as the nearest float, as JavaScript has them; null for what is no
    number; a note for what is nested more than `depth` deep.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if value in _INTEGERS else _float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping | list | tuple):
        if depth == 0:
            return "[nested too deeply]"
        if isinstance(value, Mapping):
            return {clean_text(str(name)): clean(inner, depth - 1) for name, inner in value.items()}
        return [clean(inner, depth - 1) for inner in value]
    return clean_text(str(value))


def _float(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


# --- what clients say ----------------------------------------------------------------------------------------------


class NotJson(ValueError):
    """What was sent is no JSON."""


class Unsuitable(ValueError):
    """JSON that not every reader would read alike, or that is too much.

    Attributes:
        field: where it stands, its parts joined by dots; empty for all of it.
        reason: what is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


def parse(data: bytes | str) -> Any:
    """The document that a client sent, as UTF-8.

    Raises:
        NotJson: it is none.
        Unsuitable: it has a key twice in an object, or see `check`.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        if len(text) > LARGE:
            _count(text)
        value = json.loads(text, object_pairs_hook=_object)
    except Unsuitable:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJson("is not valid JSON") from error
    check(value)
    return value


async def read(data: bytes | str) -> Any:
    """The same, off the loop if it is large."""
    return await asyncio.to_thread(parse, data) if len(data) > LARGE else parse(data)


def _count(text: str) -> None:
    raw = text.encode(errors="surrogatepass")
    # Most of what is large is few long strings; only what may be many values is looked at closely, and in steps: other
    # threads, the event loop's among them, wait for a single call of `re` to end.
    if raw.count(b",") > MAX_VALUES:
        commas = (found for found in _STRING_OR_COMMA.finditer(raw) if raw[found.start()] == ord(","))
        if next(islice(commas, MAX_VALUES, None), None):
            raise Unsuitable("", f"has more than {MAX_VALUES} values")


class _Twice(dict[str, Any]):
    """An object that named a key twice; `check` tells where."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Twice(made)


def check(value: Any, *, storable: bool = False) -> None:
    """Whether a value of JSON means the same to every reader.

    Args:
        storable: it goes into jsonb as it is, so that its texts and keys must be such as PostgreSQL can hold. Of fields
            that are only texts `names.Text` says so.

    Raises:
        Unsuitable: NaN, an infinity or a number that becomes one; a whole number beyond 64 bits; an object with a key
            twice; more than MAX_DEPTH lists and objects inside one another; not `storable`.
    """
    waiting: list[tuple[Any, tuple[str, ...]]] = [(value, ())]
    while waiting:
        found, place = waiting.pop()
        if isinstance(found, str):
            if storable and _UNSTORABLE.search(found):
                _refuse(place, "must not contain NUL or half of a surrogate pair")
        elif isinstance(found, float):
            if not math.isfinite(found):
                _refuse(place, "must be a number that JSON can write and a 64-bit float can hold")
        elif isinstance(found, int):
            if found not in _INTEGERS:
                _refuse(place, "must not be a whole number beyond 64 bits")
        elif isinstance(found, dict | list):
            if len(place) >= MAX_DEPTH:
                _refuse(place[:8], f"must not be nested more than {MAX_DEPTH} deep")
            if isinstance(found, _Twice):
                _refuse(place, "must not have a key twice")
            inner = found.items() if isinstance(found, dict) else enumerate(found)
            for name, part in inner:
                if storable and isinstance(name, str) and _UNSTORABLE.search(name):
                    _refuse(place, "must not have a key with NUL or half of a surrogate pair")
                waiting.append((part, (*place, str(name))))


def _refuse(place: tuple[str, ...], reason: str) -> NoReturn:
    raise Unsuitable(".".join(place), reason)


# --- our own JSON ---------------------------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """JSON on one line: see `one_line`.

    Falls back to escapes for what orjson refuses: lone surrogates and integers beyond 64 bits. What is then no JSON
    still (NaN, nesting without an end) is cleaned.
    """
    try:
        return one_line(orjson.dumps(value))
    except orjson.JSONEncodeError:
        try:
            return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError):
            return json.dumps(clean(value), separators=(",", ":")).encode()


def decode(text: str | bytes) -> Any:
    """What `encode` made, lone surrogates included, which orjson refuses. Raises ValueError when it is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def usd(amount: float | int | Decimal | str | None) -> str | None:
    """Money as everywhere in the API: USD as a decimal, all figures of it, no exponent and no zeros at its end."""
    return None if amount is None else format(Decimal(str(amount)).normalize(), "f")


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as everywhere in the API."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
