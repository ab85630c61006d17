"""The real PgBouncer between us and the test's PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from apps.api.dev.unprivileged import UNSHARE
from apps.api.settings import Settings
from tests.free_ports import free_port
from tests.proxy import changed

START_SECONDS = 30


@contextmanager
def pgbouncer(
    settings: Settings, directory: Path, mode: Literal["session", "transaction"], size: int
) -> Iterator[Settings]:
    """Settings whose DATABASE_URL leads through a pooler that keeps at most `size` connections to the server.

    Skips the test where PgBouncer is not installed, or cannot run.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs PgBouncer (Debian: apt-get install pgbouncer)")
    # It refuses to run as root; in a user namespace the socket of the test's PostgreSQL stays reachable.
    prefix = UNSHARE if os.geteuid() == 0 else ()
    if subprocess.run([*prefix, program, "--version"], stdout=subprocess.DEVNULL).returncode:
        pytest.skip("PgBouncer does not run as root, and this system has no user namespaces")
    url = urlsplit(settings.database_url.get_secret_value())
    port = free_port()
    host = parse_qs(url.query)["host"][0]
    name = url.path.removeprefix("/")
    config = directory / f"pgbouncer-{mode}.ini"
    config.write_text(
        f"[databases]\n{name} = host={host} dbname={name} user={url.username} password={url.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\ndefault_pool_size = {size}\nmax_client_conn = 200\nlog_connections = 0\n"
    )
    with (directory / f"pgbouncer-{mode}.log").open("wb") as log:
        process = subprocess.Popen([*prefix, program, str(config)], stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, (directory / f"pgbouncer-{mode}.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield changed(settings, database_url=f"postgresql://{url.username}:x@127.0.0.1:{port}/{name}")
    finally:
        process.kill()
        process.wait()
