"""Matchers of hooks: a client's pattern costs the server no more than its length."""

from __future__ import annotations

import ast
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
