"""An agent's own view of the machine, made by bubblewrap: of its files, processes, memory to share, and name.

Of files there is nothing in it that Landlock does not allow as well, so that what Landlock does not look at (sockets
with a path, metadata of files, memory and queues of System V) is not there. bubblewrap stays outside until its first
process inside ends, which collects orphans; with either of them all that is inside ends at once.

Part of every start: standard library only, and of that as little as possible (see program.py).

Sources: bwrap(1) of 0.8.0, user_namespaces(7), pid_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import marshal
import os
import sys

from . import confinement

TYPE_CHECKING = False  # see program.py
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import NoReturn

    from .inside import Start

SHARED_MEMORY = 256 << 20
"""Bytes of /dev/shm, which is of this agent alone."""

_HERE = os.path.dirname(os.path.abspath(__file__))
_PRIVATE = ("/dev", "/proc", "/tmp")  # noqa: S108 - what is mounted anew
# Of this directory no more than the files: there are sockets in it, at which services listen.
_RESOLVE = "/run/systemd/resolve"
_NAME_SERVERS = (f"{_RESOLVE}/resolv.conf", f"{_RESOLVE}/stub-resolv.conf")
_NET_ADMIN, _SYS_ADMIN = 12, 21  # capabilities(7)


def system_paths() -> list[str]:
    """What everybody sees of the machine's files."""
    return [path for path in (*confinement.system_paths(), *_NAME_SERVERS) if path != _RESOLVE]


def makes_user_namespace(*, network: bool = False) -> bool:
    """Whether the others need one: all but root with CAP_SYS_ADMIN, which for one of the `network` also needs
    CAP_NET_ADMIN. In it RLIMIT_NPROC counts nobody else's."""
    if os.geteuid() != 0:
        return True
    with open("/proc/self/status", "rb") as status:
        capabilities = int(next(line for line in status if line.startswith(b"CapEff:")).split()[1], 16)
    needed = (_SYS_ADMIN, _NET_ADMIN) if network else (_SYS_ADMIN,)
    return not all(capabilities >> capability & 1 for capability in needed)


def enter(bwrap: str, start: Start, tmp: str, processes: int) -> NoReturn:
    """Become bubblewrap, which starts `inside.main` with `start`. Raises OSError.

    Args:
        bwrap: path of the program.
        tmp: a directory of the agent's own, in which its /tmp is made.
        processes: and threads that the agent may have, where the kernel counts those alone.
    """
    shared = os.path.join(tmp, ".tmp")
    os.mkdir(shared, 0o700)
    # bubblewrap keeps its descriptors 0 and 1 open while the CLI lives. With the CLI's own neither side of them would
    # see the other close its end.
    stdio = [os.dup(0), os.dup(1)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for given in (start["network"][-1], *start["ways"][:1]):
        if given is not None:
            os.set_inheritable(given, True)
    for target, descriptor in enumerate(stdio):
        os.set_inheritable(descriptor, True)
        os.dup2(nowhere, target)
    writable = [*start["writable"], "/tmp"]  # noqa: S108
    # Before Linux 5.14, where Landlock's ABI was 1 at most, a namespace of users counted all processes of the user.
    makes_user = makes_user_namespace(network=bool(start["ways"]))
    limits = {"RLIMIT_NPROC": processes} if makes_user and start["abi"] > 1 else {}
    told = _memory(marshal.dumps({**start, "stdio": stdio, "writable": writable, "limits": limits}))
    options = _memory(b"\0".join(map(os.fsencode, _options(start, shared, makes_user))) + b"\0")
    code = f"import sys; sys.path.append({os.path.dirname(_HERE)!r}); from guard.inside import main; main()"
    python = (os.path.realpath(sys.executable), "-I", "-S", "-c", code, str(told))
    # No variable of the session's acts on bubblewrap or on this Python.
    os.execve(bwrap, [bwrap, "--args", str(options), "--", *python], {})  # noqa: S606


def _options(start: Start, shared: str, makes_user: bool) -> Iterator[str]:
    yield from ("--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--chdir", os.getcwd())
    if makes_user:
        yield "--unshare-user"
    if start["ways"]:
        yield "--unshare-net"
    yield from _mounts((*start["readable"], _HERE), start["writable"], shared)
    yield from ("--remount-ro", "/")


def _mounts(readable: Iterable[str], writable: Iterable[str], shared: str) -> Iterator[str]:
    """What there is of files."""
    wanted = {path: "--ro-bind" for given in readable for path in _with_real(given) if not _is_private(path)}
    # Each of /proc by itself, so that the kernel keeps what Landlock's rules name: see confinement.pin_machine_files.
    wanted |= dict.fromkeys(system_paths(), "--ro-bind")
    wanted |= {path: "--bind" for given in writable for path in _with_real(given)}
    shown: dict[str, str] = {}
    for path in sorted((*filter(os.path.lexists, wanted), *_PRIVATE), key=_depth):
        how = wanted.get(path, "")
        if path in _PRIVATE and not how:
            yield from _private(path, shared)
        elif os.path.islink(path) and _depth(path) == 1:  # /bin and the like
            yield from ("--symlink", os.readlink(path), path)
        elif how == "--bind" or _is_private(path) or _above(path, shown) != how:
            shown[path] = how
            yield from (how, path, path)


def _private(path: str, shared: str) -> Iterator[str]:
    if path == "/dev":
        yield from ("--dev", path, "--perms", "1777", "--size", str(SHARED_MEMORY), "--tmpfs", f"{path}/shm")
        yield from ("--remount-ro", path)
    else:
        yield from ("--proc", path) if path == "/proc" else ("--bind", shared, path)


def _depth(path: str) -> int:
    return path.rstrip("/").count("/")


def _with_real(path: str) -> set[str]:
    return {os.path.abspath(path), os.path.realpath(path)}


def _is_private(path: str) -> bool:
    """Whether it is one of this agent's own processes or devices. Directories may lie in memory."""
    return (path.startswith(("/proc/", "/dev/")) and not path.startswith("/dev/shm/")) or path in ("/proc", "/dev")  # noqa: S108


def _above(path: str, shown: dict[str, str]) -> str | None:
    """How the nearest directory above is shown."""
    while path != "/":
        path = os.path.dirname(path)
        if path in shown:
            return shown[path]
    return None


def _memory(content: bytes) -> int:
    descriptor = os.memfd_create("cli_guard", 0)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
