"""Rules of permission: what we read, what we write and what the agent's program reads is the same single rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from apps.api.core.config import rules
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import BadProfiles, Profile, clamp, load, permits
from apps.api.core.config.rules import Rule, parse
from apps.api.core.sessions.requests import Remembered
from apps.api.runner.agent.extensions import write_permissions

# --- the reader of the CLI 2.1.327 ---------------------------------------------------------------------------------


def split(listed: str) -> list[str]:
    """How the CLI takes a list of rules apart (`--allowedTools`)."""
    found, word, inside = [], "", False
    for sign in listed:
        if sign in "()":
            inside = sign == "("
        if sign in ", " and not inside:
            found += [word.strip()] if word.strip() else []
            word = ""
        else:
            word += sign
    return [*found, word.strip()] if word.strip() else found


def plain(text: str, sign: str) -> list[int]:
    """Where a sign stands that no backslash escapes."""
    runs = (len(text[:n]) - len(text[:n].rstrip("\\")) for n in range(len(text)))
    return [n for n, run in enumerate(runs) if text[n] == sign and run % 2 == 0]


def read(text: str) -> tuple[str, str | None] | None:
    """How the CLI reads one rule (of settings, or of a list that was split): tool and content; None: not at all."""
    opening, closing = plain(text, "("), plain(text, ")")
    if not opening and not closing:
        return text, None
    if not opening or not closing or closing[-1] != len(text) - 1 or closing[-1] <= opening[0]:
        return None
    tool, raw = text[: opening[0]], text[opening[0] + 1 : -1]
    if not tool or "(" in tool or ")" in tool:
        return None
    content = raw.replace("\\(", "(").replace("\\)", ")").replace("\\\\", "\\")
    return tool, None if raw in ("", "*") else content


# --- the grammar ---------------------------------------------------------------------------------------------------

NASTY = st.text(alphabet="ab*:,() \\'\";|\n\t\u00e9\u2028", max_size=30)


@given(
    st.sampled_from(["Bash", "Read", "mcp__git__log", "B*"]),
    NASTY,
    st.sampled_from(["", ")", "))", " Bash", ",Bash(*)"]),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_a_rule_that_is_taken_is_one_rule_for_everybody(tool: str, content: str, more: str) -> None:
    text = f"{tool}({content}){more}"
    try:
        rule = parse(text)
    except ValueError:
        return
    assert split(text) == [text]
    assert split(f"Glob,{text},Grep") == ["Glob", text, "Grep"]
    assert read(text) == (rule.tool, rule.content)
    assert read(str(rule)) == (rule.tool, rule.content)


@given(st.text(alphabet="ab*:,() \\'\";|\n\t\u00e9\u2028", min_size=1, max_size=30))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_what_is_written_is_read_as_the_same_rule(content: str) -> None:
    rule = Rule.of("Bash", content)
    assert read(str(rule)) == (rule.tool, rule.content)
    exact = read(str(rules.same_call("Bash", content)))
    assert exact is not None
    assert exact[1] == content.replace("*", "\\*")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Bash", None),
        ("Bash()", None),
        ("Bash(*)", None),
        ("Bash(git log a,b)", "git log a,b"),
        ("Bash(git log:*)", "git log:*"),
        (r"Bash(touch \(x\))", "touch (x)"),
        ("Bash(touch (x))", "touch (x)"),
        (r"Bash(dir C:\\)", "dir C:\\"),
        (r"Bash(echo \*)", r"echo \*"),
        ("Read(//etc/hosts, and more)", "//etc/hosts, and more"),
    ],
)
def test_rules_as_people_write_them(text: str, content: str | None) -> None:
    assert parse(text).content == content
    assert read(text) == read(str(parse(text)))


SMUGGLED = [
    "Read(x),Bash(*)",
    "Read(x) Bash(*)",
    "Read(x)),Bash(*)",
    "Read(x) ,Bash,(y)",
    "Read(a(b),Bash(c)",
    r"Read(x\),Bash(*)",
    r"Read(\),Bash(*\))",
    "Bash(touch a; echo ') ,Bash,(')",
]
BROKEN = [
    "Bash(x",
    "Bash)",
    "Bash(x)y",
    r"Bash(x\)",
    r"Bash(\(x)y)",
    "",
    "(x)",
    "Ba sh(x)",
    "Bash(a\nb)",
    "Bash(a\0b)",
    "Bash,Read",
]


@pytest.mark.parametrize("text", [*SMUGGLED, *BROKEN])
@pytest.mark.parametrize("field", ["allowed_tools", "ask_tools", "disallowed_tools"])
def test_what_is_not_one_rule_is_refused_by_its_field(field: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AgentConfig.model_validate({field: [text]})
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("text", SMUGGLED)
@pytest.mark.parametrize("field", ["allow", "never"])
def test_what_is_not_one_rule_is_refused_in_the_file_of_profiles(tmp_path: Any, field: str, text: str) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(f"[p]\ndescription = 'd'\n{field} = [{json.dumps(text)}]\n")
    with pytest.raises(BadProfiles, match=rf"p\.{field}\.0"):
        load(path)


@pytest.mark.parametrize("text", SMUGGLED)
def test_no_profile_permits_what_is_not_one_rule(text: str) -> None:
    assert not permits(Profile(description="d", allow=["Read"]), text)
    assert not permits(load(None)["ci"], text)
    assert not permits(Profile(description="d"), text)


@pytest.mark.parametrize(
    "text",
    ["mcp__git__log(x)", "Write(src/**)", "NotebookEdit(a)", "Glob(a)", "Read(src:*)", "Bash(:*)", "WebSearch(a*)",
     "WebFetch(https://example.org)"],
)  # fmt: skip
def test_a_denial_that_would_deny_nothing_is_refused(text: str) -> None:
    AgentConfig(allowed_tools=[text])
    with pytest.raises(ValidationError):
        AgentConfig(disallowed_tools=[text])


# --- where they are used -------------------------------------------------------------------------------------------


def given_to_the_cli(tmp_path: Any, config: AgentConfig, remembered: list[Rule] | None = None) -> dict[str, list[str]]:
    path = write_permissions(tmp_path / "given" / "permissions.json", config, remembered or [])
    return json.loads(path.read_text())["permissions"]  # type: ignore[no-any-return]


def test_rules_that_an_older_release_has_stored_are_judged_again_when_they_are_used(tmp_path: Any) -> None:
    stored = AgentConfig.stored({"allowed_tools": [*SMUGGLED, "Read"], "disallowed_tools": ["Bash(rm (a), b)", "Edit"]})
    assert given_to_the_cli(tmp_path, stored) == {"allow": ["Read"], "deny": ["Bash", "Edit"], "ask": []}
    assert clamp(load(None)["ci"], stored).allowed_tools == ["Read"]


def test_as_many_rules_as_a_session_may_have_reach_the_cli(tmp_path: Any) -> None:
    config = AgentConfig(allowed_tools=[f"Bash({'я' * 490} {n})" for n in range(200)])
    assert len(given_to_the_cli(tmp_path, config)["allow"]) == 200


def asked(tool: str, tool_input: dict[str, Any], *rules: tuple[str, str | None]) -> dict[str, Any]:
    suggested = [{"toolName": name, "ruleContent": content} for name, content in rules]
    suggestions = [{"type": "addRules", "behavior": "allow", "rules": suggested}] if rules else []
    return {"tool_name": tool, "input": tool_input, "suggestions": suggestions}


@pytest.mark.parametrize(
    "command", ["touch a", "touch a; echo ') ,Bash,('", "ls *", "git push :*", "*", "a\\", "x\ny", "(("]
)
def test_a_command_that_was_remembered_is_that_command_and_no_other(command: str) -> None:
    data = asked("Bash", {"command": command, "description": "one"}, ("Bash", "touch a *"))
    before = Remembered.of(data, {"remember": True, "rules": ["Bash"]})
    assert before.rules == ()
    assert before.covers("Bash", {"command": command, "description": "another", "timeout": 5})
    for other in (f"{command} b", f"FOO=1 {command}", f"{command} > x", command.replace("*", "b") + ";", "touch other"):
        assert not before.covers("Bash", {"command": other})
    assert not before.covers("Monitor", {"command": command})
    [told] = before.told
    assert read(str(told)) == ("Bash", command.replace("*", "\\*"))


def test_what_is_remembered_is_what_was_allowed_and_not_what_was_asked() -> None:
    decision = {"remember": True, "updated_input": {"command": "touch b"}}
    before = Remembered.of(asked("Bash", {"command": "touch a"}), decision)
    assert before.covers("Bash", {"command": "touch b"})
    assert not before.covers("Bash", {"command": "touch a"})


def test_other_tools_are_remembered_by_the_rule_that_is_suggested_or_as_a_whole() -> None:
    fetched = Remembered.of(asked("WebFetch", {"url": "https://a.b/c"}, ("WebFetch", "domain:a.b")), {"remember": True})
    assert [str(rule) for rule in fetched.rules] == ["WebFetch(domain:a.b)"]
    assert not fetched.covers("WebFetch", {"url": "https://c.d/"})
    written = Remembered.of(asked("Write", {"file_path": "a"}), {"remember": True})
    assert written.covers("Write", {"file_path": "b"})
    odd = Remembered.of(asked("Read", {"file_path": "/a (b), c/d"}, ("Read", "//a (b), c/**")), {"remember": True})
    assert read(str(odd.rules[0])) == ("Read", "//a (b), c/**")
