"""The ways of agents out of their confinement: to a model, to what their session may reach, and to nothing else.

Here is the one place in which both listen and are told of a process. They also serve on sockets that listen in a
network namespace of the process's own: a `model_only` agent has one wherever there are namespaces. A `limited` one has
it only where the kernel has no rules of ports: nobody comes in, so there are no previews of what it serves.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from apps.api.core.config.profiles import Profile, reach_of
from apps.api.core.config.reach import Reach, narrowed
from apps.api.core.context import Core
from apps.api.core.fleet import facts
from apps.api.core.fleet.claims import Claim
from apps.api.core.network import model_api, own
from apps.api.core.network.outbound import Outbound
from apps.api.core.tasks import Loops
from apps.api.runner.agent import options
from apps.api.runner.agent.process import CannotStart
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.egress.proxy import Local, Member, Proxy, Reason
from apps.api.runner.gateway import gateway
from apps.api.runner.gateway.holder import Holder
from apps.api.runner.guard import isolation
from apps.api.runner.guard.launcher import Network
from apps.api.runner.guard.rules import Kind, PortRules
from apps.api.runner.session.turn import Turns

log = structlog.get_logger(__name__)

MAX_SERVED = 1_000
"""Ports of instances on this host that are kept from agents."""


AZURE_HOST_PORT = 32_526
"""At which Azure tells a machine of the settings of its extensions, secrets among them. Other clouds, and the rest of
what Azure tells, are at ports that rules close to all agents: see rules.FIRST_FREE.

Source: Microsoft's page "What is IP address 168.63.129.16?".
"""


@dataclass(frozen=True, slots=True)
class Access:
    """What one process is given.

    Attributes:
        env: variables for it.
        network: for its guard.
        expect: is told that a turn begins, whose calls to the model come soon.
        settle: is told what the SDK says that its calls to the model cost, in USD.
        end: takes all of it back.
    """

    env: dict[str, str]
    network: Network
    expect: Callable[[], None]
    settle: Callable[[float], None]
    end: Callable[[], None]


class OwnNetwork:
    """What listens in the network namespace of one process."""

    def __init__(self, *serve: Callable[[socket.socket], Awaitable[asyncio.Server]]) -> None:
        """`serve`: who serves on the sockets, in their order."""
        self._serve = serve
        self._servers: list[asyncio.Server] = []
        self._serving: asyncio.Task[None] | None = None
        self._over = False

    def take(self, listening: Sequence[socket.socket]) -> None:
        """See rules.Take."""
        self._serving = asyncio.create_task(self._open(listening), name="own-network")

    async def _open(self, listening: Sequence[socket.socket]) -> None:
        try:
            for serve, each in zip(self._serve, listening, strict=True):
                if self._over:
                    break
                self._servers.append(await serve(each))
        except (OSError, ValueError) as error:  # its process finds nobody, and says so
            log.error("ways.not_served", error=error)
        finally:
            for each in listening[len(self._servers) :]:
                each.close()
        if self._over:
            self.end()

    def end(self) -> None:
        """Its process has ended."""
        self._over = True
        for server in self._servers:
            server.close()


class Ways:
    """Those of one instance."""

    def __init__(self, core: Core, scratch: Scratch) -> None:
        self._core, settings = core, core.settings
        self.gateway = gateway.of(core)
        self.proxy = Proxy(settings, Outbound(settings.outbound_allow))
        self._rules = PortRules(scratch.root / "ports")
        self._closed = frozenset({AZURE_HOST_PORT, *(port for _, port in own.databases(settings))})
        self._served = {settings.port}

    async def start(self) -> None:
        """Listen. Raises OSError."""
        await self.gateway.start()
        await self.proxy.start()
        self._rules.start()

    def run_in(self, loops: Loops) -> None:
        """Start the loops."""
        loops.start("model-gateway", self.gateway.look, partial(asyncio.sleep, 1))
        loops.start("egress-proxy", self.proxy.look, partial(asyncio.sleep, 1))

    async def close(self) -> None:
        """End everything, and wait until what was used is noted."""
        self._rules.close()
        await self.proxy.close()
        await self.gateway.close()

    async def admit(
        self, claim: Claim, turns: Turns, local: Local, denied: Callable[[str, int, Reason], None]
    ) -> Access:
        """Let a process of a session out.

        Args:
            local, denied: see Member.

        Raises:
            CannotStart: what its profile says of the network cannot be kept here.
            OSError: this host has no room for the rules.
        """
        settings, unix = self._core.settings, self._core.settings.agent_unix_sockets
        namespaces = options.wall_of(settings, claim.profile).layer == "namespaces"
        asked = reach_of(claim.profile, settings).within(narrowed(claim.network))
        reach = _enforceable(claim.profile, asked, namespaces=namespaces)
        holder = Holder(claim.tenant_id, claim.session_id, lambda: turns.run_id, turns.refuse)
        holder.most, holder.model = claim.config.max_session_usd, options.model_of(settings, claim.config)
        holder.traceparent = lambda: turns.traceparent
        self.gateway.admit(holder)
        env = options.to_the_model(settings, self.gateway.url, holder.token)
        told = partial(self.gateway.expect, holder), partial(self.gateway.settle, holder)
        if reach.mode == "direct":
            return Access(env, Network(unix_sockets=unix), *told, partial(self.gateway.dismiss, holder))
        # A subscription's token is used by the CLI itself, past the gateway.
        model = frozenset({_endpoint(self._core)} if settings.agents_hold_the_credential else ())
        member = Member(claim.tenant_id, reach, local, denied, model)
        proxy = self.proxy.admit(member) if reach.mode != "model_only" or model else ""
        ways = {self.gateway.port: self.gateway.accept_on} | ({self.proxy.port: self.proxy.accept_on} if proxy else {})
        alone = OwnNetwork(*ways.values()) if namespaces and _holds_alone(reach) else None
        ticket = ""

        def end() -> None:
            self.gateway.dismiss(holder)
            self.proxy.dismiss(member)
            self._rules.forget(ticket)
            if alone is not None:
                alone.end()

        try:
            if alone is not None:
                ticket = self._rules.way(alone.take)
            else:
                ticket = await self._rules.ticket(Kind(reach.mode, frozenset(ways), self._closed, await self._ports()))
        except BaseException:
            end()
            raise
        env |= options.proxies(proxy, None if alone or reach.mode == "open" else self.gateway.port)
        shown = tuple(ways) if alone else ()
        return Access(env, Network(reach.mode, unix, self._rules.path, ticket, shown), *told, end)

    async def _ports(self) -> frozenset[int]:
        """Of the instances on this host. One that restarts is gone for a moment, and its port is kept for it."""
        found = await facts.ports(self._core.db, self._core.settings.hostname)
        if len(self._served) + len(found) < MAX_SERVED:
            self._served |= found
        return frozenset(self._served)


def _endpoint(core: Core) -> tuple[str, int]:
    api = model_api.of(core.settings)
    return api.host.lower(), api.port


def _holds_alone(reach: Reach) -> bool:
    """Whether a network namespace is to hold a process that may have one."""
    return reach.mode == "model_only" or (reach.mode == "limited" and isolation.network_lacks() is not None)


def _enforceable(profile: Profile | None, reach: Reach, *, namespaces: bool) -> Reach:
    """What can be kept on this machine. Where `open` cannot, agents reach what the machine does, and operators are
    warned: see isolation.py."""
    if reach.mode == "direct" or (lacking := isolation.network_lacks()) is None:
        return reach
    if namespaces and _holds_alone(reach):
        return reach
    if reach.mode == "open":
        return Reach()
    whose = "profile's" if profile is not None and profile.network else "server's"
    raise CannotStart(f"The {whose} network, {reach.mode}, cannot be kept on this host: {lacking}.")
