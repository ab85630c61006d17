"""What `doctor` finds of this machine: programs, directories, isolation, and what the settings say of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dotenv import dotenv_values

from apps.api import machine, secret_files, shares
from apps.api.core.config import profiles
from apps.api.doctor.check import Check
from apps.api.runner.guard import cgroups, isolation, namespaces, trial
from apps.api.runner.guard.confinement import system_paths
from apps.api.runner.guard.launcher import bundled_cli, landlock_abi
from apps.api.settings import ENV_FILE, Settings
from apps.api.spelling import doubts

OLDEST_PYTHON = (3, 11)

CLI_TIMEOUT = 30.0
"""Seconds for `claude --version`, which reads some 200 MB from a cold disk."""

SOCKETS_NAMED = 12


async def names(_settings: Settings) -> Check:
    """Names that may have been meant as settings."""
    found = doubts(os.environ, ENV_FILE)
    if not found:
        return Check("ok", "Settings", "every name is known")
    refused = any(doubt.verdict == "refused" for doubt in found)
    return Check("FAIL" if refused else "warn", "Settings", "; ".join(map(str, found)))


async def secrets(settings: Settings) -> Check:
    """Whether files with secrets lie where agents do not read."""
    given = {**dotenv_values(ENV_FILE), **os.environ}
    files = {name: path for name in secret_files.names(Settings) if (path := given.get(name))}
    trees = (*map(Path, system_paths()), *settings.agent_read_paths)
    shown = [f"{name}={path}" for name, path in files.items() if _is_below(Path(path), trees)]
    if shown and settings.runner_slots:
        return Check("warn", "Secrets", f"agents can read {' and '.join(shown)}: mount it below /run/secrets")
    return Check("ok", "Secrets", f"{len(files)} in files" if files else "none in files")


def _is_below(path: Path, trees: Iterable[Path]) -> bool:
    return any(path.resolve().is_relative_to(tree.resolve()) for tree in trees)


async def python(_settings: Settings) -> Check:
    """Whether it is new enough."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("FAIL", "Python", f"{found}: install 3.11 or later")
    return Check("ok", "Python", found)


async def cli(_settings: Settings) -> Check:
    """Whether the agents' program is there, and starts."""
    try:
        path = bundled_cli()
    except FileNotFoundError as error:
        return Check("FAIL", "Claude CLI", f"{error}: install the dependencies again (uv sync)")
    try:
        # Without our environment: the CLI has no business with the secrets in it.
        process = await asyncio.create_subprocess_exec(
            str(path),
            "--version",
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": tempfile.gettempdir()},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return Check("FAIL", "Claude CLI", f"{path}: {error.strerror}: install the dependencies again (uv sync)")
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CLI_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        return Check("FAIL", "Claude CLI", f"`claude --version` did not end within {CLI_TIMEOUT:.0f} s")
    answer = output.decode(errors="replace").strip().split("\n")[-1]
    if process.returncode != 0:
        return Check("FAIL", "Claude CLI", f"`claude --version` failed ({answer or process.returncode})")
    return Check("ok", "Claude CLI", answer)


async def profiles_(settings: Settings) -> Check:
    """Whether they can be read."""
    try:
        found = profiles.load(settings.profiles_file, settings.default_profile)
    except profiles.BadProfiles as error:
        return Check("FAIL", "Profiles", str(error))
    return Check("ok", "Profiles", f"{', '.join(found)} ({settings.profiles_file or 'those of the package'})")


async def workspaces(settings: Settings) -> Check:
    """Whether there may be agents' files. What doctor made would belong to whoever ran it."""
    root = settings.workspaces_root
    there = next(path for path in (root, *root.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Check("FAIL", "Workspaces", f"{root}: {there} is not a directory to write to; set WORKSPACES_DIR")
    return Check("ok", "Workspaces", str(root) if there == root else f"{root}, which the first start makes")


async def host(settings: Settings) -> Check:
    """Whether it has room, and starts the agents' guard."""
    found = await asyncio.to_thread(machine.shortages, trial.places(settings))
    if failure := await trial.failure(settings):
        found.append(failure)
    if found:
        return Check("FAIL", "Host", "; ".join(found))
    return Check("ok", "Host", "has room, inodes and descriptors, and the guard of agents starts")


async def git(_settings: Settings) -> Check:
    """Whether it is there."""
    path = shutil.which("git")
    if path is None:
        return Check("warn", "Git", "not found: sessions with a repository fail, until it is installed")
    return Check("ok", "Git", path)


async def isolation_(settings: Settings) -> Check:
    """How agents are isolated."""
    found = await trial.strongest(settings)
    if refused := isolation.refusal(settings, found.layer, found.lacking):
        return Check("FAIL", "Isolation", refused)
    if warned := isolation.warnings(settings, found.layer, found.lacking):
        return Check("warn", "Isolation", "; ".join(warned))
    has = f"{found.layer}, Landlock ABI {landlock_abi()}, system calls filtered, network {settings.agent_network}"
    return Check("ok", "Isolation", has + "".join(f"; no {layer}: {why}" for layer, why in found.lacking.items()))


async def limits(settings: Settings) -> Check:
    """Who holds agents to their limits."""
    try:
        return Check("ok", "Limits", f"of agents are held by control groups in {cgroups.delegated(settings)}")
    except cgroups.NotDelegated as error:
        if warned := cgroups.warnings(settings, str(error)):
            return Check("warn", "Limits", "; ".join(warned))
        return Check("ok", "Limits", f"of agents are held by rlimits and a watchdog: {error}")


async def sockets(settings: Settings) -> Check:
    """What agents could connect to."""
    shown: tuple[str, ...] = ("/",)
    if (await trial.strongest(settings)).layer == "namespaces":
        shown = (*namespaces.system_paths(), *map(str, settings.agent_read_paths))
    found = await asyncio.to_thread(isolation.reachable_sockets, shown)
    if not found:
        return Check("ok", "Sockets", "none with a path that agents could connect to")
    named = ", ".join(found[:SOCKETS_NAMED]) + (
        f" and {len(found) - SOCKETS_NAMED} more" * (len(found) > SOCKETS_NAMED)
    )
    return Check("warn", "Sockets", f"Landlock leaves agents these, if whoever listens lets them in: {named}")


async def port(settings: Settings) -> Check:
    """Whether the kernel keeps it for us."""
    found = isolation.unreserved(settings.port)
    return Check("ok", "Port", f"{settings.port}, {found or 'which the kernel gives to nobody by itself'}")


async def descriptors(_settings: Settings) -> Check:
    """Whether there are enough."""
    found = shares.most_descriptors()
    if found < shares.ENOUGH_DESCRIPTORS:
        advice = f"set the hard limit (ulimit -Hn, LimitNOFILE) to {shares.ENOUGH_DESCRIPTORS} or more"
        return Check("warn", "Descriptors", f"{found}, of which {shares.connections(found)} for clients: {advice}")
    return Check("ok", "Descriptors", f"{found}, of which {shares.connections(found)} for clients")
