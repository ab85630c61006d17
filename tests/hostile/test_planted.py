"""What an agent leaves in every file that its program reads at its start changes nothing in its next process."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from apps.api.runner.guard.launcher import bundled_cli
from apps.demo_model.server import serving
from tests.conftest import StartFleet
from tests.fleet import Instance
from tests.hostile import planting
from tests.hostile.arena import BYPASS, Arena, command
from tests.hostile.levels import UNCONFINED
from tests.recorder import Recorder
from tests.watch import until

FORGED = re.compile(r"FORGED[-_\w]*")
BY_DEFAULT = {
    "FORGED-agent",
    "FORGED-command",
    "FORGED-memory",
    "FORGED-rule",
    "FORGED-server",
    "FORGED-skill",
    "FORGED-style",
}
"""What the CLI tells a model when it starts where it was planted, by itself: the plants are good ones."""

PLANTING = Path(planting.__file__)
DUE_SECONDS = 5.0
"""By when a CLI that has nothing to do begins what is due. Seen: 1 to 2 s."""


@pytest.fixture(scope="module")
def trap() -> Iterator[tuple[str, Recorder]]:
    """A model that nobody is to ask."""
    recorder = Recorder()
    with serving(recorder.wrap) as url:
        yield url, recorder


def ran(workspace: Path) -> list[str]:
    return sorted(path.name for path in (workspace / "ran").iterdir())


async def test_they_change_nothing(arena: Arena, trap: tuple[str, Recorder], recorded: Recorder) -> None:
    headers = arena.headers["attacker"]
    session_id = await arena.session("attacker")
    places = arena.places(session_id)

    async def ask(prompt: str) -> dict[str, Any]:
        return await arena.ask("attacker", prompt, session_id)

    first = await ask(f"run {command(PLANTING, places['workspace'], places['home'], trap[0])}")
    assert "planted" in first["result"]
    before = recorded.count
    assert (await arena.instance.post(f"/sessions/{session_id}/reset", {"mode": "soft"}, headers=headers)).is_success
    for prompt in ("say hello", "delegate say hello", "run env"):
        said = await ask(prompt)
    assert "FORGED" not in said["result"]

    async def by_itself() -> bool:
        runs = (await arena.instance.get(f"/sessions/{session_id}/runs", headers=headers)).json()["data"]
        return any(run["origin"] != "client" for run in runs)

    with pytest.raises(TimeoutError):
        await until(by_itself, seconds=DUE_SECONDS)
    begun = [await init_of(arena.instance, told["run_id"], headers) for told in (first, said)]
    assert begun[0] == begun[1]
    asked = [request.text for request in recorded.of(str(begun[0]["sdk_session_id"]), before)]
    assert len(asked) >= 4
    assert [FORGED.findall(text) for text in asked] == [[]] * len(asked)
    assert trap[1].count == 0
    assert ran(places["workspace"]) == []


async def init_of(instance: Instance, run_id: str, headers: dict[str, str]) -> dict[str, Any]:
    """What a run began with, but for what is of that run alone."""
    found = next(event.data for event in await instance.follow(run_id, headers=headers) if event.event == "init")
    return {name: value for name, value in found.items() if name not in ("run_id", "seq", "created_at")}


async def test_they_would_where_the_cli_reads_what_it_does_by_default(
    tmp_path: Path, trap: tuple[str, Recorder]
) -> None:
    """The plants are good ones: a CLI that is started in that place, as a user would, does all of it."""
    workspace, home = tmp_path / "workspace", tmp_path / "home"
    recorder = Recorder()
    with serving(recorder.wrap) as model, serving(recorder.wrap) as elsewhere:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": model,
            "ANTHROPIC_API_KEY": "x",
            "IS_SANDBOX": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        await asyncio.to_thread(_start_by_default, workspace, home, elsewhere, env)
    (asked,) = recorder._kept
    assert asked[1]["host"] == urlsplit(elsewhere).netloc
    assert set(FORGED.findall(asked[2].decode())) >= BY_DEFAULT
    begun = {name.rpartition("-")[0] for name in ran(workspace)}
    assert begun >= {"project-settings.json", "project-settings.local.json", "user-settings.json"}
    assert "mcp" in ran(workspace)


def _start_by_default(workspace: Path, home: Path, elsewhere: str, env: dict[str, str]) -> None:
    for directory in (workspace, home):
        directory.mkdir()
    subprocess.run(["bash", "-c", command(PLANTING, workspace, home, elsewhere)], check=True, capture_output=True)
    line = [str(bundled_cli()), "-p", "say hi", "--permission-mode", "bypassPermissions"]
    subprocess.run(line, cwd=workspace, env=env, check=True, capture_output=True, timeout=100, stdin=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.skipif(os.geteuid() != 0, reason="the guard lets nobody else trace it")
async def test_the_cli_looks_nowhere_else_for_what_an_agent_could_have_left(
    start_fleet: StartFleet, tmp_path: Path
) -> None:
    """Another version may: then there is one more place to plant something, and to look at what comes of it."""
    fleet = await start_fleet(0, forked=False, **UNCONFINED, AGENT_SECCOMP="off")
    trace = tmp_path / "trace"
    # Beside the server instead of above it: a tracer that is told to end lets what it traces go on.
    fleet.prefix = ("strace", "-D", "-f", "-qq", "-s", "1000", "-e", "trace=%file", "-o", str(trace))
    await fleet.start(1)
    session_id = await fleet[0].session(**BYPASS)
    await fleet[0].ask(session_id, "run true")
    await fleet.stop()
    await until(lambda: asyncio.to_thread(is_told, trace))
    above = Path(fleet.env["WORKSPACES_DIR"])
    seen = await asyncio.to_thread(paths_of_the_cli, trace)
    for name, root in {"workspace": above / session_id, "home": above / ".homes" / session_id}.items():
        looked = {str(path.relative_to(root)) for path in map(Path, seen) if path.is_relative_to(root)}
        assert len(looked) > 3
        assert looked - planting.AT_START[name] == set()


def is_told(trace: Path) -> bool:
    """Whether nobody writes this trace any more."""
    return not any(str(trace) in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


def paths_of_the_cli(trace: Path) -> set[str]:
    """Paths that stand in a trace after the start of the CLI."""
    lines = trace.read_text(errors="replace").splitlines()
    starts = [n for n, line in enumerate(lines) if f'execve("{bundled_cli()}"' in line]
    return {path for line in lines[starts[0] :] for path in re.findall(r'"(/[^"]*?)/?"', line)}
