"""The examples of the documents, pasted into one terminal in their order, against what `scripts/dev` starts.

An example is a fenced block of `sh`, `python` or `typescript`. What is indented after it is its answer, shortened: the
errors there are the only ones that may come, and what it shows must come.
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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.dev_process import OURS, ROOT, Dev
from tests.free_ports import free_ports

pytestmark = pytest.mark.slow

TERMINAL = Path(__file__).with_name("at_terminal.py")

NOT_HERE = {
    r"\bdocker compose\b": "needs docker",
    r"\bkubectl\b": "needs a cluster",
    r"\bweather\b": "needs an MCP server of the reader's own",
    r"//github\.com": "needs the network",
    r"\b(pip|npm) install\b": "installs what is there already",
    r"^scripts/(dev|test)\b": "starts what the other examples run against, or all tests",
}
"""What an example says → why it does not run here."""

PAGES = ("docs/*.md", "clients/*/README.md")

PATIENCE = 2
"""A pause of a page is so many times as long here, where other tests run too."""

SAVED = re.compile(r"Save this as `([\w.]+)`")
VOLATILE = re.compile(r"…|cak_|\d{4}-\d\d-\d\d|[0-9a-f]{8}-|[0-9a-f]{40}|127\.0\.0\.1")


@dataclass(frozen=True)
class Example:
    """A block, with the prose before it and the answer after it."""

    page: str
    line: int
    language: str
    text: str
    before: str
    after: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def examples_of(page: str) -> list[Example]:
    """Those that run, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```(\S*)\n(.*?)^```\n", text, flags=re.DOTALL | re.MULTILINE))
    found = []
    for index, block in enumerate(blocks):
        before = text[blocks[index - 1].end() if index else 0 : block.start()]
        if block[1] in ("sh", "python", "typescript"):
            line = text.count("\n", 0, block.start()) + 2
            found.append(Example(page, line, block[1], block[2], before, answer_at(text[block.end() :])))
    return found


def answer_at(text: str) -> str:
    """The indented, or fenced and unnamed, lines that follow a block."""
    indented, fenced = r"(?P<indented>(?:    .*\n|\n(?=    ))+)", r"```\n(?P<fenced>(?s:.*?))^```\n"
    match = re.match(rf"\n(?:{indented}|{fenced})", text, flags=re.MULTILINE)
    return (match["indented"] or match["fenced"]) if match else ""


def pages() -> list[str]:
    return [
        page
        for page in ("README.md", *sorted(str(p.relative_to(ROOT)) for of in PAGES for p in ROOT.glob(of)))
        if examples_of(page)
    ]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """`dev` with three instances; its directory is where the examples are pasted."""
    directory = tmp_path_factory.mktemp("examples")
    (directory / ".venv").symlink_to(sys.prefix)
    shim = directory / "bin" / "curl"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(TERMINAL)])} "$@"\n')
    shim.chmod(0o755)
    started = Dev(directory, instances=3)
    try:
        started.ready()
        yield started
    finally:
        started.process.terminate()
        started.exit_code()


class Terminal:
    """Where a page's examples are pasted, and what came of it."""

    def __init__(self, dev: Dev, directory: Path) -> None:
        self._dev, self._directory = dev, directory
        self._notes = directory / "notes"
        self._notes.touch()
        first = free_ports(4)
        self._ports = {f"5400{n}": str(dev.port + n) for n in range(3)}
        self._ports |= {"8900": str(first), "8901": str(first + 1), "8931": str(first + 2), "8399": str(first + 3)}

    def ours(self, text: str) -> str:
        """With the addresses of this machine."""
        return re.sub("|".join(rf"\b{port}\b" for port in self._ports), lambda found: self._ports[found[0]], text)

    def paste(self, examples: list[Example]) -> str:
        """Run them; returns why they ended, or nothing."""
        script = ["set -eu -o pipefail", f"sleep() {{ command sleep $(($1 * {PATIENCE})); }}"]
        for example in examples:
            out, err = self._out(example), self._directory / f"err.{example.line}"
            script.append(f"exec >>{shlex.quote(str(out))} 2>>{shlex.quote(str(err))}; export EXAMPLE={example.where}")
            script.append(self.ours(self._as_shell(example)))
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        curl = shutil.which("curl")
        assert curl, "curl is not installed"
        home = self._dev.data.parent
        env = {**clean, "PATH": f"{home}/bin:{os.environ['PATH']}", "CURL": curl, "NOTES": str(self._notes)}
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)], cwd=home, env=env, start_new_session=True, stdin=subprocess.DEVNULL
        )
        try:
            code = shell.wait(120)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with_children_end(shell)
        last = [example for example in examples if self._out(example).exists()][-1]
        return f"{last.where}: exit code {code}\n{self.said(last)}\n{self.complained(last)}" if code else ""

    def _as_shell(self, example: Example) -> str:
        if example.language == "sh":
            return example.text
        name = re.findall(SAVED, example.before)
        path = name[-1] if name else f"example{example.line}.py"
        saved = f"cat > {path} <<'END-OF-FILE'\n{example.text}END-OF-FILE"
        return saved if name else f"{saved}\n.venv/bin/python {path}"

    def _out(self, example: Example) -> Path:
        return self._directory / f"out.{Path(example.page).stem}.{example.line}"

    def said(self, example: Example) -> str:
        return self._out(example).read_text()

    def complained(self, example: Example) -> str:
        return (self._directory / f"err.{example.line}").read_text()

    def notes(self, example: Example) -> list[dict[str, Any]]:
        noted = [json.loads(line) for line in self._notes.read_text().splitlines()]
        return [one for one in noted if one["example"] == example.where]


def with_children_end(shell: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()


def documented_errors(answer: str) -> list[str]:
    return re.findall(r'"error":\{"code":"(\w+)"|event: error\n\s+data: .*?"code":"(\w+)"', answer)


def test_what_dev_says_and_its_root_lead_to_the_console(dev: Dev) -> None:
    origin = f"http://127.0.0.1:{dev.port}"
    assert f"{origin}/console\n" in dev.said()
    bare = subprocess.run(["curl", "-s", f"{origin}/"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(bare.stdout)["console"] == "/console"
    assert bare.stdout.endswith("}\n")


@pytest.mark.parametrize("page", pages())
def test_the_examples_do_what_the_page_says(page: str, dev: Dev, tmp_path: Path) -> None:
    examples = [e for e in examples_of(page) if not why_not(e)]
    if re.search(r"[Vv]ariables\s+(of|as\s+in)\s+\[api\.md\]", (ROOT / page).read_text(encoding="utf-8")):
        examples.insert(0, examples_of("docs/api.md")[0])
    if not examples:
        pytest.skip("; ".join(sorted({why_not(e) for e in examples_of(page)})))
    terminal = Terminal(dev, tmp_path)
    wrong = [terminal.paste(examples)]
    if not wrong[0]:
        wrong = [f"{example.where}: {fault}" for example in examples for fault in faults(terminal, example, examples)]
    assert not any(wrong), "\n".join(wrong)


def why_not(example: Example) -> str:
    """Why it does not run here, if it does not."""
    found = [why for what, why in NOT_HERE.items() if re.search(what, example.text, flags=re.MULTILINE)]
    if example.text.startswith("node ") and not runs_typescript():
        found.append("needs Node 22.18 or later")
    return "; ".join(found)


def runs_typescript() -> bool:
    typed = ["node", "--input-type=module-typescript", "--eval", "const x: number = 0"]
    return shutil.which("node") is not None and not subprocess.run(typed, capture_output=True).returncode


def faults(terminal: Terminal, example: Example, examples: list[Example]) -> Iterator[str]:
    said = terminal.said(example)
    if said and not said.endswith("\n"):
        yield f"the terminal's prompt stands behind {said[-80:]!r}"
    for line in said.splitlines():
        if line.startswith('{"') and not is_json(line):
            yield f"not one answer on one line: {line}"
    notes = terminal.notes(example)
    answer = terminal.ours(example.after)
    wanted = ["".join(codes) for codes in documented_errors(answer)]
    if (got := [code for note in notes for code in note["errors"]]) != wanted:
        yield f"errors {got}, and the page says {wanted}: {said}"
    yield from (f"nothing answers {note['arguments']}" for note in notes if not note["status"])
    so_far = "".join(terminal.said(e) + terminal.complained(e) for e in examples[: examples.index(example) + 1])
    yield from (
        f"the page shows {fact}, and that does not come: {so_far[-6000:]}"
        for fact in facts(answer)
        if fact not in "".join(so_far.split())
    )


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def facts(answer: str) -> Iterator[str]:
    """What of a shortened answer is the same each time: its names, and values without an id, a time or an omission."""
    for name, value in re.findall(r'"(\w+)":("(?:[^"\\]|\\.)*"|true|false|null)?', answer):
        yield "".join(f'"{name}":{"" if VOLATILE.search(value) else value}'.split())
