"""One server at one level of isolation, an agent that attacks, and those whom it attacks: another tenant's agent and
its tools, and a service of the machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import psutil
from cryptography.fernet import Fernet

import apps.api
from apps.api.core.files import removal
from apps.api.dev.unprivileged import UNSHARE
from apps.api.runner.guard.launcher import bundled_cli
from tests.conftest import StartFleet, database_of, make_key
from tests.fleet import Fleet, Instance
from tests.hostile.levels import PROFILES, Level, standing
from tests.watch import until

HERE = Path(__file__).parent
ATTACKS, BYSTANDER = HERE / "attacks", HERE / "bystander.py"
BYPASS = {"permission_mode": "bypassPermissions"}
NOTHING: Mapping[str, Any] = {}
BATCH_SECONDS = 150
"""For one run with many attacks."""

Outcomes = dict[str, dict[str, str]]
"""Name of an attack → `{"seen": …}`, `{"held": …}` or `{"broken": …}`."""


@dataclass
class Arena:
    """See above.

    Attributes:
        level, user: of the agents of its server.
        root: its directory, with a short name.
        secret: what the attacked have, and nobody is to read.
        facts: what the attacker is told, by whom it is about; `attacks.table.Facts`.
        attacker, victim: sessions of two tenants.
        headers: with the key of each.
    """

    level: Level
    user: str
    fleet: Fleet
    root: Path
    attacker: str = ""
    victim: str = ""
    secret: str = field(default_factory=lambda: f"nobody-is-to-read-{uuid4().hex}")
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def instance(self) -> Instance:
        return self.fleet[0]

    @property
    def layers(self) -> frozenset[str]:
        """What stands between the attacker and the others."""
        return standing(self.level, self.user)

    @property
    def beside(self) -> list[str]:
        """Words before the command of a process of the server's user."""
        if not self.fleet.prefix:
            return []
        target = f"--target={self.instance.process.pid}"
        return ["nsenter", "--user", target, "--preserve-credentials"]

    def places(self, session_id: str) -> dict[str, Path]:
        """Directories of a session, as `attacks.files` calls them; those of its process while that lives."""
        above = Path(self.fleet.env["WORKSPACES_DIR"])
        names = {"workspace": "", "home": ".homes", "output": ".outputs", "checkpoints": ".checkpoints"}
        process = (above / ".configs" / session_id).resolve().parent
        lasting = {name: above / below / session_id for name, below in names.items()}
        return lasting | {name: process / name for name in ("config", "tmp", "given")}

    async def ask(self, who: str, prompt: str, session_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Have an agent of one of the two tenants do something, and wait for its result."""
        body = {"prompt": prompt, "session_id": session_id or getattr(self, who), **more}
        answer = await self.instance.post("/query/single", body, headers=self.headers[who], timeout=BATCH_SECONDS + 30)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def session(self, who: str, **config: Any) -> str:
        """A new session of one of the two tenants; the attacker's with the profile of the level."""
        profile = {"profile": self.level.profile} if who == "attacker" and self.level.profile else {}
        body = {**BYPASS, **profile, **config}
        made = await self.instance.post("/sessions", body, headers=self.headers[who])
        assert made.status_code == 201, made.text
        return str(made.json()["session_id"])

    async def attack(self, *groups: str) -> Outcomes:
        """What comes of the attacks of these groups: the real CLI's Bash runs them."""
        results = self.places(self.attacker)["workspace"] / f"results-{uuid4().hex}"
        prompt = f"run {command(ATTACKS, self._facts, results.name, *groups)}"
        said = await self.ask("attacker", prompt, timeout_seconds=BATCH_SECONDS)
        assert "tried" in said["result"], said["result"][-2000:]
        return _outcomes(results)

    async def unconfined(self, *groups: str) -> Outcomes:
        """What comes of them for a process of the server's user that nothing confines."""
        return await asyncio.to_thread(self._unconfined, groups)

    def _unconfined(self, groups: tuple[str, ...]) -> Outcomes:
        directory = Path(self.fleet.env["WORKSPACES_DIR"], f"unconfined-{uuid4().hex[:8]}")
        directory.mkdir()
        line = [*self.beside, "bash", "-c", command(ATTACKS, self._facts, "results", *groups)]
        done = subprocess.run(line, cwd=directory, capture_output=True, text=True, timeout=BATCH_SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return _outcomes(directory / "results")

    @property
    def _facts(self) -> Path:
        return self.root / "facts" / "facts.json"

    def learn(self) -> None:
        """Tell the attacker what there is to know."""
        own, victim = (self._agent(session_id) for session_id in (self.attacker, self.victim))
        tool = _described(self.places(self.victim)["workspace"] / "bystander.json")
        # By the number that it has on the machine, whatever its own view is.
        tool["pid"] = next(p.pid for p in self.instance.agent_of(self.victim) if str(BYSTANDER) in p.cmdline()[:4])
        self.facts = {
            "own": own,
            "victim": {**victim, **tool},
            "server": self._server(),
            "host": {
                **_described(self.root / "host" / "bystander.json"),
                "file": str(self.root / "host" / "file"),
                "home": str(self.root / "host"),
            },
        }
        self._facts.write_text(json.dumps(self.facts))

    def _agent(self, session_id: str) -> dict[str, Any]:
        """What is to be known of a session's agent process."""
        found = self.instance.agent_of(session_id)
        cli = next(process for process in found if process.exe() == str(bundled_cli().resolve()))
        ancestors = {process.pid for process in cli.parents()}
        guard = next(p.pid for p in psutil.Process(self.instance.process.pid).children() if p.pid in ancestors)
        env = cli.environ()
        return {
            "cli": cli.pid,
            "cli_address": _memory(cli.pid),
            "guard": guard,
            "guard_address": _memory(guard),
            "messages": env.get("CLAUDE_CODE_MESSAGING_SOCKET"),
            **{name: str(path) for name, path in self.places(session_id).items()},
        }

    def _server(self) -> dict[str, Any]:
        pid, env = self.instance.process.pid, self.fleet.env
        scratch = next(path.parent for path in Path(env["TMPDIR"]).glob("caa-*/*/lease"))
        return {
            "pid": pid,
            "pid_address": _memory(pid),
            "port": urlsplit(self.instance.url).port,
            "model_port": urlsplit(env["ANTHROPIC_BASE_URL"]).port,
            "postgres": _socket_of(env["DATABASE_URL"], ".s.PGSQL.5432"),
            "redis": unquote(urlsplit(env["REDIS_URL"]).path),
            "key": str(self.root / "data" / "api-key"),
            "launcher": str(scratch / "claude"),
            "lease": str(scratch / "lease"),
            "cli": str(bundled_cli()),
            "modules": str(Path(psutil.__file__).parents[1]),
            "code": str(Path(apps.api.__file__).parent),
        }

    def heard(self) -> set[int]:
        """The signals that the machine's service has had."""
        return {int(line) for line in (self.root / "host" / "heard").read_text().split()}


async def all_is_well(arena: Arena) -> None:
    """The instance is healthy, the other tenant's agent answers, and nothing of theirs has changed."""
    instance = arena.instance
    assert instance.process.poll() is None, instance.log.read_text()[-2000:]
    assert (await instance.client.get("/health/ready")).status_code == 200
    assert "still here" in (await arena.ask("victim", "say still here"))["result"]
    assert psutil.pid_exists(arena.facts["victim"]["pid"])
    assert psutil.pid_exists(arena.facts["host"]["pid"])
    for name, place in arena.places(arena.victim).items():
        assert (place / "private.txt").read_text() == arena.secret, name
    assert "Traceback" not in instance.log.read_text(errors="replace")


def command(script: Path, *args: object) -> str:
    """For Bash."""
    return " ".join(map(str, (sys.executable, "-B", script, *args)))


def _outcomes(results: Path) -> Outcomes:
    found = [json.loads(line) for line in results.read_text().splitlines()]
    return {one.pop("name"): one for one in found}


def _described(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _memory(pid: int) -> int | None:
    """An address in the memory of a process that it writes to; None where nobody lets this one look."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return next(int(line.partition("-")[0], 16) for line in lines if " rw-p " in line)
    return None


def _socket_of(url: str, name: str) -> str:
    parts = urlsplit(url)
    return str(Path(parse_qs(parts.query).get("host", [unquote(parts.hostname or "")])[0], name))


def _bystander(directory: Path, prefix: list[str], secret: str) -> subprocess.Popen[bytes]:
    """A service of the machine, begun."""
    directory.mkdir()
    (directory / "file").write_text(secret)
    return subprocess.Popen([*prefix, sys.executable, "-B", str(BYSTANDER), str(directory / "bystander.json"), secret])


def _clear(root: Path, shared: list[str]) -> None:
    removal.remove(root)
    for name in shared:
        Path("/dev/shm", name).unlink(missing_ok=True)


def _put_secrets(arena: Arena) -> None:
    for place in arena.places(arena.victim).values():
        (place / "private.txt").write_text(arena.secret)
    workspace = arena.places(arena.victim)["workspace"]
    (workspace / "movable.txt").write_text("movable")
    (workspace / "empty").mkdir()
    program = workspace / "program"
    program.write_text(f"#!/bin/sh\necho {arena.secret}\n")
    program.chmod(0o755)
    (arena.root / "data").mkdir(mode=0o700)
    (arena.root / "data" / "api-key").write_text(arena.secret)


def prefix_of(user: str) -> list[str] | None:
    """Words before commands of this user; None if this machine cannot have it."""
    if user == "root":
        return [] if os.geteuid() == 0 else None
    prefix = list(UNSHARE) if os.geteuid() == 0 else []
    return prefix if subprocess.call([*prefix, "true"]) == 0 else None


def secrets() -> dict[str, str]:
    """Settings that no agent is to find, which nobody has seen before."""
    return {
        "ANTHROPIC_API_KEY": f"sk-ant-{uuid4().hex}",
        "API_KEY": f"cak_{uuid4().hex}",
        "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
    }


@asynccontextmanager
async def opened(
    start_fleet: StartFleet, level: Level, user: str, config: Mapping[str, Any] = NOTHING, **settings: str
) -> AsyncIterator[Arena]:
    """An arena with everybody in it. `config`: of the victim's session."""
    prefix = prefix_of(user)
    assert prefix is not None
    root = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))  # short, and where no rule of the confinement leads
    service = fleet = arena = None
    try:
        for name in ("facts", "t"):
            (root / name).mkdir()
        given = {
            "TMPDIR": str(root / "t"),
            "WORKSPACES_DIR": str(root / "w"),
            "PROFILES_FILE": str(root / "profiles.toml"),
            "AGENT_READ_PATHS": f"{HERE}{os.pathsep}{root / 'facts'}",
            **secrets(),
            **level.settings,
            **settings,
        }
        (root / "profiles.toml").write_text(PROFILES)
        # Who attacks from beside the server sees its disk.
        fleet = await start_fleet(0, forked=False, apart=False, **given)
        fleet.prefix = prefix
        await fleet.start(1)
        fleet[0].client.headers["X-API-Key"] = given["API_KEY"]
        arena = Arena(level, user, fleet, root)
        service = _bystander(root / "host", arena.beside, arena.secret)
        await _people(arena, config)
        await until(lambda: asyncio.to_thread((root / "host" / "bystander.json").exists))
        await asyncio.to_thread(arena.learn)
        yield arena
    finally:
        if service is not None:
            service.kill()
            await asyncio.to_thread(service.wait)
        if fleet is not None:
            await fleet.stop()  # it writes to its directory until then
        shared = [arena.facts[whose]["shm"] for whose in ("host", "victim") if arena is not None and arena.facts]
        await asyncio.to_thread(_clear, root, shared)


async def _people(arena: Arena, config: Mapping[str, Any]) -> None:
    async with database_of(arena.fleet) as db:
        for who in ("attacker", "victim"):
            arena.headers[who] = await make_key(db, f"{who}-{uuid4().hex}")
    arena.attacker, arena.victim = await arena.session("attacker"), await arena.session("victim", **config)
    said = arena.places(arena.victim)["workspace"] / "bystander.json"
    line = command(BYSTANDER, said, arena.secret)
    prompts = {"attacker": "say ready", "victim": f"run {line} >/dev/null 2>&1 & echo started"}
    await asyncio.gather(*(arena.ask(who, prompt) for who, prompt in prompts.items()))
    await until(lambda: asyncio.to_thread(said.exists))
    await asyncio.to_thread(_put_secrets, arena)
