"""A start of the guard with a program that ends at once, in place of the CLI: whether this host can start agents."""

from __future__ import annotations

import asyncio
import os
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from apps.api.runner.guard.launcher import guard_environment, install_guard
from apps.api.settings import Settings

SECONDS = 30.0
"""For a start that takes some 50 ms on an idle host."""

_PROGRAM = Path("/bin/sh")


def places(settings: Settings) -> dict[str, Path]:
    """The directories that agents need room in, by what operators call them."""
    return {"WORKSPACES_DIR": settings.workspaces_root, "TMPDIR": Path(tempfile.gettempdir())}


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
        return f"no agent can be started: {error}"


async def _start(settings: Settings, directory: Path, workspace: Path) -> str | None:
    names = ("home", "output", "history", "config", "tmp", "given")
    home, output, history, config, tmp, given = (directory / name for name in names)
    for made in (home, output, history, config, tmp, given):
        made.mkdir()
    env = guard_environment(
        workspace=workspace,
        file_history=history,
        home=home,
        output=output,
        config_dir=config,
        tmp_dir=tmp,
        given=given,
        lease=None,
        isolation=settings.agent_isolation,
        seccomp=settings.agent_seccomp,
        read_paths=settings.agent_read_paths,
        cli=_PROGRAM,
        session_env={},
    )
    process = await asyncio.create_subprocess_exec(
        str(install_guard(directory)),
        "-c",
        ":",
        env=env | {"PATH": os.environ.get("PATH", os.defpath)},
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
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
