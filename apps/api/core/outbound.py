"""HTTP to addresses that tenants choose, without lending them the server's place in its network.

A name is resolved here, every address that it has is checked, and the connection goes to an address that was checked:
a name that answers differently the second time (DNS rebinding) gains nothing. Nothing is redirected, no proxy is used,
and time and size are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore

MAX_ANSWER_BYTES = 64 * 1024

MAX_ADDRESSES = 3
"""Addresses of one name that are tried, one after the other, when they refuse the connection."""

_UNICAST = ip_network("2000::/3")
_UNUSABLE = tuple(
    # What `is_global` lets through and still leads elsewhere: relays that embed an IPv4 address, and documentation.
    ip_network(network)
    for network in ("192.88.99.0/24", "2002::/16", "3fff::/20")
)


_HEADERS = {"Accept-Encoding": "identity", "Connection": "close"}


class Refused(Exception):
    """The target is not one that this server connects to. The message may be shown to tenants."""


class Failed(Exception):
    """No answer, or none that counts. The message may be shown to tenants."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the target answered; `body` is at most MAX_ANSWER_BYTES."""

    status: int
    body: bytes

    @property
    def accepted(self) -> bool:
        """Whether it is a 2xx. A redirect is none."""
        return 200 <= self.status < 300


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local, shared (CGNAT), multicast or
    reserved, and no IPv6 form of an IPv4 address."""
    if isinstance(address, IPv6Address) and (address not in _UNICAST or address.scope_id is not None):
        return False
    usable = address.is_global and not address.is_multicast and not address.is_reserved
    return usable and not any(address in network for network in _UNUSABLE if network.version == address.version)


class Outbound:
    """The way out of one instance.

    Args:
        allow: exceptions, as in OUTBOUND_ALLOW: `host`, `host:port`, an address or a network (CIDR).
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: set[str] = set()
        for entry in allow:
            try:
                self._networks.append(ip_network(entry, strict=False))
            except ValueError:
                self._names.add(entry.lower())
        self._tls = ssl.create_default_context()

    async def check_url(self, url: str, timeout: float = 5) -> None:
        """Whether `post` would connect to this URL, without connecting.

        Raises:
            Refused: it would not.
            Failed: the name cannot be resolved within `timeout` seconds.
        """
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(timeout):
                await self.resolve(parts.hostname or "", _port(parts))
        except TimeoutError as error:
            raise Failed("its name could not be resolved in time") from error

    async def reach(self, url: str, timeout: float) -> None:
        """Connect within `timeout` seconds, and hang up without a word.

        Raises:
            Refused: the target's address is not allowed.
            Failed: no connection.
        """
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(timeout):
                stream = await _Guarded(self).connect_tcp(parts.hostname or "", _port(parts))
                await stream.aclose()
        except TimeoutError as error:
            raise Failed(f"no connection within {timeout:g} s") from error
        except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
            raise Failed(_reason(error)) from error

    async def resolve(self, host: str, port: int) -> list[str]:
        """Addresses of a host, all of which may be connected to. Raises Refused, Failed."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Failed("its name could not be resolved") from error
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        allowed = {host.lower(), f"{host}:{port}".lower(), f"[{host}]:{port}".lower()} & self._names
        if not addresses or not (allowed or all(self._may_reach(ip_address(a)) for a in addresses)):
            raise Refused("its address is not a public one; the operator may allow it by OUTBOUND_ALLOW")
        return addresses

    def _may_reach(self, address: IPv4Address | IPv6Address) -> bool:
        return is_public(address) or any(address in network for network in self._networks)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """POST within `timeout` seconds, over a connection of its own. The URL was checked to be http or https.

        Raises:
            Refused: the target's address is not allowed.
            Failed: no connection, no answer in time, or one that is too large.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", _port(parts)
        scheme = parts.scheme.encode()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = httpcore.Request(
            "POST",
            httpcore.URL(scheme=scheme, host=host.encode(), port=port, target=target.encode()),
            headers=list({"Host": parts.netloc, "Content-Length": str(len(body)), **_HEADERS, **headers}.items()),
            content=body,
        )
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(scheme, host.encode(), port), ssl_context=self._tls, network_backend=_Guarded(self)
        )
        try:
            async with asyncio.timeout(timeout), connection:
                response = await connection.handle_async_request(request)
                return Answer(response.status, await _read(response))
        except TimeoutError as error:
            raise Failed(f"no answer within {timeout:g} s") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise Failed(_reason(error)) from error


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


async def _read(response: httpcore.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise Failed(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
    return body


def _reason(error: Exception) -> str:
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return "its TLS certificate is not valid for this name"
    if isinstance(error, httpcore.ConnectError):
        return "no connection"
    if isinstance(error, httpcore.ProtocolError):
        return "its answer is not HTTP"
    return "the connection broke"


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked a moment ago. TLS still asks for the host by its name."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound, self._inner = outbound, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses: Sequence[str] = (await self._outbound.resolve(host, port))[:MAX_ADDRESSES]
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)
