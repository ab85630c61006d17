"""`claude-agent-api dev` as its user meets it: one process to start, one to stop, nothing left behind."""

from __future__ import annotations

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

from apps.api import migrate, roles
from apps.api.db import connect
from apps.api.dev.embedded import Servers, find
from apps.api.settings import Settings
from tests.dev_process import BOUND, OURS, ROOT, Dev, command_line, free_ports


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


def test_two_instances_start_and_sigterm_stops_everything(dev: Any) -> None:
    one = dev(instances=2)
    rows = one.ready()
    assert [row["url"] for row in rows] == [f"http://127.0.0.1:{one.port}", f"http://127.0.0.1:{one.port + 1}"]
    assert len({row["instance_id"] for row in rows}) == 2
    for row in rows:
        status, body = get(f"{row['url']}/health")
        assert status == 200
        assert json.loads(body)["instance_id"] == row["instance_id"]
    everything = one.children()
    assert {row["pid"] for row in rows} <= {p.pid for p in everything}
    one.process.terminate()
    assert one.exit_code() == 0
    assert [p for p in everything if is_alive(p)] == []
    assert not (one.data / "instances.json").exists()


def test_the_curl_line_of_the_welcome_works(dev: Any) -> None:
    one = dev()
    one.ready()
    [line] = [line for line in one.said().splitlines() if line.strip().startswith("curl ")]
    answer = run(["sh", "-c", line], one.data.parent, dict(os.environ))
    assert "event: done" in answer.stdout, answer
    assert "NOT from Claude" in one.said()


def test_secrets_stay_where_they_belong_and_docs_are_served(dev: Any) -> None:
    one = dev("--verbose", ANTHROPIC_API_KEY="sk-of-the-test", ANTHROPIC_BASE_URL="http://127.0.0.1:9")
    [row] = one.ready()
    assert "scripted" not in one.said()
    assert (one.data / "api-key").stat().st_mode & 0o777 == 0o600
    assert get(f"{row['url']}/docs")[0] == 200
    assert get(f"{row['url']}/api/v1/sessions", one.key())[0] == 200
    assert get(f"{row['url']}/api/v1/sessions", "cak_not-this-one")[0] == 401
    texts = [one.said(), *(path.read_text() for path in (one.data / "logs").iterdir())]
    files = ("api-key", "database-password", "server-password", "encryption-key")
    secrets = ["sk-of-the-test", *((one.data / name).read_text().strip() for name in files)]
    assert [secret for secret in secrets for text in texts if secret in text] == []
    assert [p for p in one.children() if any(secret in command_line(p) for secret in secrets)] == []
    # An agent can read the environment of every process of its user, but for those that hide it: servers and guards.
    others = [p for p in one.children() if not any(word in command_line(p) for word in (" serve ", "guard.program"))]
    assert len(others) >= 3
    assert [p for p in others if any(secret in str(p.environ()) for secret in secrets)] == []


def test_a_restart_keeps_key_and_data(dev: Any) -> None:
    first = dev()
    first.ready()
    key, encrypts = first.key(), (first.data / "encryption-key").read_text()
    first.process.send_signal(signal.SIGINT)
    assert first.exit_code() == 0
    second = dev()
    [row] = second.ready()
    assert second.key() == key
    assert (second.data / "encryption-key").read_text() == encrypts
    assert get(f"{row['url']}/api/v1/sessions", key)[0] == 200


def test_a_lost_key_file_is_replaced_and_a_given_key_is_taken(dev: Any) -> None:
    first = dev()
    first.ready()
    lost = first.key()
    first.process.terminate()
    first.exit_code()
    (first.data / "api-key").unlink()
    second = dev()
    [row] = second.ready()
    assert second.key() != lost
    assert get(f"{row['url']}/api/v1/sessions", second.key())[0] == 200
    second.process.terminate()
    second.exit_code()
    (first.data.parent / ".env").write_text("API_KEY=a-key-that-somebody-chose\n")
    third = dev()
    [row] = third.ready()
    assert get(f"{row['url']}/api/v1/sessions", "a-key-that-somebody-chose")[0] == 200


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_works(dev: Any) -> None:
    first = dev(instances=2)
    first.ready()
    everything = first.children()
    assert len(everything) >= 6
    first.process.kill()
    second = dev()
    second.ready()
    assert [p for p in everything if is_alive(p)] == []


def test_a_supervisor_killed_while_starting_leaves_nothing(dev: Any) -> None:
    one = dev(instances=2)
    until(lambda: len(one.children("serve")) == 2)
    everything = one.children()
    one.process.kill()
    assert_end(everything)


def test_ctrl_c_while_starting_stops_everything(dev: Any) -> None:
    one = dev(instances=2)
    until(lambda: one.children("serve"))
    everything = one.children()
    one.process.send_signal(signal.SIGINT)
    assert one.exit_code() == 0
    assert [p for p in everything if is_alive(p)] == []
    assert not (one.data / "instances.json").exists()


def test_a_second_start_on_the_same_directory_is_refused(dev: Any) -> None:
    first = dev()
    rows = first.ready()
    second = dev()
    assert second.exit_code() == 2
    assert f"in use by process {first.process.pid}" in second.said()
    assert first.instances() == rows
    assert get(f"{rows[0]['url']}/health")[0] == 200


def test_a_port_in_use_is_named_before_anything_starts(dev: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = dev("--port", str(port))
        assert one.exit_code() == 2
    assert f"port {port} is in use" in one.said()
    assert not (one.data / "postgres").exists()


def test_the_others_go_on_when_one_instance_is_killed(dev: Any) -> None:
    one = dev(instances=2)
    rows = one.ready()
    os.kill(rows[0]["pid"], signal.SIGKILL)
    until(lambda: "ended with signal SIGKILL" in one.said())
    assert get(f"{rows[1]['url']}/health")[0] == 200
    assert one.instances() == rows
    os.kill(rows[1]["pid"], signal.SIGTERM)
    assert one.exit_code() == 1
    assert "ended with exit code 0" in one.said()
    assert "every server has ended" in one.said()


def test_a_wrong_setting_is_named_and_nothing_starts(dev: Any) -> None:
    one = dev(
        REDIS_URL="redis://127.0.0.1:1/0", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing", RUNNER_SLOTS="-1"
    )
    assert one.exit_code() == 2
    assert "RUNNER_SLOTS" in one.said()
    assert not one.data.exists()


def test_a_wrong_database_password_is_one_line_and_no_trace(dev: Any) -> None:
    first = dev()
    first.ready()
    url = f"postgresql://postgres:guess@/claude_agent_api?host={first.data}/run"
    command = [sys.executable, "-m", "apps.api.cli", "serve", "--port", str(free_ports(1))]
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    served = subprocess.run(
        command, cwd=first.data.parent, env=environment, capture_output=True, text=True, timeout=BOUND
    )
    assert served.returncode == 1
    assert served.stderr.strip() == 'claude-agent-api: cannot start: password authentication failed for user "postgres"'


async def test_given_databases_are_used_and_their_keys_are_left_alone(dev: Any, servers: Servers) -> None:
    await servers.create_database("given")
    given = {
        "DATABASE_URL": servers.database_owner_url("given"),
        "REDIS_URL": servers.redis_url,
        "REDIS_KEY_PREFIX": "given:",
    }
    first = dev(**given)
    [row] = first.ready()
    assert not (first.data / "postgres").exists()
    assert not (first.data / "valkey").exists()
    assert get(f"{row['url']}/api/v1/sessions", first.key())[0] == 200
    first.process.terminate()
    assert first.exit_code() == 0
    (first.data / "api-key").unlink()
    second = dev(**given)
    second.ready()
    assert not (first.data / "api-key").exists()
    assert "claude-agent-api keys create" in second.said()


async def test_a_server_without_migrations_says_what_to_run(servers: Servers, tmp_path: Path) -> None:
    await servers.create_database("empty")
    command = [sys.executable, "-m", "apps.api.cli", "serve", "--port", str(free_ports(1))]
    environment = {**os.environ, "DATABASE_URL": servers.database_owner_url("empty"), "REDIS_URL": servers.redis_url}
    environment |= {"PYTHONPATH": str(ROOT), "DEBUG": "false", "RUNNER_SLOTS": "0"}
    served = run(command, tmp_path, environment)
    assert served.returncode == 1
    assert "claude-agent-api migrate" in served.stderr
    assert "Traceback" not in served.stderr


def test_other_commands_find_the_servers_of_a_running_dev(dev: Any) -> None:
    one = dev()
    [row] = one.ready()

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "apps.api.cli", *arguments, "--data-dir", str(one.data)]
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        return run(words, one.data.parent, {**clean, "PYTHONPATH": str(ROOT)})

    created = command("keys", "create", "--tenant", "acme", "--name", "ci", "--scope", "read", "--expires-in-days", "1")
    secret = created.stdout.strip()
    assert get(f"{row['url']}/api/v1/sessions", secret)[0] == 200
    listed = command("keys", "list", "--tenant", "acme").stdout
    assert "acme" in listed
    assert secret not in listed
    ident = listed.splitlines()[1].split()[0]
    assert command("keys", "revoke", ident).returncode == 0
    assert get(f"{row['url']}/api/v1/sessions", secret)[0] == 401
    assert command("keys", "create", "--tenant", "acme", "--name", "x", "--scope", "everything").returncode == 2
    assert command("migrate").returncode == 0
    examined = command("doctor")
    assert examined.returncode == 0, examined.stdout
    assert "PostgreSQL     18.4" in examined.stdout
    assert "warn  Model" in examined.stdout


async def test_the_servers_have_a_role_without_ddl_also_in_a_directory_of_an_earlier_release(
    dev: Any, tmp_path: Path
) -> None:
    data = tmp_path / ".data"
    # As it was left: a cluster and tables of the superuser's, no other role, one password.
    with Servers(data) as servers:
        await servers.create_database("claude_agent_api")
        owner = Settings(_env_file=None, database_url=servers.database_owner_url("claude_agent_api"))
        await migrate.upgrade(owner)
    (data / "server-password").unlink()
    (tmp_path / ".env").write_text("DATABASE_OWNER_URL=postgresql://somebody:else@127.0.0.1:1/elsewhere\n")
    one = dev()
    [row] = one.ready()
    assert one.data == data
    assert get(f"{row['url']}/api/v1/sessions", one.key())[0] == 200
    assert "database.role" not in (data / "logs" / "instance-1.log").read_text()
    found = find(data)
    assert found.database_url is not None
    connection = await connect(Settings(_env_file=None, database_url=found.database_url))
    try:
        assert await roles.excess(connection) is None
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE mine (a int)")
    finally:
        await connection.close()
    assert (data / "server-password").read_text() != (data / "database-password").read_text()
