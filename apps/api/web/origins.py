"""The headers of a program that name its own origin, which a client reaches below a path of ours.

Read as browsers read them (the WHATWG URL standard), so that every spelling of a URL is one: `HTTP:\\\\LOCALHOST:3000`,
`//0x7f.1:3000`, `/login` and `?next` alike.

Sources: URL Standard; RFC 8288 for `Link`; the HTML standard's "shared declarative refresh steps" for `Refresh`; CSP 3
for its sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from ada_url import URL

Headers = list[tuple[bytes, bytes]]

_REFERENCES = frozenset(
    b"location content-location uri sourcemap x-sourcemap x-pingback hx-redirect hx-push-url hx-replace-url "
    b"turbolinks-location turbo-location x-inertia-location".split()
)
"""Whose whole value is one reference."""

# Of what hostile programs send, so without a way to look at one character twice.
_URL = r"(?:https?|wss?):[\\/]{2}[^\s\"'<>,;()|]+"
_ABSOLUTE = re.compile(_URL, re.IGNORECASE)
_LINKED = re.compile(rf"<(?P<reference>[^<>]*)>|{_URL}", re.IGNORECASE)
_SOURCE = re.compile(rf"{_URL}|[^\s;,]+", re.IGNORECASE)
_BEFORE_REFRESH = re.compile(r"\s*[0-9.]*\s*[;,]?\s*(?:url\s*=\s*)?", re.IGNORECASE)


class Origin:
    """The origin of a program, and where a client finds it.

    Args:
        port: the program's.
        target: path and query that it was asked for; what it says may be relative to that.
        prefix: path of ours, below which its paths are; without a slash at its end.
        base: scheme, host and port at which the client finds us.
        names: hosts that the program goes by, besides those of the loopback.
    """

    def __init__(self, port: int, target: str, prefix: str, base: str, names: Iterable[str] = ()) -> None:
        self._port, self._prefix, self._base, self._names = port, prefix, base, frozenset(names)
        asked = URL(f"http://localhost:{port}/")
        asked.pathname, _, asked.search = target.partition("?")
        self._asked = asked.href

    def outside(self, headers: Headers) -> Headers:
        """The headers for a client: what names the origin names it as it is found from there."""
        return [(name, self._value(name.lower(), value)) for name, value in headers]

    def _value(self, name: bytes, value: bytes) -> bytes:
        text = value.decode("latin-1")
        if name in _REFERENCES:
            text = self._reference(text)
        elif name == b"refresh":
            text = self._refresh(text)
        elif name == b"link":
            text = _LINKED.sub(self._link, text)
        elif name.startswith(b"content-security-policy"):
            text = _SOURCE.sub(lambda found: self._source(found[0]), text)
        else:
            text = _ABSOLUTE.sub(lambda found: self._absolute(found[0]), text)
        return text.encode("latin-1")

    def _reference(self, text: str) -> str:
        """A reference to something of the origin, as a path of ours. Others, and what is none, stay as they are."""
        try:
            # Headers are bytes; browsers take them for UTF-8 where they hold a URL.
            url = URL(text.encode("latin-1").decode(errors="replace"), base=self._asked)
        except ValueError:
            return text
        return f"{self._prefix}{url.pathname}{url.search}{url.hash}" if self._is_own(url) and text.strip() else text

    def _refresh(self, text: str) -> str:
        before = _BEFORE_REFRESH.match(text)
        assert before is not None  # noqa: S101 - it matches nothing, too
        rest = text[before.end() :]
        quote = rest[:1] if rest[:1] in ("'", '"') else ""
        reference = rest[1:].partition(quote)[0] if quote else rest
        return f"{before[0]}{quote}{self._reference(reference)}{quote}" if reference else text

    def _link(self, found: re.Match[str]) -> str:
        linked = found["reference"]
        return self._absolute(found[0]) if linked is None else f"<{self._reference(linked)}>"

    def _source(self, text: str) -> str:
        # A source may come without its scheme.
        return self._absolute(text) if "//" in text or ":" not in text else self._absolute(f"http://{text}", text)

    def _absolute(self, text: str, written: str | None = None) -> str:
        try:
            url = URL(text)
        except ValueError:
            url = None
        if url is None or not self._is_own(url):
            return text if written is None else written
        base = self._base.replace("http", "ws", 1) if url.protocol in ("ws:", "wss:") else self._base
        return f"{base}{self._prefix}{url.pathname}{url.search}{url.hash}"

    def _is_own(self, url: URL) -> bool:
        usual = {"http:": 80, "ws:": 80, "https:": 443, "wss:": 443}.get(url.protocol)
        return usual is not None and int(url.port or usual) == self._port and self._is_here(url.hostname)

    def _is_here(self, host: str) -> bool:
        name = host.strip("[]").rstrip(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
