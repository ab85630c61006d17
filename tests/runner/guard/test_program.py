"""The guard as a process, with small shell scripts in the CLI's place.

That all descendants have died is read off a pipe: they hold its write end, so its reader sees the end of file only
when the last of them is gone.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import pytest

from apps.api.core.lease import now
from apps.api.dev.unprivileged import UNSHARE
from apps.api.runner.agent import options
from apps.api.runner.guard import namespaces, processes
from apps.api.runner.guard.launcher import (
    Directories,
    LeaseFile,
    Wall,
    bundled_cli,
    guard_environment,
    install_guard,
    landlock_abi,
)
from apps.api.runner.guard.limits import Limits
from apps.api.settings import Layer
from tests.hostile import lasting
from tests.layers import ISOLATED, WITH_NAMESPACES
from tests.old_kernel import LANDLOCK_CREATE_RULESET, SECCOMP, without

SECONDS = 20
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="prctl and Landlock are Linux's")
# Without capabilities root is asked for permission as everybody else is.
LIMITS = Limits(file_bytes=2 << 20, open_files=512, processes=20_000, processes_of_user=30_000)
AS_ANYBODY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
DETACHED = """
for n in 1 2; do setsid sh -c 'sleep 1000 & echo started; wait' & done
echo started
"""


@dataclass
class Session:
    """Directories of one session, and a way to start a script under the guard in them."""

    root: Path
    layer: Layer = "off"
    seccomp: Literal["on", "off"] = "on"
    read_paths: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    lease: LeaseFile | None = None
    workspace: Path = field(init=False)
    launcher: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("bin", "config", "given", "home", "output", "workspace", "file-history"):
            (self.root / name).mkdir(exist_ok=True)
        self.workspace = self.root / "workspace"
        self.launcher = install_guard(self.root / "bin")

    def killed(self, number: int) -> int:
        """How the guard ends after a signal has killed the CLI: bubblewrap tells that as shells do."""
        return 128 + number if self.layer == "namespaces" else -number

    def environment(self, script: str) -> dict[str, str]:
        cli = self.root / "bin" / "stand-in"
        cli.write_text(f"#!/bin/bash\n{script}\n")
        cli.chmod(0o755)
        wall = Wall(layer=self.layer, seccomp=self.seccomp, read_paths=self.read_paths, limits=LIMITS)
        directories = Directories(
            workspace=self.workspace,
            file_history=self.root / "file-history",
            home=self.root / "home",
            output=self.root / "output",
            config=self.root / "config",
            tmp=Path(tempfile.mkdtemp(prefix="tmp", dir=self.root)),
            given=self.root / "given",
        )
        return guard_environment(
            directories, wall, lease=self.lease.path if self.lease else None, cli=cli, session_env=self.env
        )

    @contextmanager
    def started(
        self,
        script: str,
        *args: str,
        server_env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        before: Callable[[], None] | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        given = {"PATH": os.environ["PATH"]} if server_env is None else server_env
        with subprocess.Popen(
            [*prefix, self.launcher, *args],
            cwd=self.workspace,
            env={**given, **self.environment(script), **self.overrides},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        ) as guard:
            try:
                yield guard
            finally:
                guard.terminate()

    def run(self, script: str, *args: str, **more: Any) -> tuple[int, str, str]:
        with self.started(script, *args, **more) as guard:
            out, err = guard.communicate(timeout=SECONDS)
        return guard.returncode, out, err


@pytest.fixture(params=["off", WITH_NAMESPACES])
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    """The life of a process is the same in all layers: with namespaces another process is in between."""
    root = tmp_path / "mine"
    root.mkdir()
    return Session(root, request.param)


@pytest.fixture(params=ISOLATED)
def confined(tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    """A session of an agent that is isolated in one way or the other."""
    root = tmp_path / "mine"
    root.mkdir()
    return Session(root, request.param)


def lines(stream: IO[str] | None, count: int) -> list[str]:
    assert stream is not None
    return [stream.readline().strip() for _ in range(count)]


def at_end(stream: IO[str] | None) -> bool:
    """Whether the other side of the pipe is closed everywhere, or is within the time limit."""
    assert stream is not None
    readable, _, _ = select.select([stream], [], [], SECONDS)
    return bool(readable) and stream.read() == ""


def test_only_listed_variables_and_the_sessions_own_reach_the_cli(session: Session) -> None:
    secrets = {
        "DATABASE_URL": "postgres://u:p@h/d",
        "REDIS_URL": "redis://h",
        "API_KEY": "k",
        "AWS_SECRET_ACCESS_KEY": "a",
    }
    passed = {
        "LC_ALL": "C",
        "TERM": "xterm",
        "https_proxy": "http://proxy:3128",
        "IS_SANDBOX": "1",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "CLAUDE_CODE_MAX_RETRIES": "3",
        "CLAUDE_AGENT_SDK_VERSION": "0",
        **dict.fromkeys(options._SILENCE, "900000"),
        "TRACEPARENT": "00-1-2-03",
    }
    session.env = {"GREETING": "hello world", "BASH_ENV": "/nowhere", "ANTHROPIC_BASE_URL": "http://evil"}
    code, out, _ = session.run("env", server_env={"PATH": os.environ["PATH"], **secrets, **passed})
    seen = dict(line.split("=", 1) for line in out.splitlines())
    by_bash = {"PWD", "SHLVL", "_", "OLDPWD"}
    directories = {
        "ANTHROPIC_CONFIG_DIR": f"{session.root}/given/anthropic",
        "HOME": f"{session.root}/home",
        "CLAUDE_CONFIG_DIR": f"{session.root}/config",
        "TMPDIR": seen["TMPDIR"],
        "CLAUDE_CODE_TMPDIR": f"{session.root}/output",
    }
    own = {"GREETING": "hello world", "BASH_ENV": "/nowhere"}
    assert code == 0
    assert {name: value for name, value in seen.items() if name not in by_bash} == {
        "PATH": os.environ["PATH"] if session.layer == "off" else seen["PATH"],
        **passed,
        **directories,
        **own,
    }


def test_a_sessions_variable_does_not_act_on_the_guard(session: Session, tmp_path: Path) -> None:
    session.env = {"LD_PRELOAD": "/does/not/exist.so"}
    # The dynamic loader complains once for every program that it starts with such a variable.
    _, _, err = session.run("exit 0")
    assert err.count("/does/not/exist.so") == 1


@LINUX_ONLY
@pytest.mark.parametrize(
    ("name", "descriptor"),
    [
        ("ANTHROPIC_API_KEY", "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR"),
    ],
)
def test_the_models_credential_comes_through_a_pipe_that_can_be_read_once(
    session: Session, name: str, descriptor: str
) -> None:
    session.read_paths = [Path("/proc")]
    read = f"cat /proc/self/fd/${descriptor}"
    script = f'{read}; echo; env; tr "\\0" "\\n" < /proc/$$/environ; {read}'
    _, out, err = session.run(script, server_env={"PATH": os.environ["PATH"], name: "sk-secret"})
    first, _, rest = out.partition("\n")
    assert (first, err) == ("sk-secret", "")
    assert descriptor in rest
    assert "sk-secret" not in rest


def test_arguments_arrive_as_they_were_given(session: Session) -> None:
    args = ["--flag", "", "two words", 'it\'s "quoted" $HOME `id` \\', "line\nbreak", "-c", "*"]
    _, out, _ = session.run("printf '%s\\0' \"$@\"", *args)
    assert out.split("\0")[:-1] == args


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -TERM $$", -signal.SIGTERM),
        ("kill -SEGV $$", -signal.SIGSEGV),
        ("kill -PIPE $$", -signal.SIGPIPE),
    ],
)
def test_the_guard_ends_as_the_cli_did(session: Session, script: str, code: int) -> None:
    assert session.run(script)[0] == (session.killed(-code) if code < 0 else code)


def test_a_cli_that_cannot_be_started_is_said_so(session: Session) -> None:
    guard = subprocess.run(
        [session.launcher],
        env={**session.environment("exit 0"), "CLI_GUARD_CLI": "/does/not/exist"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert guard.returncode == 126
    assert "cannot start the CLI" in guard.stderr


def test_each_side_sees_the_other_close_its_pipe(session: Session) -> None:
    with session.started("exec 1>&-; cat >/dev/null; exit 5") as guard:
        assert at_end(guard.stdout)
        assert guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(SECONDS) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_guard_ends_detached_tools_too(session: Session, number: signal.Signals) -> None:
    with session.started(DETACHED + "trap '' TERM INT HUP; wait") as guard:
        assert lines(guard.stdout, 3) == ["started"] * 3
        guard.send_signal(number)
        assert at_end(guard.stdout)
        assert guard.wait(SECONDS) == -number


def test_a_terminals_interrupt_does_not_reach_the_guard(session: Session) -> None:
    with session.started("echo started; read go") as guard:
        assert lines(guard.stdout, 1) == ["started"]
        assert os.getpgid(guard.pid) == guard.pid != os.getpgrp()


@LINUX_ONLY
def test_tools_that_outlive_the_cli_are_ended(session: Session) -> None:
    with session.started(DETACHED + "read go; exit 3") as guard:
        assert lines(guard.stdout, 3) == ["started"] * 3
        assert guard.stdin is not None
        guard.stdin.close()
        assert at_end(guard.stdout)
        assert guard.wait(SECONDS) == 3


@LINUX_ONLY
def test_what_runs_away_is_ended_too(session: Session) -> None:
    """Processes that are new every moment, that watch each other, that take orphans from the guard: see `lasting`."""
    session.read_paths = [Path(lasting.__file__).parent]
    beats = session.workspace / "beats"
    with session.started(f"{sys.executable} -B {lasting.__file__} {beats}; read go") as guard:
        assert lines(guard.stdout, 1) == [f"left {len(lasting.KINDS)}"]
        guard.terminate()
        guard.wait(SECONDS)
    last = {file.name: file.read_text() for file in beats.iterdir()}
    assert len(last) == len(lasting.KINDS)
    time.sleep(0.3)  # each beats every 50 ms
    assert {file.name: file.read_text() for file in beats.iterdir()} == last


@LINUX_ONLY
def test_a_killed_server_leaves_nothing_behind(session: Session) -> None:
    code = (
        "import json, os, signal, subprocess, sys\n"
        "env = {**json.loads(sys.argv[2]), 'CLI_GUARD_PARENT': str(os.getpid())}\n"
        "subprocess.Popen([sys.argv[1]], env=env)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(session.launcher), json.dumps(session.environment(DETACHED + "wait"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert lines(server.stdout, 3) == ["started"] * 3
        server.kill()
        assert at_end(server.stdout)
    assert server.returncode == -signal.SIGKILL


def test_a_server_that_renews_no_lease_leaves_nothing_behind_though_it_lives(session: Session) -> None:
    """It may be stopped, or its event loop may stand still: this process, too, does nothing but wait."""
    session.lease = LeaseFile(session.root / "lease")
    session.lease.write(now() + 3)
    with session.started(DETACHED + "sleep 3.5; echo renewed; wait") as guard:
        assert lines(guard.stdout, 3) == ["started"] * 3
        session.lease.write(now() + 3600)
        assert lines(guard.stdout, 1) == ["renewed"]
        session.lease.write(0)
        guard.send_signal(signal.SIGALRM)  # in place of an hour
        assert at_end(guard.stdout)
        assert guard.wait(SECONDS) == -signal.SIGTERM


def test_a_guard_that_begins_without_a_lease_does_not_start_the_cli(session: Session) -> None:
    session.lease = LeaseFile(session.root / "lease")
    code, out, err = session.run("echo started")
    assert (code, out) == (78, "")
    assert "lease has run out" in err
    session.lease.path.unlink()
    code, out, err = session.run("echo started")
    assert (code, out) == (78, "")
    assert "lease cannot be read" in err


@LINUX_ONLY
def test_a_killed_guard_takes_the_cli_with_it(session: Session) -> None:
    with session.started("echo started; exec sleep 1000") as guard:
        assert lines(guard.stdout, 1) == ["started"]
        guard.kill()
        assert at_end(guard.stdout)
        guard.wait(SECONDS)


def test_a_guard_whose_server_has_gone_before_it_started_does_not_start_the_cli(session: Session) -> None:
    env = {**session.environment("echo started"), "CLI_GUARD_PARENT": "1"}
    guard = subprocess.run([session.launcher], env=env, capture_output=True, text=True, timeout=SECONDS)
    assert (guard.returncode, guard.stdout) == (78, "")
    assert "the server has ended" in guard.stderr


@LINUX_ONLY
def test_other_processes_of_the_user_cannot_read_the_guards_environment(session: Session) -> None:
    session.layer = "off"
    with session.started("echo $$; read go", server_env={"PATH": os.environ["PATH"]}, prefix=AS_ANYBODY) as guard:
        [cli] = lines(guard.stdout, 1)

        def read(pid: str | int) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run([*AS_ANYBODY, "cat", f"/proc/{pid}/environ"], capture_output=True)

        try:
            assert b"CLAUDE_CONFIG_DIR" in read(cli).stdout
            assert b"Permission denied" in read(guard.pid).stderr
        finally:
            guard.communicate(timeout=SECONDS)


def said(session: Session, script: str, **more: Any) -> str:
    """What a script put out, which ran isolated."""
    _, out, err = session.run(script, **more)
    assert "cli_guard" not in err
    return out + err


def test_the_agent_works_in_its_own_directories(confined: Session) -> None:
    script = """
    set -e
    echo text > file; cat file; mkdir -p a/b; mv file a/b/; ln -s a/b/file link; cat link; rm -r a
    mkfifo pipe; touch "$HOME/x" "$TMPDIR/x"; echo y > /dev/null; head -c 1 /dev/urandom >/dev/null
    cat <(echo substituted); cat <<< here; : > /dev/shm/guard-test-$$; rm /dev/shm/guard-test-$$
    head -c 8 /proc/meminfo; git --version >/dev/null; echo; echo done
    """
    expected = "text\ntext\nsubstituted\nhere\nMemTotal\ndone\n"
    assert said(confined, script) == expected


@LINUX_ONLY
def test_the_agent_reaches_no_other_session_no_home_and_no_shared_directory(confined: Session, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    secret = tmp_path / "other" / "secret"
    secret.write_text("sibling")
    (confined.workspace / "link").symlink_to(secret)
    # Directories on the way to what it may read, where this program lies in /tmp itself.
    shown = (tmp_path, Path(sys.prefix), Path(sys.base_prefix), Path(namespaces.__file__))
    on_the_way = {path.parts[3] for path in shown if path.parts[1] == "tmp"}
    attempts = [
        f"cat {secret}",
        "cat link",
        f"ls {secret.parent}",
        f"echo x > {secret}",
        f"rm {secret}",
        f"truncate -s 0 {secret}" if landlock_abi() >= 3 else f"cat {secret}",
        f"ln {secret} here",
        "ls /root || ls ~root",
        f"ls {tmp_path} | grep other",
        f"ls -A /tmp/* | grep -v :$ | grep . | grep -vxF {' '.join(f'-e {name}' for name in sorted(on_the_way))}",
        "ls /dev/shm",
        "touch /usr/x",
        "touch /etc/x",
        "mknod device b 8 0",
    ]
    out = said(
        confined, "\n".join(f"({attempt}) >/dev/null 2>&1 && echo reached: '{attempt}'" for attempt in attempts) + "\n:"
    )
    assert out == ""
    assert secret.read_text() == "sibling"


@LINUX_ONLY
def test_paths_given_to_read_can_be_read_and_executed_but_not_written(confined: Session, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    tool = shared / "tool"
    tool.write_text("#!/bin/sh\necho ran\n")
    tool.chmod(0o755)
    confined.read_paths = [shared]
    out = said(confined, f"{tool}; cat {tool} | tail -1; (echo x > {tool}) 2>/dev/null || echo refused")
    assert out == "ran\necho ran\nrefused\n"


def test_copies_of_files_outlive_the_process_wherever_its_configuration_is(confined: Session) -> None:
    resumed = confined.root / "claude-resume-1"
    resumed.mkdir()
    script = 'cd "$CLAUDE_CONFIG_DIR/file-history"; mkdir -p s; echo kept >> s/copy; cat s/copy'
    assert said(confined, script) == "kept\n"
    assert said(confined, script) == "kept\nkept\n"
    confined.overrides = {"CLAUDE_CONFIG_DIR": str(resumed)}
    assert said(confined, script) == "kept\nkept\nkept\n"
    assert (confined.root / "file-history" / "s" / "copy").read_text() == "kept\nkept\nkept\n"


def test_the_config_directory_that_the_sdk_makes_for_a_resume_is_the_agents_too(confined: Session) -> None:
    resumed = confined.root / "claude-resume-1"
    resumed.mkdir()
    (resumed / "transcript").write_text("earlier\n")
    confined.overrides = {"CLAUDE_CONFIG_DIR": str(resumed)}
    script = 'cat "$CLAUDE_CONFIG_DIR/transcript"; echo later > "$CLAUDE_CONFIG_DIR/new"; cat "$CLAUDE_CONFIG_DIR/new"'
    assert said(confined, script) == "earlier\nlater\n"


@LINUX_ONLY
@pytest.mark.parametrize("proc", [False, True])
def test_the_agent_sees_no_other_processs_memory_environment_or_by_default_command(
    confined: Session, proc: bool
) -> None:
    confined.read_paths = [Path("/proc")] if proc else []
    with subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], "DATABASE_URL": "top-secret"}) as other:
        names = "environ cmdline mem"
        script = f"for name in {names}; do head -c 5 /proc/{other.pid}/$name >/dev/null 2>&1 && echo $name; done; :"
        out = said(confined, script)
        guard = "read -r _ _ _ parent _ < /proc/$PPID/stat; head -c 5 /proc/$PPID/environ 2>/dev/null; :"
        of_guard = said(confined, guard)
        other.kill()
    assert out == ("cmdline\n" if proc and confined.layer == "landlock" else "")
    assert "CLI" not in of_guard


@LINUX_ONLY
def test_the_agent_can_signal_its_own_processes_only(confined: Session) -> None:
    script = "sleep 1000 & kill $! && echo own; kill -0 $PPID 2>/dev/null && echo guard; :"
    out = said(confined, script)
    assert out == ("own\n" if landlock_abi() >= 6 else "own\nguard\n")


ATTACK = """
import ctypes, os, resource, signal, sys
libc, cli = ctypes.CDLL(None, use_errno=True), os.getppid()
def tried(name, number, *args):
    result = libc.syscall(ctypes.c_long(number), *args)
    print(name, "works" if result >= 0 else os.strerror(ctypes.get_errno()))
class Span(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]
stack = ctypes.create_string_buffer(64)
here = Span(ctypes.addressof(stack), 64)
there = Span(int(sys.argv[1], 16), 64)
one = ctypes.c_ulong(1)
readv, getfd, kcmp = {"x86_64": (310, 438, 312), "aarch64": (270, 438, 272)}[os.uname().machine]
tried("memory", readv, cli, ctypes.byref(here), one, ctypes.byref(there), one, ctypes.c_ulong(0))
tried("descriptor", getfd, os.pidfd_open(cli), 1, 0)
tried("comparison", kcmp, cli, os.getpid(), 2, ctypes.c_ulong(0), ctypes.c_ulong(0))
"""


@LINUX_ONLY
@pytest.mark.parametrize(("filtering", "answer"), [("on", "Operation not permitted"), ("off", "works")])
def test_tools_reach_neither_memory_nor_descriptors_of_the_cli(
    session: Session, filtering: Literal["on", "off"], answer: str
) -> None:
    session.seccomp = filtering
    (session.workspace / "attack.py").write_text(ATTACK)
    # Where the shell's own code lies is a place that can be read.
    script = f"read -r -d - start < /proc/self/maps; {sys.executable} attack.py $start; :"
    session.read_paths = [Path("/proc")]
    code, out, err = session.run(script)
    if filtering == "off" and "not permitted" in out:
        pytest.skip("this machine lets nobody do that anyway")
    assert (code, out.splitlines(), err) == (
        0,
        [f"{what} {answer}" for what in ("memory", "descriptor", "comparison")],
        "",
    )


@LINUX_ONLY
def test_no_process_of_an_agent_leaves_a_core_dump_or_can_be_made_to(confined: Session) -> None:
    raising = "import os, resource; resource.prlimit({}, resource.RLIMIT_CORE, (-1, -1))"
    script = f"""
    ulimit -c; ulimit -Hc; ulimit -c unlimited 2>/dev/null || echo refused
    for pid in 0 $$ $PPID; do {sys.executable} -c "{raising.format("$pid")}" 2>&1 | tail -n 1; done
    {sys.executable} -c 'import os; os.abort()'; ls
    kill -ABRT $$
    """
    code, out, _ = confined.run(script)
    assert code == confined.killed(signal.SIGABRT)
    refused = ["PermissionError: [Errno 1] Operation not permitted"] * 3
    assert out.splitlines() == ["0", "0", "refused", *refused]
    assert list(confined.workspace.iterdir()) == []


@LINUX_ONLY
def test_what_an_agent_writes_opens_and_starts_has_limits_that_it_cannot_lift(confined: Session) -> None:
    raising = f"{sys.executable} -c 'import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (513, 513))' 2>&1 | tail -n 1"
    script = f"""
    echo $(ulimit -Hf) $(ulimit -f) $(ulimit -Hn) $(ulimit -n) $(ulimit -Hu) $(ulimit -u)
    head -c 3000000 /dev/zero > big; echo $? $(stat -c %s big)
    {raising}
    ulimit -f unlimited 2>/dev/null || echo refused
    """
    _, out, _ = confined.run(script)
    first, written, *refused = out.splitlines()
    processes = 20_000 if confined.layer == "namespaces" and namespaces.makes_user_namespace() else 30_000
    assert first == f"2048 2048 512 512 {processes} {processes}"
    assert written == f"{128 + signal.SIGXFSZ} {2 << 20}"
    assert refused[-1] == "refused"
    assert "Error" in refused[0]


@LINUX_ONLY
def test_limits_of_the_machine_that_are_lower_stay(session: Session) -> None:
    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))

    assert session.run("ulimit -n; ulimit -Hn", before=before)[1] == "400\n400\n"


@LINUX_ONLY
def test_a_tree_that_grows_while_it_is_killed_ends(session: Session) -> None:
    grow = "b() { [ $1 -gt 0 ] && { b $(($1 - 1)) & b $(($1 - 1)) & }; sleep 1000; }"
    with session.started(f"{grow}; echo started; b 8; wait") as guard:
        assert lines(guard.stdout, 1) == ["started"]
        guard.terminate()
        assert at_end(guard.stdout)
        assert guard.wait(SECONDS) == -signal.SIGTERM


@LINUX_ONLY
@pytest.mark.parametrize("prefix", [(), UNSHARE], ids=["this user", "another"])
def test_agents_are_the_first_to_end_when_memory_runs_out(session: Session, prefix: Sequence[str]) -> None:
    session.read_paths = [Path("/proc")]
    out = session.run(
        "cat /proc/self/oom_score_adj; (echo 0 > /proc/self/oom_score_adj) 2>/dev/null && echo changed; :",
        prefix=prefix,
    )
    assert out == (0, "1000\n" if session.layer != "off" else "1000\nchanged\n", "")
    own = Path("/proc/self/oom_score_adj").read_text()
    with session.started("read go") as guard:
        assert Path(f"/proc/{guard.pid}/oom_score_adj").read_text() == own
        guard.communicate(timeout=SECONDS)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_those_of_an_ordinary_user_are_too() -> None:
    """Whose guard hides itself: what lies of it in /proc is root's then."""
    python = "/usr/bin/python3"
    new = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not os.path.exists(python) or subprocess.run(new).returncode:
        pytest.skip("needs Python 3.11 where everybody may run it")
    with tempfile.TemporaryDirectory() as made:
        package, own = Path(made) / "guard", Path(made) / "own"
        shutil.copytree(Path(processes.__file__).parent, package)
        own.mkdir()
        os.chown(own, 65534, 65534)
        Path(made).chmod(0o755)
        names = ("workspace", "home", "output", "file_history", "config", "tmp", "given")
        wall = Wall(layer="off", seccomp="off", read_paths=(), limits=LIMITS)
        env = guard_environment(
            Directories(**dict.fromkeys(names, own)), wall, lease=None, cli=Path("/bin/sh"), session_env={}
        )
        code = f"import sys; sys.path.append({made!r}); from guard.program import main; main()"
        done = subprocess.run(
            [python, "-I", "-S", "-c", code, "-c", "id -u; cat /proc/self/oom_score_adj"],
            env={**env, "PATH": os.defpath},
            cwd=own,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
    assert (done.stdout, done.stderr) == ("65534\n1000\n", "")


@LINUX_ONLY
def test_directories_of_the_path_that_are_closed_do_not_hide_programs(confined: Session, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    shutil.copy("/bin/false", closed / "true")
    path = f"{closed}:{os.environ['PATH']}"
    out = said(confined, 'true && echo "$PATH"', server_env={"PATH": path})
    assert out != ""
    assert str(closed) not in out


@LINUX_ONLY
@pytest.mark.parametrize(
    ("missing", "said"),
    [(LANDLOCK_CREATE_RULESET, "offers no Landlock"), (SECCOMP, "has no seccomp")],
    ids=["landlock", "seccomp"],
)
def test_without_a_part_of_the_isolation_no_agent_starts(confined: Session, missing: int, said: str) -> None:
    ended, printed, err = confined.run("echo ran; exit 4", before=without(missing))
    assert (ended, printed) == (78, "")
    assert err.count("\n") == 1
    assert said in err


def test_without_bubblewrap_no_agent_that_is_to_have_namespaces_starts(confined: Session) -> None:
    confined.layer, confined.overrides = "namespaces", {"CLI_GUARD_BWRAP": ""}
    ended, printed, err = confined.run("echo ran")
    assert (ended, printed) == (78, "")
    assert "bubblewrap (bwrap) is not installed" in err


@LINUX_ONLY
@pytest.mark.parametrize("missing", [LANDLOCK_CREATE_RULESET, SECCOMP], ids=["landlock", "seccomp"])
def test_what_is_off_is_not_missed(session: Session, missing: int) -> None:
    session.layer, session.seccomp = "off", "off"
    assert session.run("echo ran; exit 4", before=without(missing)) == (4, "ran\n", "")


def test_the_guard_imports_nothing_that_makes_starts_slow(session: Session) -> None:
    launcher = session.launcher.read_text()
    code = launcher.replace("main()", "print(*sys.modules)", 1)
    assert code != launcher
    session.launcher.write_text(code)
    out = subprocess.run([session.launcher], capture_output=True, text=True, check=True).stdout
    loaded = set(out.split())
    assert "guard.program" in loaded
    assert loaded.isdisjoint({"apps.api", "claude_agent_sdk", "enum", "re", "signal", "site", "subprocess", "typing"})


def test_the_launcher_is_for_this_user_only_and_survives_odd_paths(tmp_path: Path) -> None:
    odd = tmp_path / "it's a $(dir)"
    odd.mkdir()
    python = odd / "py thon"
    python.symlink_to(sys.executable)
    launcher = install_guard(odd, python=str(python))
    assert install_guard(odd, python=str(python)) == launcher
    assert [path.name for path in odd.iterdir() if path != python] == ["claude"]
    assert stat.S_IMODE(launcher.stat().st_mode) == 0o700
    session = Session(tmp_path)
    session.launcher = launcher
    assert session.run("exit 9")[0] == 9


def test_descendants_are_found_over_generations_and_sessions() -> None:
    script = "setsid sh -c 'sleep 1000 & echo $! $$; wait' & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        pids = {int(pid) for line in lines(shell.stdout, 1) for pid in line.split()}
        assert pids | {shell.pid} <= set(processes.below(os.getpid()))
        assert set(processes.below(shell.pid)) == pids
        for pid in (shell.pid, *pids):
            os.kill(pid, signal.SIGKILL)


def test_a_path_that_would_be_read_as_two_is_refused(session: Session) -> None:
    session.read_paths = [Path(f"/opt{os.pathsep}/root")]
    with pytest.raises(ValueError, match="cannot be isolated"):
        session.environment("exit 0")


def test_the_bundled_cli_can_be_executed() -> None:
    assert os.access(bundled_cli(), os.X_OK)
