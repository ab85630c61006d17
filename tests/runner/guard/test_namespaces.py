"""What agents with namespaces of their own are further from than those that Landlock alone confines."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from apps.api.dev.unprivileged import UNSHARE
from apps.api.runner.guard import namespaces
from apps.api.runner.guard.launcher import Network
from apps.api.runner.guard.rules import PortRules
from tests.layers import WITH_NAMESPACES
from tests.runner.guard.test_program import DETACHED, SECONDS, Session, at_end, lines, said

PYTHON = sys.executable


@pytest.fixture(params=[WITH_NAMESPACES])
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    """A session of an agent with namespaces."""
    root = tmp_path / "mine"
    root.mkdir()
    return Session(root, request.param)


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # its whole path may be too long for one
        listener.bind(path.name)
        listener.listen()
        yield


def connecting(path: Path) -> str:
    connect = "import os, socket, sys; os.chdir(sys.argv[1]); socket.socket(socket.AF_UNIX).connect(sys.argv[2])"
    return f"{PYTHON} -c '{connect}' {path.parent} {path.name} 2>/dev/null && echo connected; :"


def test_sockets_with_a_path_are_out_of_reach(own: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listening(tmp_path / "docker.sock"), listening(own.workspace / "own.sock"):
        assert said(own, connecting(tmp_path / "docker.sock")) == ""
        assert said(own, connecting(own.workspace / "own.sock")) == "connected\n"
        # What Landlock does not look at, given that nobody else can be reached there: what this is about.
        own.read_paths = [tmp_path]
        assert said(own, connecting(tmp_path / "docker.sock")) == "connected\n"


def test_paths_of_others_do_not_exist(own: Session, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    script = f"[ -e {tmp_path}/other ] && echo there; chmod 700 {tmp_path}/other 2>&1 | grep -c 'No such file'"
    assert said(own, script) == "1\n"


def test_no_process_of_others_can_be_seen_or_named(own: Session) -> None:
    own.read_paths = [Path("/proc")]
    with subprocess.Popen(["sleep", "4711"]) as other:
        script = f"cd /proc; for pid in [0-9]*; do cat $pid/cmdline | tr '\\0' ' '; echo; done; kill -0 {other.pid}"
        found = said(own, script)
        other.kill()
    assert "No such process" in found
    assert "4711" not in found
    assert len([line for line in found.splitlines() if line]) <= 5


def test_temporary_files_and_shared_memory_are_its_own(own: Session, tmp_path: Path) -> None:
    name = f"own-{os.getpid()}"
    script = f"""
    for place in /tmp /dev/shm; do
        [ -e $place/{name} ] && echo found; echo x > $place/{name}; cat $place/{name}
    done
    """
    for place in ("/tmp", "/dev/shm"):
        assert not Path(place, name).exists()
    assert said(own, script) == "x\nx\n"
    assert said(own, script) == "x\nx\n"
    for place in ("/tmp", "/dev/shm"):
        assert not Path(place, name).exists()


def test_directories_of_an_agent_may_lie_in_shared_memory(own: Session) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        there = Session(Path(made), own.layer)
        (there.root / "given" / "file").write_text("given\n")
        script = "cat ../given/file; echo x > file; (: > ../given/x) 2>/dev/null || echo refused"
        assert said(there, script) == "given\nrefused\n"
        assert (there.workspace / "file").read_text() == "x\n"


def test_shared_memory_has_a_bound(own: Session) -> None:
    blocks, size = said(own, "stat -f -c '%b %S' /dev/shm").split()
    assert int(blocks) * int(size) == namespaces.SHARED_MEMORY


def test_memory_of_system_v_is_not_shared(own: Session) -> None:
    made = int(subprocess.run(["ipcmk", "-M", "64"], capture_output=True, text=True, check=True).stdout.split()[-1])
    try:
        with open("/proc/sysvipc/shm") as listed:
            key = next(int(line.split()[0]) for line in list(listed)[1:] if int(line.split()[1]) == made)
        look = f"import ctypes; print(ctypes.CDLL(None).shmget({key}, 0, 0))"
        assert said(own, f"{PYTHON} -c '{look}'") == "-1\n"
        own.layer = "landlock"
        assert said(own, f"{PYTHON} -c '{look}'") == f"{made}\n"
    finally:
        subprocess.run(["ipcrm", "-m", str(made)], check=True)


def test_nothing_but_its_own_directories_can_be_written_to(own: Session) -> None:
    own.read_paths = [Path("/proc")]
    script = "for place in / /dev /usr /proc /sys/kernel/mm; do (: > $place/x) 2>/dev/null && echo $place; done; :"
    assert said(own, script) == ""


def test_only_its_input_and_output_are_open(own: Session) -> None:
    own.read_paths = [Path("/proc")]
    assert said(own, f"{PYTHON} -c 'import os; print(os.listdir(\"/proc/self/fd\"))'") == "['0', '1', '2', '3']\n"


@pytest.mark.parametrize("victim", ["guard", "outside", "inside"])
def test_whatever_of_it_is_killed_everything_else_ends_too(own: Session, victim: str) -> None:
    with own.started(DETACHED + "wait") as guard:
        assert lines(guard.stdout, 3) == ["started"] * 3
        [outside] = psutil.Process(guard.pid).children()
        [inside] = outside.children()
        {"guard": psutil.Process(guard.pid), "outside": outside, "inside": inside}[victim].kill()
        assert at_end(guard.stdout)
        guard.wait(SECONDS)


@pytest.mark.parametrize("prefix", [(), UNSHARE], ids=["this user", "another"])
def test_an_ordinary_user_needs_a_namespace_of_users_and_nothing_else(own: Session, prefix: Sequence[str]) -> None:
    own.read_paths = [Path("/proc")]
    script = "id -u; grep -c . /proc/self/uid_map; touch file; echo done"
    code, out, err = own.run(script, prefix=prefix)
    user = 65534 if prefix else os.getuid()
    assert (code, out, err) == (0, f"{user}\n1\ndone\n", "")
    assert (own.workspace / "file").stat().st_uid == os.getuid()


@pytest.mark.parametrize("prefix", [(), UNSHARE], ids=["this user", "another"])
async def test_a_network_of_its_own_has_nobody_in_it_but_who_takes_its_sockets(
    own: Session, tmp_path: Path, prefix: Sequence[str]
) -> None:
    rules, here = PortRules(tmp_path / "ports"), asyncio.get_running_loop()
    rules.start()
    taken: asyncio.Future[Sequence[socket.socket]] = here.create_future()
    with socket.create_server(("127.0.0.1", 0)) as server:
        of_host = server.getsockname()[1]
        # Of the host's ports none is there, and so any of them can be one of its own.
        network = Network("limited", rules=rules.path, ticket=rules.way(taken.set_result), ways=(of_host, 50_000))
        own.overrides = network.variables()
        script = (
            "for port in 50000 50001; do (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && echo $port; done;"
            f" exec 4<>/dev/tcp/127.0.0.1/{of_host} && read -u 4 word && echo $word"
        )
        running = asyncio.create_task(asyncio.to_thread(said, own, script, prefix=prefix))
        async with asyncio.timeout(SECONDS):
            first, second = await taken
            first.setblocking(False)
            caller, _ = await here.sock_accept(first)
            await here.sock_sendall(caller, b"hello\n")
            assert await running == "50000\nhello\n"
    for each in (caller, first, second):
        each.close()
    rules.close()


def test_a_network_of_its_own_is_not_to_be_had_without_namespaces(own: Session) -> None:
    own.layer, own.overrides = "landlock", Network("model_only", ways=(50_000,)).variables()
    code, out, err = own.run("echo started")
    assert (code, out) == (78, "")
    assert "cannot be limited" in err or "needs namespaces" in err
