"""What of the agents' isolation this machine offers, in words for its operator.

Sources: landlock(7), proc_pid_net(5) for /proc/net/unix, proc_pid_mountinfo(5), unix(7).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from apps.api.runner.guard import confinement, seccomp
from apps.api.settings import Settings

MAX_ENTRIES, MAX_DEPTH = 20_000, 6
"""Of directories that are searched for sockets."""

_PLACES = ("/run", "/var/run", "/tmp", "/var/tmp")  # noqa: S108 - places to look at
_LISTENS, _DATAGRAM = 0x10000, "0002"


def missing(settings: Settings) -> list[str]:
    """What was asked for and is not to be had here; with AGENT_ISOLATION=require no agent starts then."""
    found = []
    if settings.agent_isolation != "off" and not confinement.landlock_abi():
        found.append(
            "this machine offers no Landlock (Linux 5.13 or later, with `landlock` in the lsm= list):"
            " agents can read and write every file that the server's user can"
        )
    if settings.agent_seccomp != "off" and not seccomp.available():
        found.append(
            "this machine cannot filter system calls (seccomp of Linux 4.14 or later, x86_64 or aarch64):"
            " agents' tools can reach the memory of processes of the server's user"
        )
    return found


def network_lacks() -> str | None:
    """What this machine lacks to limit what agents reach, if anything."""
    abi = confinement.landlock_abi()
    if abi < confinement.ABI_OF_PORTS:
        return f"{f'Landlock ABI {abi} knows no ports' if abi else 'there is no Landlock'} (Linux 6.7 or later)"
    if not seccomp.available():
        return "system calls cannot be filtered (seccomp of Linux 4.14 or later, x86_64 or aarch64)"
    return None


def warnings(settings: Settings) -> list[str]:
    """Every way in which agents of this instance are not fully confined; none when it starts no agents."""
    if settings.runner_slots == 0:
        return []
    found = missing(settings)
    if settings.agent_isolation == "off":
        files = "read and write every file that the server's user can"
        found.append(f"AGENT_ISOLATION=off: agents can {files}, and reach whatever this host does")
    if settings.agent_seccomp == "off":
        found.append("AGENT_SECCOMP=off: agents' tools can reach the memory of processes that they can trace")
    found += _of_network(settings)
    abi = confinement.landlock_abi()
    if settings.agent_isolation != "off" and 0 < abi < 6:
        truncating = ", and truncate files whose path they know (before 6.2)" if abi < 3 else ""
        found.append(f"Landlock ABI {abi}: agents can signal processes of their user (before Linux 6.12){truncating}")
    return found


def _of_network(settings: Settings) -> list[str]:
    everything = "agents reach whatever this host does, PostgreSQL, Redis and a cloud's metadata service among it"
    if settings.agent_isolation == "off":
        return []  # said already
    if lacking := network_lacks():
        more = "no session starts" if settings.agent_network in ("limited", "model_only") else everything
        return [f"{lacking}: {more}; profiles with `network` limited or model_only are refused"]
    return [f"AGENT_NETWORK=direct: {everything}"] if settings.agent_network == "direct" else []


def refusal(settings: Settings) -> str | None:
    """Why a server with these settings does not start here, and what to set; None when it may."""
    found = missing(settings)
    if settings.agent_isolation != "require" or settings.runner_slots == 0 or not found:
        return None
    return (
        f"AGENT_ISOLATION=require, and {'; and '.join(found)}. Set AGENT_ISOLATION=auto if you trust everybody who"
        " sends prompts, or RUNNER_SLOTS=0 for an instance without agents"
    )


def unreserved(port: int) -> str | None:
    """Why an agent could come to listen on a port without asking for it, if it could: the kernel gives it away."""
    about = Path("/proc/sys/net/ipv4")
    try:
        first, last = map(int, (about / "ip_local_port_range").read_text().split())
        reserved = (about / "ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError):
        return None
    ranges = [part.partition("-") for part in reserved.split(",") if part]
    if not first <= port <= last or any(int(a) <= port <= int(b or a) for a, _, b in ranges):
        return None
    return (
        f"in the kernel's own range ({first} to {last}): with several instances on this host, reserve their ports"
        f" (sysctl net.ipv4.ip_local_reserved_ports={port}), so that no agent listens there while one restarts"
    )


def reachable_sockets() -> list[str]:
    """Paths of Unix sockets that processes of this user may connect to: confined agents, too, as Landlock leaves them.

    Those that are bound here, those that are mounted, and those below the directories where services put them.
    """
    return sorted({path for path in (*_bound(), *_mounted(), *_found()) if _connectable(path)})


def _bound() -> Iterator[str]:
    for line in _lines("/proc/net/unix")[1:]:
        _, _, _, flags, kind, _, _, *path = line.split(maxsplit=7)
        if path and path[0].startswith("/") and (int(flags, 16) & _LISTENS or kind == _DATAGRAM):
            yield path[0]


def _mounted() -> Iterator[str]:
    for line in _lines("/proc/self/mountinfo"):
        yield line.split()[4].replace("\\040", " ")


def _found() -> Iterator[str]:
    unseen, entries = [(place, 0) for place in _PLACES if not os.path.islink(place)], 0
    while unseen:
        directory, depth = unseen.pop(0)
        with suppress(OSError), os.scandir(directory) as found:
            for entry in found:
                entries += 1
                if entries > MAX_ENTRIES:
                    return
                if entry.is_dir(follow_symlinks=False):
                    if depth < MAX_DEPTH:
                        unseen.append((entry.path, depth + 1))
                else:
                    yield entry.path


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _connectable(path: str) -> bool:
    with suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode) and os.access(path, os.W_OK)
    return False
