"""The guard's side of what an agent may reach: rules of ports from the server, and a filter for what they leave open.

Part of the guard's start: standard library only, and of that as little as possible (see program.py).

The rules are one for each of some 64,000 ports, so the server makes them once, and hands the descriptor to whoever
shows a ticket (`rules.py`). An agent must not have it: it could add ports.

An agent in a network namespace of its own needs none. There is nothing in it but a loopback device, and what listens
there for the server: sockets that are made inside, and handed to the server for a ticket.
"""

from __future__ import annotations

import _socket as socket  # the module `socket` takes longer to import than the rest of the guard
import os

from . import confinement, seccomp

TYPE_CHECKING = False  # see confinement.py
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECONDS = 10.0
"""For the server to answer to a ticket."""

DIRECT = "direct"
"""Nothing is limited."""

WAITING = 128
"""Connections that a socket holds until the server takes them."""


class Network:
    """What is taken from one agent.

    Attributes:
        mode: see `seccomp.network_program`.
        unix: whether it may have Unix sockets.
        rules: of ports, a descriptor; None for none.
        ways: ports at which the server is to be found in a network namespace of the agent's own; none without one.
        server: connected to who waits for the sockets of `ways`, a descriptor; None without such a namespace.
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        """Take from the guard's environment what `launcher.guard_environment` has put there. Raises OSError."""
        self.mode = given.get("CLI_GUARD_NETWORK", DIRECT)
        self.unix = given.get("CLI_GUARD_UNIX_SOCKETS") != "off"
        self.ways = tuple(map(int, filter(None, given.get("CLI_GUARD_WAYS", "").split(","))))
        self.rules: int | None = None
        self.server: int | None = None
        if self.mode == DIRECT:
            return
        server, sent = _show(given.get("CLI_GUARD_PORTS", ""), given.get("CLI_GUARD_PORTS_TICKET", ""))
        if self.ways:
            self.server = server.detach()
            return
        server.close()
        if not sent:
            raise PermissionError("the server has no rules of ports for this process")
        self.rules = int.from_bytes(sent[0][2][:4], "little")
        os.set_inheritable(self.rules, False)

    @property
    def filters(self) -> bool:
        """Whether there is a filter of system calls in it."""
        return self.mode != DIRECT or not self.unix

    def close(self) -> None:
        """The agent has them."""
        for given in (self.rules, self.server):
            if given is not None:
                os.close(given)


def restrict(mode: str, unix: bool, rules: int | None) -> None:
    """Limit this process and all that it will start to what `Network` says. Raises OSError."""
    if rules is not None:
        confinement.restrict_ports(rules)
    if mode != DIRECT or not unix:
        seccomp.restrict_network(mode, unix=unix)


def open_ways(server: int, ports: Sequence[int]) -> None:
    """Listen at these ports of this process's network namespace, and hand the sockets to the server. Raises OSError."""
    listening = []
    for port in ports:
        made = socket.socket(socket.AF_INET)
        made.bind(("127.0.0.1", port))
        made.listen(WAITING)
        listening.append(made)
    told = socket.socket(fileno=server)
    handed = b"".join(made.fileno().to_bytes(4, "little") for made in listening)
    told.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
    for made in (told, *listening):
        made.close()


def _show(at: str, ticket: str) -> tuple[socket.socket, list[tuple[int, int, bytes]]]:
    """Connect to the server, show it a ticket, and wait for what it sends for it. Raises OSError."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.settimeout(SECONDS)
        server.connect(at)
        server.sendall(ticket.encode())
        answer, sent, *_ = server.recvmsg(1, socket.CMSG_LEN(4))
        if not answer:
            raise PermissionError("the server does not know this process")
    except BaseException:
        server.close()
        raise
    return server, sent
