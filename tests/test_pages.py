"""What the pages show can be read by the programs that it is for; and how the examples' output is compared with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.api.core.config.profiles import Profile
from tests.pages import FENCE, ROOT, Block, blocks_in, blocks_of, pages
from tests.shown import missing

NOT_RUN = {
    "needs Docker": 1,
    "needs a cluster": 1,
    "starts what the examples run against, or all tests": 2,
    "needs the TypeScript client, which npm builds": 2,
    "installs from the package index": 3,
    "needs the vendor's package; tests/clients/managed.py does it": 1,
}
"""Why blocks do not run, and how many of each."""

EVERY_PAGE = [
    *ROOT.glob("*.md"),
    *(
        page
        for of in ("docs", "examples", "clients/python", "specs")
        for page in sorted((ROOT / of).rglob("*.md"))
        if "node_modules" not in page.parts
    ),
]


def test_few_blocks_do_not_run_and_each_says_why() -> None:
    assert Counter(block.not_run for page in pages() for block in blocks_of(page) if block.not_run) == NOT_RUN


def fenced(*languages: str) -> list[Any]:
    found = []
    for path in EVERY_PAGE:
        page = path.read_text(encoding="utf-8")
        for fence in FENCE.finditer(page):
            if fence["language"] in languages:
                text = re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
                line = page.count("\n", 0, fence.start()) + 2
                found.append(pytest.param(text, id=f"{path.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("text", fenced("sh", "bash"))
def test_a_shell_takes_it(text: str) -> None:
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert not read.returncode, read.stderr


@pytest.mark.parametrize("text", fenced("python"))
def test_python_takes_it(text: str) -> None:
    compile(text, "page", "exec")


@pytest.mark.parametrize("text", fenced("json"))
def test_it_is_json(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("text", fenced("yaml"))
def test_it_is_yaml(text: str) -> None:
    assert yaml.safe_load(text)


def test_what_a_page_adds_to_compose_follows_its_specification_and_belongs_to_its_services(tmp_path: Path) -> None:
    [text] = [found.values[0] for found in fenced("yaml") if str(found.values[0]).startswith("# compose.override.yml")]
    file = tmp_path / "compose.override.yml"
    file.write_text(str(text))
    tool = Path(sys.executable).with_name("check-jsonschema")
    words = [str(tool), "--builtin-schema", "vendor.compose-spec", str(file)]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not checked.returncode, checked.stdout
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert yaml.safe_load(str(text))["services"].keys() <= compose["services"].keys()


@pytest.mark.parametrize("text", fenced("toml"))
def test_profiles_of_a_page_are_profiles(text: str) -> None:
    for profile in tomllib.loads(text).values():
        Profile.model_validate(profile)


def test_no_language_is_left_unread() -> None:
    read = {"sh", "bash", "python", "js", "typescript", "json", "yaml", "toml", "", "text"}
    others = {
        "ini",
        "nginx",
        "haproxy",
        "sql",
        "jsx",
        "ts",
    }  # Pieces of files of others, what one asks the database by hand, and what tests/clients/test_typescript.py runs.
    found = {fence["language"] for path in EVERY_PAGE for fence in FENCE.finditer(path.read_text(encoding="utf-8"))}
    assert found - read - others == set()


# --- how it is compared --------------------------------------------------------------------------------------------

PAGE = """
# A page

Save this as `say.py`:

```python
print("hello")
```

<!-- not run: needs a moon -->
```sh
moon
```

* In a list:

  ```sh
  python say.py
  ```

      hello from a list

```sh
python say.py > stream
```

    hello

It also says:

<!-- output -->

    and goodbye

Later:

<!-- the stream goes on -->

    it went on
"""


def test_blocks_are_found_with_what_they_print() -> None:
    saved, moon, listed, last = blocks_in(PAGE, "page.md")
    assert (saved.saved, saved.language, saved.line) == ("say.py", "python", 7)
    assert (moon.not_run, moon.where) == ("needs a moon", "page.md:12")
    assert (listed.text, listed.shown, listed.not_run) == ("python say.py\n", "      hello from a list\n", "")
    assert last == Block(
        "page.md", 24, "sh", "python say.py > stream\n", "", "", "    hello\n\n    and goodbye\n", "    it went on\n"
    )  # fmt: skip


UUID = "0b7c1f3e-8a51-4f6b-9a53-2f0b5d1c7e11"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ('{"a":1}', '{"a": 1}\n'),
        ('{"run_id":"0b7c1f3e-…","duration_ms":3}', f'{{"run_id":"{UUID}","duration_ms":712}}'),
        ('{…,"status":"succeeded",…}', '{"x":1,"status":"succeeded","y":2}'),
        ('"secret":"cak_q3bu98At…"', '"secret":"cak_ZZbu-8_tqqqqqqqqqqq"'),
        ('{"created_at":"2026-01-31T12:00:00.000Z"}', '{"created_at":"2027-02-01T02:03:04.567890Z"}'),
        ("event: done\ndata: {…}", 'id: 7\nevent: done\ndata: {"status":"x"}\n\n: still here\n'),
        ("one\n…\nthree", "one\nthree\n"),
        ('{"status":"applied"}', '{"status":"accepted"}'),
    ],
)
def test_what_is_shown_is_found(shown: str, printed: str) -> None:
    assert missing(shown, printed) == ""


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ('{"a":1}', '{"a":2}'),
        ('{"a":1}', '{"a":1,"b":2}'),
        ('{"a":1}', 'first\n{"a":1}'),
        ('{…,"b":2,…}', '{"a":1,"b":3,"c":4}'),
        ('{"a":1,…,"c":3}', '{"a":1,"c":3,"d":4}'),
        ("…two…one…", "one two"),
        ("one…one", "one"),
        ('{"run_id":"0b7c1f3e-…"}', '{"run_id":null}'),
        ("id: 7\nevent: done", "event: done\n"),
    ],
)
def test_what_is_not_printed_is_not_found(shown: str, printed: str) -> None:
    assert missing(shown, printed) != ""
