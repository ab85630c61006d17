"""The process between the server and one Claude CLI, started by the launcher that `launcher.install_guard` writes.

It gives the CLI an allow-listed environment and a confined view of the machine, keeps the model's credential out of
what the agent's tools can print, and makes the CLI and all that it started end together: when the CLI ends, when the
guard is told to end (SIGTERM, SIGINT, SIGHUP), when the server dies, however, and when the server stands still for so
long that its lease has run out: then others may own what the agent works on.

Every start of a CLI waits for this file: it needs the standard library only, and of that as little as possible. It is
told what to do by the variables of `launcher.guard_environment`.

Exit status: that of the CLI, by the same signal if one killed it; 78 when the isolation that was asked for is not to
be had, or the server is gone; 126 when the CLI cannot be started. A CLI whose guard is killed by SIGKILL dies too,
but tools in sessions of their own then live on, with a control group until the server removes that.

Sources: prctl(2), wait(2), and the bundled CLI 2.1.332 for the two *_FILE_DESCRIPTOR variables.
"""

from __future__ import annotations

import os
import resource
import sys
import time

# Relative, because the launcher imports this package without `apps.api`, which takes longer than the whole guard.
from . import confinement, inside, namespaces, network, processes, seccomp

TYPE_CHECKING = False  # importing `typing` or `signal` takes as long as the rest of the guard
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable, Mapping
    from typing import NoReturn
else:
    import _signal as signal

EX_CONFIG = 78
KILL_SECONDS, MOST_SECONDS = 5.0, 30.0
CHASES = 500
"""Looks at the guard's own children, one right after the other, between two looks at all processes."""

FOREVER = 86_400.0
SESSION_PREFIX = "CLI_GUARD_ENV_"

_ALLOWED = frozenset(
    "PATH HOME PWD TMPDIR TERM TZ LANG LANGUAGE SSL_CERT_FILE SSL_CERT_DIR NODE_EXTRA_CA_CERTS "  # noqa: SIM905
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy NODE_USE_ENV_PROXY "
    "ANTHROPIC_API_KEY ANTHROPIC_BASE_URL "
    "ANTHROPIC_CONFIG_DIR API_TIMEOUT_MS IS_SANDBOX CLAUDE_CONFIG_DIR CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS "
    "CLAUDE_STREAM_FIRST_BYTE_TIMEOUT_MS CLAUDE_STREAM_IDLE_TIMEOUT_MS DISABLE_AUTOUPDATER DISABLE_ERROR_REPORTING "
    "DISABLE_TELEMETRY TRACEPARENT TRACESTATE".split()
)
# Of the server's only where the session says nothing: they steer neither the CLI nor whom it talks to.
_SETTABLE = frozenset(("TERM", "TZ", "LANG", "LANGUAGE", "TRACEPARENT", "TRACESTATE"))
_ALLOWED_PREFIXES = ("LC_", "CLAUDE_CODE_", "CLAUDE_AGENT_SDK_")
# Of clouds: the gateway is the one that asks them.
_LEADING_ELSEWHERE = "CLAUDE_CODE_USE_"
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS")
_CREDENTIALS = {
    "ANTHROPIC_API_KEY": "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN": "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
}
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""That of the server's lease."""

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_WAKING = {signal.SIGCHLD, signal.SIGALRM}


def main() -> NoReturn:
    """Start the CLI of CLI_GUARD_CLI with this process's arguments, and stay until all that it started has ended."""
    server, guard = int(os.environ["CLI_GUARD_PARENT"]), os.getpid()
    signal.signal(signal.SIGCHLD, lambda *_: None)  # some systems discard a blocked one without a handler
    inherited = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING | _WAKING)
    ends_first = confinement.EndsFirst()
    if confinement.LINUX:
        confinement.prctl(confinement.PR_SET_PDEATHSIG, signal.SIGTERM)
        confinement.prctl(confinement.PR_SET_CHILD_SUBREAPER, 1)
        # This environment holds the server's own secrets: no process of the same user may look into it.
        confinement.prctl(confinement.PR_SET_DUMPABLE, 0)
    # For good: tools could have the CLI write its memory, with the model's credential, into the workspace.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.getppid() != server:
        _refuse("the server has ended")
    until = _lease(os.environ["CLI_GUARD_LEASE"])
    if _seconds_left(until) <= 0:
        _refuse("the server's lease has run out")
    layer = os.environ["CLI_GUARD_LAYER"]
    abi, filtered = _isolation(layer), _filtered(layer, os.environ["CLI_GUARD_SECCOMP"])
    reach = _network(layer)
    if os.getpgrp() != guard:
        os.setsid()  # a terminal's Ctrl-C is for the server, which lets its agents finish
    with ends_first:
        cli = os.fork()
        if cli == 0:
            _become_cli(guard, layer, abi, filtered, reach, inherited)
    reach.close()
    nowhere = os.open(os.devnull, os.O_RDWR)
    # With copies of the CLI's pipes here, neither side would see the other close its end.
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    status = _wait(cli, server, until)
    _kill_descendants()
    _exit_as(status)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What of the guard's environment the CLI gets, and the session's own variables under their own names.

    Of the allow-list it may change `_SETTABLE` and LC_* alone: with another it could send the model's credential
    elsewhere.
    """
    kept = {n: value for n, value in given.items() if _allowed(n) and not n.startswith(_LEADING_ELSEWHERE)}
    for name, value in given.items():
        own = name.removeprefix(SESSION_PREFIX)
        if own != name and (own in _SETTABLE or own.startswith("LC_") or not _allowed(own)):
            kept[own] = value
    return kept


def _allowed(name: str) -> bool:
    return name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)


def _lease(path: str) -> int | None:
    """The file in which the server writes until when its agents may live; None for one that has no lease."""
    try:
        return os.open(path, os.O_RDONLY) if path else None
    except OSError as error:
        _refuse(f"the server's lease cannot be read ({error})")


def _seconds_left(lease: int | None) -> float:
    if lease is None:
        return FOREVER
    return (int.from_bytes(os.pread(lease, 8, 0), "little") - time.clock_gettime_ns(CLOCK)) / 1e9


def _isolation(layer: str) -> int:
    """The version of Landlock to confine with; 0 for no confinement."""
    if layer == "off":
        return 0
    abi = confinement.landlock_abi()
    if not abi:
        _refuse("agents are to be confined, and this kernel offers no Landlock")
    if layer == "landlock":
        confinement.pin_machine_files()
    elif not os.environ["CLI_GUARD_BWRAP"]:
        _refuse("agents are to have namespaces, and bubblewrap (bwrap) is not installed")
    return abi


def _filtered(layer: str, wanted: str) -> bool:
    """Whether to filter system calls."""
    if wanted == "off":
        return False
    found = seccomp.available()
    if not found and layer != "off":
        _refuse("agents are to be confined, and this machine has no seccomp")
    if not found:
        _say("this machine has no seccomp: the agent's tools can reach the memory of the server's processes")
    return found


def _network(layer: str) -> network.Network:
    """What of the network to take from the agent."""
    try:
        reach = network.Network(os.environ)
    except OSError as error:
        _refuse(f"the agent's network cannot be limited ({error})")
    if reach.ways and layer != "namespaces":
        _refuse("a network of the agent's own needs namespaces")
    if reach.filters and not seccomp.available():
        if layer != "off" or reach.mode != network.DIRECT:
            _refuse("the agent's network cannot be limited without seccomp")
        _say("this machine has no seccomp: the agent can make sockets of every kind")
        reach.unix = True
    return reach


def _become_cli(
    guard: int, layer: str, abi: int, filtered: bool, reach: network.Network, mask: Iterable[int]
) -> NoReturn:
    try:
        os.setsid()
        _join_group()
        cli, env = os.environ["CLI_GUARD_CLI"], environment(os.environ)
        if confinement.LINUX:
            confinement.prctl(confinement.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                os._exit(EX_CONFIG)
            _hide_credentials(env)
        limits, own = _limits()
        inside.limit(limits)
        _keep_file_history(env["CLAUDE_CONFIG_DIR"])
        certificates = [env[name] for name in _CERTIFICATES if env.get(name)]
        start = {
            "arguments": [cli, *sys.argv[1:]],
            "env": env,
            "abi": abi,
            "readable": [os.path.dirname(cli), *certificates, *_paths("CLI_GUARD_READ")],
            # A resume from a SessionStore has a config directory of the SDK's choosing.
            "writable": [*_paths("CLI_GUARD_WRITE"), env["CLAUDE_CONFIG_DIR"]],
            "network": (reach.mode, reach.unix, reach.rules),
            "ways": () if reach.server is None else (reach.server, reach.ways),
            "filtered": filtered,
            "limits": {},
            "stdio": (),
        }
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if layer == "namespaces":
            namespaces.enter(os.environ["CLI_GUARD_BWRAP"], start, env["TMPDIR"], own)
        inside.become(start)
    except OSError as error:
        _say(f"cannot start the CLI: {error}")
        os._exit(inside.EX_NOEXEC)


def _join_group() -> None:
    try:
        _group("cgroup.procs", "0")
    except OSError as error:
        _say(f"the agent's control group cannot be joined: its limits are the watchdog's ({error})")


def _group(name: str, value: str) -> bool:
    """Write to a file of the agent's control group. Returns whether it has one. Raises OSError."""
    path = os.environ["CLI_GUARD_GROUP"]
    if path:
        opened = os.open(os.path.join(path, name), os.O_WRONLY)
        try:
            os.write(opened, value.encode())
        finally:
            os.close(opened)
    return bool(path)


def _limits() -> tuple[dict[str, int], int]:
    """What `launcher.Limits` says, and how many processes where none but the agent's count."""
    file_bytes, open_files, processes, of_user = map(int, os.environ["CLI_GUARD_LIMITS"].split(":"))
    return {"RLIMIT_FSIZE": file_bytes, "RLIMIT_NOFILE": open_files, "RLIMIT_NPROC": of_user}, processes


def _keep_file_history(config_dir: str) -> None:
    try:
        os.symlink(os.environ["CLI_GUARD_FILE_HISTORY"], os.path.join(config_dir, "file-history"))
    except FileExistsError:  # an earlier process of this session has made it
        return


def _hide_credentials(env: dict[str, str]) -> None:
    # Tools could print the CLI's environment. It empties these pipes when it starts, and withholds the variables.
    for name, descriptor_name in _CREDENTIALS.items():
        env.pop(descriptor_name, None)
        if value := env.pop(name, ""):
            reader, writer = os.pipe()
            os.write(writer, os.fsencode(value))
            os.close(writer)
            os.set_inheritable(reader, True)
            env[descriptor_name] = str(reader)


def _paths(name: str) -> list[str]:
    return [path for path in os.environ.get(name, "").split(os.pathsep) if path]


def _wait(cli: int, server: int, lease: int | None) -> int:
    """Wait for the CLI or a reason to end it. Returns the wait status to end with."""
    ended: dict[int, int] = {}
    while _reap(ended) and cli not in ended:
        left = _seconds_left(lease)
        if os.getppid() != server or left <= 0:
            return signal.SIGTERM
        # Other systems than Linux tell by nothing but the parent's pid that the server has died.
        signal.setitimer(signal.ITIMER_REAL, max(min(left, FOREVER if confinement.LINUX else 0.5), 0.001))
        number = signal.sigwait(_ENDING | _WAKING)
        if number in _ENDING:
            return number  # as a wait status: killed by it
    return ended[cli]


def _kill_descendants() -> None:
    """Kill them all, again while there are new ones. The last is waited for KILL_SECONDS, all of them MOST_SECONDS."""
    try:
        together = _group("cgroup.kill", "1")
    except OSError:  # before Linux 5.14
        together = False
    if not together:
        _go_first()
    killed: set[int] = set()
    end = time.monotonic() + MOST_SECONDS
    until = time.monotonic() + KILL_SECONDS
    _tick(0.02)
    while _reap({}) and time.monotonic() < min(until, end):
        below = set(processes.below(os.getpid()))
        for pid in below:
            _kill(pid)
        if not below <= killed:
            killed |= below
            until = time.monotonic() + KILL_SECONDS
        # One that is forever the child of one that has ended is gone before a look at all processes has come to it.
        for _ in range(CHASES):
            orphans = processes.children(os.getpid())
            for pid in orphans:
                _kill(pid)
            if not orphans or not _reap({}):
                break
        signal.sigwait(_WAKING)


def _kill(pid: int) -> None:
    """Kill a process with its group: nothing of a group forks away from a signal to all of it."""
    try:
        group = os.getpgid(pid)
        if group != os.getpgrp():  # between its fork and its session of its own
            os.killpg(group, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _go_first() -> None:
    """Root has no limit of processes: thousands that fork as fast as they can leave its guard no other turn."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, OSError):  # another system, or another user
        return


def _reap(ended: dict[int, int]) -> bool:
    """Add the wait statuses of children that have ended, by pid. Returns whether any child is left.

    On Linux orphaned descendants are children, too.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        ended[pid] = status


def _exit_as(status: int) -> NoReturn:
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _tick(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def _say(text: str) -> None:
    os.write(2, f"cli_guard: {text}\n".encode())


def _refuse(reason: str) -> NoReturn:
    _say(f"{reason}: not starting")
    os._exit(EX_CONFIG)
