"""The proxy itself: whose token is whose, what each may reach, and the connections that are open."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal
from urllib.parse import SplitResult
from uuid import UUID

import structlog

from apps.api.core.config.reach import USUAL_PORTS, Reach
from apps.api.core.network import own, proxies
from apps.api.core.network.outbound import MAX_ADDRESSES, Failed, Outbound, Refused, is_elsewhere, is_public
from apps.api.core.network.resolver import first_of
from apps.api.core.tasks import Loop
from apps.api.runner.egress.asked import Asked
from apps.api.runner.egress.tunnel import Far, Near
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

HEAD_SECONDS = 10.0
"""For a program to say what it asks for, and to take that it may not."""

CONNECT_SECONDS = 10.0
"""For a name and a connection."""

IDLE_SECONDS = 600.0
"""Without a byte in either direction. A host may take minutes over what it is asked."""

MAX_STRANGERS = 256
"""Connections that have not said what they ask for. Beyond it the oldest is closed."""

MAX_OF_PROCESS, MAX_OF_TENANT, MAX_IN_ALL = 128, 512, 2048
"""Connections that are open, or about to be."""

Reason = Literal["host_not_allowed", "address_not_allowed", "not_of_this_session"]

Local = Callable[[int], Awaitable[tuple[str | None, bool]]]
"""Where a session's own program listens on a port of this machine, and whether anybody does."""


class Denied(Exception):
    """A session may not reach what it asks for."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(eq=False)
class Member:
    """A process of a session, as the proxy knows it.

    Attributes:
        local: see Local.
        denied: is told host, port and reason.
        also: host and port of what it may reach besides, wherever that is: the operator's own model API.
        open: its connections.
    """

    tenant_id: UUID
    reach: Reach
    local: Local
    denied: Callable[[str, int, Reason], None]
    also: frozenset[tuple[str, int]] = frozenset()
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    open: set[Near] = field(default_factory=set)


class Proxy:
    """That of one instance. Open it with `start`, on the loopback alone.

    Attributes:
        sent, received: bytes to and from hosts, of connections that have ended.
        refused: how often, by reason.
    """

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        """`outbound` is for this alone: what agents look up is in nobody else's way."""
        self._outbound, self._databases = outbound, own.databases(settings)
        self._members: dict[bytes, Member] = {}
        self._strangers: dict[Near, None] = {}
        self._open: dict[Near, Member] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self.sent = self.received = 0
        self.refused: Counter[str] = Counter()
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises OSError."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._servers.append(await self.accept_on(listening))

    async def accept_on(self, listening: socket.socket) -> asyncio.Server:
        """Serve on this socket as well, which may be one of another network namespace. Who calls closes the server."""
        return await asyncio.get_running_loop().create_server(lambda: Near(self), sock=listening)

    async def close(self) -> None:
        """End everything."""
        for server in self._servers:
            server.close()
        for near in (*self._strangers, *self._open):
            near.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._outbound.close()

    @property
    def open(self) -> int:
        """Connections that are open now, or about to be."""
        return len(self._open)

    def admit(self, member: Member) -> str:
        """Let a process in. Returns the URL by which its programs find the proxy, with its token."""
        self._members[_key(member.token.encode())] = member
        return f"http://agent:{member.token}@127.0.0.1:{self.port}"

    def dismiss(self, member: Member) -> None:
        """It has ended: its token opens nothing any more, and its connections end."""
        self._members.pop(_key(member.token.encode()), None)
        for near in tuple(member.open):
            near.abort()

    async def look(self, _loop: Loop) -> None:
        """End what is silent for too long; the step of a loop, about once a second."""
        now = asyncio.get_running_loop().time()
        for near in tuple(self._strangers):
            if now - near.since > HEAD_SECONDS:
                near.abort()
        for near in tuple(self._open):
            heard = max(near.heard, near.other.heard if near.other else near.heard)
            if now - heard > IDLE_SECONDS or (near.refused and now - near.since > HEAD_SECONDS):
                near.abort()

    # --- what connections tell -------------------------------------------------------------------------------------

    def came(self, near: Near) -> None:
        """See Serving."""
        self._strangers[near] = None
        if len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).abort()

    def asks(self, near: Near, asked: Asked) -> None:
        """See Serving."""
        member = self._members.get(_key(asked.token)) if asked.token else None
        if member is None:
            asks = 'Proxy-Authenticate: Basic realm="agents"'
            near.refuse(407, "This token is not valid, or its process has ended.", asks)
            return
        of_tenant = sum(other.tenant_id == member.tenant_id for other in self._open.values())
        if len(member.open) >= MAX_OF_PROCESS or of_tenant >= MAX_OF_TENANT or len(self._open) >= MAX_IN_ALL:
            near.refuse(429, "Too many connections are open.")
            return
        del self._strangers[near]
        self._open[near] = member
        member.open.add(near)
        task = asyncio.create_task(self._serve(near, member, asked), name="egress")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def left(self, near: Near) -> None:
        """See Serving."""
        self._strangers.pop(near, None)
        if (member := self._open.pop(near, None)) is not None:
            member.open.discard(near)
            self.sent += near.passed
            self.received += near.other.passed if near.other else 0

    async def _serve(self, near: Near, member: Member, asked: Asked) -> None:
        where = f"{asked.host}:{asked.port}"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                far, first = await self._reach(member, asked)
        except Denied as denied:
            self.refused[denied.reason] += 1
            member.denied(asked.host, asked.port, denied.reason)
            near.refuse(403, f"This session may not reach {where} ({denied.reason}).")
        except Failed:
            near.refuse(502, f"The name of {where} could not be resolved.")
        except TimeoutError:
            near.refuse(504, f"{where} does not answer.")
        except OSError:
            near.refuse(502, f"There is no connection to {where}.")
        else:
            if near not in self._open:  # it has gone meanwhile
                far.abort()
            near.join(far, first, b"HTTP/1.1 200 OK\r\n\r\n" if asked.tunnel else b"")

    # --- where to --------------------------------------------------------------------------------------------------

    async def _reach(self, member: Member, asked: Asked) -> tuple[Far, bytes]:
        """A connection, and what is to be sent over it first. Raises Denied, Failed, OSError."""
        host, port = asked.host.lower().removesuffix("."), asked.port
        first = b"" if asked.tunnel else asked.head()
        if (host, port) in member.also:
            return await self._connect(await self._addresses_of(host), port), first
        if _is_this_machine(host):
            address, taken = await member.local(port)
            if address is not None:
                return await self._connect([address], port), first
            if taken:
                raise Denied("not_of_this_session")
            raise ConnectionRefusedError
        if not member.reach.names(host, port):
            raise Denied("host_not_allowed")
        upstream = proxies.proxy_for("https" if asked.tunnel else "http", host)
        addresses = await self._judge(member, host, port, may_be_unknown=upstream is not None)
        if upstream is None:
            return await self._connect(addresses, port), first
        return await self._through(upstream, asked)

    async def _judge(self, member: Member, host: str, port: int, *, may_be_unknown: bool) -> list[str]:
        """Addresses that may be connected to. Raises Denied, Failed."""
        if (host, port) in self._databases or (port not in USUAL_PORTS and port in {p for _, p in self._databases}):
            raise Denied("address_not_allowed")
        allows = is_elsewhere if member.reach.mode == "open" else is_public
        try:
            found = await self._outbound.resolve(host, port, member.tenant_id, allows=allows)
        except Refused as error:
            raise Denied("address_not_allowed") from error
        except Failed:
            if may_be_unknown:  # names of elsewhere are the other proxy's to resolve
                return []
            raise
        for name, of_database in self._databases:
            if of_database == port and {*found} & {*await self._addresses_of(name)}:
                raise Denied("address_not_allowed")
        return found

    async def _addresses_of(self, host: str) -> list[str]:
        """Of a host that the operator has named. Raises Failed."""
        return await self._outbound.resolve(host, 0, allows=lambda _address: True)

    async def _connect(self, addresses: list[str], port: int) -> Far:
        loop = asyncio.get_running_loop()

        async def connect(address: str) -> Far:
            return (await loop.create_connection(Far, address, port))[1]

        return await first_of(addresses[:MAX_ADDRESSES], connect)

    async def _through(self, upstream: SplitResult, asked: Asked) -> tuple[Far, bytes]:
        """The same through the proxy that the server itself must use."""
        far = await self._connect(await self._addresses_of(upstream.hostname or ""), upstream.port or 80)
        if not asked.tunnel:
            return far, asked.head(absolute=True, more=proxies.authorization(upstream))
        try:
            await far.connect_through(proxies.tunnel(upstream, asked.authority))
        except BaseException:
            far.abort()
            raise
        return far, b""


def _key(token: bytes) -> bytes:
    # So that how long a look takes tells nothing about tokens.
    return hashlib.sha256(token).digest()


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        address = ip_address(host)
        return address.is_loopback or address.is_unspecified
    return False
