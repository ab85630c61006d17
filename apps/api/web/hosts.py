"""Names that the server goes by, where callers without a key may come in.

A page of somebody else's, in the browser of a person who can reach the server, could act as such a caller: by a name
of its own that it has lead to the server's address (DNS rebinding), or by a request to another origin that needs no
permission. The first is found by the header `Host`, the second by `Origin`: a browser writes both, and no page can
choose them.

Only names are asked for. What is an address in `Host` was not looked up, so nobody has led it here, and browsers lead
`localhost` nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from apps.api.codes import ErrorCode
from apps.api.errors import ApiError, Forbidden
from apps.api.settings import Settings
from apps.api.web.errors import error_response

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(:(?P<port>[0-9]{1,5}))?")

_USUAL = ("80", "443", None)

PROBES = frozenset({"/health/live", "/health/ready"})
"""What load balancers ask by whatever name they like. It needs no key from anybody."""


class _Misdirected(ApiError):
    status = 421
    code: ErrorCode = "host_not_permitted"


class Names:
    """Those of one server: `localhost`, every address, and the given ones; `*.example.org` is all that end so."""

    def __init__(self, given: Iterable[str]) -> None:
        names = [name.lower() for name in given]
        self._all = "*" in names
        self._names = frozenset(names)
        self._endings = (".localhost", *(name[1:] for name in names if name.startswith("*.")))

    def __contains__(self, authority: str) -> bool:
        """Whether `name`, `name:port`, or an address is one of them."""
        if self._all:
            return True
        found = _AUTHORITY.fullmatch(authority)
        if found is None:
            return False
        host = found["host"].lower().removesuffix(".").strip("[]")
        return host == "localhost" or host in self._names or host.endswith(self._endings) or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def names_of(settings: Settings) -> Names | None:
    """The names that requests must use; None where any will do, since everybody needs a key."""
    if not settings.allowed_hosts and settings.anonymous_tenant is None:
        return None
    known = (settings.host, urlsplit(settings.advertise_url or "").hostname or "")
    return Names(filter(None, (*settings.allowed_hosts, *known)))


class KnownHosts:
    """Refuses requests by other names, but for PROBES."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        named = HTTPConnection(scope).headers.getlist("host")
        if len(named) == 1 and named[0] in self._names:
            await self._app(scope, receive, send)
            return
        error = _Misdirected(
            "This server does not go by the name in the header Host; its operator may name it in ALLOWED_HOSTS."
        )
        response = error_response(scope, error)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(response)
        else:
            await response(scope, receive, send)


def require_own_origin(connection: HTTPConnection) -> None:
    """Raises Forbidden `origin_not_permitted` for a request that a page of another origin has made."""
    if _is_foreign(connection):
        raise Forbidden(
            "Pages of other origins need a key: callers without one are not let in from there.",
            code="origin_not_permitted",
        )


def require_known_origin(connection: HTTPConnection, allowed: Sequence[str]) -> None:
    """The same for a WebSocket, of which browsers do not ask whether a page may open it (cross-site WebSocket
    hijacking). `allowed`: ALLOWED_ORIGINS. Raises Forbidden `origin_not_permitted`."""
    if "*" in allowed or connection.headers.get("origin") in allowed:
        return
    if _is_foreign(connection):
        raise Forbidden(
            "Pages of this origin may not connect; the server's operator may name it in ALLOWED_ORIGINS.",
            code="origin_not_permitted",
        )


def _is_foreign(connection: HTTPConnection) -> bool:
    origin = connection.headers.get("origin")
    if origin is None:
        return False
    there = _place(origin.partition("://")[2])
    return there is None or there != _place(connection.headers.get("host", ""))


def _place(authority: str) -> tuple[str, str | None] | None:
    """Host and port. Nothing is asked of the scheme: not every proxy that ends TLS says so."""
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else (found["host"].lower(), None if found["port"] in _USUAL else found["port"])
