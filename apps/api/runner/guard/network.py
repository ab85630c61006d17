"""The guard's side of what an agent may reach: rules of ports from the server, and a filter for what they leave open.

Part of the guard's start: standard library only, and of that as little as possible (see program.py).

The rules are one for each of some 64,000 ports, so the server makes them once, and hands the descriptor to whoever
shows a ticket (`rules.py`). An agent must not have it: it could add ports.
"""

from __future__ import annotations

import _socket as socket  # the module `socket` takes longer to import than the rest of the guard
import os

from . import confinement, seccomp

TYPE_CHECKING = False  # see confinement.py
if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 10.0
"""For the server to hand the rules over."""

DIRECT = "direct"
"""Nothing is limited."""


class Network:
    """What is taken from one agent.

    Attributes:
        mode: see `seccomp.network_program`.
        unix: whether it may have Unix sockets.
        rules: of ports, a descriptor; None for none.
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        """Take from the guard's environment what `launcher.guard_environment` has put there. Raises OSError."""
        self.mode = given.get("CLI_GUARD_NETWORK", DIRECT)
        self.unix = given.get("CLI_GUARD_UNIX_SOCKETS") != "off"
        at, ticket = given.get("CLI_GUARD_PORTS", ""), given.get("CLI_GUARD_PORTS_TICKET", "")
        self.rules = None if self.mode == DIRECT else _fetch(at, ticket)

    @property
    def filters(self) -> bool:
        """Whether there is a filter of system calls in it."""
        return self.mode != DIRECT or not self.unix

    def close(self) -> None:
        """The agent has them."""
        if self.rules is not None:
            os.close(self.rules)


def restrict(mode: str, unix: bool, rules: int | None) -> None:
    """Limit this process and all that it will start to what `Network` says. Raises OSError."""
    if rules is not None:
        confinement.restrict_ports(rules)
    if mode != DIRECT or not unix:
        seccomp.restrict_network(mode, unix=unix)


def _fetch(at: str, ticket: str) -> int:
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(SECONDS)
    server.connect(at)
    server.sendall(ticket.encode())
    _, sent, *_ = server.recvmsg(1, socket.CMSG_LEN(4))
    server.close()
    if not sent:
        raise PermissionError("the server has no rules of ports for this process")
    rules = int.from_bytes(sent[0][2][:4], "little")
    os.set_inheritable(rules, False)
    return rules
