"""Files in requests: a body that is one, or a form with one in it, within what limits leave room for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from apps.api.core.tenant import quotas
from apps.api.errors import ValidationError

FORM = "multipart/form-data"


async def within(
    content: AsyncIterator[bytes], room: int | None, name: str, announced: int = 0
) -> AsyncIterator[bytes]:
    """A content, as far as a limit, called `name`, leaves room for it. Raises RateLimited."""
    seen = 0
    _require(room, name, announced)
    async for some in content:
        seen += len(some)
        _require(room, name, seen)
        yield some


def _require(room: int | None, name: str, size: int) -> None:
    if room is not None and size > room:
        raise quotas.no_room(room, name)


MAX_FIELD = 100
"""Bytes of a field beside the file."""


class Form:
    """A `multipart/form-data` body (RFC 7578) with one file in it, and short fields at most, as it comes.

    Attributes:
        filename, media_type: of the file, once there is some of it.
        fields: what stands beside it, by name, once it is over.
    """

    def __init__(self, request: Request, file: str, also: Collection[str] = ()) -> None:
        """`file`: the name of the part that is the file; `also`: those of fields that may stand beside it. Raises
        ValidationError."""
        _, options = parse_options_header(request.headers.get("content-type"))
        if not options.get(b"boundary"):
            raise ValidationError.of("body", f"is no {FORM}: its Content-Type has no boundary")
        self._request, self._file, self._also = request, file, also
        self.fields, self._field = dict[str, str](), ""
        self.filename = self.media_type = ""
        self._pieces, self._headers = list[bytes](), dict[str, str]()
        self._begun = self._whole = False
        self._header = self._value = b""
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _no_form(error) from error

    async def content(self) -> AsyncIterator[bytes]:
        """What the file has in it. Raises ValidationError of a body that is no such form, also where it ends."""
        async for some in self._request.stream():
            try:
                self._parser.write(some)
            except FormParserError as error:
                raise _no_form(error) from error
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
        if not self._whole:
            raise ValidationError.of("body", "is a form that breaks off")
        if not self._begun:
            raise ValidationError.of(self._file, "is missing: send it as a file of a form")

    # --- what the parser tells -----------------------------------------------------------------------------------

    def _part_begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", "").encode())
        field = options.get(b"name", b"").decode("utf-8", "replace")
        self._field = field
        if field in self._also:
            if field in self.fields:
                raise ValidationError.of(field, "is there twice")
            self.fields[field] = ""
            return
        if field != self._file:
            raise ValidationError.of(field[:100] or "body", "is no field of this form; parameters go into the query")
        if self._begun:
            raise ValidationError.of(field, "is there twice: one request uploads one file")
        self._begun, self.media_type = True, self._headers.get("content-type", "")
        self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field in self._also:
            self.fields[self._field] += data[start:end].decode("latin-1")
            if len(self.fields[self._field]) > MAX_FIELD:
                raise ValidationError.of(self._field, f"has more than {MAX_FIELD} bytes")
            return
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._whole = True


def _no_form(error: FormParserError) -> ValidationError:
    return ValidationError.of("body", f"is no {FORM}: {error}")
