"""`claude-agent-api dev`: start what is missing, in order, and stop it in the opposite order, come what may."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.api import keys, migrate
from apps.api.auth import SCOPES
from apps.api.db import Database
from apps.api.dev import console, postgres, valkey
from apps.api.dev.console import complain, say
from apps.api.dev.datadir import DataDir, DevError, write_secret
from apps.api.dev.fleet import Fleet, refuse_busy_ports
from apps.api.dev.processes import Child, Ending, Reaper, Stage, await_ready
from apps.api.settings import ENV_FILE, Settings
from apps.api.spelling import doubts

DEMO_START_TIMEOUT = 30.0
"""Seconds."""

DEMO_ENDING = Ending(Stage.MODEL, signal.SIGTERM, 5.0)

ECHO = 1.0
"""Seconds in which a second signal is the same wish: `timeout` for one signals its child and then the group."""

TICK = 0.2
"""Seconds between two looks at the processes and their logs."""


@dataclass(frozen=True, slots=True)
class DevOptions:
    """What the command line says. `port` is the first of `instances` ports; None: PORT, or its default."""

    data_dir: Path = Path(".data")
    host: str = "127.0.0.1"
    port: int | None = None
    instances: int = 1
    verbose: bool = False


def run_dev(options: DevOptions) -> int:
    """Run the local mode until Ctrl-C, SIGTERM or the death of all servers.

    Returns:
        The exit code: 0 after a stop that was asked for, 1 when something failed, 2 when nothing was started
        because the data directory or a port is in use.

    Raises:
        pydantic.ValidationError: the environment or `.env` is wrong.
    """
    settings = Settings()
    # Not refused: this is somebody's shell and project, with names of all their programs.
    for found in doubts(os.environ, ENV_FILE):
        complain(f"claude-agent-api dev: warning: {found}")
    first = options.port if options.port is not None else settings.port
    home = DataDir.at(options.data_dir)
    try:
        with home.hold() as lock:
            refuse_busy_ports(options.host, range(first, first + options.instances))
            home.instances.unlink(missing_ok=True)
            asyncio.run(_Supervisor(options, settings, home, first).run(lock))
    except DevError as error:
        complain(f"claude-agent-api dev: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # while waiting for the lock; later on SIGINT is an orderly stop
    return 0


class _Supervisor:
    def __init__(self, options: DevOptions, settings: Settings, home: DataDir, first_port: int) -> None:
        self._options, self._settings, self._home = options, settings, home
        self._ports = range(first_port, first_port + options.instances)
        self._overrides: dict[str, str] = {}
        self._supports: list[Child] = []
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._stopped_at = 0.0

    async def run(self, lock: int) -> None:
        """Raises DevError when something fails; whatever happens, nothing is left running."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._interrupted)
        async with AsyncExitStack() as stack:
            reaper = Reaper(self._home.logs / "reaper.log", lock)
            stack.callback(reaper.close)
            # A task of its own, so that a signal cancels the work and never the clean-up.
            work = asyncio.create_task(self._work(stack, reaper), name="dev")
            stopped = asyncio.create_task(self._stop.wait(), name="dev-stop")
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, stopped):
                task.cancel()
            result, _ = await asyncio.gather(work, stopped, return_exceptions=True)
            if isinstance(result, Exception):
                raise result

    def _interrupted(self) -> None:
        now = time.monotonic()
        if not self._stop.is_set():
            say("\nStopping; again to hurry.")
            self._stop.set()
            self._stopped_at = now
        elif now - self._stopped_at > ECHO:
            self._hurry.set()

    async def _work(self, stack: AsyncExitStack, reaper: Reaper) -> None:
        self._start_databases(stack, reaper)
        settings = self._effective_settings()
        key = await self._prepare_database(settings)
        demo = not settings.model_is_configured
        if demo:
            self._start_demo_model(stack, reaper)
        fleet = Fleet(self._home, reaper, self._options.host, settings.shutdown_grace_seconds)
        stack.push_async_callback(fleet.stop, self._hurry)
        say(f"Starting {'the server' if len(self._ports) == 1 else f'{len(self._ports)} servers'} ...")
        # Empty, since `.env` may have it as well.
        none = {"DATABASE_OWNER_URL": "", "DATABASE_OWNER_URL_FILE": ""}
        fleet.start(self._ports, {**os.environ, **self._overrides, **none})
        await fleet.ready()
        model = console.describe_model(settings, demo=demo)
        urls = [server.url for server in fleet.servers]
        say(console.welcome(urls, key, self._home.logs, model, console=settings.web_console))
        await self._watch(fleet, reaper)

    def _start_databases(self, stack: AsyncExitStack, reaper: Reaper) -> None:
        given = self._settings.model_fields_set
        if "redis_url" not in given:
            say("Starting Valkey ...")
            self._support(stack, reaper, valkey.start(self._home, reaper, ephemeral=False))
            self._overrides["REDIS_URL"] = valkey.url(self._home)
        if "database_url" not in given:
            say("Starting PostgreSQL ...")
            self._support(stack, reaper, postgres.start(self._home, reaper, ephemeral=False))
            self._overrides["DATABASE_URL"] = postgres.url(self._home, postgres.DATABASE)
            self._overrides["DATABASE_OWNER_URL"] = postgres.owner_url(self._home, postgres.DATABASE)

    def _support(self, stack: AsyncExitStack, reaper: Reaper, child: Child) -> None:
        stack.callback(reaper.stop, child)
        self._supports.append(child)

    def _effective_settings(self) -> Settings:
        given = self._settings.model_fields_set
        defaults = {
            "WORKSPACES_DIR": str(self._home.workspaces),
            "DEBUG": "true",
            "RATE_LIMIT_QUERY_PER_MINUTE": "0",
            "SHUTDOWN_GRACE_SECONDS": "5",  # an agent's preview never ends, and who presses Ctrl-C waits for it
            "OUTBOUND_ALLOW": "127.0.0.0/8",  # hooks and webhooks of people who try them on one machine
        }
        if not self._settings.encryption_keys:
            defaults["ENCRYPTION_KEYS"] = self._home.encryption_key()
        self._overrides |= {name: value for name, value in defaults.items() if name.lower() not in given}
        values: dict[str, Any] = {name.lower(): value for name, value in self._overrides.items()}
        return Settings(**values)

    async def _prepare_database(self, settings: Settings) -> Path | None:
        """Bring the schema up to date. Returns the file that holds a valid API key, if one does."""
        try:
            if "DATABASE_URL" in self._overrides:
                await postgres.create_database(self._home, postgres.DATABASE)
            await migrate.upgrade(settings)
            async with Database.open(settings) as db:
                return await self._provide_key(db, settings)
        except migrate.ERRORS as error:
            raise DevError(f"the database is not usable: {migrate.reason(error)}") from error

    async def _provide_key(self, db: Database, settings: Settings) -> Path | None:
        path, given = self._home.api_key, settings.api_key
        created = await keys.ensure_first_key(db, given.get_secret_value() if given else None)
        if given is not None:
            write_secret(path, given.get_secret_value())
        elif created is not None:
            write_secret(path, created.secret)
        elif not _is_one_of(await keys.list_keys(db), path):
            # The file was lost. On a database of our own a new key harms nobody; elsewhere keys are the owner's affair.
            if "DATABASE_URL" not in self._overrides:
                return None
            made = await keys.create_key(db, tenant=keys.DEFAULT_TENANT, name="dev", scopes=SCOPES)
            write_secret(path, made.secret)
        return path

    def _start_demo_model(self, stack: AsyncExitStack, reaper: Reaper) -> None:
        say("Starting the demo model ...")
        port_file = self._home.root / "demo-model.port"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "apps.demo_model", "--host", "127.0.0.1", "--port", "0"]
        command += ["--port-file", str(port_file)]
        child = reaper.start("the demo model", command, DEMO_ENDING, self._home.logs / "demo-model.log")
        self._support(stack, reaper, child)
        await_ready(child, port_file.exists, DEMO_START_TIMEOUT)
        self._overrides["ANTHROPIC_BASE_URL"] = f"http://127.0.0.1:{port_file.read_text().strip()}"
        self._overrides["ANTHROPIC_API_KEY"] = "demo-key-that-opens-nothing"

    async def _watch(self, fleet: Fleet, reaper: Reaper) -> None:
        """Show the logs and report deaths.

        Raises:
            DevError: no server is left.
        """
        several = len(fleet.servers) > 1
        tails = [
            console.LogTail(s.child.log, f"[{s.number}] " if several else "", everything=self._options.verbose)
            for s in fleet.servers
        ]
        watched = [*self._supports, *(server.child for server in fleet.servers)]
        left = len(fleet.servers)
        while left:
            await asyncio.sleep(TICK)
            left = sum(server.child.is_alive() for server in fleet.servers)
            for tail in tails:
                tail.show_new()
            for child in [child for child in watched if not child.is_alive()]:
                watched.remove(child)
                child.kill()
                reaper.forget(child)
                complain(f"{child.name} (process {child.pid}) ended with {child.how_it_ended()}. Its last words:")
                complain(child.tail())
        raise DevError("every server has ended; the reason is in " + console.shown(self._home.logs))


def _is_one_of(known: list[keys.KeyInfo], path: Path) -> bool:
    """Whether the key in this file seems to be one of the database's: its start is all that can be compared."""
    try:
        secret = path.read_text().strip()
    except FileNotFoundError:
        return False
    return any(secret.startswith(key.prefix) and key.revoked_at is None for key in known)
