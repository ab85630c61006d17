"""The documents agree with the code: settings, error codes, links; and they name nothing of anybody's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from apps.api.codes import ErrorCode, RunCode
from apps.api.errors import RUN_FAILURES, Noun
from apps.api.instruments import REGISTRY
from apps.api.settings import Settings

ROOT = Path(__file__).parents[1]
ENV_EXAMPLE = ROOT / ".env.example"
CONFIGURATION = ROOT / "docs/configuration.md"
API = ROOT / "docs/api.md"
OPERATIONS = ROOT / "docs/operations.md"

DEPENDS_ON_THE_MACHINE = {
    "RUNNER_SLOTS": "2 × CPUs, at least 2, and what memory is enough for",
    "PREWARM": "1 for each CPU, in a quarter of the memory",
}

# `dev` chooses these when they are not set, and a secret has no example: in .env.example they are commented out.
LEFT_OUT = {
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "API_KEY",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "DATABASE_OWNER_URL",
    "WORKSPACE_STORE_URL",
    "DATABASE_URL",
    "DEBUG",
    "ENCRYPTION_KEYS",
    "MAX_LIVE_SESSIONS",
    "RATE_LIMIT_QUERY_PER_MINUTE",
    "REDIS_URL",
    "RUNNER_SLOTS",
    "PREWARM",
    "SHUTDOWN_GRACE_SECONDS",
    "WORKSPACES_DIR",
}

HOSTS_OF_THE_LOCK_FILE = {"pypi.org", "files.pythonhosted.org"}

# Not part of a longer path: $HOME/work/ or example.org/work/ are nobody's machine.
MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:work|root)/")


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name → default as an operator would write it; empty for unset."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    settings = Settings(_env_file=None)
    shown = {name.upper(): as_text(getattr(settings, name)) for name in Settings.model_fields}
    return shown | dict.fromkeys(DEPENDS_ON_THE_MACHINE, "")


def as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, with those that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


# --- settings ------------------------------------------------------------------------------------------------------


def example_lines() -> Iterator[tuple[int, bool, str, str]]:
    """Line number, whether it is active, name, value."""
    for number, line in enumerate(ENV_EXAMPLE.read_text(encoding="utf-8").splitlines(), 1):
        if match := re.fullmatch(r"(#?)([A-Z][A-Z_0-9]*)=(.*)", line):
            yield number, not match[1], match[2], match[3]


def test_the_example_environment_has_every_setting_once() -> None:
    names = [name for _, _, name, _ in example_lines()]
    assert len(names) == len(set(names))
    assert set(names) == {name.upper() for name in Settings.model_fields}


def test_the_example_environment_shows_the_defaults(defaults: dict[str, str]) -> None:
    for number, active, name, value in example_lines():
        assert active == (name not in LEFT_OUT), f".env.example:{number}: {name}"
        assert value == defaults[name], f".env.example:{number}: {name}"


def test_the_example_environment_explains_every_setting() -> None:
    lines = ENV_EXAMPLE.read_text(encoding="utf-8").splitlines()
    for number, _, name, _ in example_lines():
        assert lines[number - 2].startswith("# "), f".env.example:{number}: say what {name} means"


def test_the_example_environment_is_valid_as_it_is(defaults: dict[str, str]) -> None:
    assert Settings(_env_file=ENV_EXAMPLE) == Settings(_env_file=None)


def configuration_rows() -> Iterator[tuple[str, str, str]]:
    section = CONFIGURATION.read_text(encoding="utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and cells[0].startswith("`"):
            yield cells[0].strip("`"), cells[1], cells[2].rstrip("| ")


def test_the_configuration_page_has_every_setting_in_the_order_of_the_code_with_its_default(
    defaults: dict[str, str],
) -> None:
    rows = list(configuration_rows())
    assert [name for name, _, _ in rows] == [name.upper() for name in Settings.model_fields]
    for name, default, meaning in rows:
        wanted = DEPENDS_ON_THE_MACHINE.get(name) or (f"`{defaults[name]}`" if defaults[name] else "unset")
        assert default == wanted, name
        assert len(meaning) > 10, name


# --- error codes ---------------------------------------------------------------------------------------------------


CODES = set(get_args(ErrorCode))


def test_every_error_code_is_one_that_some_code_sends() -> None:
    said = {f"{noun}_not_found" for noun in get_args(Noun)}
    for path in (ROOT / "apps/api").rglob("*.py"):
        if path.name != "codes.py":
            constants = (n.value for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Constant))
            said |= CODES & {value for value in constants if isinstance(value, str)}
    assert CODES - said == set()
    assert set(get_args(RunCode)) == set(RUN_FAILURES)


def error_rows() -> dict[str, tuple[str, ...]]:
    """Code → the other cells of its row in the section about errors."""
    section = API.read_text(encoding="utf-8").partition("\n## Errors\n")[2].partition("\n## ")[0]
    rows = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for code in re.findall(r"`([a-z_]+)`", cells[0]) if len(cells) > 2 else ():
            rows[code] = tuple(cells[1:])
    return rows


def test_the_page_about_the_api_explains_every_error_code_and_no_other() -> None:
    documented = set(error_rows())
    assert documented - CODES == set(), "docs/api.md explains what no code sends"
    assert CODES - documented == set(), "explain these in docs/api.md"


def events_in_the_code() -> set[str]:
    """What is appended by name as `Event("…", …)`, and what is not stored."""
    found = {"partial", "resync"}
    for path in (ROOT / "apps/api").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="Event"), args=[ast.Constant(value=str(name)), *_]):
                    found.add(name)
    return found


def test_the_page_about_the_api_explains_every_event() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    table = page[page.index("| event | when | fields |") :].split("\n\n", 1)[0]
    assert events_in_the_code() <= set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_the_page_about_the_api_gives_every_failure_of_a_run_its_status_and_retry() -> None:
    text = API.read_text(encoding="utf-8")
    for code, (status, retryable, _) in RUN_FAILURES.items():
        row = f"| `{code}` | {status} | {'yes' if retryable else 'no'} |"
        assert row in text, row


# --- what operators see --------------------------------------------------------------------------------------------


def test_the_page_for_operators_names_every_metric_and_no_other() -> None:
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in REGISTRY.collect()}
    section = OPERATIONS.read_text(encoding="utf-8").partition("\n## Metrics\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)", section, flags=re.MULTILINE)) == exposed


def test_the_log_events_that_operators_are_told_of_exist() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "apps/api").rglob("*.py"))
    logged = set(re.findall(r"""\blog(?:ger)?\.\w+\(\s*"([a-z]+\.[a-z_]+)\"""", code))
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", OPERATIONS.read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named - logged == set()


# --- links and names -----------------------------------------------------------------------------------------------


def prose(path: Path) -> str:
    """The text without code blocks."""
    return re.sub(r"^(```|~~~).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_websocket_example_takes_messages_of_any_size() -> None:
    """What an agent says at once may be MAX_AGENT_MESSAGE_BYTES; the library's own limit is 1 MB."""
    [example] = re.findall(r"\n    async with connect\((.*)\) as ws:\n", (ROOT / "docs/websocket.md").read_text())
    assert "max_size=None" in example


def test_relative_links_lead_somewhere() -> None:
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            found = (page.parent / name).resolve() if name else page
            where = f"{page.relative_to(ROOT)}: {target}"
            assert found.exists(), where
            if anchor:
                assert anchor in anchors(found), where


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in tracked("docs/*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, f"docs/README.md does not name {name}"


def test_the_tests_that_hold_the_promises_exist() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 30
    for path, name in named:
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in source, f"docs/reliability.md: there is no {path}::{name}"


def test_the_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("scripts/dev", "scripts/test"):
        assert command in text
        assert (ROOT / command).is_file()


def test_the_lock_file_names_public_hosts_only() -> None:
    hosts = set(re.findall(r"https?://([^/\"\s]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert hosts == HOSTS_OF_THE_LOCK_FILE


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    for path in tracked():
        if path.name == "uv.lock":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            assert not MACHINE_PATH.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


def test_a_test_that_a_page_names_exists() -> None:
    named = [
        (page, path, name)
        for page in sorted(ROOT.glob("docs/**/*.md"))
        for path, name in re.findall(
            r"`((?:tests/)?[a-z_/]+\.py)::(test_[a-z0-9_]+)`", page.read_text(encoding="utf-8")
        )
    ]
    assert len(named) > 40
    for page, path, name in named:
        file = ROOT / "tests" / path.removeprefix("tests/")
        assert file.is_file(), f"{page.name}: {path}"
        assert re.search(rf"^(?:async )?def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE), (
            f"{page.name}: {name}"
        )
