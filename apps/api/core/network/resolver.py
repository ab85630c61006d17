"""Names that tenants choose, resolved without any thread that the rest of the server waits for.

The system's own resolver blocks one thread per name, uvloop has a few of them for everything, and nobody can end a
lookup whose server is silent: a dozen such names would stop every other lookup, those of the databases among them.
Here c-ares does the same by sockets: it reads resolv.conf (search domains and ndots too) and the file of hosts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import aiodns

from apps.api.core.network.calls import Places

if TYPE_CHECKING:
    from pycares import AddrInfoResult

T = TypeVar("T")

SECONDS = 2.0
"""For a name, its turn included."""

TRY_SECONDS, TRIES = 1.0, 2

MAX_LOOKUPS = 8
"""Of one tenant at the same time. One that nobody waits for any more counts until c-ares has given it up."""


class Unresolved(Exception):
    """A name has no address, or none was told in time."""


class Resolver:
    """Looks names up; the first call starts it, inside the event loop that it is then of.

    Args:
        nameservers: `address` or `address:port` of each; without any those of the system.
    """

    def __init__(self, nameservers: Sequence[str] = ()) -> None:
        self._nameservers = nameservers
        self._dns: aiodns.DNSResolver | None = None
        self._turns = Places()

    async def addresses(self, host: str, tenant_id: UUID | None = None) -> list[str]:
        """All addresses of a host, best first; of an address, in any spelling, itself. Raises Unresolved."""
        if found := _literal(host):
            return [str(found)]
        if not host or not host.isprintable():  # a NUL would end the name for c-ares only
            raise Unresolved("no name")
        turns = self._turns.of(tenant_id, MAX_LOOKUPS)
        try:
            async with asyncio.timeout(SECONDS):
                await turns.acquire()
                lookup = self._lookup(host, turns)
                answer = await asyncio.shield(lookup)
        except (aiodns.error.DNSError, TimeoutError, UnicodeError, ValueError) as error:
            raise Unresolved(str(error)) from error
        found_here = [node.addr[0] for node in answer.nodes]
        return list(dict.fromkeys(a.decode() if isinstance(a, bytes) else a for a in found_here))

    def _lookup(self, host: str, turns: asyncio.Semaphore) -> asyncio.Future[AddrInfoResult]:
        def ended(lookup: asyncio.Future[AddrInfoResult]) -> None:
            turns.release()
            if not lookup.cancelled():
                lookup.exception()  # nobody else may be left who asks for it

        try:
            if self._dns is None:
                self._dns = aiodns.DNSResolver(self._nameservers, timeout=TRY_SECONDS, tries=TRIES)
            lookup = self._dns.getaddrinfo(host, type=socket.SOCK_STREAM)
        except BaseException:
            turns.release()
            raise
        lookup.add_done_callback(ended)
        return lookup

    async def close(self) -> None:
        """End every lookup."""
        if self._dns is not None:
            await self._dns.close()
            self._dns = None


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(
            socket.inet_aton(host)
        )  # 127.1, 0x7f.1 and 2130706433: what connects takes these for addresses
    except (OSError, UnicodeError, ValueError):
        return None


async def first_of(addresses: Sequence[str], connect: Callable[[str], Awaitable[T]]) -> T:
    """What `connect` makes of the first address that it can connect to. Raises OSError, of the last one."""
    *others, last = addresses
    for address in others:
        with suppress(OSError):
            return await connect(address)
    return await connect(last)
