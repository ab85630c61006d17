"""What of the agents' isolation this machine offers, in words for its operator.

Sources: landlock(7), proc_pid_net(5) for /proc/net/unix, proc_pid_mountinfo(5), unix(7).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from apps.api.runner.guard import confinement, seccomp
from apps.api.settings import Layer, Settings

MAX_ENTRIES, MAX_DEPTH = 20_000, 6
"""Of directories that are searched for sockets."""

_PLACES = ("/run", "/var/run", "/tmp", "/var/tmp")  # noqa: S108 - places to look at
_LISTENS, _DATAGRAM = 0x10000, "0002"


_FILES = "agents can read and write every file that the server's user can, and reach whatever this host does"
_MEMORY = "agents' tools can reach the memory of processes of the server's user"


def lacks(settings: Settings) -> str | None:
    """What this machine lacks to confine agents at all, as the settings want it, if anything."""
    if not confinement.landlock_abi():
        return f"this machine offers no Landlock (Linux 5.13 or later, with `landlock` in the lsm= list): {_FILES}"
    if settings.agent_seccomp != "off" and not seccomp.available():
        return (
            "this machine cannot filter system calls (seccomp of Linux 4.14 or later, x86_64 or aarch64):"
            f" {_FILES}; {_MEMORY}"
        )
    return None


def network_lacks() -> str | None:
    """What this machine lacks to limit what agents reach, if anything."""
    abi = confinement.landlock_abi()
    if abi < confinement.ABI_OF_PORTS:
        return f"{f'Landlock ABI {abi} knows no ports' if abi else 'there is no Landlock'} (Linux 6.7 or later)"
    if not seccomp.available():
        return "system calls cannot be filtered (seccomp of Linux 4.14 or later, x86_64 or aarch64)"
    return None


def warnings(settings: Settings, layer: Layer, lacking: Mapping[Layer, str]) -> list[str]:
    """Every way in which agents of this instance are not confined as they could be, or as was asked for.

    Args:
        layer, lacking: see `trial.Found`.

    None when it starts no agents.
    """
    if settings.runner_slots == 0:
        return []
    found = []
    if settings.agent_isolation == "off":
        found.append(f"AGENT_ISOLATION=off: {_FILES}")
    elif layer == "off":
        found.append(lacking["landlock"])
    elif settings.agent_isolation == "namespaces" and layer != "namespaces":
        found.append(f"AGENT_ISOLATION=namespaces: agents are isolated by {layer} only: {lacking['namespaces']}")
    if settings.agent_seccomp == "off":
        found.append("AGENT_SECCOMP=off: agents' tools can reach the memory of processes that they can trace")
    found += _of_network(settings, layer)
    abi = confinement.landlock_abi()
    if layer != "off" and abi < 6:
        signalling = "" if layer == "namespaces" else "agents can signal processes of their user (before Linux 6.12)"
        truncating = "truncate files whose path they know (before 6.2)" if abi < 3 else ""
        if told := ", and ".join(filter(None, (signalling, truncating))):
            found.append(f"Landlock ABI {abi}: {told}")
    return found


def _of_network(settings: Settings, layer: Layer) -> list[str]:
    everything = "agents reach whatever this host does, PostgreSQL, Redis and a cloud's metadata service among it"
    if layer == "off":
        return []  # said already
    lacking = network_lacks()
    if lacking and layer == "namespaces":
        more = f"{everything}; " if settings.agent_network in ("open", "direct") else ""
        return [f"{lacking}: {more}what agents with `network` limited serve has no previews"]
    if lacking:
        more = "no session starts" if settings.agent_network in ("limited", "model_only") else everything
        return [f"{lacking}: {more}; profiles with `network` limited or model_only are refused"]
    return [f"AGENT_NETWORK=direct: {everything}"] if settings.agent_network == "direct" else []


def refusal(settings: Settings, layer: Layer, lacking: Mapping[Layer, str]) -> str | None:
    """Why a server with these settings does not start here, and what to set; None when it may. Arguments: see
    `warnings`."""
    wanted = settings.agent_isolation
    if settings.runner_slots == 0:
        return None
    if settings.agent_isolation_required and (layer == "off" or wanted not in ("auto", layer)):
        asked: Layer = "namespaces" if wanted == "namespaces" else "landlock"
        why = lacking.get(asked, "which asks for none")
        return f"AGENT_ISOLATION_REQUIRED=true with AGENT_ISOLATION={wanted}, and {why}"
    if layer != "off" or settings.debug or (wanted == "off" and settings.agent_unconfined_in_production):
        return None
    if wanted == "off":
        return (
            f"with AGENT_ISOLATION=off {_FILES}: set AGENT_UNCONFINED_IN_PRODUCTION=true if everybody who sends prompts"
            " may do that (DEBUG=true does not need it)"
        )
    return (
        f"{lacking['landlock']}. If everybody who sends prompts may do that, set AGENT_ISOLATION=off and"
        " AGENT_UNCONFINED_IN_PRODUCTION=true; for an instance without agents RUNNER_SLOTS=0"
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


def reachable_sockets(shown: Collection[str] = ("/",)) -> list[str]:
    """Paths of Unix sockets that processes of this user may connect to: confined agents, too, as Landlock leaves them.

    Those that are bound here, those that are mounted, and those below the directories where services put them.

    Args:
        shown: trees that agents see.
    """
    found = {path for path in (*_bound(), *_mounted(), *_found()) if _connectable(path)}
    return sorted(path for path in found if any(Path(path).is_relative_to(tree) for tree in shown))


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
