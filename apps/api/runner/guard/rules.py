"""Rules of ports for the guards of one instance: made once for each kind of network, handed over by a Unix socket."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from apps.api.runner.guard import confinement

MAX_KEPT = 6
"""Kinds of which the rules are kept: some 4 MB of the kernel's memory each."""

MAX_WAITING = 64
"""Connections that have not shown a ticket. Beyond it the oldest is closed."""

FIRST_FREE = 1024
"""Below it lie the services of the internet and of clouds, metadata among them: agents reach those by the proxy, which
looks at addresses, or not at all."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What rules allow.

    Attributes:
        mode: `open`, `limited` or `model_only`.
        ways: ports of the gateway and of the proxy.
        closed: ports of the fleet's databases, which nobody connects to or listens on.
        served: ports of the fleet's instances, which nobody listens on.
    """

    mode: str
    ways: frozenset[int]
    closed: frozenset[int]
    served: frozenset[int]

    def make(self) -> int:
        """The rules, a descriptor. Takes some 50 ms where ports are many. Raises OSError."""
        free = [port for port in range(FIRST_FREE, 65_536) if port not in self.closed]
        connect = [*(free if self.mode == "open" else ()), *self.ways]
        # 0 is for any port that is free.
        bind = [] if self.mode == "model_only" else [0, *(port for port in free if port not in self.served)]
        return confinement.port_rules(connect, bind)


class PortRules:
    """Those of one instance. A ticket is good for one process, once: whoever has the descriptor may add to it."""

    def __init__(self, path: Path) -> None:
        """`path`: of the socket, in a directory of the server's own."""
        self.path = path
        self._made: dict[Kind, int] = {}
        self._making = asyncio.Lock()
        self._tickets: dict[bytes, Kind] = {}
        self._waiting: dict[socket.socket, None] = {}
        self._listening: socket.socket | None = None

    def start(self) -> None:
        """Listen. Raises OSError."""
        self._listening = listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.path))
        listening.listen(128)
        listening.setblocking(False)
        asyncio.get_running_loop().add_reader(listening, self._accept)

    async def ticket(self, kind: Kind) -> str:
        """What a guard shows to be given the rules of this kind. Raises OSError."""
        async with self._making:
            if kind not in self._made:
                self._made[kind] = await asyncio.to_thread(kind.make)
            self._made[kind] = self._made.pop(kind)  # the newest is the last
            while len(self._made) > MAX_KEPT:
                os.close(self._made.pop(next(iter(self._made))))
        made = secrets.token_urlsafe(32)
        self._tickets[made.encode()] = kind
        return made

    def forget(self, ticket: str) -> None:
        """Its process has ended, or was not started."""
        self._tickets.pop(ticket.encode(), None)

    def _accept(self) -> None:
        assert self._listening is not None  # noqa: S101 - for the type checker
        with suppress(OSError):
            caller, _ = self._listening.accept()
            caller.setblocking(False)
            self._waiting[caller] = None
            asyncio.get_running_loop().add_reader(caller, self._hand_over, caller)
            if len(self._waiting) > MAX_WAITING:
                self._end(next(iter(self._waiting)))

    def _hand_over(self, caller: socket.socket) -> None:
        try:
            rules = self._made.get(kind) if (kind := self._tickets.pop(caller.recv(100), None)) else None
            if rules is not None:
                socket.send_fds(caller, [b"."], [rules])
        except OSError:
            pass  # it has gone
        finally:
            self._end(caller)

    def _end(self, caller: socket.socket) -> None:
        self._waiting.pop(caller, None)
        asyncio.get_running_loop().remove_reader(caller)
        caller.close()

    def close(self) -> None:
        """Hand nothing over any more."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
        for caller in tuple(self._waiting):
            self._end(caller)
        while self._made:
            os.close(self._made.popitem()[1])
