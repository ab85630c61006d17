"""What an operator is told of the agents' isolation, and where a server does not start without it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.api.runner.guard import confinement, isolation, seccomp
from apps.api.settings import Settings
from tests.old_kernel import LANDLOCK_CREATE_RULESET, SECCOMP, without

ROOT = Path(__file__).parents[3]
WHOLE = confinement.landlock_abi() >= 6 and seccomp.available()


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


def test_agents_are_confined_unless_an_operator_says_otherwise() -> None:
    assert (settings().agent_isolation, settings().agent_seccomp) == ("require", "on")


@pytest.mark.skipif(not WHOLE, reason="this machine cannot confine agents fully")
@pytest.mark.parametrize("mode", ["require", "auto"])
def test_a_machine_that_confines_them_is_nothing_to_warn_of(mode: str) -> None:
    assert isolation.warnings(settings(agent_isolation=mode)) == []
    assert isolation.refusal(settings(agent_isolation=mode)) is None


def test_agents_that_reach_everything_are_warned_of() -> None:
    [told] = isolation.warnings(settings(agent_network="direct"))
    assert told.startswith("AGENT_NETWORK=direct: ")
    assert "metadata" in told


@pytest.mark.parametrize(("mode", "said"), [("open", "metadata service"), ("model_only", "no session starts")])
def test_a_machine_that_cannot_limit_the_network_is_warned_of(mode: str, said: str) -> None:
    code = (
        "from apps.api.runner.guard import isolation; from apps.api.settings import Settings;"
        f"made = Settings(_env_file=None, agent_isolation='auto', agent_network='{mode}');"
        "print(*isolation.warnings(made), sep=chr(10))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, preexec_fn=without(LANDLOCK_CREATE_RULESET), capture_output=True, text=True)
    [told] = [line for line in found.stdout.splitlines() if "6.7" in line]
    assert said in told
    assert "limited or model_only are refused" in told


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_port_that_the_kernel_gives_away_is_told() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert isolation.unreserved(first - 1) is None
    assert f"ip_local_reserved_ports={first + 1}" in str(isolation.unreserved(first + 1))


def test_what_is_off_is_warned_of_where_there_are_agents() -> None:
    off = {"agent_isolation": "off", "agent_seccomp": "off"}
    assert len(isolation.warnings(settings(**off))) == 2
    assert isolation.warnings(settings(**off, runner_slots=0)) == []
    assert isolation.refusal(settings(**off)) is None


@pytest.mark.skipif(not seccomp.available(), reason="the test itself filters system calls")
@pytest.mark.parametrize(
    ("lacking", "said"),
    [(LANDLOCK_CREATE_RULESET, "no Landlock"), (SECCOMP, "cannot filter")],
    ids=["landlock", "seccomp"],
)
def test_a_server_with_agents_does_not_start_on_a_machine_that_cannot_confine_them(
    lacking: int, said: str, tmp_path: Path
) -> None:
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "apps.api.cli", "serve"],
        preexec_fn=without(lacking),
        env={**kept, "PYTHONPATH": str(ROOT), "DATABASE_URL": nowhere, "RUNNER_SLOTS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert all(part in line for part in ("AGENT_ISOLATION=require", "AGENT_ISOLATION=auto", "RUNNER_SLOTS=0"))
    assert [part for part in ("no Landlock", "cannot filter") if part in line] == [said]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="reach ") as made:
        yield Path(made)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_sockets_that_agents_could_connect_to_are_named(directory: Path) -> None:
    streams, datagrams, gone = (directory / name for name in ("docker.sock", "agent", "gone"))
    (directory / "file").touch()
    (directory / "link").symlink_to(streams)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taking:
        listening.bind(str(streams))
        listening.listen()
        taking.bind(str(datagrams))
        with socket.socket(socket.AF_UNIX) as ended:
            ended.bind(str(gone))
        gone.unlink()
        found = [path for path in isolation.reachable_sockets() if path.startswith(str(directory))]
        assert found == sorted(map(str, (datagrams, streams)))
        if os.geteuid() == 0:
            return
        streams.chmod(0)
        assert str(streams) not in isolation.reachable_sockets()
