"""CPU and memory of processes, by psutil. CPU is user plus system time in seconds."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

QUIET_CORES = 0.25
"""Others may use so much of a machine that counts as quiet."""


def cpu_of(pid: int, *, children: bool = False) -> float:
    """CPU seconds of a process so far; with `children` also of all its descendants, ended ones included."""
    process = psutil.Process(pid)
    members = [process, *(process.children(recursive=True) if children else ())]
    total = 0.0
    for member in members:
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if children:
            total += times.children_user + times.children_system
    return total


def rss_of(pid: int) -> int:
    """Resident bytes of a process."""
    return int(psutil.Process(pid).memory_info().rss)


def server_pid(name: str) -> int:
    """The embedded server of this benchmark with that program name: the first such process below this one."""
    found = [p for p in psutil.Process().children(recursive=True) if p.name() == name]
    if not found:
        raise LookupError(f"no {name} below this process")
    pids = {p.pid for p in found}
    return next(p.pid for p in found if p.ppid() not in pids)


def allow_many_sockets() -> None:
    """Raise the limit of open files to the hard one, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


@dataclass
class Load:
    """How much of the machine others took while something was measured: the noise in the figures."""

    started: float
    busy: float
    own: float

    @classmethod
    def begin(cls) -> Load:
        return cls(time.monotonic(), _busy(), cpu_of(os.getpid(), children=True))

    @classmethod
    async def settled(cls, seconds: float) -> None:
        """Wait until others leave the machine alone, at most `seconds`."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            load = cls.begin()
            await asyncio.sleep(1)
            if load.others() < QUIET_CORES:
                return

    def others(self) -> float:
        """Cores that processes outside of this benchmark kept busy since `begin`, on average."""
        seconds = time.monotonic() - self.started
        own = cpu_of(os.getpid(), children=True) - self.own
        return max((_busy() - self.busy - own) / seconds, 0.0)


class Meter:
    """CPU seconds that named processes use between `start` and `stop`."""

    def __init__(self, pids: Mapping[str, int], *, with_children: tuple[str, ...] = ()) -> None:
        self._pids, self._with_children = dict(pids), with_children
        self._before: dict[str, float] = {}
        self.used: dict[str, float] = {}

    def _read(self) -> dict[str, float]:
        return {name: cpu_of(pid, children=name in self._with_children) for name, pid in self._pids.items()}

    def start(self) -> None:
        self._before = self._read()

    def stop(self) -> dict[str, float]:
        """CPU seconds by name since `start`."""
        now = self._read()
        self.used = {name: now[name] - self._before[name] for name in now}
        return self.used

    def per(self, events: int) -> dict[str, float]:
        """µs of CPU per event, by name and in `all`."""
        shares = {name: seconds * 1e6 / max(events, 1) for name, seconds in self.used.items()}
        return {**shares, "all": sum(shares.values())}


def in_words(shares: Mapping[str, float], unit: str = "µs") -> str:
    """`owner 12.1 + redis 5.0 + sse 9.0 = 26.1 µs`."""
    parts = " + ".join(f"{name} {value:.1f}" for name, value in shares.items() if name != "all")
    return f"{parts} = {shares['all']:.1f} {unit}"
