"""What a program asks a proxy for: a tunnel to a host, or one request in the clear (RFC 9110, 9112)."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

MAX_HEAD_BYTES = 64 * 1024

_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]")
_METHOD = re.compile(r"[A-Za-z]{1,20}")
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_OF_THIS_CONNECTION = {
    *(b"connection", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"keep-alive", b"te", b"host"),
}


class Malformed(Exception):
    """It is no request for a proxy. The message is for who sent it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        host: a name or an address, IPv6 without its brackets.
        tunnel: whether what follows is passed on unread.
        token: what the program is known by; empty without one.
    """

    host: str
    port: int
    tunnel: bool
    token: bytes = field(repr=False)
    _method: bytes = b""
    _path: str = ""
    _headers: tuple[bytes, ...] = ()

    @property
    def authority(self) -> str:
        """Host and port, as they stand in requests."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 and not self.tunnel else f"{host}:{self.port}"

    def head(self, *, absolute: bool = False, more: tuple[bytes, ...] = ()) -> bytes:
        """Of a request in the clear, for the host itself, or for another proxy: one request to a connection."""
        path = f"http://{self.authority}{self._path}" if absolute else self._path
        first = b"%s %s HTTP/1.1" % (self._method, path.encode("latin-1"))
        return b"\r\n".join([first, b"Host: " + self.authority.encode(), *self._headers, *more, b"", b""])


def read(head: bytes) -> Asked:
    """Read the head of a request, without the empty line at its end. Raises Malformed."""
    first, *lines = head.split(b"\r\n")
    parts = first.decode("latin-1").split(" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]) or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Malformed("This is no HTTP/1.1 request.")
    method, target, _ = parts
    tunnel = method == "CONNECT"
    given = [_header(line) for line in lines]
    token = next((value for name, value in given if name == b"proxy-authorization"), b"")
    try:
        url = urlsplit(f"//{target}" if tunnel else target)
        host, port = _endpoint(url, None if tunnel else 80)
    except ValueError as error:
        raise Malformed("A proxy is asked for CONNECT host:port, or for http://host/path.") from error
    if (tunnel and target != url.netloc) or (not tunnel and url.scheme != "http"):
        raise Malformed("A proxy is asked for CONNECT host:port, or for http://host/path.")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return Asked(host, port, tunnel, _token(token), method.encode(), path, () if tunnel else _passed(given))


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, found, value = line.partition(b":")
    if not found or not _HEADER.fullmatch(name) or b"\n" in value or b"\r" in value or b"\0" in value:
        raise Malformed("A header of the request is none.")
    return name.lower(), value.strip()


def _endpoint(url: SplitResult, usual: int | None) -> tuple[str, int]:
    host, port = url.netloc.rpartition(":")[0] if url.port else url.netloc, url.port or usual
    if not _HOST.fullmatch(host) or not port:
        raise ValueError("no host, or no port")
    return host.strip("[]"), port


def _passed(given: list[tuple[bytes, bytes]]) -> tuple[bytes, ...]:
    """Headers for the host. What is about the connection to here is not; each connection has one request."""
    options = {o.strip().lower() for name, value in given if name == b"connection" for o in value.split(b",")}
    upgrades = b"upgrade" in options
    dropped = _OF_THIS_CONNECTION | (options - {b"upgrade"})
    kept = [b"%s: %s" % header for header in given if header[0] not in dropped]
    return (*kept, b"Connection: upgrade" if upgrades else b"Connection: close")


def _token(value: bytes) -> bytes:
    kind, _, text = value.partition(b" ")
    if kind.lower() == b"basic":
        try:
            return b64decode(text.strip(), validate=True).partition(b":")[2]
        except NotBase64:
            return b""
    return text.strip() if kind.lower() == b"bearer" else b""
