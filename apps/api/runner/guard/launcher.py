"""The server's side of the guard: the launcher that the SDK starts in place of the CLI, and what it is told."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import structlog

from apps.api.runner.guard import isolation
from apps.api.runner.guard.confinement import landlock_abi
from apps.api.runner.guard.limits import Limits
from apps.api.runner.guard.program import CLOCK, SESSION_PREFIX
from apps.api.settings import Layer, Settings

log = structlog.get_logger(__name__)

__all__ = [
    "CLOCK",
    "LAYERS",
    "Directories",
    "LeaseFile",
    "Network",
    "Wall",
    "bubblewrap",
    "bundled_cli",
    "guard_environment",
    "install_guard",
    "landlock_abi",
]

LAYERS: tuple[Layer, ...] = get_args(Layer)

_PACKAGE = Path(__file__).parent


def install_guard(directory: Path, *, python: str = sys.executable) -> Path:
    """Write the launcher, an executable file `claude` that only this user may run, and return its path.

    Args:
        directory: an existing directory, on a file system that is not mounted noexec.
        python: the interpreter that runs the guard, 3.11 or later.

    Raises OSError when the file cannot be written.
    """
    # Appended, so that no module beside the package hides one of the standard library. Imported, not run as a
    # script, since only imported modules are kept compiled.
    where, name = str(_PACKAGE.parent), _PACKAGE.name
    code = f"import sys; sys.path.append({where!r}); from {name}.program import main; main()"
    launcher = directory / "claude"
    draft = directory / f".claude.{os.getpid()}"
    draft.touch(mode=0o700)
    draft.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} -I -S -c {shlex.quote(code)} "$@"\n')
    draft.replace(launcher)
    return launcher


@dataclass(frozen=True, slots=True)
class Network:
    """What one agent may reach.

    Attributes:
        mode: `direct`: whatever the host does.
        unix_sockets: whether it may make any; of `model_only` it may not in any case.
        rules: the socket at which the guard is given its rules of ports, or gives the sockets of `ways`: see rules.py.
        ticket: what it shows there.
        ways: ports at which gateway and proxy are found in a network namespace of the agent's own, in which there is
            nothing else; none: it has the host's. Only `namespaces` can have one.
    """

    mode: Literal["direct", "open", "limited", "model_only"] = "direct"
    unix_sockets: Literal["on", "off"] = "on"
    rules: Path | None = None
    ticket: str = field(default="", repr=False)
    ways: tuple[int, ...] = ()

    def variables(self) -> dict[str, str]:
        """More of what `guard_environment` returns. What is to be limited and cannot be does not start, whatever its
        layer is (exit status 78)."""
        return {
            "CLI_GUARD_NETWORK": self.mode,
            "CLI_GUARD_UNIX_SOCKETS": self.unix_sockets,
            "CLI_GUARD_PORTS": str(self.rules or ""),
            "CLI_GUARD_PORTS_TICKET": self.ticket,
            "CLI_GUARD_WAYS": ",".join(map(str, self.ways)),
        }


class LeaseFile:
    """A file that tells every guard of this instance until when its agent may live; at first not at all.

    A server that stands still writes nothing, and its agents end with its lease: nobody else need tell them. One write
    is for all guards, however many there are.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.write(0.0)

    def write(self, until: float) -> None:
        """`until`: on the CLOCK of the guard, in seconds. What cannot be written ends the agents in time."""
        try:
            os.pwrite(self._file, int(until * 1e9).to_bytes(8, "little"), 0)
        except OSError as error:
            log.error("guard.lease_not_written", error=error)

    def close(self) -> None:
        """No agent lives any more, or is to."""
        os.close(self._file)


def bundled_cli() -> Path:
    """The CLI inside the installed claude-agent-sdk. Raises FileNotFoundError when it is not there."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("claude-agent-sdk is not installed")
    cli = Path(spec.origin).parent / "_bundled" / "claude"
    if not cli.is_file():
        raise FileNotFoundError(f"claude-agent-sdk was installed without its CLI: {cli}")
    return cli


def bubblewrap() -> str | None:
    """The program of that name on the PATH, if it is there."""
    found = (os.path.join(directory, "bwrap") for directory in os.get_exec_path())
    return next((path for path in found if os.access(path, os.X_OK)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directories:
    """Existing directories that an agent is given.

    Attributes:
        workspace, home, output, file_history: of this session alone; they outlive the process. `home` is HOME, so that
            no dotfile of the server's user is read. `output` is CLAUDE_CODE_TMPDIR, where the CLI keeps what background
            tasks put out (and `cc-socks`, as long as the socket's path has at most 103 bytes; the CLI does without that
            socket when it cannot make it). In `file_history` it keeps the files of its checkpoints.
        config, tmp: empty ones of this process alone, or links to them: CLAUDE_CONFIG_DIR, TMPDIR.
        given: of this process alone; its agent may only read it. The CLI is told to look there, and not in HOME, for
            what it would take endpoints and credentials from (ANTHROPIC_CONFIG_DIR).
    """

    workspace: Path
    home: Path
    output: Path
    file_history: Path
    config: Path
    tmp: Path
    given: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What stands between an agent and the machine.

    Attributes:
        layer: `landlock` confines the agent to its files, `namespaces` does the same in a view of the machine of its
            own; no agent starts where that is not to be had (exit status 78). `off` leaves files as they are.
        seccomp: `off` takes no system call from the agent. `on` takes those that seccomp.py names; with another layer
            than `off` no agent starts where the machine cannot filter them.
        read_paths: what the agent may read besides the system's directories and this Python. With /proc in it `ps`
            works, and with `landlock` agents see the command lines of every process on the host.
        limits: what the kernel refuses to the CLI and to all that it starts.
        group: the control group for the CLI and all that it starts, if there is one; the guard itself stays outside.
    """

    layer: Layer
    seccomp: Literal["on", "off"]
    read_paths: Sequence[Path]
    limits: Limits
    group: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Wall:
        """As the settings say; of `auto` what needs no trial (see trial.py)."""
        wanted = settings.agent_isolation
        return cls(
            layer=("off" if isolation.lacks(settings) else "landlock") if wanted == "auto" else wanted,
            seccomp=settings.agent_seccomp,
            read_paths=settings.agent_read_paths,
            limits=Limits.of(settings),
        )

    def but(self, *, at_least: Layer, group: Path | None) -> Wall:
        """This one with a group, and with another layer if that is a stronger one."""
        return replace(self, layer=max(self.layer, at_least, key=LAYERS.index), group=group)


def guard_environment(
    directories: Directories, wall: Wall, *, lease: Path | None, cli: Path, session_env: Mapping[str, str]
) -> dict[str, str]:
    """Variables for `ClaudeAgentOptions.env` when `cli_path` is the launcher. Call it in the process that connects.

    Args:
        lease: see LeaseFile; None for a CLI that works for no session.
        cli: the CLI to run, see `bundled_cli`.
        session_env: the session's own variables. They reach the CLI, but neither the launcher nor the guard, and
            never under a name by which the server steers the CLI. Do not put them into `env` as well.

    The model's credential (ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN in `env`) comes to the CLI through a pipe: no
    environment below the guard holds it.

    Raises ValueError for a path that contains os.pathsep, so that it would be read as two.
    """
    own = {SESSION_PREFIX + name: value for name, value in session_env.items()}
    place = directories
    writable = (place.workspace, place.home, place.output, place.file_history, place.config, place.tmp)
    return own | {
        "CLI_GUARD_CLI": str(cli.absolute()),
        "CLI_GUARD_PARENT": str(os.getpid()),
        "CLI_GUARD_LEASE": str(lease or ""),
        "CLI_GUARD_LAYER": wall.layer,
        "CLI_GUARD_BWRAP": bubblewrap() or "" if wall.layer == "namespaces" else "",
        "CLI_GUARD_SECCOMP": wall.seccomp,
        "CLI_GUARD_LIMITS": str(wall.limits),
        "CLI_GUARD_GROUP": str(wall.group or ""),
        "CLI_GUARD_READ": _joined((Path(sys.prefix), Path(sys.base_prefix), place.given, *wall.read_paths)),
        "CLI_GUARD_WRITE": _joined(writable),
        "CLI_GUARD_FILE_HISTORY": str(place.file_history.absolute()),
        "CLAUDE_CONFIG_DIR": str(place.config.absolute()),
        "ANTHROPIC_CONFIG_DIR": str(place.given.absolute() / "anthropic"),
        "HOME": str(place.home.absolute()),
        "CLAUDE_CODE_TMPDIR": str(place.output.absolute()),
        "TMPDIR": str(place.tmp.absolute()),
    }


def _joined(paths: Iterable[Path]) -> str:
    absolute = [str(path.absolute()) for path in paths]
    for path in absolute:
        if os.pathsep in path:
            raise ValueError(f"a path with {os.pathsep!r} in it cannot be isolated: {path}")
    return os.pathsep.join(absolute)
