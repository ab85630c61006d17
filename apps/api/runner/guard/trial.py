"""A start of the guard with a program that ends at once, in place of the CLI: whether this host can start agents, and
how well it can isolate them."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apps.api.runner.guard import isolation
from apps.api.runner.guard.launcher import Directories, Network, Wall, bubblewrap, guard_environment, install_guard
from apps.api.runner.guard.rules import PortRules
from apps.api.settings import Layer, Settings

SECONDS = 30.0
"""For a start that takes some 50 ms on an idle host."""

_PROGRAM = Path("/bin/sh")

_PORT = 50_000
"""Of a network namespace in which nothing else is."""


def places(settings: Settings) -> dict[str, Path]:
    """The directories that agents need room in, by what operators call them."""
    return {"WORKSPACES_DIR": settings.workspaces_root, "TMPDIR": Path(tempfile.gettempdir())}


@dataclass(frozen=True, slots=True)
class Found:
    """What this host has for agents.

    Attributes:
        layer: the strongest that AGENT_ISOLATION lets agents have and that works here.
        lacking: why those that are stronger do not, as far as they were asked for.
    """

    layer: Layer
    lacking: Mapping[Layer, str]


async def strongest(settings: Settings) -> Found:
    """Find out. One instance does so once, so that its agents are all isolated in the same way."""
    wanted = settings.agent_isolation
    if wanted == "off" or settings.runner_slots == 0:
        return Found("off", {})
    if lacks := isolation.lacks(settings):
        return Found("off", {"landlock": lacks, "namespaces": lacks})
    if wanted == "landlock":
        return Found("landlock", {})
    if bubblewrap() is None:
        return Found("landlock", {"namespaces": "bubblewrap (the program bwrap) is not installed"})
    trying = settings.model_copy(update={"agent_isolation": "namespaces"})
    reason = await failure(trying)
    return Found("landlock", {"namespaces": reason}) if reason else Found("namespaces", {})


async def failure(settings: Settings, within: Path | None = None) -> str | None:
    """Why agents cannot be started here, if they cannot: no directories for them, no files, or no process.

    Nothing of it is left. Directories are made where those of agents are: in WORKSPACES_DIR if it is there, and
    `within` an instance's own directory, else in TMPDIR.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="trial-", dir=within) as made:
            directory = Path(made)
            above = settings.workspaces_root if settings.workspaces_root.exists() else directory
            with tempfile.TemporaryDirectory(prefix=".trial-", dir=above) as workspace:
                return await _start(settings, directory, Path(workspace))
    except OSError as error:
        if isinstance(error, PermissionError) and _forbids_programs(tmp := tempfile.gettempdir()):
            return (
                f"no agent can be started: {tmp} is mounted noexec, and their launcher lies there: mount it with `exec`"
                " (docker: --tmpfs /tmp:exec), or set TMPDIR to a directory that allows programs"
            )
        return f"no agent can be started: {error}"


def _forbids_programs(directory: str) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)


async def _start(settings: Settings, directory: Path, workspace: Path) -> str | None:
    names = ("home", "output", "file_history", "config", "tmp", "given")
    for name in names:
        (directory / name).mkdir()
    directories = Directories(workspace=workspace, **{name: directory / name for name in names})
    wall = Wall.of(settings)
    env = guard_environment(directories, wall, lease=None, cli=_PROGRAM, session_env={})
    with _network(wall, directory) as network:
        return await _run(
            str(install_guard(directory)),
            workspace,
            env | network.variables() | {"PATH": os.environ.get("PATH", os.defpath)},
        )


@contextmanager
def _network(wall: Wall, directory: Path) -> Iterator[Network]:
    """One of its own for who may have one: containers may allow the other namespaces and not this."""
    if wall.layer != "namespaces":
        yield Network()
        return

    def take(listening: Sequence[socket.socket]) -> None:
        for each in listening:
            each.close()

    rules = PortRules(directory / "ports")
    rules.start()
    try:
        yield Network("model_only", rules=rules.path, ticket=rules.way(take), ways=(_PORT,))
    finally:
        rules.close()


async def _run(launcher: str, workspace: Path, env: Mapping[str, str]) -> str | None:
    """Why the guard does not start a program, if it does not."""
    process = await asyncio.create_subprocess_exec(
        launcher, "-c", ":", cwd=workspace, env=env, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )
    try:
        async with asyncio.timeout(SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        return f"the guard of agents did not start a program within {SECONDS:.0f} s"
    finally:
        if process.returncode is None:
            process.terminate()  # it ends what it has started
            await process.wait()
    if process.returncode:
        words = said.decode(errors="replace").strip()[-300:]
        return f"the guard of agents does not start a program ({words or process.returncode})"
    return None
