"""`claude-agent-api dev` as its user meets it: one process to start, one to stop, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from typer.testing import CliRunner, Result

from apps.api import cli, keys, migrate, roles
from apps.api.db import Database, connect
from apps.api.dev.embedded import Servers, find
from apps.api.settings import Settings
from tests.dev_process import BOUND, OURS, ROOT, Dev, command_line
from tests.free_ports import free_port

pytestmark = pytest.mark.slow


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_end(processes: list[psutil.Process]) -> None:
    assert processes
    _, alive = psutil.wait_procs([p for p in processes if is_alive(p)], timeout=BOUND)
    assert [p for p in alive if is_alive(p)] == []


def run(command: list[str], directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=BOUND)


def until(what: Any) -> None:
    """Wait until `what()` is true; the test's own timeout bounds it."""
    deadline = time.monotonic() + BOUND
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def get(url: str, key: str = "") -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"X-API-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Any]:
    """Starts `dev` processes; whatever a test did, no process that knows its directory outlives it."""
    started: list[Dev] = []

    def start(*arguments: str, **named: Any) -> Dev:
        started.append(Dev(tmp_path, *arguments, **named))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(BOUND)
    left = [p for p in psutil.process_iter() if str(tmp_path) in command_line(p) and p.pid != os.getpid()]
    for process in left:
        process.kill()
    assert left == []


def everything_is_gone(one: Dev, processes: list[psutil.Process]) -> None:
    assert [p for p in processes if is_alive(p)] == []
    assert not (one.data / "instances.json").exists()


@pytest.mark.timeout(400)
async def test_one_directory_over_its_starts(dev: Any, tmp_path: Path) -> None:
    """It was left by an earlier release; then its supervisor is killed, told to stop, and left by its servers."""
    data, env, chosen = tmp_path / ".data", tmp_path / ".env", "a-key-that-somebody-chose"
    forgotten = await as_an_earlier_release_left_it(data)
    env.write_text(f"DATABASE_OWNER_URL=postgresql://somebody:else@127.0.0.1:1/elsewhere\nAPI_KEY={chosen}\n")
    first = dev("--verbose", ANTHROPIC_API_KEY="sk-of-the-test", ANTHROPIC_BASE_URL="http://127.0.0.1:9")
    [row] = first.ready()
    assert first.data == data
    assert first.key() == chosen, "a given key is taken, though the database has others"
    keys_open(row["url"], chosen, forgotten)
    assert get(f"{row['url']}/docs")[0] == 200
    secrets_stay_where_they_belong(first)
    await servers_have_a_role_without_ddl(first)
    encrypts, everything = (data / "encryption-key").read_text(), first.children()
    assert len(everything) >= 5
    first.process.kill()
    env.unlink()

    (tmp_path / "owner").write_text("postgresql://somebody:else@127.0.0.1:1/elsewhere")
    second = dev(instances=2, DATABASE_OWNER_URL_FILE=str(tmp_path / "owner"))
    rows = second.ready()
    assert [p for p in everything if is_alive(p)] == [], "a killed supervisor leaves nothing"
    assert second.key() == chosen
    two_instances_answer(second)
    serves_with = psutil.Process(rows[0]["pid"]).environ()
    assert (serves_with["SHUTDOWN_GRACE_SECONDS"], serves_with["DATABASE_OWNER_URL_FILE"]) == ("5", "")
    the_curl_line_of_the_welcome_works(second)
    a_second_start_is_refused(dev, second)
    a_wrong_database_password_is_one_line_and_no_trace(second)
    await asyncio.to_thread(other_commands_find_the_servers, second)
    everything = second.children()
    assert {row["pid"] for row in rows} <= {p.pid for p in everything}
    second.process.terminate()
    assert second.exit_code() == 0
    everything_is_gone(second, everything)

    (data / "api-key").unlink()
    third = dev(instances=2)
    rows = third.ready()
    assert third.key() not in (chosen, forgotten), "a lost key is replaced"
    keys_open(rows[0]["url"], third.key(), chosen, forgotten)
    assert len(json.loads(get(f"{rows[0]['url']}/api/v1/sessions", third.key())[1])["data"]) == 1
    assert (data / "encryption-key").read_text() == encrypts
    the_others_go_on_when_one_instance_is_killed(third)


async def as_an_earlier_release_left_it(data: Path) -> str:
    """A cluster and tables of the superuser's, no other role, one password. Returns the secret of a key."""
    with Servers(data) as servers:
        await servers.create_database("claude_agent_api")
        owner = Settings(_env_file=None, database_url=servers.database_owner_url("claude_agent_api"))
        await migrate.upgrade(owner)
        async with Database.open(owner) as db:
            made = await keys.create_key(db, tenant=keys.DEFAULT_TENANT, name="k", scopes=keys.USUAL_SCOPES)
    (data / "server-password").unlink()
    return made.secret


def keys_open(url: str, *secrets: str) -> None:
    """These, and no other."""
    answers = [get(f"{url}/api/v1/sessions", key)[0] for key in (*secrets, "cak_not-this-one")]
    assert answers == [*(200 for _ in secrets), 401]


def secrets_stay_where_they_belong(one: Dev) -> None:
    assert "scripted" not in one.said()
    assert (one.data / "api-key").stat().st_mode & 0o777 == 0o600
    texts = [one.said(), *(path.read_text() for path in (one.data / "logs").iterdir())]
    files = ("api-key", "database-password", "server-password", "encryption-key")
    secrets = ["sk-of-the-test", *((one.data / name).read_text().strip() for name in files)]
    assert [secret for secret in secrets for text in texts if secret in text] == []
    assert [p for p in one.children() if any(secret in command_line(p) for secret in secrets)] == []
    # An agent can read the environment of every process of its user, but for those that hide it: servers and guards.
    others = [p for p in one.children() if not any(word in command_line(p) for word in (" serve ", "guard.program"))]
    assert len(others) >= 3
    assert [p for p in others if any(secret in str(p.environ()) for secret in secrets)] == []


async def servers_have_a_role_without_ddl(one: Dev) -> None:
    assert "database.role" not in (one.data / "logs" / "instance-1.log").read_text()
    found = find(one.data)
    assert found.database_url is not None
    connection = await connect(Settings(_env_file=None, database_url=found.database_url))
    try:
        assert await roles.excess(connection) is None
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE mine (a int)")
    finally:
        await connection.close()
    assert (one.data / "server-password").read_text() != (one.data / "database-password").read_text()


def two_instances_answer(one: Dev) -> None:
    rows = one.instances()
    assert [row["url"] for row in rows] == [f"http://127.0.0.1:{one.port}", f"http://127.0.0.1:{one.port + 1}"]
    assert len({row["instance_id"] for row in rows}) == 2
    for row in rows:
        status, body = get(f"{row['url']}/health")
        assert status == 200
        assert json.loads(body)["instance_id"] == row["instance_id"]


def the_curl_line_of_the_welcome_works(one: Dev) -> None:
    [line] = [line for line in one.said().splitlines() if line.strip().startswith("curl ")]
    answer = run(["sh", "-c", line], one.data.parent, dict(os.environ))
    assert "event: done" in answer.stdout, answer
    assert "NOT from Claude" in one.said()


def a_second_start_is_refused(dev: Any, first: Dev) -> None:
    rows = first.instances()
    second = dev()
    assert second.exit_code() == 2
    assert f"in use by process {first.process.pid}" in second.said()
    assert first.instances() == rows
    assert get(f"{rows[0]['url']}/health")[0] == 200


def a_wrong_database_password_is_one_line_and_no_trace(one: Dev) -> None:
    served = serve(one.data.parent, f"postgresql://postgres:guess@/claude_agent_api?host={one.data}/run")
    assert served.returncode == 1
    assert served.stderr.strip() == 'claude-agent-api: cannot start: password authentication failed for user "postgres"'


def serve(directory: Path, database_url: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apps.api.cli", "serve", "--port", str(free_port())]
    return run(command, directory, {**os.environ, "DATABASE_URL": database_url, "PYTHONPATH": str(ROOT), **more})


def other_commands_find_the_servers(one: Dev) -> None:
    """The first as a program; the others are the same code without the seconds that its imports take."""
    url, clean = one.instances()[0]["url"], {name: value for name, value in os.environ.items() if name not in OURS}
    there = ["--data-dir", str(one.data)]
    create = ["keys", "create", "--tenant", "acme", "--name", "ci", "--expires-in-days", "1", "--scope"]
    words = [sys.executable, "-m", "apps.api.cli", *create, "read", "--limit", "streams=7", *there]
    secret = run(words, one.data.parent, {**clean, "PYTHONPATH": str(ROOT)}).stdout.strip()
    assert get(f"{url}/api/v1/sessions", secret)[0] == 200
    assert [entry["limit"] for entry in json.loads(get(f"{url}/api/v1/limits", secret)[1])["data"]] == [7]

    def command(*arguments: str) -> Result:
        with contextlib.chdir(one.data.parent):
            return CliRunner().invoke(cli.app, [*arguments, *there], env=dict.fromkeys(OURS))

    listed = command("keys", "list", "--tenant", "acme").stdout
    assert "acme" in listed
    assert secret not in listed
    ident = listed.splitlines()[1].split()[0]
    assert command("keys", "revoke", ident).exit_code == 0
    assert get(f"{url}/api/v1/sessions", secret)[0] == 401
    assert command(*create, "everything").exit_code == 2
    for limit in ("streams", "streams=0", "rivers=7"):
        assert command(*create, "read", "--limit", limit).exit_code == 2
    assert command("migrate").exit_code == 0
    examined = command("doctor")
    assert examined.exit_code == 0, examined.stdout
    assert "PostgreSQL     18.4" in examined.stdout
    assert "warn  Model" in examined.stdout


def the_others_go_on_when_one_instance_is_killed(one: Dev) -> None:
    rows = one.instances()
    os.kill(rows[0]["pid"], signal.SIGKILL)
    until(lambda: "ended with signal SIGKILL" in one.said())
    assert get(f"{rows[1]['url']}/health")[0] == 200
    assert one.instances() == rows
    os.kill(rows[1]["pid"], signal.SIGTERM)
    assert one.exit_code() == 1
    assert "ended with exit code 0" in one.said()
    assert "every server has ended" in one.said()


def test_a_start_that_is_stopped_or_killed_leaves_nothing(dev: Any) -> None:
    stopped = dev(instances=2)
    until(lambda: stopped.children(" serve "))
    everything = stopped.children()
    assert {"postgres", "valkey-server"} <= {p.name() for p in everything}
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.exit_code() == 0
    everything_is_gone(stopped, everything)

    killed = dev(instances=2)
    until(lambda: len(killed.children(" serve ")) == 2)
    everything = killed.children()
    killed.process.kill()
    assert_end(everything)


def test_a_port_in_use_is_named_before_anything_starts(dev: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = dev("--port", str(port))
        assert one.exit_code() == 2
    assert f"port {port} is in use" in one.said()
    assert not (one.data / "postgres").exists()


def test_a_wrong_setting_is_named_and_nothing_starts(dev: Any) -> None:
    one = dev(
        REDIS_URL="redis://127.0.0.1:1/0", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing", RUNNER_SLOTS="-1"
    )
    assert one.exit_code() == 2
    assert "RUNNER_SLOTS" in one.said()
    assert not one.data.exists()


async def test_given_databases_are_used_and_their_keys_are_left_alone(dev: Any, servers: Servers) -> None:
    await servers.create_database("given")
    given = {
        "DATABASE_URL": servers.database_owner_url("given"),
        "REDIS_URL": servers.redis_url,
        "REDIS_KEY_PREFIX": "given:",
    }
    first = dev(**given)
    until(lambda: first.children(" serve "))
    key = first.key()
    first.process.send_signal(signal.SIGINT)
    assert first.exit_code() == 0
    (first.data / "api-key").unlink()
    second = dev(**given)
    [row] = second.ready()
    keys_open(row["url"], key)
    assert not (first.data / "postgres").exists()
    assert not (first.data / "valkey").exists()
    assert not (first.data / "api-key").exists()
    assert "claude-agent-api keys create" in second.said()


async def test_a_server_without_migrations_says_what_to_run(servers: Servers, tmp_path: Path) -> None:
    await servers.create_database("empty")
    more = {"REDIS_URL": servers.redis_url, "DEBUG": "false", "RUNNER_SLOTS": "0"}
    served = serve(tmp_path, servers.database_owner_url("empty"), **more)
    assert served.returncode == 1
    assert "claude-agent-api migrate" in served.stderr
    assert "Traceback" not in served.stderr
