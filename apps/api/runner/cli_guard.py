"""The process between the server and one Claude CLI, started by the launcher that `guard.install_guard` writes.

It gives the CLI an allow-listed environment and a confined view of the machine, keeps the model's credential out of
what the agent's tools can print, and makes the CLI and all that it started end together: when the CLI ends, when the
guard is told to end (SIGTERM, SIGINT, SIGHUP), and when the server dies, however.

Every start of a CLI waits for this file: it needs the standard library only, of that as little as possible, and the
rest after the CLI has started. It is told what to do by the variables of `guard.guard_environment`.

Exit status: that of the CLI, by the same signal if one killed it; 78 when the isolation that was asked for is not to
be had, or the server is gone; 126 when the CLI cannot be started. A CLI whose guard is killed by SIGKILL dies too,
but tools in sessions of their own then live on.

Sources: prctl(2), wait(2), and the bundled CLI 2.1.327 for the two *_FILE_DESCRIPTOR variables.
"""

from __future__ import annotations

import os
import sys

# Relative, because the launcher imports this package without `apps.api`, which takes longer than the whole guard.
from . import confinement

TYPE_CHECKING = False  # the module `typing` takes longer to import than the rest of the guard
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

EX_NOEXEC, EX_CONFIG = 126, 78
KILL_SECONDS = 5.0
SESSION_PREFIX = "CLI_GUARD_ENV_"

_ALLOWED = frozenset(
    "PATH HOME PWD TMPDIR TERM TZ LANG LANGUAGE SSL_CERT_FILE SSL_CERT_DIR NODE_EXTRA_CA_CERTS "  # noqa: SIM905
    "HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy ANTHROPIC_API_KEY ANTHROPIC_BASE_URL "
    "API_TIMEOUT_MS IS_SANDBOX CLAUDE_CONFIG_DIR CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS DISABLE_AUTOUPDATER "
    "DISABLE_ERROR_REPORTING DISABLE_TELEMETRY TRACEPARENT TRACESTATE".split()
)
_ALLOWED_PREFIXES = ("LC_", "CLAUDE_CODE_", "CLAUDE_AGENT_SDK_")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS")
_CREDENTIALS = {
    "ANTHROPIC_API_KEY": "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN": "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
}
# The same numbers on Linux and macOS. The signal module would take a third of the time until the CLI starts.
_SIGKILL, _SIGPIPE, _SIGTERM, _SIGXFSZ = 9, 13, 15, 25


def main() -> NoReturn:
    """Start the CLI of CLI_GUARD_CLI with this process's arguments, and stay until all that it started has ended."""
    server, guard = int(os.environ["CLI_GUARD_PARENT"]), os.getpid()
    if confinement.LINUX:
        confinement.prctl(confinement.PR_SET_PDEATHSIG, _SIGTERM)
        confinement.prctl(confinement.PR_SET_CHILD_SUBREAPER, 1)
        # This environment holds the server's own secrets: no process of the same user may look into it.
        confinement.prctl(confinement.PR_SET_DUMPABLE, 0)
    if os.getppid() != server:
        _refuse("the server has ended")
    isolation = os.environ["CLI_GUARD_LANDLOCK"]
    abi = 0 if isolation == "off" else confinement.landlock_abi()
    if isolation == "require" and not abi:
        _refuse("isolation is required, and this kernel offers no Landlock")
    if isolation == "auto" and not abi:
        _say("this kernel offers no Landlock: the agent can reach every file that the server can")
    if os.getpgrp() != guard:
        os.setsid()  # a terminal's Ctrl-C is for the server, which lets its agents finish
    if abi:
        confinement.pin_machine_files()
    cli = os.fork()
    if cli == 0:
        _become_cli(guard, abi)
    nowhere = os.open(os.devnull, os.O_RDWR)
    # With copies of the CLI's pipes here, neither side would see the other close its end.
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    watch = Watch(cli, server)
    status = watch.wait()
    watch.kill_all()
    watch.exit_as(status)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What of the guard's environment the CLI gets, and the session's own variables under their own names.

    A session's variable never takes a name of the allow-list: it could send the model's credential elsewhere.
    """
    kept = {name: value for name, value in given.items() if _allowed(name)}
    for name, value in given.items():
        own = name.removeprefix(SESSION_PREFIX)
        if own != name and not _allowed(own):
            kept[own] = value
    return kept


def _allowed(name: str) -> bool:
    return name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)


def _become_cli(guard: int, abi: int) -> NoReturn:
    try:
        os.setsid()
        cli, env = os.environ["CLI_GUARD_CLI"], environment(os.environ)
        if confinement.LINUX:
            confinement.prctl(confinement.PR_SET_PDEATHSIG, _SIGKILL)
            if os.getppid() != guard:
                os._exit(EX_CONFIG)
            _hide_credentials(env)
        if abi:
            certificates = [env[name] for name in _CERTIFICATES if env.get(name)]
            readable = [os.path.dirname(cli), *certificates, *_paths("CLI_GUARD_READ")]
            # To resume, the SDK puts the history into a temporary CLAUDE_CONFIG_DIR of its own.
            writable = [*_paths("CLI_GUARD_WRITE"), env.get("CLAUDE_CONFIG_DIR", "")]
            confinement.confine(readable, filter(None, writable), abi)
            # A program in a directory that is closed now would hide its namesake that can be run.
            env["PATH"] = os.pathsep.join(filter(_listable, env.get("PATH", os.defpath).split(os.pathsep)))
        for number in (_SIGPIPE, _SIGXFSZ):  # Python ignores them, and programs inherit what is ignored
            confinement.libc.signal(number, None)
        os.execve(cli, [cli, *sys.argv[1:]], env)  # noqa: S606
    except OSError as error:
        _say(f"cannot start the CLI: {error}")
        os._exit(EX_NOEXEC)


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


def _listable(directory: str) -> bool:
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        return False
    return True


class Watch:
    """Waits until the CLI ends, or something says that it must, and then ends what is left of its descendants."""

    def __init__(self, cli: int, server: int) -> None:
        # Imported late, while the CLI starts. Until the mask is set, a signal ends the guard and by that the CLI.
        import signal
        import time

        self._signal, self._time = signal, time
        self._cli, self._server = cli, server
        self._status: int | None = None
        self._ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        self._awaited = {*self._ending, signal.SIGCHLD, signal.SIGALRM}
        signal.signal(signal.SIGCHLD, lambda *_: None)  # some systems discard a blocked one without a handler
        signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)

    def wait(self) -> int:
        """The wait status to end with: the CLI's, or that of a process killed by the signal that came."""
        if not confinement.LINUX:
            self._tick(0.5)  # nothing but the parent's pid tells there that the server has died
        while self._reap() and self._status is None:
            if os.getppid() != self._server:
                return _SIGTERM
            number = self._signal.sigwait(self._awaited)
            if number in self._ending:
                return number
        return _SIGKILL if self._status is None else self._status

    def kill_all(self) -> None:
        """Kill all descendants, again while there are new ones, for at most KILL_SECONDS."""
        deadline = self._time.monotonic() + KILL_SECONDS
        self._tick(0.02)
        while self._reap() and self._time.monotonic() < deadline:
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, _SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
            self._signal.sigwait({self._signal.SIGCHLD, self._signal.SIGALRM})

    def exit_as(self, status: int) -> NoReturn:
        """End as a process with this wait status did."""
        if os.WIFEXITED(status):
            os._exit(os.WEXITSTATUS(status))
        number = os.WTERMSIG(status)
        if number != _SIGKILL:
            self._signal.signal(number, self._signal.SIG_DFL)
            self._signal.pthread_sigmask(self._signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        os._exit(128 + number)

    def _tick(self, seconds: float) -> None:
        self._signal.setitimer(self._signal.ITIMER_REAL, seconds, seconds)

    def _reap(self) -> bool:
        # Whether any child is left. On Linux orphaned descendants become children of this process.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._cli:
                self._status = status


def descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`, by parent pid: tools live in sessions and groups of their own."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found, unseen = [], [ancestor]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found


def _processes() -> Iterator[tuple[int, int]]:
    if not confinement.LINUX:
        import subprocess

        listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        yield from ((int(pid), int(parent)) for pid, parent in map(str.split, listing.splitlines()))
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                # The name, in parentheses, may itself hold spaces and parentheses.
                yield int(name), int(stat.read().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue


def _say(text: str) -> None:
    os.write(2, f"cli_guard: {text}\n".encode())


def _refuse(reason: str) -> NoReturn:
    _say(f"{reason}: not starting")
    os._exit(EX_CONFIG)
