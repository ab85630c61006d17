"""The last steps of the process that becomes a Claude CLI: what it takes from itself, and from all it will start.

Without namespaces they are steps of the guard's child. With them bubblewrap starts this module anew, in the agent's own
view of the machine: before its mounts Landlock would forbid them.

Part of every start: standard library only, and of that as little as possible (see program.py).
"""

from __future__ import annotations

import marshal
import os
import resource
import sys

from . import confinement, network, seccomp

TYPE_CHECKING = False  # see program.py
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping
    from typing import Any, NoReturn, TypeAlias

    Start: TypeAlias = Mapping[str, Any]
    """What the CLI is started with, as values that `marshal` can write:

    * arguments, env: its path and arguments, its environment;
    * abi, readable, writable: what `confinement.confine` takes; 0 is for no confinement;
    * network: what `network.restrict` takes;
    * ways: what `network.open_ways` takes, in a network namespace of the agent's own; else nothing;
    * filtered: whether to filter system calls;
    * limits: hard limits of getrlimit(2), by the names of their constants;
    * stdio: descriptors to become 0 and 1, or none.
    """
else:
    import _signal as signal

EX_NOEXEC = 126


def main() -> NoReturn:
    """Become what the descriptor says that is the only argument: see `namespaces.enter`."""
    told = int(sys.argv[1])
    with open(told, "rb") as file:
        start = marshal.load(file)  # noqa: S302 - the guard has written it
    try:
        if start["ways"]:
            network.open_ways(*start["ways"])
    except OSError as error:
        _fail(error)
    become(start)


def become(start: Start) -> NoReturn:
    """Confine this process as it is said, and execute the CLI. Exits with 126 when that fails."""
    try:
        for target, descriptor in enumerate(start["stdio"]):
            os.dup2(descriptor, target)
            os.close(descriptor)
        limit(start["limits"])
        env = dict(start["env"])
        if start["abi"]:
            confinement.confine(start["readable"], start["writable"], start["abi"])
            # A program in a directory that is closed now would hide its namesake that can be run.
            env["PATH"] = os.pathsep.join(filter(_listable, env.get("PATH", os.defpath).split(os.pathsep)))
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program inherits that
            signal.signal(number, signal.SIG_DFL)
        network.restrict(*start["network"])
        if start["filtered"]:
            seccomp.install()
        os.execve(start["arguments"][0], start["arguments"], env)  # noqa: S606
    except OSError as error:
        _fail(error)


def _fail(error: OSError) -> NoReturn:
    os.write(2, f"cli_guard: cannot start the CLI: {error}\n".encode())
    os._exit(EX_NOEXEC)


def limit(limits: Mapping[str, int]) -> None:
    """Set limits for good, unless they are lower already. Raises OSError."""
    for name, most in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def _listable(directory: str) -> bool:
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        return False
    return True
