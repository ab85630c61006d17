"""Profiles: a client narrows what the operator allows, and never widens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.api.core.config import models, profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import (
    UNRESTRICTED,
    BadProfiles,
    Policy,
    Profile,
    clamp,
    load,
    permits,
    problems,
)
from apps.api.errors import Forbidden, ValidationError, refuse

PACKAGED = load(None)
HOOK = {"url": "https://example.org/hook", "secret": "${HOOK_SECRET}"}
STRICT = Profile(
    description="As strict as can be",
    tools=["Read", "Bash", "Task", "Edit"],
    allow=["Read", "Bash(git:*)", "Edit(docs/**)"],
    never=["Bash(git push:*)"],
    permission_modes=["dontAsk", "plan"],
    models=["small", "smaller"],
    max_turns=10,
    max_budget_usd=1.5,
    max_session_usd=20,
    timeout_seconds=60,
    mcp=["http"],
    hooks=False,
    skills=False,
    env=False,
)
OPEN = Profile(description="Restricts nothing")


def subagent(**more: Any) -> dict[str, Any]:
    return {"agents": {"helper": {"description": "d", "prompt": "p", **more}}}


def server(**spec: Any) -> dict[str, Any]:
    return {"mcp_servers": {"it": spec}}


WIDER: list[tuple[str, str, dict[str, Any]]] = [
    ("tools", "tool_not_permitted", {"tools": ["Read", "Write"]}),
    ("tools", "tool_not_permitted", {"tools": ["WebFetch"]}),
    ("tools", "tool_not_permitted", {"tools": ["KillShell"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash()"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(*)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(:*)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(g*)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git*)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(gitk:*)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git status; rm -rf .)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git status && rm x)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git log $(rm x))"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git log `rm x`)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git log > x)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Bash(git push:*)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Edit"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Edit(**)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Write(docs/**)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["B*"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["R*(x)"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["Agent"]}),
    ("allowed_tools", "tool_not_permitted", {"allowed_tools": ["mcp__it"]}),
    ("permission_mode", "option_not_permitted", {"permission_mode": "bypassPermissions"}),
    ("permission_mode", "option_not_permitted", {"permission_mode": "acceptEdits"}),
    ("model", "option_not_permitted", {"model": "large"}),
    ("fallback_model", "option_not_permitted", {"fallback_model": "large"}),
    ("max_turns", "option_not_permitted", {"max_turns": 11}),
    ("max_budget_usd", "option_not_permitted", {"max_budget_usd": 1.51}),
    ("max_session_usd", "option_not_permitted", {"max_session_usd": 20.5}),
    ("hooks", "option_not_permitted", {"hooks": {"Stop": [HOOK]}}),
    ("skills", "option_not_permitted", {"skills": "all"}),
    ("env", "option_not_permitted", {"env": {"PAGER": "rm"}}),
    ("mcp_servers.it", "option_not_permitted", server(type="stdio", command="npx")),
    ("mcp_servers.it", "option_not_permitted", server(type="sse", url="https://example.org/")),
    ("agents.helper.tools", "tool_not_permitted", subagent(tools=["Read", "Write"])),
    ("agents.helper.model", "option_not_permitted", subagent(model="large")),
    ("agents.helper.max_turns", "option_not_permitted", subagent(max_turns=11)),
    ("agents.helper.permission_mode", "option_not_permitted", subagent(permission_mode="acceptEdits")),
    ("agents.helper.permission_mode", "option_not_permitted", subagent(permission_mode="auto")),
    ("agents.helper.skills", "option_not_permitted", subagent(skills=["tenant:one"])),
    ("agents.helper.mcp_servers.it", "option_not_permitted", subagent(**server(type="stdio", command="npx"))),
]

NARROWER: list[dict[str, Any]] = [
    {},
    {"tools": []},
    {"tools": ["Read", "Agent"]},
    {"tools": ["Task"]},
    {"allowed_tools": []},
    {"allowed_tools": ["Read", "Read(src/**)"]},
    {"allowed_tools": ["Bash(git:*)", "Bash(git *)", "Bash(git)", "Bash(git status)", "Bash(git status:*)"]},
    {"allowed_tools": ["Bash(git diff * main)", "Edit(docs/**)"]},
    {"disallowed_tools": ["Bash", "WebFetch"]},
    {"permission_mode": "plan"},
    {"model": "smaller", "fallback_model": "small"},
    {"max_turns": 10, "max_budget_usd": 1.5, "max_session_usd": 20},
    {"hooks": {}, "skills": [], "env": {}},
    server(type="http", url="https://example.org/"),
    server(type="registered", name="one"),
    subagent(tools=["Read"], model="inherit", max_turns=3, permission_mode="plan", skills=[]),
    subagent(max_turns=3, **server(type="http", url="https://example.org/")),
    {"task_budget": {"total": 30_000}, "betas": ["context-1m-2025-08-07"], "add_dirs": ["other"]},
    {"system_prompt": "x", "effort": "low", "cwd": "sub", "enable_file_checkpointing": True},
]


def narrow(profile: Profile, config: AgentConfig) -> AgentConfig:
    """As a new session would begin. Raises Forbidden for what would widen the profile."""
    refuse(problems(profile, config))
    return clamp(profile, config)


@pytest.mark.parametrize(("field", "code", "config"), WIDER, ids=lambda value: str(value)[:60])
def test_what_would_widen_a_profile_is_refused_by_its_field(field: str, code: str, config: dict[str, Any]) -> None:
    with pytest.raises(Forbidden) as caught:
        narrow(STRICT, AgentConfig.model_validate(config))
    assert (caught.value.status, caught.value.code) == (403, code)
    assert [(found["field"], found["code"]) for found in caught.value.details["errors"]] == [(field, code)]


@pytest.mark.parametrize(("field", "code", "config"), WIDER, ids=lambda value: str(value)[:60])
def test_what_was_stored_before_the_operator_narrowed_the_profile_is_clamped(
    field: str, code: str, config: dict[str, Any]
) -> None:
    clamped = clamp(STRICT, AgentConfig.model_validate(config))
    assert problems(STRICT, clamped) == []


@pytest.mark.parametrize(("field", "code", "config"), WIDER, ids=lambda value: str(value)[:60])
def test_a_profile_that_restricts_nothing_refuses_nothing(field: str, code: str, config: dict[str, Any]) -> None:
    given = AgentConfig.model_validate(config)
    assert narrow(OPEN, given) == given


@pytest.mark.parametrize("config", NARROWER, ids=lambda value: str(value)[:60])
def test_a_client_may_narrow_a_profile(config: dict[str, Any]) -> None:
    narrowed = narrow(STRICT, AgentConfig.model_validate(config))
    assert narrow(STRICT, narrowed) == narrowed
    for name, value in config.items():
        if value and name not in ("disallowed_tools",):
            assert narrowed.given()[name] == AgentConfig.model_validate({name: value}).given()[name]


def test_what_a_client_leaves_open_is_the_profiles() -> None:
    narrowed = narrow(STRICT, AgentConfig())
    assert narrowed.given() == {
        "model": "small",
        "tools": ["Read", "Bash", "Task", "Edit"],
        "allowed_tools": ["Read", "Bash(git:*)", "Edit(docs/**)"],
        "disallowed_tools": ["Bash(git push:*)"],
        "permission_mode": "dontAsk",
        "max_turns": 10,
        "max_budget_usd": 1.5,
        "max_session_usd": 20,
        "skills": [],
    }


def test_what_never_runs_is_added_to_what_a_client_forbids() -> None:
    narrowed = narrow(STRICT, AgentConfig(disallowed_tools=["Edit", "Bash(git push:*)"]))
    assert narrowed.disallowed_tools == ["Edit", "Bash(git push:*)"]


def test_every_problem_is_found_at_once() -> None:
    config = AgentConfig(tools=["Write"], permission_mode="bypassPermissions", max_turns=99, env={"A": "b"})
    with pytest.raises(Forbidden) as caught:
        narrow(STRICT, config)
    fields = [found["field"] for found in caught.value.details["errors"]]
    assert fields == ["tools", "permission_mode", "max_turns", "env"]


def test_a_timeout_beyond_the_profiles_is_a_problem() -> None:
    assert problems(STRICT, AgentConfig(), 60) == []
    assert [found.field for found in problems(STRICT, AgentConfig(), 61)] == ["timeout_seconds"]


def test_slash_commands_and_mentions_go_with_skills() -> None:
    assert [found.field for found in problems(STRICT, AgentConfig(), expand_prompt=True)] == ["expand_prompt"]
    assert problems(OPEN, AgentConfig(), expand_prompt=True) == []


def test_a_tool_that_never_runs_does_not_exist() -> None:
    profile = Profile(description="d", never=["Task", "Bash(rm:*)"])
    assert [found.field for found in problems(profile, AgentConfig(tools=["Agent"]))] == ["tools"]
    assert problems(profile, AgentConfig(tools=["Bash"])) == []
    assert not permits(profile, "Task")
    assert not permits(profile, "Bash(rm:*)")


@pytest.mark.parametrize(
    ("allow", "rule", "permitted"),
    [
        ("Edit", "Edit(src/**)", False),  # it would let Write run, too
        ("Edit", "Edit", True),
        ("mcp__*", "mcp__git__status", True),
        ("mcp__*", "mcp__git", True),
        ("mcp__git", "mcp__git__status", True),
        ("mcp__git__*", "mcp__git", True),
        ("mcp__git__*", "mcp__github__status", False),
        ("mcp__git__*", "mcp__gi*", False),
        ("mcp__git__status", "mcp__git", False),
        ("mcp__git__status", "mcp__git__status", True),
        ("WebFetch(domain:example.org)", "WebFetch(domain:example.org)", True),
        ("WebFetch(domain:example.org)", "WebFetch(domain:evil.example)", False),
        ("Bash(npm run test:*)", "Bash(npm run tests:*)", False),
        ("Bash(npm run test *)", "Bash(npm run test --watch)", True),
        ("Task", "Agent", True),
        ("Read", "read", False),
    ],
)
def test_one_rule_covers_another_only_if_all_that_it_allows_is_allowed(allow: str, rule: str, permitted: bool) -> None:
    assert permits(Profile(description="d", allow=[allow]), rule) is permitted


def test_every_option_is_either_checked_against_the_profile_or_known_to_be_harmless() -> None:
    checked = {*(field for field, _, _ in WIDER)}
    names = {field.partition(".")[0] for field in checked} | {"disallowed_tools"}
    harmless = {
        "ask_tools",  # what ran without asking is asked for
        "system_prompt",
        "system_prompt_append",
        "thinking",
        "effort",
        "output_format",
        "client_tools",  # what runs is the client's own program
        "enable_file_checkpointing",
        "cwd",
        "repository",  # the operator's REPOSITORY_HOSTS are the limit
        "resources",  # a client may put any file there itself; repositories as above
        "unattended",
        "task_budget",
        "betas",
        "add_dirs",  # of the session's own workspace
    }
    assert names | harmless == set(AgentConfig.model_fields), "may a client widen a profile by the new option?"


# --- the packaged profiles -----------------------------------------------------------------------------------------


def test_the_package_has_the_four_profiles() -> None:
    assert list(PACKAGED) == ["readonly", "dev", "ci", "sandboxed"]


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_profile_has_room_for_a_session_without_options(name: str) -> None:
    narrowed = narrow(PACKAGED[name], AgentConfig())
    assert narrow(PACKAGED[name], narrowed) == narrowed


@pytest.mark.parametrize("name", ["readonly", "ci", "sandboxed"])
@pytest.mark.parametrize("tool", ["WebFetch", "WebSearch"])
def test_only_dev_has_the_network(name: str, tool: str) -> None:
    assert not profiles.may_exist(PACKAGED[name], tool)
    assert profiles.may_exist(PACKAGED["dev"], tool)


def test_only_sandboxed_runs_without_asking_and_then_only_where_the_kernel_confines() -> None:
    bypassing = [n for n, p in PACKAGED.items() if p.permission_modes and "bypassPermissions" in p.permission_modes]
    assert bypassing == ["sandboxed"]
    assert PACKAGED["sandboxed"].isolation == "landlock"
    assert not profiles.may_exist(PACKAGED["sandboxed"], "Bash")


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a", "Expected ']'"),
        ("a = 1", "a: Input should be"),
        ('[a]\ndescription = ""', "a.description"),
        ('[a]\ndescription = "d"\ntool = ["Read"]', "a.tool: Extra inputs"),
        ('[a]\ndescription = "d"\ntools = ["no tool"]', "a.tools.0"),
        ('[a]\ndescription = "d"\ntools = ["Read"]\nallow = ["Bash(ls:*)"]', "a: allow: Bash(ls:*)"),
        ('[a]\ndescription = "d"\npermission_modes = ["yolo"]', "a.permission_modes.0"),
        ('[a]\ndescription = "d"\npermission_modes = []', "a.permission_modes"),
        ('["no name"]\ndescription = "d"', "no name"),
    ],
)
def test_a_bad_file_is_refused_by_its_entry(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(text)
    with pytest.raises(BadProfiles) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_and_an_unknown_default_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadProfiles, match="No such file"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(BadProfiles, match="DEFAULT_PROFILE yolo"):
        load(None, "yolo")
    assert load(None, "dev")


# --- who may use which ---------------------------------------------------------------------------------------------


def test_a_bound_key_uses_its_first_profile_unless_it_names_another_of_its_own() -> None:
    policy = Policy(PACKAGED, ("ci", "readonly"), default="dev")
    assert [policy.choose(asked) for asked in (None, "readonly", "ci")] == ["ci", "readonly", "ci"]
    for name in ("dev", "sandboxed"):
        with pytest.raises(Forbidden) as caught:
            policy.choose(name)
        assert caught.value.code == "profile_not_permitted"


def test_a_key_that_is_bound_to_none_uses_any_or_the_servers_default_or_none() -> None:
    assert Policy(PACKAGED).choose(None) is None
    assert Policy(PACKAGED, default="dev").choose(None) == "dev"
    assert Policy(PACKAGED, default="dev").choose("sandboxed") == "sandboxed"
    with pytest.raises(ValidationError, match="no profile yolo"):
        Policy(PACKAGED).choose("yolo")


LISTED = Policy({}, models=(("claude-sonnet-*", "claude-haiku-5-5"), ("*-5-5",)), default_model="claude-sonnet-5-5")


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, []),
        ({"model": "claude-sonnet-5-5[1m]", "fallback_model": "claude-haiku-5-5"}, []),
        ({"model": "CLAUDE-SONNET-5-5"}, []),
        ({"model": "claude-opus-5-5"}, ["model"]),
        ({"model": "claude-sonnet-4-5"}, ["model"]),
        ({"model": "sonnet"}, ["model"]),
        ({"fallback_model": "claude-opus-5-5"}, ["fallback_model"]),
        (subagent(model="claude-opus-5-5"), ["agents.helper.model"]),
        (subagent(model="inherit"), []),
    ],
)
def test_only_models_of_every_list_may_be_asked_for(given: dict[str, Any], fields: list[str]) -> None:
    found = models.problems(LISTED, AgentConfig(**given))
    assert [(problem.field, problem.code) for problem in found] == [(field, "model_not_permitted") for field in fields]
    assert models.problems(UNRESTRICTED, AgentConfig(**given)) == []


def test_a_default_model_that_is_not_listed_has_to_be_replaced_by_one_that_is() -> None:
    policy = Policy({}, models=(("claude-haiku-5-5",),), default_model="claude-sonnet-5-5")
    [problem] = models.problems(policy, AgentConfig())
    assert (problem.field, problem.reason) == ("model", "claude-sonnet-5-5 is not among claude-haiku-5-5")
    assert models.problems(policy, AgentConfig(model="claude-haiku-5-5")) == []
