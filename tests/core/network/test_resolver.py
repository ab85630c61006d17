"""Names of tenants: what they resolve to, and that a silent nameserver is nobody else's trouble."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from uuid import uuid4

import pytest

from apps.api.core.network import resolver
from apps.api.core.network.outbound import Failed, Outbound, Refused
from apps.api.core.network.resolver import Resolver, Unresolved

ADDRESSES = {"one.test": "93.184.216.34", "inside.corp.test": "10.0.0.7", "short.corp.test": "93.184.216.35"}


class Nameserver(asyncio.DatagramProtocol):
    """Knows ADDRESSES, denies what else ends in `.test` or has no dot, and is silent about the rest."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.more = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while size := data[at]:
            labels.append(data[at + 1 : at + 1 + size].decode().lower())
            at += 1 + size
        name, question = ".".join(labels), data[12 : at + 5]
        self.asked[name] += 1
        self.more.set()
        if not name.endswith("test") and "." in name:
            return
        address = ADDRESSES.get(name)
        wanted = address is not None and question[-3] == 1  # an A record
        flags = b"\x81\x80" if address else b"\x81\x83"
        answer = (
            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04" + socket.inet_aton(address or "0") if wanted else b""
        )
        self.transport.sendto(data[:2] + flags + bytes([0, 1, 0, wanted, 0, 0, 0, 0]) + question + answer, addr)

    async def silent_about(self, count: int) -> None:
        """Wait until that many names that it does not answer were asked for."""
        while sum(name.endswith("silent.example") for name in self.asked) < count:
            self.more.clear()
            await self.more.wait()


@pytest.fixture
async def nameserver() -> AsyncIterator[Nameserver]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Nameserver, local_addr=("127.0.0.1", 0))
    yield protocol
    transport.close()


@pytest.fixture
async def names(nameserver: Nameserver) -> AsyncIterator[Resolver]:
    made = Resolver([nameserver.address])
    async with ending(made):
        yield made


@asynccontextmanager
async def ending(made: Resolver | Outbound) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await made.close()


async def test_a_name_has_the_addresses_that_its_nameserver_tells(names: Resolver) -> None:
    assert await names.addresses("one.test") == ["93.184.216.34"]
    with pytest.raises(Unresolved):
        await names.addresses("two.test")


@pytest.mark.parametrize(
    ("spelled", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("::1", "::1"),
        ("8.8.8.8", "8.8.8.8"),
    ],
)
async def test_an_address_is_itself_and_nobody_is_asked(
    names: Resolver, nameserver: Nameserver, spelled: str, address: str
) -> None:
    assert await names.addresses(spelled) == [address]
    assert not nameserver.asked


@pytest.mark.parametrize("name", ["", "a..test", "x" * 64 + ".test", "one.test\0.evil.test", "one.test\n", "."])
async def test_what_is_no_name_is_not_resolved(names: Resolver, name: str) -> None:
    with pytest.raises(Unresolved):
        await names.addresses(name)


async def test_the_file_of_hosts_comes_first(names: Resolver, nameserver: Nameserver) -> None:
    assert "127.0.0.1" in await names.addresses("localhost")
    assert not nameserver.asked


async def test_search_domains_complete_a_short_name(nameserver: Nameserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDOMAIN", "corp.test")  # resolv.conf(5): as `search` there
    async with ending(names := Resolver([nameserver.address])):
        assert await names.addresses("short") == ["93.184.216.35"]
        assert await names.addresses("one.test") == ["93.184.216.34"]
    assert nameserver.asked["one.test.corp.test"] == 0


async def test_ndots_tells_which_names_are_short(nameserver: Nameserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDOMAIN", "corp.test")
    monkeypatch.setenv("RES_OPTIONS", "ndots:3")
    async with ending(names := Resolver([nameserver.address])):
        assert await names.addresses("one.test") == ["93.184.216.34"]
    assert nameserver.asked["one.test.corp.test"] > 0


async def test_silent_names_of_one_tenant_keep_nobody_else_waiting(nameserver: Nameserver) -> None:
    async with ending(outbound := Outbound(nameservers=[nameserver.address])):
        tenant, other = uuid4(), uuid4()
        waiting = [
            asyncio.create_task(outbound.check_url(f"http://{number}.silent.example/", tenant)) for number in range(100)
        ]
        async with asyncio.timeout(30):
            await nameserver.silent_about(resolver.MAX_LOOKUPS)
            # The system's resolver, which the databases' names go through, and the threads that files are read in.
            await asyncio.get_running_loop().getaddrinfo("localhost", 1)
            await asyncio.to_thread(int)
            assert await outbound.resolve("one.test", 80, other) == ["93.184.216.34"]
            with pytest.raises(Refused):
                await outbound.resolve("inside.corp.test", 80, other)
            asked = {name for name in nameserver.asked if name.endswith("silent.example")}
            assert (len(asked), any(task.done() for task in waiting)) == (resolver.MAX_LOOKUPS, False)
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in ended} == {Failed}
        assert str(ended[0]) == "its name could not be resolved"


async def test_a_tenants_next_names_have_their_turn_when_silent_ones_were_given_up(nameserver: Nameserver) -> None:
    async with ending(names := Resolver([nameserver.address])):
        tenant = uuid4()
        lost = [names.addresses(f"{number}.silent.example", tenant) for number in range(resolver.MAX_LOOKUPS)]
        async with asyncio.timeout(60):
            ended = await asyncio.gather(*lost, return_exceptions=True)
            assert {type(error) for error in ended} == {Unresolved}
            while True:
                try:
                    assert await names.addresses("one.test", tenant) == ["93.184.216.34"]
                    break
                except Unresolved:
                    continue


async def test_what_a_caller_gave_up_still_has_its_turn_and_ends_with_the_resolver(nameserver: Nameserver) -> None:
    async with ending(names := Resolver([nameserver.address])):
        async with asyncio.timeout(30):
            left = asyncio.create_task(names.addresses("left.silent.example"))
            await nameserver.silent_about(1)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            assert await names.addresses("one.test") == ["93.184.216.34"]
