"""Addresses of clients: how they are read, counted and compared with networks."""

from __future__ import annotations

import pytest

from apps.api import addresses


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:C000:207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "None"),
        (None, "None"),
        ("unknown", "None"),
        ("192.0.2.7, 192.0.2.8", "None"),
        ("192.0.2.256", "None"),
        ("127.1", "None"),
        ("192.0.2.7/32", "None"),
    ],
)
def test_a_client_is_counted_by_its_address_or_its_network(told: str | None, counted: str) -> None:
    assert addresses.household(addresses.read(told)) == counted


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("203.0.113.7", "203.0.113.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
    ],
)
def test_a_network_is_kept_in_one_spelling(given: str, kept: str) -> None:
    assert addresses.network(given) == kept
    assert addresses.network(kept) == kept


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("10.0.0.5/8", "10.0.0.0/8"),
        ("2001:db8::5/32", "2001:db8::/32"),
        ("fe80::1%eth0", "interface"),
        ("fe80::%eth0/64", "interface"),
        ("10.0.0.0/33", "no network"),
        ("10.0.0.0/-1", "no network"),
        ("10.0.0.0/8/8", "no network"),
        ("10.1", "no network"),
        ("example.org", "no network"),
        ("*", "no network"),
        ("", "no network"),
        (" 10.0.0.0/8", "no network"),
        ("10.0.0.0/8\n", "no network"),
        ("١٠.0.0.0/8", "no network"),
        ("10.0.0.0/8\0", "no network"),
    ],
)
def test_what_is_no_network_is_told_why(given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        addresses.network(given)


@pytest.mark.parametrize(
    ("networks", "address", "in_one"),
    [
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::9", True),
        (("10.0.0.0/8",), "2001:db8::9", False),
        (("::/0",), "10.1.2.3", False),
        (("0.0.0.0/0",), "::1", False),
        (("0.0.0.0/0", "::/0"), "::1", True),
        (("0.0.0.0/0", "::/0"), None, False),
        (("0.0.0.0/0", "::/0"), "nobody", False),
        ((), "10.1.2.3", False),
    ],
)
def test_an_address_is_in_a_network_or_not(networks: tuple[str, ...], address: str | None, in_one: bool) -> None:
    assert addresses.inside(addresses.read(address), networks) is in_one
