"""Faults that are planted one by one: `doctor` finds each, and says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet
from moto.server import ThreadedMotoServer
from obstore.store import S3Store
from pydantic import SecretStr

from apps.api.core.tenant import vault
from apps.api.db import Database
from apps.api.doctor import Check, database, examine, host, stores
from apps.api.doctor.model import model
from apps.api.settings import Settings
from tests.free_ports import free_port
from tests.pgbouncer import pgbouncer
from tests.proxy import changed
from tests.test_secret_files import written

ROOT = Path(__file__).parents[1]


def told(check: Check, verdict: str, *words: str) -> None:
    assert check.verdict == verdict, check
    for each in words:
        assert each in check.finding


@asynccontextmanager
async def owner(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.as_owner.asyncpg_dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_machine_without_faults_is_given_none(settings: Settings, model_url: str) -> None:
    given = changed(settings, anthropic_base_url=model_url, anthropic_api_key="a-key")
    assert [check for check in await examine(given) if check.verdict == "FAIL"] == []


# --- settings and programs -----------------------------------------------------------------------------------------


async def test_a_misspelt_setting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNER_SLOTS", "4")
    told(await host.names(settings), "FAIL", "did you mean RUNNER_SLOTS?")


async def test_a_secret_that_agents_can_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("API_KEY_FILE", written(tmp_path, "key", "k" * 16))
    told(await host.secrets(settings), "ok")
    (tmp_path / "shown").symlink_to(tmp_path)
    given = changed(settings, agent_read_paths=str(tmp_path / "shown"))
    told(await host.secrets(given), "warn", f"API_KEY_FILE={tmp_path}/key", "mount it below /run/secrets")


def elsewhere(code: str, *before: str, **environment: str) -> str:
    """What a process prints of a check, in an environment of its own."""
    imports = "import asyncio; from apps.api.doctor import host; from apps.api.settings import Settings; "
    words = [*before, sys.executable, "-c", f"{imports}print(asyncio.run({code}))"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


def test_an_installation_without_the_cli(tmp_path: Path) -> None:
    (tmp_path / "claude_agent_sdk").mkdir()
    (tmp_path / "claude_agent_sdk" / "__init__.py").touch()
    found = elsewhere("host.cli(None)", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "FAIL" in found
    assert "without its CLI" in found
    assert "install the dependencies again" in found


_MOUNTS = "mount -t tmpfs -o noexec tmpfs $0 && mount -t tmpfs -o size=1m tmpfs $1 && head -c 1000k /dev/zero >$1/x && "


def test_a_noexec_tmp_and_a_full_disk(tmp_path: Path) -> None:
    for name in ("tmp", "full"):
        (tmp_path / name).mkdir()
    mounting = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        _MOUNTS + 'shift; exec "$@"',
        *(str(tmp_path / n) for n in ("tmp", "full")),
    ]
    if subprocess.run([*mounting, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    places = {"TMPDIR": str(tmp_path / "tmp"), "WORKSPACES_DIR": str(tmp_path / "full")}
    found = elsewhere("host.host(Settings(_env_file=None))", *mounting, AGENT_ISOLATION="off", DEBUG="true", **places)
    assert "FAIL" in found
    assert f"{tmp_path}/tmp is mounted noexec" in found
    assert "or set TMPDIR" in found
    assert "WORKSPACES_DIR has no room" in found


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


async def test_no_database(settings: Settings) -> None:
    away = changed(settings, database_url=f"postgresql://u:s3cret@127.0.0.1:{free_port()}/db")
    told(await database.server(away), "FAIL", "check DATABASE_URL")
    found = [check for check in await examine(away) if check.verdict == "FAIL"]
    assert {"PostgreSQL", "Schema", "Connections", "Pooler", "Encryption", "Fleet", "Clock"} <= {
        c.subject for c in found
    }
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(
    ("revision", "words"),
    [("0001", "run `claude-agent-api migrate`"), ("9999", "by a newer release: install that one")],
)
async def test_a_schema_of_another_release(settings: Settings, revision: str, words: str) -> None:
    async with owner(settings) as connection:
        await connection.execute("UPDATE schema_revision SET version_num = $1", revision)
    told(await database.schema(settings), "FAIL", words)


async def test_fewer_connections_than_the_fleet_opens(settings: Settings) -> None:
    told(await database.connections(settings), "ok", "of which 1 of 30 each")
    async with owner(settings) as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 35")
        told(await database.connections(settings), "warn", "room for 35", "rolling update", "for at least 60")
        await connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 100")
        for _ in range(4):
            await connection.execute(
                "INSERT INTO instances (id, hostname, version, slots, lease_expires_at)"
                " VALUES ($1, 'h', '1', 1, now() + interval '1 hour')",
                uuid4(),
            )
    told(await database.connections(settings), "FAIL", "room for 100", "of which 4 of 30 each", "for at least 150")


@pytest.mark.parametrize(("mode", "verdict"), [("transaction", "FAIL"), ("session", "ok")])
async def test_a_pooler_that_the_settings_do_not_know(
    settings: Settings, tmp_path: Path, mode: Any, verdict: str
) -> None:
    told(await database.pooler(settings), "ok")
    with pgbouncer(settings, tmp_path, mode, 4) as pooled:
        found = await database.pooler(pooled)
        told(found, verdict, *(["set DATABASE_STATEMENT_CACHE=false"] if verdict == "FAIL" else []))
        told(await database.pooler(changed(pooled, database_statement_cache=False)), "ok")
        assert ("a pooler's" in (await database.connections(pooled)).finding) is (mode == "transaction")


async def test_keys_that_do_not_open_what_is_stored(settings: Settings, db: Database) -> None:
    none, other = changed(settings, encryption_keys=""), Fernet.generate_key().decode()
    told(await database.keys(settings), "ok")
    told(await database.keys(none), "warn", "set ENCRYPTION_KEYS to the output of")
    tenant = await db.pool.fetchval("INSERT INTO tenants (name) VALUES ('t') RETURNING id")
    await vault.put(db, settings, tenant, "mine", "value")
    told(await database.keys(settings), "ok", "1 looked at")
    told(await database.keys(none), "FAIL", "1 secrets are stored", "add the key")
    await vault.put(db, changed(settings, encryption_keys=other), tenant, "theirs", "value")
    told(await database.keys(settings), "FAIL", "opens 1 of 2", "add the key that they were stored with")
    mine = settings.encryption_keys[0].get_secret_value()
    told(await database.keys(changed(settings, encryption_keys=f"{other},{mine}")), "ok", "2 looked at")


# --- Redis ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def redis_saying(**facts: str) -> AsyncIterator[str]:
    """The URL of a server that says this of itself, and OK to whatever else it is asked."""
    info = "".join(f"{name}:{value}\r\n" for name, value in {"redis_mode": "standalone", **facts}.items())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int((await reader.readline())[1:])
                words.append((await reader.readexactly(length + 2))[:-2].upper())
            if words[0] == b"HELLO":
                writer.write(b"%1\r\n+proto\r\n:3\r\n")
            else:
                writer.write(f"${len(info)}\r\n{info}\r\n".encode() if words[0] == b"INFO" else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        ({"redis_version": "6.2.14"}, "FAIL", "use Redis 7.0, Valkey 7.2 or later"),
        ({"redis_version": "7.4.0", "maxmemory": "1", "maxmemory_policy": "volatile-lru"}, "warn", "set allkeys-lru"),
        ({"redis_version": "7.4.0", "maxmemory": "1", "maxmemory_policy": "noeviction"}, "warn", "set allkeys-lru"),
        ({"redis_version": "7.4.0", "maxmemory": "0", "maxmemory_policy": "noeviction"}, "ok", "7.4.0"),
        ({"redis_version": "7.4.0", "maxmemory": "1", "maxmemory_policy": "allkeys-lru"}, "ok", "7.4.0"),
    ],
)
async def test_an_old_redis_and_one_that_refuses_when_it_is_full(
    settings: Settings, facts: dict[str, str], verdict: str, words: str
) -> None:
    async with redis_saying(**facts) as url:
        told(await stores.redis(changed(settings, redis_url=url)), verdict, words)


async def test_no_redis(settings: Settings) -> None:
    away = changed(settings, redis_url=f"redis://:s3cret@127.0.0.1:{free_port()}/0")
    told(found := await stores.redis(away), "FAIL", "check REDIS_URL")
    assert "s3cret" not in found.finding


# --- the model -----------------------------------------------------------------------------------------------------


class _Api(BaseHTTPRequestHandler):
    """A Messages API that has every model, and says one thing to every prompt."""

    status, said = 200, ""

    def _answer(self, status: int, said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(200, {"id": "some", "type": "model"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(self.status, {"type": "error", "error": {"type": "some_error", "message": self.said}})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def with_model(settings: Settings, url: str, name: str = "claude-sonnet-5-5") -> Settings:
    return changed(settings, anthropic_base_url=url, anthropic_api_key="a-key", default_model=name)


async def test_a_model_that_is_there_and_answers(settings: Settings, model_url: str) -> None:
    told(await model(with_model(settings, model_url)), "ok", "claude-sonnet-5-5", "it answers")


async def test_a_model_that_is_gone(settings: Settings, model_url: str) -> None:
    told(await model(with_model(settings, model_url, "claude-nonexistent-9")), "FAIL", "set DEFAULT_MODEL")


@pytest.mark.parametrize(
    ("status", "said", "verdict", "advice"),
    [
        (400, "Your credit balance is too low", "FAIL", "check the credentials, what they may do, and their balance"),
        (403, "Not for this key", "FAIL", "check the credentials"),
        (404, "Not found", "FAIL", "check DEFAULT_MODEL"),
        (529, "Overloaded", "warn", "try again"),
    ],
)
async def test_a_model_that_does_not_answer(
    settings: Settings, status: int, said: str, verdict: str, advice: str
) -> None:
    with serving(type("Api", (_Api,), {"status": status, "said": said})) as url:
        told(await model(with_model(settings, url)), verdict, said, advice)


async def test_a_model_api_that_is_out_of_reach(settings: Settings) -> None:
    away = with_model(settings, f"http://127.0.0.1:{free_port()}")
    told(await model(away), "FAIL", "it cannot be asked", "check the network, HTTPS_PROXY, ANTHROPIC_BASE_URL")


# --- the store of files --------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of a cloud."""
    given = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)


class _Bucket(BaseHTTPRequestHandler):
    """One that may be read, and not written."""

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self._answer(200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        else:
            self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(403, "<Error><Code>AccessDenied</Code></Error>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


def with_store(settings: Settings, url: str) -> Settings:
    return changed(settings, workspace_store_url=SecretStr(url))


@pytest.mark.usefixtures("cloud")
async def test_a_bucket_that_may_not_be_written(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(_Bucket) as url:
        monkeypatch.setenv("AWS_ENDPOINT", url)
        told(
            await stores.objects(with_store(settings, "s3://b")),
            "FAIL",
            "check WORKSPACE_STORE_URL, what its credentials",
        )


@pytest.mark.usefixtures("cloud")
async def test_a_bucket_that_is_not_there_and_one_that_is_left_as_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer("127.0.0.1", port := free_port(), verbose=False)
    await asyncio.to_thread(server.start)
    try:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
        given = with_store(settings, "s3://doctors-bucket/below")
        told(await stores.objects(given), "FAIL", "check WORKSPACE_STORE_URL")
        async with httpx.AsyncClient() as client:
            assert (await client.put(f"http://127.0.0.1:{port}/doctors-bucket")).is_success
        told(await stores.objects(given), "ok", "can be read and written")
        assert list(S3Store("doctors-bucket").list()) == []
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_directory_that_is_not_there_or_only_read(settings: Settings, tmp_path: Path) -> None:
    told(await stores.objects(settings), "ok", "which the first start makes")
    assert not settings.workspaces_root.exists()
    gone = with_store(settings, f"file://{tmp_path}/gone")
    told(await stores.objects(gone), "FAIL", "check WORKSPACE_STORE_URL")
    assert not (tmp_path / "gone").exists()
    (tmp_path / "store").mkdir()
    told(await stores.objects(with_store(settings, f"file://{tmp_path}/store")), "ok")
    assert list((tmp_path / "store").iterdir()) == []
    # Nobody may write there, not even root.
    told(await stores.objects(with_store(settings, "file:///proc/sys/kernel/random")), "FAIL", "cannot be written to")
