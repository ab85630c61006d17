"""Pages of lists, and the cursors between them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from asyncpg import Record

from apps.api.errors import ValidationError


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: rows as JSON-safe dicts, and the cursor of the next page, if there is one."""

    data: list[dict[str, Any]]
    next_cursor: str | None


PAGE_BYTES = 256 * 1024
"""What is read at a time of rows that may each have megabytes: events, messages, entries of transcripts."""


def bounded(rows: str, column: str, order: str, limit: int = PAGE_BYTES, *, size: str = "octet_length") -> str:
    """A query for the first of `rows`, by the sizes of a text column of theirs: `limit` bytes, or one row of more.

    `size` is what measures the column. Of a jsonb one it is `pg_column_size`: how much it is as it is stored.

    See `cut` for what it answers. PostgreSQL knows sizes without reading what is stored out of line, so what is left
    out costs nothing.
    """
    in_order = f"OVER (ORDER BY {order})"
    sizes = f"sum(coalesce({size}({column}), 0)) {in_order} AS up_to, row_number() {in_order} AS nth"
    counted = f"SELECT *, count(*) OVER () AS found, {sizes} FROM ({rows}) AS unbounded"  # noqa: S608 - ours
    return f"SELECT * FROM ({counted}) AS sized WHERE up_to <= {limit} OR nth = 1 ORDER BY {order}"  # noqa: S608


def cut(rows: Sequence[Record], limit: int) -> tuple[Sequence[Record], bool]:
    """What a `bounded` query, which was asked for `limit + 1` rows, has of a page of `limit`; whether more follows."""
    page = rows[:limit]
    return page, bool(rows) and rows[0]["found"] > len(page)


_BAD_CURSOR = ("cursor", "not a cursor that this list gave")


def write_cursor(created_at: datetime, id_: UUID) -> str:
    """The cursor after a row of a list that is ordered by time and id."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()}|{id_}".encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """What `write_cursor` was given. Raises ValidationError."""
    try:
        moment, _, id_ = base64.urlsafe_b64decode(cursor.encode()).decode().partition("|")
        return utc(datetime.fromisoformat(moment)), UUID(id_)
    except (ValueError, binascii.Error) as error:
        raise ValidationError.of(*_BAD_CURSOR) from error


def utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError without a time zone, and at the ends of the calendar."""
    if moment.tzinfo is None:
        raise ValueError("give a time zone, for example 2026-01-31T12:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("out of range") from error


_MILLISECOND = timedelta(milliseconds=1)


def as_told(operator: str, moment: datetime) -> tuple[str, datetime]:
    """What a column is compared with, so that what is told of it compares so: that is cut to milliseconds."""
    cut = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    try:
        after = cut + _MILLISECOND
    except OverflowError:  # the last one of the calendar, which nothing is made in
        return operator, moment
    if operator in (">", "<="):
        return (">=" if operator == ">" else "<"), after
    return operator, cut if cut == moment else after


def number_of(cursor: str | None) -> int | None:
    """The number that a cursor of a numbered list stands for. Raises ValidationError."""
    if cursor is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", cursor):
        raise ValidationError.of(*_BAD_CURSOR)
    return int(cursor)
