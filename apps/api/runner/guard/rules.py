"""What the guards of one instance ask for by a Unix socket: rules of ports, made once for each kind of network.

Of an agent in a network namespace of its own the guard hands over instead: what listens in there for the server.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from apps.api.runner.guard import confinement

MAX_KEPT = 6
"""Kinds of which the rules are kept: some 4 MB of the kernel's memory each."""

MAX_WAITING = 64
"""Connections that have not shown a ticket, or handed nothing over yet. Beyond it the oldest is closed."""

MAX_WAYS = 2
"""Sockets of one agent: of the gateway and of the proxy."""

Take = Callable[[Sequence[socket.socket]], None]
"""Is given sockets that listen in an agent's network namespace, and closes them."""

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
        self._tickets: dict[bytes, Kind | Take] = {}
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
        return self._issue(kind)

    def way(self, take: Take) -> str:
        """What a guard shows to hand over what listens in its agent's network namespace."""
        return self._issue(take)

    def _issue(self, stands_for: Kind | Take) -> str:
        made = secrets.token_urlsafe(32)
        self._tickets[made.encode()] = stands_for
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
            asyncio.get_running_loop().add_reader(caller, self._answer, caller)
            if len(self._waiting) > MAX_WAITING:
                self._end(next(iter(self._waiting)))

    def _answer(self, caller: socket.socket) -> None:
        stays = False
        try:
            shown = self._tickets.pop(caller.recv(100), None)
            if isinstance(shown, Kind):
                if (rules := self._made.get(shown)) is not None:
                    socket.send_fds(caller, [b"."], [rules])
            elif shown is not None:
                caller.sendall(b".")
                asyncio.get_running_loop().add_reader(caller, self._take_over, caller, shown)
                stays = True
        except OSError:
            pass  # it has gone
        finally:
            if not stays:
                self._end(caller)

    def _take_over(self, caller: socket.socket, take: Take) -> None:
        try:
            _, handed, *_ = socket.recv_fds(caller, 1, MAX_WAYS)
            if handed:
                take([socket.socket(fileno=descriptor) for descriptor in handed])
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
