"""Matchers of hooks: a client's pattern costs the server no more than its length."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from apps.api.core.config.parts import Hook, matches

APPS = Path(__file__).parents[3] / "apps"
HOOK = {"url": "https://hooks.example/in", "secret": "${KEY}"}
NAME = "mcp__" + "a" * 120


@pytest.mark.parametrize(
    "matcher",
    [
        f"({'|'.join('.' * 100)})*X",
        f"({'|'.join('.' * 240)})*X",
        "(a*)*(a*)*(a*)*X",
        "((((((.+)+)+)+)+)+)+X",
        "(a|a?)+" * 60 + "X",
        ".*" * 240 + "X",
        "(.|_)*" * 80 + "X",
    ],
    ids=lambda matcher: matcher[:20],
)
def test_a_pattern_that_backtracking_engines_choke_on_is_as_quick_as_any(matcher: str) -> None:
    assert Hook.model_validate({**HOOK, "matcher": matcher}).matcher == matcher
    assert not matches(matcher, NAME)


@pytest.mark.parametrize(
    ("matcher", "names"),
    [
        (None, {"Bash", "Edit", "mcp__git__log"}),
        ("*", {"Bash", "Edit", "mcp__git__log"}),
        ("Bash", {"Bash"}),
        ("ash", set()),
        ("Edit|Bash", {"Bash", "Edit"}),
        ("mcp__.*", {"mcp__git__log"}),
        ("^B.+h$", {"Bash"}),
        ("[A-Z].+", {"Bash", "Edit"}),
    ],
)
def test_a_matcher_is_about_whole_names(matcher: str | None, names: set[str]) -> None:
    assert {name for name in ("Bash", "Edit", "mcp__git__log") if matches(matcher, name)} == names


def test_python_regular_expressions_are_ours_alone() -> None:
    """`re` backtracks, so its patterns are literals of the code or joined from its constants."""
    found = []
    for path in APPS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.func.attr != "escape":
                literal = isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
                names = [part.id for part in ast.walk(node.args[0]) if isinstance(part, ast.Name)]
                found += [] if literal or all(n.isupper() for n in names) else [str(path.relative_to(APPS))]
    assert found == ["demo_model/commands.py"], "a pattern that is no literal"


LINEAR = {
    "core/codec.py": {r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|,'},
    "core/config/cron.py": {
        r"f'(?:(?:\\*|{_VALUE}-{_VALUE})(?:/[0-9]{{1,2}})?|{_VALUE})'",
        r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}",
    },
    "core/config/environment.py": {"'|'.join((*_OF_AGENTS, *_OF_SERVERS))"},  # of names of at most 128 characters
    "core/config/expansion.py": {r'@(?:"([^"]*)|([^\s"]*))', r"\s*/(model|config|settings|heapdump)\b"},
    "core/config/parts.py": {
        r"/[A-Za-z0-9._~%+/-]+",
        r"[A-Za-z0-9.-]+(:[0-9]{1,5})?",
        r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(?:^|/)\.|\.lock(?:/|$)|\.$|^[/-]|/$|^@$",
        r"\(\?|[*+?]\+|\[\^?\]",
    },
    "core/config/profiles.py": {r"mcp__[^_*]+(?:_[^_*]+)*"},
    "core/config/rules.py": {
        r"([A-Za-z][A-Za-z0-9_*-]{0,127})(?:\(([^\x00-\x1f\x7f]{0,500})\))?",
        r"(?<!\\)\\*+([()])",
        r"\)[^() ,]*[ ,]",
    },
    "core/sessions/session_import.py": {
        (
            r"sessions/(?P<id>[0-9a-f-]{36})/(?:(?P<kind>runs|usage|events|transcript)-[0-9]{4,9}\.jsonl|"
            r"(?P<one>session\.json)|(?P<tree>files|home|output|history)(?:/(?P<path>.+))?)"
        ),
    },
    "core/files/garbage.py": {r"tenants/[0-9a-f-]{36}/sessions/([0-9a-f-]{36})/[0-9]{12,}-[0-9a-f]{32}"},
    "core/files/objects.py": {r".+#[0-9]+"},
    "core/files/patches.py": {
        r"^(---|\+\+\+) ([ab])/(?:now|then)/\d+$",
        r"^diff --git a/(?:now|then)/(\d+) b/(?:now|then)/\d+\n",
        r'[^\x00-\x1f"\\\x7f]*',
    },
    "dialects/managed/agents.py": {"[^A-Za-z0-9]+"},
    "core/tenant/uploads.py": {r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}"},
    "dialects/openai/options.py": {r"[A-Za-z][A-Za-z0-9-]*(_[A-Za-z0-9-]+)*"},
    "runner/egress/asked.py": {"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}"},
    "runner/session/ports.py": {r"socket:\[(\d+)\]"},
    "web/hosts.py": {r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(:(?P<port>[0-9]{1,5}))?"},
    "web/origins.py": {
        r"f'{_URL}|[^\\s;,]+'",
        r"f'<(?P<reference>[^<>]*)>|{_URL}'",
        r"\s*[0-9.]*\s*[;,]?\s*(?:url\s*=\s*)?",
    },
}
"""Patterns with a repetition, of texts that are not ours. Each was judged: no text is there that makes `re` look at one
character more often than some fixed number of times, from whichever place it begins. (`\\)[^(]*,` is none: it looks at
"))))" from each bracket to the end.)"""

OURS = {"dev/console.py", "dev/datadir.py", "settings.py", "web/document.py"}
"""Modules whose patterns meet texts of the operator's or of this code."""


def test_every_pattern_that_meets_texts_of_others_was_judged() -> None:
    found: dict[str, set[str]] = {}
    for path in (APPS / "api").rglob("*.py"):
        module = str(path.relative_to(APPS / "api"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=used), args=[pattern, *_]):
                    text = pattern.value if isinstance(pattern, ast.Constant) else ast.unparse(pattern)
                    text = text.decode() if isinstance(text, bytes) else str(text)
                    if used != "escape" and module not in OURS and re.search(r"[*+]|\{\d+,\}", text):
                        found.setdefault(module, set()).add(text)
    assert found == LINEAR
