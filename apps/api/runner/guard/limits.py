"""What the processes of one agent may take: limits that the kernel holds to, and a look at what they have taken.

Sources: getrlimit(2), proc_pid_smaps(5), kernel/fork.c and kernel/ucount.c of Linux 6.18 for RLIMIT_NPROC.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from apps.api.runner.guard import processes
from apps.api.settings import Settings

OUT_OF_MEMORY, TOO_MANY_PROCESSES = "agent_out_of_memory", "agent_too_many_processes"
"""Why an agent is ended; failures of a run."""

ROOM = 2
"""The kernel lets an agent have so many times AGENT_MAX_PROCESSES: what ends it must see that it has more."""

USUAL_SHARE = 8
"""Where the kernel counts all processes of a user together, every other agent is taken to have one such part."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel refuses to each process of an agent.

    Attributes:
        file_bytes: of a file that it writes.
        open_files: descriptors.
        processes: processes and threads, where the kernel counts those of the agent alone.
        processes_of_user: the same where it counts all of the user's, the server's among them. Root has no such limit.
    """

    file_bytes: int
    open_files: int
    processes: int
    processes_of_user: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """As the settings say."""
        most = settings.agent_max_processes
        return cls(
            file_bytes=settings.agent_max_file_bytes,
            open_files=settings.agent_max_open_files,
            processes=most * ROOM,
            processes_of_user=_at_first() + settings.live_session_limit * (most // USUAL_SHARE) + most * ROOM,
        )

    def __str__(self) -> str:
        """As the guard reads it."""
        return f"{self.file_bytes}:{self.open_files}:{self.processes}:{self.processes_of_user}"


@cache
def _at_first() -> int:
    """What this user has had already, when it was first asked."""
    return processes.threads_of_user(os.getuid())


@dataclass(frozen=True, slots=True)
class Excess:
    """More than an agent may have: of what, and how much of it there is."""

    code: str
    found: int


class Look(NamedTuple):
    """What agents have: those with too much, by the pid of their guard; and the memory of all, in bytes."""

    excesses: dict[int, Excess]
    memory: int


def look(guards: Iterable[int], memory: int, most: int) -> Look:
    """What agents have, and which have more than `memory` bytes or `most` processes and threads. Blocks.

    Of memory a process shares only its part counts, so that one that has forked does not count twice. That is asked
    where the simple sum is too high, as it takes longer; of a process that lets nobody look, all counts.
    """
    found = {pid: (parent, threads, taken) for pid, parent, threads, taken in processes.every()}
    children = processes.by_parent((pid, *facts) for pid, facts in found.items())
    beyond, all_memory = {}, 0
    for guard in guards:
        own = processes.descendants(children, guard)
        count, simple = sum(found[pid][1] for pid in own), sum(found[pid][2] for pid in own)
        all_memory += simple
        if count > most:
            beyond[guard] = Excess(TOO_MANY_PROCESSES, count)
        elif simple > memory:
            taken = sum(found[pid][2] if (share := processes.share_of_memory(pid)) is None else share for pid in own)
            if taken > memory:
                beyond[guard] = Excess(OUT_OF_MEMORY, taken)
    return Look(beyond, all_memory)
