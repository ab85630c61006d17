"""What goes wrong. Each fault takes back what it has done before it ends; `Trouble` says for how long, by the seed."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import psutil

from apps.api.db import CONNECTION_ERRORS
from apps.api.dev.embedded import Name
from apps.api.redis import REDIS_ERRORS, open_redis
from tests.faults.stage import LEASE_SECONDS, WELL_SECONDS, Host, Stage
from tests.proxy import Proxy

Fault = Callable[["Trouble", Stage], Awaitable[str]]
"""Returns what was done, and to what."""


@dataclass
class Trouble:
    """Faults, one after the other.

    Attributes:
        done: how often each was tried.
        log: what was done when, on the loop's clock.
        down: servers that are being restarted.
    """

    stage: Stage
    done: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    down: set[Name] = field(default_factory=set)

    def network(self, host: Host) -> tuple[str, Proxy]:
        """That to PostgreSQL, or that to Redis, by name."""
        return self.stage.chance.choice([("postgres", host.postgres), ("redis", host.redis)])

    async def hold(self, least: float, most: float) -> float:
        """Leave it wrong for so many seconds."""
        seconds = self.stage.chance.uniform(least, most)
        await asyncio.sleep(seconds)
        return seconds

    async def go_on(self, until: float) -> None:
        """Do one after the other until this time of the loop's clock."""
        chance, loop = self.stage.chance, asyncio.get_running_loop()
        while loop.time() < until:
            name, fault = chance.choice(FAULTS)
            began = loop.time()
            told = ""
            with suppress(*CONNECTION_ERRORS, *REDIS_ERRORS):  # what it wants to ask is away: it has gone wrong enough
                told = await fault(self, self.stage)
            if told:
                self.done[name] += 1
                self.log.append(f"{began:.1f} {loop.time():.1f} {name}: {told}")
            await asyncio.sleep(chance.uniform(0.2, 2.0))

    def host(self, *roles: str) -> Host | None:
        """One that nothing is wrong with. None: somebody must be left that clients reach, and somebody that works."""
        stage = self.stage
        free = [
            host
            for host in stage.free(*roles)
            if any(other.role != "worker" for other in stage.free() if other is not host)
            and any(other.role != "api" for other in stage.free() if other is not host)
        ]
        return stage.chance.choice(free) if free else None


async def _ended(trouble: Trouble, stage: Stage, number: signal.Signals, *roles: str) -> str:
    host = trouble.host(*roles)
    if host is None:
        return ""
    with host.troubled():
        host.instance.signal(number)
        await host.instance.ended(60)
        await trouble.hold(0.0, 4.0)
        await _restart(trouble, host)
    return f"instance {host.number}"


async def _restart(trouble: Trouble, host: Host) -> None:
    """As what keeps instances running does it: again and again, since one that finds no database ends."""
    async with asyncio.timeout(WELL_SECONDS):
        while True:
            with suppress(AssertionError, TimeoutError):
                await trouble.stage.fleet.again(host.instance)
                return
            await trouble.hold(0.5, 1.5)


async def _frozen(trouble: Trouble, stage: Stage) -> str:
    host = trouble.host()
    if host is None:
        return ""
    with host.troubled():
        host.instance.signal(signal.SIGSTOP)
        try:
            seconds = await trouble.hold(0.2, 2 * LEASE_SECONDS)
        finally:
            host.instance.signal(signal.SIGCONT)
    return f"instance {host.number}, {seconds:.1f} s"


async def _agent(trouble: Trouble, stage: Stage, number: signal.Signals) -> str:
    clis = [
        process
        for host in stage.free("both", "worker")
        for process in await asyncio.to_thread(host.instance.descendants)
        if _name_of(process) == "claude"
    ]
    if not clis:
        return ""
    victim = stage.chance.choice(sorted(clis, key=lambda process: int(process.pid)))
    with suppress(psutil.NoSuchProcess):
        victim.send_signal(number)
        if number == signal.SIGSTOP:
            await trouble.hold(0.1, 5.0)
            victim.send_signal(signal.SIGCONT)
    return f"process {victim.pid}"


def _name_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name())
    return ""


async def _cut(trouble: Trouble, stage: Stage) -> str:
    host = trouble.host()
    if host is None:
        return ""
    what, proxy = trouble.network(host)
    proxy.cut()
    return f"instance {host.number} from {what}"


async def _one_way(trouble: Trouble, stage: Stage) -> str:
    """What is asked gets there and no answer comes back, or the other way round; then it flows again, or is cut."""
    host = trouble.host()
    if host is None:
        return ""
    what, proxy = trouble.network(host)
    way = stage.chance.choice(("requests", "answers"))
    with host.troubled():
        getattr(proxy, way).clear()
        try:
            seconds = await trouble.hold(0.1, 1.5 * LEASE_SECONDS)
            if cut := stage.chance.random() < 0.5:
                proxy.cut()
        finally:
            getattr(proxy, way).set()
    return f"instance {host.number}, {way} of {what}, {seconds:.1f} s{', then cut' if cut else ''}"


async def _unreachable(trouble: Trouble, stage: Stage) -> str:
    host = trouble.host()
    if host is None:
        return ""
    what, proxy = trouble.network(host)
    with host.troubled():
        await proxy.refuse()
        proxy.cut()
        try:
            seconds = await trouble.hold(0.5, 1.5 * LEASE_SECONDS)
        finally:
            await proxy.start()
    return f"{what} of instance {host.number}, {seconds:.1f} s"


async def _late(trouble: Trouble, stage: Stage) -> str:
    delay = stage.chance.uniform(0.01, 0.3)
    proxies = [proxy for host in stage.hosts for proxy in (host.postgres, host.redis)]
    for proxy in proxies:
        proxy.delay = delay
    try:
        seconds = await trouble.hold(1.0, 6.0)
    finally:
        for proxy in proxies:
            proxy.delay = 0.0
    return f"all answers by {delay * 1000:.0f} ms, {seconds:.1f} s"


async def _restarted(trouble: Trouble, stage: Stage, name: Name, *, killed: bool) -> str:
    if name in trouble.down:
        return ""
    trouble.down.add(name)
    try:
        if killed:
            stage.servers.kill(name)
        await asyncio.to_thread(stage.servers.restart, name)
    finally:
        trouble.down.discard(name)
    return name


async def _backends(trouble: Trouble, stage: Stage) -> str:
    """Connections end as the server does it: of an administrator's word, in the middle of whatever it was."""
    async with stage.database() as db:
        ended = await db.pool.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
        )
    return f"{ended} connections"


async def _emptied(trouble: Trouble, stage: Stage) -> str:
    async with open_redis(stage.settings) as redis:
        await redis.client.flushall()
    return "all keys"


async def _paused(trouble: Trouble, stage: Stage) -> str:
    async with open_redis(stage.settings) as redis:
        seconds = stage.chance.uniform(0.5, 4.0)
        await redis.client.client_pause(int(seconds * 1000))
    return f"{seconds:.1f} s"


FAULTS: list[tuple[str, Fault]] = [
    ("instance killed", partial(_ended, number=signal.SIGKILL)),
    ("instance killed that runs agents", lambda t, s: _ended(t, s, signal.SIGKILL, "worker", "both")),
    ("instance ended in order", partial(_ended, number=signal.SIGTERM)),
    ("instance frozen", _frozen),
    ("agent killed", partial(_agent, number=signal.SIGKILL)),
    ("agent frozen", partial(_agent, number=signal.SIGSTOP)),
    ("connections cut", _cut),
    ("network one-way", _one_way),
    ("network away", _unreachable),
    ("network slow", _late),
    ("postgres restarted", partial(_restarted, name="postgres", killed=False)),
    ("postgres killed", partial(_restarted, name="postgres", killed=True)),
    ("postgres ends connections", _backends),
    ("redis restarted", partial(_restarted, name="valkey", killed=False)),
    ("redis killed", partial(_restarted, name="valkey", killed=True)),
    ("redis emptied", _emptied),
    ("redis paused", _paused),
]
"""By name, all equally likely."""
