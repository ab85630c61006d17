"""What the benchmark runs on: embedded servers, the demo model, and server processes, all on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from apps.api import migrate
from apps.api.core.config.agent import AgentConfig
from apps.api.core.sessions import sessions
from apps.api.core.sessions.sessions import Labels
from apps.api.db import Database
from apps.api.dev.embedded import Servers
from apps.api.settings import Settings
from tests.bench.client import Connection
from tests.bench.machine import allow_many_sockets, server_pid
from tests.fleet import API_KEY, Fleet, Instance

MODEL_KEY = "demo-key-of-the-benchmark"
OWNER_SLOTS = 8
IDLE_SECONDS = 0.5
AGENTS, SYNTHETIC = "agents", "synthetic"


@dataclass
class Stage:
    """Everything that runs.

    Attributes:
        agents: [0] runs agents, [1] is a pure API node (RUNNER_SLOTS=0); on a database of their own.
        synthetic: one pure API node on another database, for measurements without any agent.
        postgres, valkey: pids of the servers.
    """

    directory: Path
    servers: Servers
    model_url: str
    agents: Fleet
    synthetic: Fleet
    postgres: int
    valkey: int

    @property
    def owner(self) -> Instance:
        """The instance that runs agents."""
        return self.agents[0]

    @property
    def front(self) -> Instance:
        """The instance that clients of the agents talk to."""
        return self.agents[1]

    @property
    def node(self) -> Instance:
        """The instance without agents."""
        return self.synthetic[0]

    def settings(self, name: str) -> Settings:
        """Settings of this process for one of the two databases, like those of its instances."""
        return _settings(_environment(self.servers, self.directory, name, self.model_url))

    async def new_database(self, name: str) -> Settings:
        """Settings of an empty database, for its owner, too."""
        await self.servers.create_database(name)
        env = _environment(self.servers, self.directory, name, self.model_url)
        return _settings({**env, "DATABASE_OWNER_URL": self.servers.database_owner_url(name)})

    async def connect(self, instance: Instance) -> Connection:
        return await Connection.open(instance.url, API_KEY)

    @asynccontextmanager
    async def starting_ahead(self) -> AsyncIterator[Instance]:
        """One more instance that runs agents, and keeps one that waits."""
        await self.agents.start(1, RUNNER_SLOTS="1", PREWARM="1")
        instance = self.agents.instances.pop()
        try:
            yield instance
        finally:
            instance.signal(signal.SIGTERM)
            await instance.ended()
            await instance.client.aclose()

    async def start_more(self) -> None:
        """Two more instances beside `node`. The last one runs agents, and gives a session up when it is idle."""
        idle = {"RUNNER_SLOTS": "1", "SESSION_IDLE_SECONDS": str(IDLE_SECONDS)}
        await asyncio.gather(self.synthetic.start(1, RUNNER_SLOTS="0"), self.synthetic.start(1, **idle))

    async def make_sessions(self, count: int) -> list[UUID]:
        """Sessions in the synthetic database, without going through the API."""
        async with Database.open(self.settings(SYNTHETIC)) as db, db.transaction() as connection:
            tenant = await connection.fetchval("SELECT id FROM tenants WHERE name = 'default'")
            return [await sessions.insert(connection, tenant, AgentConfig(), Labels(), uuid4()) for _ in range(count)]


def _environment(servers: Servers, directory: Path, name: str, model_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": servers.database_url(name),
        "REDIS_URL": servers.redis_url,
        "REDIS_KEY_PREFIX": f"{name}:",
        "API_KEY": API_KEY,
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": MODEL_KEY,
        "WORKSPACES_DIR": str(directory / name / "workspaces"),
        "RATE_LIMIT_QUERY_PER_MINUTE": "0",
        "PREWARM": "0",
        "MAX_STREAMS_PER_KEY": "10000",
        "MAX_QUEUED_RUNS_PER_SESSION": "1000000",
        "SHUTDOWN_GRACE_SECONDS": "5",
    }


def _settings(env: Mapping[str, str]) -> Settings:
    return Settings(_env_file=None, **{name.lower(): value for name, value in env.items()})  # type: ignore[arg-type]


@asynccontextmanager
async def python_module(name: str, env: Mapping[str, str] | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child process `python -m name` that talks through stdin and stdout; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        name,
        env={**os.environ, **(env or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def demo_model() -> AsyncIterator[str]:
    """The demo model, which also knows `clock`, in a process of its own; yields its URL."""
    async with python_module("tests.bench.model") as process:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def _fleet(env: Mapping[str, str], directory: Path) -> AsyncIterator[Fleet]:
    """An empty fleet that ends with the block."""
    made = Fleet(env, directory, forked=False, apart=False)
    try:
        yield made
    finally:
        await made.stop()


@asynccontextmanager
async def opened(*, agents: bool = True) -> AsyncIterator[Stage]:
    """Start everything. Data is synced to disk as in production, in a temporary directory that is removed.

    Args:
        agents: also start the two instances that run agents.
    """
    allow_many_sockets()
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        async with AsyncExitStack() as stack:
            servers = stack.enter_context(Servers(directory / "servers"))
            model_url = await stack.enter_async_context(demo_model()) if agents else "http://127.0.0.1:9"
            fleets = []
            for name in (AGENTS, SYNTHETIC):
                env = _environment(servers, directory, name, model_url)
                await servers.create_database(name)
                await migrate.upgrade(_settings({**env, "DATABASE_OWNER_URL": servers.database_owner_url(name)}))
                logs = directory / name
                logs.mkdir()
                fleets.append(await stack.enter_async_context(_fleet(env, logs)))
            pids = server_pid("postgres"), server_pid("valkey-server")
            made = Stage(directory, servers, model_url, fleets[0], fleets[1], *pids)
            slots = (str(OWNER_SLOTS), "0") if agents else ()
            starts = [made.agents.start(1, RUNNER_SLOTS=each) for each in slots]
            await asyncio.gather(made.synthetic.start(1, RUNNER_SLOTS="0"), *starts)
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)
