"""HTTP to addresses that tenants choose, without lending them the server's place in its network.

A name is resolved here, every address that it has is checked, and the connection goes to an address that was checked:
a name that answers differently the second time (DNS rebinding) gains nothing. Only downloads are redirected, to what is
checked in the same way; no proxy is used, and time and size are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit
from uuid import UUID

import httpcore2

from apps.api.core.network.calls import Calls, Failed, Kind, Refused
from apps.api.core.network.resolver import Resolver, Unresolved

__all__ = ["Answer", "Failed", "Outbound", "Refused", "is_elsewhere", "is_public"]

MAX_ANSWER_BYTES = 64 * 1024

MAX_ADDRESSES = 3
"""Addresses of one name that are tried, one after the other, when they refuse the connection."""

_GLOBAL_UNICAST = ip_network("2000::/3")
_SPECIAL = tuple(
    ip_network(block)
    for block in (
        # IANA's IPv4 special-purpose address registry, whole: blocks of it that are globally reachable are for one
        # protocol only, and lead to whatever is nearest. Then multicast and what is reserved.
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # The same registry for IPv6, as far as it lies in the one block that addresses are given from.
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
        # Public by their number, but inside of a cloud they are its services for the machine: Azure's host agent, IBM's
        # service endpoints. The metadata services of others lie in blocks above.
        *("168.63.129.16/32", "161.26.0.0/16", "166.8.0.0/14"),
    )
)

_SERVICES_OF_CLOUDS = tuple(
    # What gives a machine its own credentials, where that is no link-local address: Alibaba's, Oracle's, Azure's and
    # IBM's; by IPv6 AWS's, Oracle's, Scaleway's and Google's.
    ip_network(block)
    for block in (
        *("100.100.100.200/32", "192.0.0.0/24", "168.63.129.16/32", "161.26.0.0/16", "166.8.0.0/14"),
        *("fd00::/16", "fd20:ce::/32"),
    )
)
_UNIQUE_LOCAL = ip_network("fc00::/7")

MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)

_PLAIN = re.compile(r"[\x21-\x7e]{1,4000}")

_HEADERS = {"Accept-Encoding": "identity", "Connection": "close"}


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
    """Whether an address is one of the public internet: not private, loopback, link-local, shared (CGNAT), multicast,
    reserved or of a cloud's own services, and no IPv6 form of an IPv4 address.

    Sources: IANA's special-purpose address registries (RFC 6890) as of 2025; Azure's and IBM's lists of addresses.
    """
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST or address.scope_id is not None):
        return False
    return not any(address in block for block in _SPECIAL if block.version == address.version)


def is_elsewhere(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is another machine's, public or private: not this machine, link-local, multicast, reserved or
    of a cloud's services for the machine, and no IPv6 form of an IPv4 address."""
    if isinstance(address, IPv6Address) and address not in _UNIQUE_LOCAL and not is_public(address):
        return False
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved:
        return False
    if address in ip_network("0.0.0.0/8"):
        return False
    return not any(address in block for block in _SERVICES_OF_CLOUDS if block.version == address.version)


class Outbound:
    """The way out of one instance.

    Args:
        allow: exceptions, as in OUTBOUND_ALLOW: `host`, `host:port`, an address or a network (CIDR).
        nameservers: `address` or `address:port` of each that is asked; without any those of the system.

    Calls take the tenant whose target it is: how many are under way at the same time is bounded for each, as is how
    many names are looked up.

    Attributes:
        calls: counts and bounds them; for those that others make, too.
    """

    def __init__(self, allow: Iterable[str] = (), nameservers: Sequence[str] = ()) -> None:
        self.calls = Calls()
        self._resolver = Resolver(nameservers)
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: set[str] = set()
        for entry in allow:
            try:
                self._networks.append(ip_network(entry, strict=False))
            except ValueError:
                self._names.add(entry.lower())
        self._tls = ssl.create_default_context()

    async def close(self) -> None:
        """End what is being looked up."""
        await self._resolver.close()

    async def check_url(self, url: str, tenant_id: UUID | None = None) -> None:
        """Whether `post` would connect to this URL, without connecting. Raises Refused, Failed."""
        parts = urlsplit(url)
        with self.calls.counted("lookup"):
            await self.resolve(parts.hostname or "", _port(parts), tenant_id)

    async def reach(self, url: str, timeout: float, tenant_id: UUID | None = None) -> None:
        """Connect within `timeout` seconds, and hang up without a word.

        Raises:
            Refused: the target's address is not allowed.
            Failed: no connection.
        """
        parts, until = urlsplit(url), asyncio.get_running_loop().time() + timeout
        try:
            async with self.calls.one("check", tenant_id, timeout), asyncio.timeout_at(until):
                stream = await _Guarded(self, tenant_id).connect_tcp(parts.hostname or "", _port(parts))
                await stream.aclose()
        except TimeoutError as error:
            raise Failed(f"no connection within {timeout:g} s") from error
        except (httpcore2.NetworkError, httpcore2.TimeoutException, OSError) as error:
            raise Failed(_reason(error)) from error

    async def resolve(
        self,
        host: str,
        port: int,
        tenant_id: UUID | None = None,
        *,
        allows: Callable[[IPv4Address | IPv6Address], bool] = is_public,
    ) -> list[str]:
        """Addresses of a host, all of which may be connected to: `allows` says so, or an exception.

        Raises:
            Refused: one of them is not allowed.
            Failed: none was found within `resolver.SECONDS`.
        """
        try:
            addresses = await self._resolver.addresses(host, tenant_id)
        except Unresolved as error:
            raise Failed("its name could not be resolved") from error
        allowed = {host.lower(), f"{host}:{port}".lower(), f"[{host}]:{port}".lower()} & self._names
        if not addresses or not (allowed or all(self._may_reach(ip_address(a), allows) for a in addresses)):
            raise Refused("its address is not a public one; the operator may allow it by OUTBOUND_ALLOW")
        return addresses

    def _may_reach(
        self, address: IPv4Address | IPv6Address, allows: Callable[[IPv4Address | IPv6Address], bool]
    ) -> bool:
        return allows(address) or any(address in network for network in self._networks)

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout: float,
        tenant_id: UUID | None = None,
        kind: Kind = "webhook",
    ) -> Answer:
        """POST within `timeout` seconds, over a connection of its own. The URL was checked to be http or https.

        Raises:
            Refused: the target's address is not allowed.
            Failed: no connection, no answer in time, or one that is too large.
        """
        until = asyncio.get_running_loop().time() + timeout
        try:
            async with self.calls.one(kind, tenant_id, timeout) as call, asyncio.timeout_at(until):
                answer = await self._post(url, headers, body, tenant_id)
                call.outcome = "ok" if answer.accepted else "rejected"
                return answer
        except TimeoutError as error:
            raise Failed(f"no answer within {timeout:g} s") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            raise Failed(_reason(error)) from error

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes, tenant_id: UUID | None) -> Answer:
        sent = {"Content-Length": str(len(body)), **headers}
        async with self._asking("POST", url, sent, body, tenant_id) as response:
            return Answer(response.status, await _read(response))

    async def download(
        self,
        url: str,
        timeout: float,
        most: int,
        tenant_id: UUID,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Write what a URL answers to GET, within `timeout` seconds and at most so many bytes. The URL was checked to
        be http or https. Where it redirects to is checked as the URL itself, MAX_REDIRECTS times.

        Raises:
            Refused: an address is not allowed.
            Failed: no connection, another answer than 200, none in time, or one that is too large.
            OSError: as `write`.
        """
        until, unwritten = asyncio.get_running_loop().time() + timeout, list[OSError]()

        async def keep(some: bytes) -> None:
            try:
                await write(some)
            except OSError as error:
                unwritten.append(error)
                raise

        try:
            async with self.calls.one("download", tenant_id, timeout), asyncio.timeout_at(until):
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._asking("GET", url, {}, b"", tenant_id) as response:
                        if response.status not in _REDIRECTS:
                            await _write(response, most, keep)
                            return
                        url = _led(url, response)
                raise Failed(f"it redirects more than {MAX_REDIRECTS} times")
        except TimeoutError as error:
            raise Failed(f"it has not all come within {timeout:g} s") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            if error in unwritten:
                raise
            raise Failed(_reason(error)) from error

    @asynccontextmanager
    async def _asking(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, tenant_id: UUID | None
    ) -> AsyncIterator[httpcore2.Response]:
        """The answer to one request, on a connection of its own, which lasts as long as the block."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", _port(parts)
        scheme = parts.scheme.encode()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = httpcore2.Request(
            method,
            httpcore2.URL(scheme=scheme, host=host.encode(), port=port, target=target.encode()),
            headers=list({"Host": parts.netloc, **_HEADERS, **headers}.items()),
            content=body,
        )
        guarded = _Guarded(self, tenant_id)
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(scheme, host.encode(), port),
            ssl_context=self._tls,
            network_backend=guarded,
        )
        try:
            async with connection:
                yield await connection.handle_async_request(request)
        finally:
            await guarded.hang_up()


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


async def _read(response: httpcore2.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise Failed(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
    return body


async def _write(response: httpcore2.Response, most: int, write: Callable[[bytes], Awaitable[None]]) -> None:
    if response.status != 200:
        raise Failed(f"it answered {response.status}")
    size = 0
    async for chunk in response.aiter_stream():
        size += len(chunk)
        if size > most:
            raise Failed(f"it is larger than {most} bytes")
        await write(chunk)


def _led(url: str, response: httpcore2.Response) -> str:
    """Where an answer redirects to. Raises Failed."""
    where = dict(response.headers).get(b"location") or dict(response.headers).get(b"Location") or b""
    led = urlsplit(urljoin(url, where.decode("latin-1")))
    secure = led.scheme == "https" or (led.scheme == "http" and urlsplit(url).scheme == "http")
    if not secure or not led.hostname or led.username is not None or not _PLAIN.fullmatch(led.geturl()):
        raise Failed("it redirects to what is no https:// URL")
    return led._replace(fragment="").geturl()


def _reason(error: Exception) -> str:
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return "its TLS certificate is not valid for this name"
    if isinstance(error, httpcore2.ConnectError):
        return "no connection"
    if isinstance(error, httpcore2.ProtocolError):
        return "its answer is not HTTP"
    return "the connection broke"


class _Guarded(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were checked a moment ago. TLS still asks for the host by its name."""

    def __init__(self, outbound: Outbound, tenant_id: UUID | None) -> None:
        self._outbound, self._tenant_id, self._inner = outbound, tenant_id, httpcore2.AnyIOBackend()
        self._opened: httpcore2.AsyncNetworkStream | None = None

    async def hang_up(self) -> None:
        """Close what was opened: httpcore2 does not, when its time is over in the middle of a TLS handshake."""
        if self._opened is not None:
            await self._opened.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = (await self._outbound.resolve(host, port, self._tenant_id))[:MAX_ADDRESSES]
        for address in addresses[:-1]:
            try:
                return await self._connect(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._connect(addresses[-1], port, timeout, local_address, socket_options)

    async def _connect(self, address: str, port: int, *how: Any) -> httpcore2.AsyncNetworkStream:
        self._opened = await self._inner.connect_tcp(address, port, *how)
        return self._opened
