"""Addresses of clients: whose they are, who counts as one, and which networks they are in."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

HOUSEHOLD = 64
"""Bits of an IPv6 address that a network has as a whole: within them a client takes whichever address it likes."""

_MAPPED = IPv6Network("::ffff:0:0/96")


def read(text: str | None) -> Address | None:
    """A client's address; None when nobody told one, or a proxy told what is none. An IPv4 address is one in its IPv6
    form (`::ffff:192.0.2.1`) too."""
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def household(address: Address | None) -> str:
    """Whom requests from an address are counted for: an IPv4 address, or all of an IPv6 network of 64 bits."""
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> (128 - HOUSEHOLD) << (128 - HOUSEHOLD), HOUSEHOLD)))
    return str(address)


def network(text: str) -> str:
    """A network as it is kept: `10.1.0.0/16`, `2001:db8::/32`; of an address that network which holds nothing else.

    Raises:
        ValueError: it is none; the message says why.
    """
    try:
        found = ip_network(text)
    except ValueError as error:
        raise ValueError(_why_not(text)) from error
    if isinstance(found, IPv6Network) and found.network_address.scope_id is not None:
        raise ValueError(f"{text!r} names an interface of one machine")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        found = IPv4Network((int(found.network_address) & 0xFFFF_FFFF, found.prefixlen - _MAPPED.prefixlen))
    return str(found)


def _why_not(text: str) -> str:
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is no address and no network such as 10.1.0.0/16"
    return f"{text!r} has bits set beyond its prefix: write {meant}, or a longer prefix"


def inside(address: Address | None, networks: tuple[str, ...]) -> bool:
    """Whether an address lies in one of the networks. One that is not known lies in none."""
    return address is not None and any(address in one for one in _parsed(networks))


@lru_cache(maxsize=1024)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(one) for one in networks)
