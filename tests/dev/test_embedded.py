"""The embedded servers as tests and `dev` use them, and what is left of them when somebody is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio

from apps.api.dev import embedded
from apps.api.dev.datadir import RefusedError
from apps.api.dev.embedded import Servers
from apps.api.settings import Settings

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from apps.api.dev.embedded import Servers
with Servers(Path(sys.argv[1]), ephemeral=sys.argv[2:] == ["ephemeral"]):
    print("up", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(data_dir: Path, *arguments: str) -> Iterator[psutil.Popen]:
    """Another process that holds running servers in `data_dir`."""
    command = [sys.executable, "-c", HOLDER, str(data_dir), *arguments]
    with psutil.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def children(process: psutil.Popen, name: str = "") -> list[psutil.Process]:
    """The direct and indirect children that live and have `name` in their command line."""
    return [child for child in process.children(recursive=True) if name in command_line(child)]


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or " "
    except psutil.Error:
        return ""


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever a test did, no process that knows its directory outlives it."""
    yield
    left = [p for p in psutil.process_iter() if str(tmp_path) in command_line(p)]
    for process in left:
        process.kill()
    assert left == []


def assert_end(processes: list[psutil.Process]) -> None:
    """Every process ends within a bound. A zombie has ended: who reaps it is not its supervisor's affair."""
    assert processes
    _, alive = psutil.wait_procs([p for p in processes if is_alive(p)], timeout=30)
    assert [p for p in alive if is_alive(p)] == []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def remember(servers: Servers) -> None:
    """Leave something in both servers."""
    connection = await connect(servers)
    await connection.execute("CREATE TABLE remembered AS SELECT 42 AS answer")
    await connection.close()
    async with redis.asyncio.Redis.from_url(servers.redis_url) as client:
        await client.set("remembered", "42")


async def remembered(servers: Servers) -> tuple[int, bytes | str | None]:
    connection = await connect(servers)
    answer = await connection.fetchval("SELECT answer FROM remembered")
    await connection.close()
    async with redis.asyncio.Redis.from_url(servers.redis_url) as client:
        return answer, await client.get("remembered")


async def connect(servers: Servers) -> asyncpg.Connection:
    await servers.create_database("app")
    return await asyncpg.connect(Settings(database_url=servers.database_owner_url("app")).asyncpg_dsn)


async def test_one_holder_at_a_time_a_restart_keeps_the_data_and_only_running_servers_are_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Servers(data) as servers:
        await remember(servers)
        with pytest.raises(RefusedError, match=rf"in use by process {os.getpid()}\."), Servers(data):
            pass
        found = embedded.find(data)
        assert found.database_url is not None
        assert found.redis_url is not None
    for name in ("data", "never"):
        assert embedded.find(tmp_path / name) == embedded.Addresses(
            None, None, None, tmp_path / name / "workspaces", None
        )
    with psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:
        try:
            # Files with the id of a process that is somebody else's end nobody.
            (data / "postgres" / "postmaster.pid").write_text(f"{bystander.pid}\n{data}/postgres\n")
            (data / "valkey.pid").write_text(f"{bystander.pid}\n")
            with Servers(data) as servers:
                assert bystander.poll() is None
                assert await remembered(servers) == (42, b"42")
        finally:
            bystander.kill()


async def test_ephemeral_servers_are_those_of_production_closed_to_others_and_leave_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    partial = data / "postgres.partial"
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text("18\n")
    before = set(psutil.Process().children(recursive=True))
    with Servers(data, ephemeral=True) as servers:
        started = set(psutil.Process().children(recursive=True)) - before
        assert len(started) >= 3
        assert not partial.exists(), "a first start that was cut off is repeated"
        await versions_are_the_ones_that_production_supports(servers)
        await both_servers_ask_for_a_password(servers, data)
        only_the_owner_can_enter(data)
    assert not data.exists()
    assert_end(list(started))


async def versions_are_the_ones_that_production_supports(servers: Servers) -> None:
    connection = await connect(servers)
    assert connection.get_server_version().major >= 15
    assert await connection.fetchval("SHOW max_connections") == "400"
    assert await connection.fetchval("SELECT lower('ÀÉ')") == "àé"
    await connection.close()
    async with redis.asyncio.Redis.from_url(servers.redis_url) as client:
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"


async def both_servers_ask_for_a_password(servers: Servers, data: Path) -> None:
    sockets = data / "run"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=str(sockets), user="postgres", password="guess", database="postgres")
    async with redis.asyncio.Redis(unix_socket_path=str(sockets / "valkey.sock"), protocol=2) as client:
        with pytest.raises(redis.exceptions.RedisError, match="Authentication required"):
            await client.ping()
    secret = Settings(redis_url=servers.redis_url).redis_url.get_secret_value().split("@")[0].split(":")[-1]
    assert len(secret) >= 32
    assert [p for p in psutil.Process().children(recursive=True) if secret in command_line(p)] == []


def only_the_owner_can_enter(data: Path) -> None:
    for path in (data / "run", data / "logs", data / "postgres"):
        assert path.stat().st_mode & 0o077 == 0
    for name in ("database-password", "server-password"):
        assert (data / name).stat().st_mode & 0o777 == 0o600


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    data = tmp_path / ("x" * 60) / "with space, comma and %" / "data"
    with Servers(data, ephemeral=True):
        found = embedded.find(data)
        assert found.redis_url is not None
        assert str(data) not in found.redis_url
        sockets = Path(found.redis_url.split("@")[1].split("?")[0]).parent
        assert sockets.stat().st_mode & 0o077 == 0
    assert not sockets.exists()


def test_a_socket_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run").symlink_to(tempfile.gettempdir())
    with pytest.raises(RefusedError, match="belongs to somebody else"), Servers(tmp_path / "data"):
        pass


@pytest.mark.slow
async def test_a_holder_that_ends_or_is_killed_leaves_nothing_and_the_next_one_starts(tmp_path: Path) -> None:
    with holder(tmp_path / "data") as process:
        left = children(process)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert_end(left)
    with holder(tmp_path / "data") as process:
        left = children(process)
        process.kill()
    with Servers(tmp_path / "data") as servers:  # waits for the reaper, which has the lock until all is ended
        assert [p for p in left if is_alive(p)] == []
        await remember(servers)


def test_a_killed_holder_of_ephemeral_servers_leaves_no_directory(tmp_path: Path) -> None:
    with holder(tmp_path / "data", "ephemeral") as process:
        left = children(process)
        process.kill()
    assert_end(left)
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
async def test_servers_that_lost_their_holder_and_its_reaper_are_replaced(tmp_path: Path) -> None:
    with Servers(tmp_path / "data") as servers:
        await remember(servers)
    for victims in ([], ["postgres -D"], ["valkey-server"], ["postgres -D", "valkey-server"]):
        with holder(tmp_path / "data") as process:
            left = children(process)
            for name in ("reaper.py", *victims):
                for victim in children(process, name):
                    victim.kill()
            process.kill()
        with Servers(tmp_path / "data") as servers:
            assert await remembered(servers) == (42, b"42"), victims
            assert [p for p in left if is_alive(p)] == [], victims
