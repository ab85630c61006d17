"""The examples of the documents, pasted into one terminal in their order, against what `scripts/dev` starts.

They do what the page says, and print what it shows: tests/pages.py finds them, tests/shown.py compares.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.dev_process import OURS, ROOT, Dev
from tests.free_ports import free_ports
from tests.git_server import git_serving
from tests.pages import Block, blocks_of, pages
from tests.shown import missing

TERMINAL = Path(__file__).with_name("at_terminal.py")

PATIENCE = 3
"""A pause of a page is so many times as long here, where other tests run too: an agent starts in it."""

BOUND = 120
"""Seconds for a page, on a busy machine too."""

REPOSITORY = "https://github.com/octocat/Hello-World"
"""Which the pages clone, and which is one on this machine here."""

WEATHER = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("weather")


@server.tool()
def forecast(town: str) -> str:
    """Tell how the weather will be."""
    return f"sunny in {town}"


server.run("stdio")
'''
"""The reader's own MCP server of docs/mcp.md."""

PROGRAMS = {"python": (".venv/bin/python", "py"), "js": ("node", "mjs"), "typescript": ("node", "ts")}
MARK = "\x1e"


@dataclass(frozen=True)
class Place:
    """`dev` with three instances; `home` is where the examples are pasted, `here` what the pages name otherwise."""

    dev: Dev
    home: Path
    here: dict[str, str]

    def ours(self, text: str) -> str:
        return _renamed(text, self.here)

    def theirs(self, text: str) -> str:
        return _renamed(text, {ours: theirs for theirs, ours in self.here.items()})


def _renamed(text: str, names: dict[str, str]) -> str:
    either = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    return re.sub(either, lambda found: names[found[0]], text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("examples")
    (home / ".venv").symlink_to(sys.prefix)
    shim = home / "bin" / "curl"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(TERMINAL)])} "$@"\n')
    shim.chmod(0o755)
    weather = home / "mcp" / "weather.py"
    weather.parent.mkdir()
    weather.write_text(WEATHER)
    first, python = free_ports(4), Path(sys.prefix) / "bin" / "python"
    with git_serving(home / "git") as git:
        dev = Dev(
            home,
            instances=3,
            INSTANCE_LEASE_SECONDS="60",  # which a busy machine cannot take from it
            REPOSITORY_HOSTS="127.0.0.1,github.com",
            MCP_STDIO_COMMANDS=f"{python} {weather}",
            AGENT_READ_PATHS=str(weather.parent),
        )
        here = {f"5400{n}": str(dev.port + n) for n in range(3)}
        here |= {port: str(first + n) for n, port in enumerate(("8900", "8901", "8931", "8399"))}
        branches: dict[str, dict[str, str]] = {"master": {}, "test": {"CONTRIBUTING.md": "## Contributing\n"}}
        here |= {REPOSITORY: git.repository("octocat/Hello-World", {"README": "Hello World!\n"}, branches=branches)}
        here |= {"/srv/mcp/weather.py": str(weather), '"command": "python"': f'"command": "{python}"'}
        here |= {'"command":"python"': f'"command":"{python}"'}
        try:
            dev.ready()
            yield Place(dev, home, here)
        finally:
            dev.process.terminate()
            dev.exit_code()


class Terminal:
    """Where a page's examples are pasted, and what came of it."""

    def __init__(self, place: Place, directory: Path) -> None:
        self._place, self._notes = place, directory / "notes"
        self._notes.touch()
        self._said: dict[str, str] = {}

    def paste(self, blocks: list[Block]) -> str:
        """Run them; returns why they ended, or nothing."""
        script = ["set -eu -o pipefail", f"sleep() {{ command sleep $(($1 * {PATIENCE})); }}"]
        for block in blocks:
            script.append(f"printf '{MARK}%s{MARK}' {block.where}; export EXAMPLE={block.where}")
            script.append(self._place.ours(self._as_shell(block)))
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        curl = shutil.which("curl")
        assert curl, "curl is not installed"
        env = {**clean, "PATH": f"{self._place.home}/bin:{os.environ['PATH']}", "CURL": curl, "NOTES": str(self._notes)}
        code, said = self._run("\n".join(script), env, goes_on=any(block.goes_on for block in blocks))
        _, *parts = self._place.theirs(said).split(MARK)
        self._said = dict(zip(parts[::2], parts[1::2], strict=True))
        return f"{parts[-2]}: exit code {code}\n{parts[-1]}" if code else ""

    def _run(self, script: str, env: dict[str, str], *, goes_on: bool) -> tuple[int, str]:
        """Its exit code, and what it and the programs that it began have said."""
        # Through a pipe, and not into a file: `tee /dev/stderr` would begin that anew.
        with subprocess.Popen(
            ["bash", "-c", script], cwd=self._place.home, env=env, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as shell, ThreadPoolExecutor(1) as readers:  # fmt: skip
            assert shell.stdout is not None
            said = readers.submit(shell.stdout.read)
            try:
                code = shell.wait(BOUND)
                if not code and goes_on:
                    self._wait_for_stream()
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
            return code, said.result()

    def _as_shell(self, block: Block) -> str:
        if block.language in ("sh", "bash"):
            return block.text
        program, ends = PROGRAMS[block.language]
        path = block.saved or f"example{block.line}.{ends}"
        saved = f"mkdir -p $(dirname {path}); cat > {path} <<'END-OF-FILE'\n{block.text}END-OF-FILE"
        return saved if block.saved else f"{saved}\n{program} {path}"

    def _wait_for_stream(self) -> None:
        deadline = time.monotonic() + BOUND
        while not self._stream.exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    @property
    def _stream(self) -> Path:
        return self._notes.with_name("notes.stream")

    def said(self, block: Block) -> str:
        """Without what a shell tells of a process that it was told to end."""
        return re.sub(r"^bash: line \d+: +\d+ Terminated .*\n", "", self._said[block.where], flags=re.MULTILINE)

    def went_on(self) -> str:
        return self._place.theirs(self._stream.read_text()) if self._stream.exists() else ""

    def notes(self, block: Block) -> list[dict[str, Any]]:
        noted = [json.loads(line) for line in self._notes.read_text().splitlines()]
        return [one for one in noted if one["example"] == block.where]


def test_what_dev_says_and_its_root_lead_to_the_console(place: Place) -> None:
    origin = f"http://127.0.0.1:{place.dev.port}"
    assert f"{origin}/console\n" in place.dev.said()
    bare = subprocess.run(["curl", "-s", f"{origin}/"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(bare.stdout)["console"] == "/console"
    assert bare.stdout.endswith("}\n")


@pytest.mark.parametrize("page", pages())
def test_the_examples_do_what_the_page_says(page: str, place: Place, tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(page) if not why_not(block)]
    if re.search(r"[Vv]ariables\s+(of|as\s+in)\s+\[api\.md\]", (ROOT / page).read_text(encoding="utf-8")):
        blocks.insert(0, blocks_of("docs/api.md")[0])
    if not blocks:
        pytest.skip("; ".join(sorted({why_not(block) for block in blocks_of(page)})))
    terminal = Terminal(place, tmp_path)
    wrong = [terminal.paste(blocks)]
    if not wrong[0]:
        wrong = [f"{block.where}: {fault}" for block in blocks for fault in faults(terminal, block)]
    assert not any(wrong), "\n".join(wrong)


def why_not(block: Block) -> str:
    """Why it does not run here, if it does not."""
    if re.match(r"node \S+\.ts", block.text) and not runs_typescript():
        return "needs Node 22.18 or later"
    return block.not_run


def runs_typescript() -> bool:
    typed = ["node", "--input-type=module-typescript", "--eval", "const x: number = 0"]
    return shutil.which("node") is not None and not subprocess.run(typed, capture_output=True).returncode


def faults(terminal: Terminal, block: Block) -> Iterator[str]:
    said = terminal.said(block)
    if said and not said.endswith("\n"):
        yield f"the terminal's prompt stands behind {said[-80:]!r}"
    for line in said.splitlines():
        if line.startswith('{"') and not is_json(line):
            yield f"not one answer on one line: {line}"
    notes = terminal.notes(block)
    yield from (f"nothing answers {note['arguments']}" for note in notes if not note["status"])
    if block.shown:
        if difference := missing(block.shown, said):
            yield f"{difference}\n{said[:6000]}"
    else:
        yield from (f"an error that the page does not show: {said}" for note in notes if note["errors"])
    if block.goes_on and (difference := missing(block.goes_on, terminal.went_on())):
        yield f"{difference}\n{terminal.went_on()[:6000]}"


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
