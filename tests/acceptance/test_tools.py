"""Which tools an agent has, and which of their calls run: the rules of the configuration, in the real CLI."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from apps.api.runner.guard import seccomp
from tests.fleet import Shared, Sse


async def outcome(shared: Shared, prompt: str, **config: Any) -> tuple[dict[str, Any], str, list[Any]]:
    """`init`, what the agent said in the end, and what was denied. Client and owner are different instances."""
    session_id = await shared.of(**config)
    one, other = await shared.fleet.others(await shared.fleet.owner_of(session_id))
    events = await one.follow(await other.prompt(session_id, prompt))
    result = data_of(events, "result")
    return data_of(events, "init"), result["result"], result["permission_denials"]


def data_of(events: list[Sse], kind: str) -> dict[str, Any]:
    return next(e.data for e in events if e.event == kind)


NOTHING_ALLOWED = {"tools": ["Read", "Grep", "Bash"], "permission_mode": "dontAsk", "allowed_tools": []}
SOME = {
    "permission_mode": "dontAsk",
    "allowed_tools": ["Bash(mkdir:*)", "Bash(touch made.txt)", "Edit(notes/**)"],
}
ALL_BUT = {"permission_mode": "dontAsk", "allowed_tools": ["Bash"], "disallowed_tools": ["Bash(rm:*)"]}
BYPASS_BUT = {
    "permission_mode": "bypassPermissions",
    "allowed_tools": ["Bash"],
    "disallowed_tools": ["Bash(rm:*)", "WebFetch"],
}


async def test_only_the_tools_that_are_named_exist(shared: Shared) -> None:
    init, said, _ = await outcome(shared, "list tools", **NOTHING_ALLOWED)
    assert sorted(init["tools"]) == ["Bash", "Grep", "Read"]
    assert said.endswith("tools: Bash, Grep, Read")


async def test_an_empty_list_of_tools_means_none(shared: Shared) -> None:
    init, _, _ = await outcome(shared, "say hello", tools=[])
    assert init["tools"] == []


@pytest.mark.parametrize(
    ("config", "command", "runs"),
    [
        (SOME, "mkdir -p made", True),
        (SOME, "rm -f made.txt", False),
        (SOME, "mkdir -p made && rm -f made.txt", False),
        (SOME, "mkdir -p made $(rm -f made.txt)", False),
        (SOME, "touch made.txt", True),
        (SOME, "touch made.txt other.txt", False),
        (ALL_BUT, "mv -f made.txt moved.txt; ls", True),
        (NOTHING_ALLOWED, "touch made.txt", False),
    ],
)
async def test_in_dont_ask_mode_a_command_runs_if_a_rule_allows_all_of_it(
    shared: Shared, config: dict[str, Any], command: str, runs: bool
) -> None:
    _, _, denied = await outcome(shared, f"run {command}", **config)
    assert [d["tool_input"]["command"] for d in denied] == ([] if runs else [command])


@pytest.mark.parametrize("config", [ALL_BUT, BYPASS_BUT], ids=["dontAsk", "bypassPermissions"])
async def test_what_is_disallowed_never_runs_whatever_else_allows_it(shared: Shared, config: dict[str, Any]) -> None:
    _, said, denied = await outcome(shared, "run rm -f made.txt", **config)
    assert len(denied) == 1, said
    _, _, denied = await outcome(shared, "run touch made.txt", **config)
    assert denied == []


async def test_a_tool_that_is_disallowed_without_a_pattern_does_not_exist(shared: Shared) -> None:
    init, _, _ = await outcome(shared, "say hello", **BYPASS_BUT)
    assert "WebFetch" not in init["tools"]
    assert {"Bash", "Read", "WebSearch"} <= set(init["tools"])


INSIDE = """
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 310}.get(os.uname().machine, 270)
memory = libc.syscall(number, os.getppid(), None, 0, None, 0, 0)
print(libc.prctl(21, 0, 0, 0, 0), memory, ctypes.get_errno() == errno.EPERM, resource.getrlimit(resource.RLIMIT_CORE))
"""


@pytest.mark.skipif(not seccomp.available(), reason="this machine cannot filter system calls")
async def test_commands_of_an_agent_run_under_the_filter_of_system_calls(shared: Shared) -> None:
    script = shlex.quote(INSIDE.strip())
    command = f"git init -q . && git status --short && python3 -c {script}"
    _, said, _ = await outcome(shared, f"run {command}", **BYPASS_BUT)
    assert "2 -1 True (0, 0)" in said


async def test_a_rule_with_a_path_allows_writing_there_only(shared: Shared) -> None:
    _, _, denied = await outcome(shared, "write notes/a.txt: x", **SOME)
    assert denied == []
    _, _, denied = await outcome(shared, "write other/a.txt: x", **SOME)
    assert len(denied) == 1
