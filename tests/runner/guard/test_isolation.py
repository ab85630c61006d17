"""What an operator is told of the agents' isolation, and where a server does not start without it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from apps.api.runner.guard import confinement, isolation, seccomp, trial
from apps.api.settings import Layer, Settings
from tests.layers import namespaces_work
from tests.old_kernel import LANDLOCK_CREATE_RULESET, SECCOMP, without

ROOT = Path(__file__).parents[3]
WHOLE = confinement.landlock_abi() >= 6 and seccomp.available()


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


def test_agents_are_confined_unless_an_operator_says_otherwise() -> None:
    assert (settings().agent_isolation, settings().agent_seccomp) == ("auto", "on")


NOTHING: Mapping[Layer, str] = {"landlock": "no Landlock", "namespaces": "no Landlock"}
NO_BWRAP: Mapping[Layer, str] = {"namespaces": "no bwrap"}


@pytest.mark.skipif(not WHOLE, reason="this machine cannot confine agents fully")
@pytest.mark.parametrize(
    ("wanted", "layer", "lacking"),
    [("auto", "namespaces", {}), ("auto", "landlock", NO_BWRAP), ("landlock", "landlock", {})],
)
def test_a_machine_that_confines_them_is_nothing_to_warn_of(
    wanted: Layer, layer: Layer, lacking: Mapping[Layer, str]
) -> None:
    given = settings(agent_isolation=wanted)
    assert isolation.warnings(given, layer, lacking) == []
    assert isolation.refusal(given, layer, lacking) is None


def test_agents_that_reach_everything_are_warned_of() -> None:
    [told] = isolation.warnings(settings(agent_network="direct"), "landlock", NO_BWRAP)
    assert told.startswith("AGENT_NETWORK=direct: ")
    assert "metadata" in told


@pytest.mark.parametrize(("mode", "said"), [("open", "metadata service"), ("model_only", "no session starts")])
def test_a_machine_that_cannot_limit_the_network_is_warned_of(mode: str, said: str) -> None:
    code = (
        "from apps.api.runner.guard import isolation; from apps.api.settings import Settings;"
        f"made = Settings(_env_file=None, agent_network='{mode}');"
        "print(*isolation.warnings(made, 'landlock', {}), sep=chr(10))"
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
    assert len(isolation.warnings(settings(**off), "off", {})) == 2
    assert isolation.warnings(settings(**off, runner_slots=0), "off", {}) == []


def test_less_than_was_asked_for_is_warned_of() -> None:
    [warning] = isolation.warnings(settings(agent_isolation="namespaces"), "landlock", NO_BWRAP)
    assert "landlock only" in warning
    assert "no bwrap" in warning
    assert isolation.warnings(settings(debug=True), "off", NOTHING) == ["no Landlock"]


REQUIRED = {"agent_isolation_required": True}
UNCONFINED = {"agent_isolation": "off", "agent_unconfined_in_production": True}


@pytest.mark.parametrize(
    ("given", "layer", "lacking", "refused"),
    [
        ({}, "namespaces", {}, None),
        ({}, "landlock", NO_BWRAP, None),
        ({}, "off", NOTHING, "no Landlock"),
        ({"debug": True}, "off", NOTHING, None),
        ({"runner_slots": 0}, "off", NOTHING, None),
        ({"agent_unconfined_in_production": True}, "off", NOTHING, "AGENT_ISOLATION=off"),
        ({"agent_isolation": "off"}, "off", {}, "AGENT_UNCONFINED_IN_PRODUCTION=true"),
        ({"agent_isolation": "off", "debug": True}, "off", {}, None),
        (UNCONFINED, "off", {}, None),
        ({**UNCONFINED, **REQUIRED}, "off", {}, "AGENT_ISOLATION_REQUIRED=true with AGENT_ISOLATION=off"),
        ({"agent_isolation": "namespaces"}, "landlock", NO_BWRAP, None),
        ({"agent_isolation": "namespaces", **REQUIRED}, "landlock", NO_BWRAP, "no bwrap"),
        ({"agent_isolation": "namespaces", **REQUIRED}, "namespaces", {}, None),
        ({"agent_isolation": "landlock", **REQUIRED}, "landlock", {}, None),
        (REQUIRED, "landlock", NO_BWRAP, None),
        ({**REQUIRED, "debug": True}, "off", NOTHING, "no Landlock"),
    ],
)
def test_no_server_starts_with_less_than_it_must_have(
    given: dict[str, Any], layer: Layer, lacking: Mapping[Layer, str], refused: str | None
) -> None:
    found = isolation.refusal(settings(**given), layer, lacking)
    assert (found is None) == (refused is None)
    assert refused is None or refused in (found or "")


@pytest.mark.skipif(not seccomp.available(), reason="the test itself filters system calls")
@pytest.mark.parametrize(
    ("lacking", "said"),
    [(LANDLOCK_CREATE_RULESET, "no Landlock"), (SECCOMP, "cannot filter")],
    ids=["landlock", "seccomp"],
)
def test_a_server_with_agents_does_not_start_on_a_machine_that_cannot_confine_them(
    lacking: int, said: str, tmp_path: Path
) -> None:
    done = serve(tmp_path, preexec_fn=without(lacking))
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    words = ("AGENT_ISOLATION=off", "AGENT_UNCONFINED_IN_PRODUCTION=true", "RUNNER_SLOTS=0")
    assert all(part in line for part in words)
    assert [part for part in ("no Landlock", "cannot filter") if part in line] == [said]


def test_in_production_no_server_starts_without_isolation_unless_told_so_in_words(tmp_path: Path) -> None:
    refused = serve(tmp_path, AGENT_ISOLATION="off")
    assert refused.returncode == 2
    assert "AGENT_UNCONFINED_IN_PRODUCTION=true" in refused.stderr


def serve(cwd: Path, preexec_fn: Callable[[], None] | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {"PYTHONPATH": str(ROOT), "DATABASE_URL": "postgresql://127.0.0.1:1/nowhere", "RUNNER_SLOTS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "apps.api.cli", "serve"],
        preexec_fn=preexec_fn,
        env={**kept, **given, **more},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- which layer works ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not confinement.landlock_abi(), reason="needs Landlock")
async def test_auto_takes_the_strongest_layer_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(workspaces_dir=tmp_path)
    works = "namespaces" if namespaces_work() else "landlock"
    assert (await trial.strongest(given)).layer == works
    assert await trial.strongest(settings(agent_isolation="landlock")) == trial.Found("landlock", {})
    assert await trial.strongest(settings(agent_isolation="off")) == trial.Found("off", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await trial.strongest(given)
    assert found.layer == "landlock"
    assert "not installed" in found.lacking["namespaces"]


@pytest.mark.skipif(not confinement.landlock_abi(), reason="needs Landlock")
async def test_namespaces_that_do_not_work_are_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no permissions to create a new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = await trial.strongest(settings(agent_isolation="namespaces", workspaces_dir=tmp_path))
    assert found.layer == "landlock"
    assert "no permissions to create a new namespace" in found.lacking["namespaces"]


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
        assert isolation.reachable_sockets([f"{directory}/a"]) == []
        assert isolation.reachable_sockets(["/usr", str(directory)])[-2:] == found
        if os.geteuid() == 0:
            return
        streams.chmod(0)
        assert str(streams) not in isolation.reachable_sockets()
