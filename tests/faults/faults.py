"""What goes wrong. Each fault takes back what it has done before it ends; `Trouble` says for how long, by the seed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import psutil

from apps.api.db import CONNECTION_ERRORS
from apps.api.dev.embedded import Name
from apps.api.redis import REDIS_ERRORS, open_redis
from tests.faults.history import Broken
from tests.faults.load import DELETION, Heard
from tests.faults.stage import DATABASE, LEASE_SECONDS, WELL_SECONDS, Host, Stage
from tests.proxy import Proxy
from tests.world import administrator, terminate_backends, until

Fault = Callable[["Trouble", Stage], Awaitable[str]]
"""Returns what was done, and to what."""


@dataclass
class Trouble:
    """Faults, one after the other.

    Attributes:
        heard: of what clients hear.
        names: only these faults, if any are named.
        done: how often each was tried.
        log: what was done when, on the loop's clock.
        down: servers that something is wrong with: no other fault comes to them meanwhile.
    """

    stage: Stage
    heard: Heard
    names: Sequence[str] = ()
    done: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    def network(self, host: Host) -> tuple[str, Proxy]:
        """That to PostgreSQL, that to Redis, or that from nginx, by name."""
        some = [("postgres", host.postgres), ("redis", host.redis)]
        return self.stage.chance.choice([*some, ("nginx", host.front)] if host.role != "worker" else some)

    async def hold(self, least: float, most: float) -> float:
        """Leave it wrong for so many seconds."""
        seconds = self.stage.chance.uniform(least, most)
        await asyncio.sleep(seconds)
        return seconds

    async def go_on(self, until: float) -> None:
        """Do one after the other until this time of the loop's clock."""
        chance, loop = self.stage.chance, asyncio.get_running_loop()
        known = named(self.names)
        weights = [weight for _, weight, _ in known]
        while loop.time() < until:
            name, _, fault = chance.choices(known, weights)[0]
            began = loop.time()
            told = ""
            with suppress(*CONNECTION_ERRORS, *REDIS_ERRORS):  # what it wants to ask is away: it has gone wrong enough
                told = await fault(self, self.stage)
            for proxy in (proxy for host in self.stage.hosts for proxy in (host.postgres, host.redis, host.front)):
                proxy.forget()
            if told:
                self.done[name] += 1
                self.log.append(f"{began:.1f} {loop.time():.1f} {name}: {told}")
            await asyncio.sleep(chance.uniform(0.2, 2.0))

    def hosts(self, *roles: str) -> list[Host]:
        """Those that nothing is wrong with; somebody must be left that clients reach, and somebody that works."""
        stage = self.stage
        return [
            host
            for host in stage.free(*roles)
            if any(other.role != "worker" for other in stage.free() if other is not host)
            and any(other.role != "api" for other in stage.free() if other is not host)
        ]

    def host(self, *roles: str) -> Host | None:
        """One of them."""
        free = self.hosts(*roles)
        return self.stage.chance.choice(free) if free else None


async def _ended(trouble: Trouble, stage: Stage, number: signal.Signals, *roles: str) -> str:
    host = trouble.host(*roles)
    return "" if host is None else await _end(trouble, host, number)


async def _end(trouble: Trouble, host: Host, number: signal.Signals) -> str:
    with host.troubled():
        host.instance.signal(number)
        await host.instance.ended(60)
        await trouble.hold(0.0, 4.0)
        await _restart(trouble, host)
    return f"instance {host.number}"


async def _killed_after(trouble: Trouble, stage: Stage, kind: str) -> str:
    """Whoever owns the session of which a client has just been told an event of this kind."""
    session_id = await trouble.heard.next(kind, 10.0)
    if session_id is None:
        return ""
    async with stage.database() as db:
        owner = await db.pool.fetchval("SELECT owner_id::text FROM sessions WHERE id = $1::text::uuid", session_id)
    host = next((host for host in trouble.hosts() if host.instance.id == owner), None)
    return "" if host is None else f"{await _end(trouble, host, signal.SIGKILL)}, of session {session_id}"


async def _restart(trouble: Trouble, host: Host) -> None:
    """As what keeps instances running does it: again and again, as one that finds no database ends. Raises Broken."""
    ends = asyncio.get_running_loop().time() + WELL_SECONDS
    while asyncio.get_running_loop().time() < ends:
        with suppress(AssertionError, TimeoutError):
            await trouble.stage.fleet.again(host.instance)
            return
        await trouble.hold(0.5, 1.5)
    raise Broken(f"instance {host.number} does not start: {host.instance.log.read_text()[-1000:]}")


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
    proxies = [proxy for host in stage.hosts for proxy in (host.postgres, host.redis, host.front)]
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


async def _server_frozen(trouble: Trouble, stage: Stage, name: str, program: str) -> str:
    """All processes of one, as on a machine that was paused."""
    if name in trouble.down:
        return ""
    trouble.down.add(name)
    try:
        found = await asyncio.to_thread(stage.processes, program)
        _signal(found, signal.SIGSTOP)
        try:
            seconds = await trouble.hold(0.2, LEASE_SECONDS)
        finally:
            _signal(found, signal.SIGCONT)
    finally:
        trouble.down.discard(name)
    return f"{len(found)} processes of {name}, {seconds:.1f} s" if found else ""


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


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


async def _lost_commit(trouble: Trouble, stage: Stage) -> str:
    """A connection ends while something is committed: before PostgreSQL hears of it, or when it has done it."""
    host = trouble.host()
    if host is None:
        return ""
    proxy, told = host.postgres, ""
    for _ in range(stage.chance.randint(1, 8)):
        before = stage.chance.random() < 0.3
        proxy.loses = (proxy.requests, _COMMIT) if before else (proxy.answers, _COMMITTED)
        with suppress(TimeoutError):
            await until(lambda: proxy.loses is None, every=0.02, seconds=3)
            told += " before" if before else " after"
        proxy.loses = None
    return f"instance {host.number},{told}" if told else ""


async def _cut_deletion(trouble: Trouble, stage: Stage) -> str:
    """The first commits of a deletion, and of whatever else is asked then, are made, and nobody hears of it."""
    session_id = await trouble.heard.next(DELETION, 15.0)
    if session_id is None:
        return ""
    proxies = [host.postgres for host in stage.hosts if host.role != "worker"]
    for proxy in proxies:
        proxy.loses = (proxy.answers, _COMMITTED)
    with suppress(TimeoutError):
        await until(lambda: not any(proxy.loses for proxy in proxies), every=0.02, seconds=2)
    for proxy in proxies:
        proxy.loses = None
    return f"session {session_id}"


async def _read_only(trouble: Trouble, stage: Stage) -> str:
    """As a standby that was not promoted yet: connections that there are, and new ones, may not write."""
    if "postgres" in trouble.down:
        return ""
    trouble.down.add("postgres")
    try:
        await _set(stage, "SET default_transaction_read_only = on")
        try:
            seconds = await trouble.hold(0.5, 1.5 * LEASE_SECONDS)
        finally:
            ends = asyncio.get_running_loop().time() + WELL_SECONDS
            while not await _is_set(stage, "RESET default_transaction_read_only"):
                if asyncio.get_running_loop().time() > ends:
                    raise Broken("PostgreSQL cannot be told to write again")
                await asyncio.sleep(0.2)
    finally:
        trouble.down.discard("postgres")
    return f"{seconds:.1f} s"


async def _is_set(stage: Stage, what: str) -> bool:
    with suppress(*CONNECTION_ERRORS):
        await _set(stage, what)
        return True
    return False


async def _set(stage: Stage, what: str) -> None:
    async with administrator(stage.settings) as owner:
        await owner.execute("SET default_transaction_read_only = off")
        await owner.execute(f"ALTER DATABASE {DATABASE} {what}")
        await terminate_backends(owner)


async def _full(trouble: Trouble, stage: Stage) -> str:
    host = next((host for host in trouble.hosts() if host.small), None)
    if host is None:
        return ""
    ballast = host.instance.disk / ".ballast"
    with host.troubled():
        try:
            with ballast.open("wb") as file, suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.tell(), 4096)
                    file.seek(4096, os.SEEK_CUR)
            seconds = await trouble.hold(1.0, 15.0)
        finally:
            ballast.unlink(missing_ok=True)
    return f"instance {host.number}, {seconds:.1f} s"


async def _clock(trouble: Trouble, stage: Stage) -> str:
    host = next((host for host in trouble.hosts() if host.clock), None)
    if host is None or host.clock is None:
        return ""
    with host.troubled():
        step = stage.chance.choice((-86400, -3600, -20, -3, 3, 20, 3600, 86400))
        draft = host.clock.with_suffix(".new")
        for offset in (step, 0):
            draft.write_text(f"{offset:+d}")
            draft.replace(host.clock)
            seconds = await trouble.hold(0.5, LEASE_SECONDS)
    return f"instance {host.number} by {step} s for {seconds:.1f} s"


_COMMIT = re.compile(rb"COMMIT")
_COMMITTED = re.compile(rb"(COMMIT|(INSERT 0|UPDATE|DELETE|SELECT) \d+)\0Z\0\0\0\x05I\Z")
"""The end of a transaction as PostgreSQL confirms it: the last command, and that none is open."""

KINDS = (
    "queued",
    "init",
    "message",
    "partial",
    "permission_request",
    "action_resolved",
    "files",
    "status",
    "result",
    "error",
    "done",
)
"""Events after which an owner is killed; the others are rare here, or none."""

FAULTS: list[tuple[str, float, Fault]] = [
    ("instance killed", 1, partial(_ended, number=signal.SIGKILL)),
    ("instance killed that runs agents", 1, lambda t, s: _ended(t, s, signal.SIGKILL, "worker", "both")),
    *((f"owner killed after {kind}", 2 / len(KINDS), partial(_killed_after, kind=kind)) for kind in KINDS),
    ("instance ended in order", 1, partial(_ended, number=signal.SIGTERM)),
    ("instance frozen", 1, _frozen),
    ("agent killed", 1, partial(_agent, number=signal.SIGKILL)),
    ("agent frozen", 1, partial(_agent, number=signal.SIGSTOP)),
    ("connections cut", 1, _cut),
    ("commit cut", 1, _lost_commit),
    ("deletion cut", 0.5, _cut_deletion),
    ("network one-way", 1, _one_way),
    ("network away", 1, _unreachable),
    ("network slow", 1, _late),
    ("disk full", 1, _full),
    ("clock set", 1, _clock),
    ("postgres restarted", 1, partial(_restarted, name="postgres", killed=False)),
    ("postgres killed", 1, partial(_restarted, name="postgres", killed=True)),
    ("postgres frozen", 1, partial(_server_frozen, name="postgres", program="postgres")),
    ("redis frozen", 1, partial(_server_frozen, name="valkey", program="valkey-server")),
    ("nginx frozen", 1, partial(_server_frozen, name="nginx", program="nginx")),
    ("postgres ends connections", 1, _backends),
    ("postgres only reads", 1, _read_only),
    ("redis restarted", 1, partial(_restarted, name="valkey", killed=False)),
    ("redis killed", 1, partial(_restarted, name="valkey", killed=True)),
    ("redis emptied", 1, _emptied),
    ("redis paused", 1, _paused),
]
"""By name, with how likely each is."""

HARMLESS = {
    "connections cut",
    "commit cut",
    "deletion cut",
    "network slow",
    "clock set",
    "postgres ends connections",
    "redis restarted",
    "redis killed",
    "redis emptied",
    "redis paused",
    "redis frozen",
    "nginx frozen",
}
"""For which no run may fail: what is asked is asked again, long before a lease is over."""


def named(names: Sequence[str]) -> list[tuple[str, float, Fault]]:
    """The faults whose names begin so; all of them where none is given."""
    return [each for each in FAULTS if not names or any(map(each[0].startswith, names))]


def are_harmless(names: Sequence[str]) -> bool:
    """Whether runs may not fail for any of them."""
    return {name for name, _, _ in named(names)} <= HARMLESS
