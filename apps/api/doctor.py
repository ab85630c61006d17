"""`claude-agent-api doctor`: what the service needs on this machine, and what to do where it is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import asyncpg
from dotenv import dotenv_values

from apps.api import clock, machine, migrate, roles, shares
from apps.api.core.config import profiles
from apps.api.core.files.objects import StoreFailed
from apps.api.core.fleet import facts
from apps.api.core.network import default_model
from apps.api.db import connect
from apps.api.pool import CONNECT_TIMEOUT
from apps.api.redis import REDIS_ERRORS, open_redis, unfit
from apps.api.runner.guard import cgroups, isolation, namespaces, trial
from apps.api.runner.guard.launcher import bundled_cli, landlock_abi
from apps.api.settings import ENV_FILE, Settings
from apps.api.spelling import doubtful

OLDEST_PYTHON = (3, 11)
OLDEST_POSTGRES = 15
OLDEST_REDIS = (7, 0)

CLI_TIMEOUT = 30.0
"""Seconds for `claude --version`, which reads some 200 MB from a cold disk."""

SOCKETS_NAMED = 12


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `finding` says what is there and, unless the verdict is `ok`, what to do; it holds no secret."""

    verdict: Literal["ok", "warn", "FAIL"]
    subject: str
    finding: str


async def examine(settings: Settings) -> list[Check]:
    """Run all checks. One that cannot be made is a FAIL, never an exception."""
    checks: list[Callable[[Settings], Awaitable[Check]]]
    checks = [_names, _python, _cli, _postgres, _role, _schema, _redis, _model, _profiles, _workspaces, _git]
    checks += [_fleet, _clock, _host, _isolation, _limits, _sockets, _port, _descriptors]
    return [await check(settings) for check in checks]


async def _names(_settings: Settings) -> Check:
    found = doubtful(os.environ, ENV_FILE)
    return Check("warn", "Settings", "; ".join(found)) if found else Check("ok", "Settings", "every name is known")


async def _python(_settings: Settings) -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("FAIL", "Python", f"{found}: install 3.11 or later")
    return Check("ok", "Python", found)


async def _cli(_settings: Settings) -> Check:
    path = bundled_cli()
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


async def _postgres(settings: Settings) -> Check:
    try:
        connection = await connect(settings)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return Check("FAIL", "PostgreSQL", f"{migrate.reason(error)}: check DATABASE_URL, or start `dev`")
    found = connection.get_server_version().major
    shown = await connection.fetchval("SHOW server_version")
    await connection.close(timeout=CONNECT_TIMEOUT)
    if found < OLDEST_POSTGRES:
        return Check("FAIL", "PostgreSQL", f"{shown}: use {OLDEST_POSTGRES} or later")
    return Check("ok", "PostgreSQL", shown)


async def _role(settings: Settings) -> Check:
    try:
        connection = await connect(settings)
        try:
            found = await roles.excess(connection)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return Check("FAIL", "Database role", f"unknown ({migrate.reason(error)})")
    return Check("warn", "Database role", found) if found else Check("ok", "Database role", "serves, and has no DDL")


async def _schema(settings: Settings) -> Check:
    try:
        state = await migrate.state(settings, 0)
    except migrate.ERRORS as error:
        return Check("FAIL", "Schema", f"unknown ({migrate.reason(error)})")
    findings = {
        "current": "up to date",
        "empty": "no tables yet: run `claude-agent-api migrate`",
        "unreleased": "from before the first release: name a new, empty database, or a new data directory",
        "behind": "out of date: run `claude-agent-api migrate`",
        "ahead": "migrated by a newer release: install that one",
    }
    return Check("ok" if state == "current" else "FAIL", "Schema", findings[state])


async def _redis(settings: Settings) -> Check:
    try:
        async with open_redis(settings) as redis:
            facts = await redis.client.info("everything")
    except REDIS_ERRORS as error:
        return Check("FAIL", "Redis", f"{migrate.reason(error)}: check REDIS_URL, or start `dev`")
    if (reason := unfit(facts)) is not None:
        return Check("FAIL", "Redis", reason)
    version = str(facts.get("redis_version", "0.0"))
    name = f"Valkey {facts['valkey_version']}" if "valkey_version" in facts else f"Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        return Check("FAIL", "Redis", f"{name}: use Redis 7.0, Valkey 7.2 or later")
    if facts.get("maxmemory") and facts.get("maxmemory_policy") == "noeviction":
        advice = "when its maxmemory is used up, it refuses what is live: set maxmemory-policy allkeys-lru"
        return Check("warn", "Redis", f"{name}: {advice}")
    return Check("ok", "Redis", name)


async def _model(settings: Settings) -> Check:
    found = [
        name
        for name, value in (
            ("ANTHROPIC_API_KEY", settings.anthropic_api_key),
            ("ANTHROPIC_AUTH_TOKEN", settings.anthropic_auth_token),
            ("CLAUDE_CODE_OAUTH_TOKEN", settings.claude_code_oauth_token),
            ("ANTHROPIC_BASE_URL", settings.anthropic_base_url),
            ("CLAUDE_CODE_USE_BEDROCK", settings.claude_code_use_bedrock),
            ("CLAUDE_CODE_USE_VERTEX", settings.claude_code_use_vertex),
        )
        if value
    ]
    environment = {**dotenv_values(".env"), **os.environ}
    if misled := default_model.misled(environment):
        return Check("FAIL", "Model", misled)
    if not found and settings.tenant_model_credentials == "required":
        return Check("ok", "Model", "each tenant's own (TENANT_MODEL_CREDENTIALS=required)")
    if not found:
        return Check(
            "warn", "Model", "no ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN: only `dev` can answer, scripted"
        )
    if refused := default_model.refusal(settings, environment):
        return Check("FAIL", "Model", refused)
    shown = f"{settings.default_model}, {' and '.join(found)} set"
    match await default_model.ask(settings):
        case "missing":
            return Check("FAIL", "Model", f"{settings.default_model}: {default_model.ADVICE}")
        case "unauthorized":
            return Check("FAIL", "Model", f"{shown}: {default_model.REFUSED}")
        case "unknown":
            return Check("warn", "Model", f"{shown}; the model API did not say whether it has this model")
    return Check("ok", "Model", shown)


async def _profiles(settings: Settings) -> Check:
    try:
        found = profiles.load(settings.profiles_file, settings.default_profile)
    except profiles.BadProfiles as error:
        return Check("FAIL", "Profiles", str(error))
    return Check("ok", "Profiles", f"{', '.join(found)} ({settings.profiles_file or 'those of the package'})")


async def _workspaces(settings: Settings) -> Check:
    root = settings.workspaces_root
    # Looked at, never made: what doctor made would belong to whoever ran it.
    there = next(path for path in (root, *root.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Check("FAIL", "Workspaces", f"{root}: {there} is not a directory to write to; set WORKSPACES_DIR")
    return Check("ok", "Workspaces", str(root) if there == root else f"{root}, which the first start makes")


async def _fleet(settings: Settings) -> Check:
    try:
        connection = await connect(settings)
        try:
            found = await facts.differing(connection, settings)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)
    except StoreFailed as error:
        return Check("FAIL", "Fleet", f"the store of sessions' files cannot be read: {error}; see WORKSPACE_STORE_URL")
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return Check("FAIL", "Fleet", f"unknown ({migrate.reason(error)})")
    return Check("FAIL", "Fleet", "; ".join(found)) if found else Check("ok", "Fleet", "no instance differs from this")


async def _clock(settings: Settings) -> Check:
    try:
        connection = await connect(settings)
        try:
            asked_at = clock.uptime()
            clock.heard(await connection.fetchval("SELECT now()"), asked_at)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return Check("FAIL", "Clock", f"unknown ({migrate.reason(error)})")
    off = clock.offset()
    if abs(off) > clock.TOLERANCE:
        return Check(
            "warn", "Clock", f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} PostgreSQL's: {clock.ADVICE}"
        )
    return Check("ok", "Clock", "agrees with that of PostgreSQL")


async def _host(settings: Settings) -> Check:
    found = await asyncio.to_thread(machine.shortages, trial.places(settings))
    if failure := await trial.failure(settings):
        found.append(failure)
    if found:
        return Check("FAIL", "Host", "; ".join(found))
    return Check("ok", "Host", "has room, inodes and descriptors, and the guard of agents starts")


async def _git(_settings: Settings) -> Check:
    path = shutil.which("git")
    if path is None:
        return Check("warn", "Git", "not found: sessions with a repository fail, until it is installed")
    return Check("ok", "Git", path)


async def _isolation(settings: Settings) -> Check:
    found = await trial.strongest(settings)
    if refused := isolation.refusal(settings, found.layer, found.lacking):
        return Check("FAIL", "Isolation", refused)
    if warned := isolation.warnings(settings, found.layer, found.lacking):
        return Check("warn", "Isolation", "; ".join(warned))
    has = f"{found.layer}, Landlock ABI {landlock_abi()}, system calls filtered, network {settings.agent_network}"
    return Check("ok", "Isolation", has + "".join(f"; no {layer}: {why}" for layer, why in found.lacking.items()))


async def _limits(settings: Settings) -> Check:
    try:
        return Check("ok", "Limits", f"of agents are held by control groups in {cgroups.delegated(settings)}")
    except cgroups.NotDelegated as error:
        if warned := cgroups.warnings(settings, str(error)):
            return Check("warn", "Limits", "; ".join(warned))
        return Check("ok", "Limits", f"of agents are held by rlimits and a watchdog: {error}")


async def _sockets(settings: Settings) -> Check:
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


async def _port(settings: Settings) -> Check:
    found = isolation.unreserved(settings.port)
    return Check("ok", "Port", f"{settings.port}, {found or 'which the kernel gives to nobody by itself'}")


async def _descriptors(_settings: Settings) -> Check:
    found = shares.most_descriptors()
    if found < shares.ENOUGH_DESCRIPTORS:
        advice = f"set the hard limit (ulimit -Hn, LimitNOFILE) to {shares.ENOUGH_DESCRIPTORS} or more"
        return Check("warn", "Descriptors", f"{found}, of which {shares.connections(found)} for clients: {advice}")
    return Check("ok", "Descriptors", f"{found}, of which {shares.connections(found)} for clients")
