"""Ports that an agent's programs listen on: found by their processes, told as events, asked for by previews.

Linux only; elsewhere none are found. Source: proc_net_tcp(5), proc_pid_fd(5).
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

import asyncpg

from apps.api.core.events.log import Event, Writer
from apps.api.core.sessions import ports
from apps.api.runner.agent.process import Agent
from apps.api.runner.guard import processes
from apps.api.runner.session.turn import Turns

SETTLE_LOOKS, SETTLE_SECONDS = 5, 0.2
"""For a program in the background that opens its port after its turn has ended, in the eyes of its client."""

MAX_PORTS = 50
"""Told of one session, the lowest ones."""

Tree = dict[int, list[int]]
Address = IPv4Address | IPv6Address

_LISTENING = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


class Ports:
    """Those of one session.

    Attributes:
        open: port → address, as it was at the last look.
        asked_at: when somebody has last asked for an address, in monotonic seconds.
    """

    def __init__(self, writer: Writer, turns: Turns) -> None:
        self._writer, self._turns = writer, turns
        self.open: dict[int, str] = {}
        self.asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def look(self, agent: Agent | None, tree: Tree | None = None) -> None:
        """Look below the process of the agent, if one lives, and tell what has changed. Raises what `Writer.append`
        raises."""
        pid = agent.pid if agent else None
        found = await asyncio.to_thread(listening, pid, tree) if pid else {}
        found = dict(sorted(found.items())[:MAX_PORTS])
        before, self.open = self.open, found
        if list(found) == list(before):
            return

        async def store(connection: asyncpg.Connection, _seq: int) -> None:
            await ports.store(connection, self._writer.session_id, found)

        event = Event("status", {"status": "ports", "ports": list(found)}, self._turns.run_id)
        await self._writer.append(event, also=store)

    async def settle(self, agent: Agent, *, began: bool) -> None:
        """Look at the end of a turn; a moment longer when it `began` programs, which may not listen yet."""
        before = list(self.open)
        for _ in range(SETTLE_LOOKS if began else 1):
            await self.look(agent)
            if list(self.open) != before or not began:
                return
            await asyncio.sleep(SETTLE_SECONDS)

    async def address(self, agent: Agent | None, port: int) -> str | None:
        """Where a port is open at this moment; None when it is not, or is somebody else's."""
        self.asked_at = time.monotonic()
        pid = agent.pid if agent else None
        return (await asyncio.to_thread(listening, pid)).get(port) if pid else None

    async def whose(self, agent: Agent | None, port: int) -> tuple[str | None, bool]:
        """Where this session alone listens on a port, and whether anybody does at all. One look at a time: programs of
        the session ask, as often as they like."""
        pid = agent.pid if agent else None
        async with self._asking:
            found = await asyncio.to_thread(listening, pid) if pid else {}
            return found.get(port), await asyncio.to_thread(_is_taken, port)


def _is_taken(port: int) -> bool:
    return sys.platform == "linux" and any(row[0] == port for name in ("tcp", "tcp6") for row in _table(name))


def listening(pid: int, tree: Tree | None = None) -> dict[int, str]:
    """TCP ports that the processes below `pid` listen on, alone → an address to connect to.

    A port is none of them where who connects could reach a process of somebody else: one that listens at that address
    as well, or at every address, and so would take over when the other ends.
    """
    if sys.platform != "linux":
        return {}
    below = processes.descendants(processes.tree() if tree is None else tree, pid)
    if len(below) < 2:  # the agent's own program, and nothing that it has started
        return {}
    own = {inode for child in below for inode in _sockets(child)}
    rows = [*_table("tcp"), *_table("tcp6")]
    foreign: dict[int, list[Address]] = {}
    for port, address, inode in rows:
        if inode not in own:
            foreign.setdefault(port, []).append(address)
    found: dict[int, str] = {}
    for port, address, inode in rows:
        reached = _reachable(address)
        if inode in own and not any(_takes(other, reached) for other in foreign.get(port, ())):
            found.setdefault(port, str(reached))
    return found


def _takes(listening: Address, address: Address) -> bool:
    """Whether what listens at one address may get a connection to another; `::` is for IPv4 too, unless told not to."""
    return listening == address or (listening.is_unspecified and listening.version >= address.version)


def _sockets(pid: int) -> list[str]:
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if match := _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}")):
                found.append(match[1])
    except OSError:  # it has ended, or is another user's
        pass
    return found


def _table(name: str) -> list[tuple[int, Address, str]]:
    """Listening sockets: port, address, inode."""
    try:
        with open(f"/proc/net/{name}") as table:
            rows = [line.split() for line in table.readlines()[1:]]
    except FileNotFoundError:  # without IPv6
        return []
    found = []
    for row in rows:
        if row[3] == _LISTENING:
            address, _, port = row[1].partition(":")
            found.append((int(port, 16), _address(address), row[9]))
    return found


def _address(text: str) -> Address:
    # Words of 32 bits, in the machine's order of bytes.
    words = [bytes.fromhex(text[i : i + 8]) for i in range(0, len(text), 8)]
    address = ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
    return getattr(address, "ipv4_mapped", None) or address


def _reachable(address: Address) -> Address:
    if address.is_unspecified:
        return ip_address("127.0.0.1" if address.version == 4 else "::1")
    return address
