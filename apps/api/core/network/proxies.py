"""The proxy that the server itself goes through, as its environment names it: HTTPS_PROXY, HTTP_PROXY, NO_PROXY.

Source: RFC 9110, sections 9.3.6 (CONNECT) and 11.7.2 (Proxy-Authorization).
"""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass


def proxy_for(scheme: str, host: str) -> SplitResult | None:
    """The one for a host; None where it is reached without. Raises ValueError for a URL that is none."""
    if proxy_bypass(host):
        return None
    found = getproxies().get(scheme)
    return urlsplit(found if "://" in found else f"http://{found}") if found else None


def authorization(proxy: SplitResult) -> tuple[bytes, ...]:
    """The line of a request's head that says who asks, where the proxy's URL has a user."""
    if proxy.username is None:
        return ()
    known = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return (b"Proxy-Authorization: Basic " + b64encode(known.encode()),)


def tunnel(proxy: SplitResult, target: str) -> bytes:
    """The request for a tunnel to `target`, which is `host:port`."""
    asked = target.encode()
    return b"\r\n".join((b"CONNECT %s HTTP/1.1" % asked, b"Host: " + asked, *authorization(proxy), b"", b""))
