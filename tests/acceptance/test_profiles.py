"""Profiles: what an agent under one may do, whichever instance the client talks to and whichever runs the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from apps.api.core.config.limits import Limits
from tests.conftest import NewKey, StartFleet
from tests.fleet import Fleet, Instance, Shared


async def elsewhere(fleet: Fleet, session_id: str, **more: Any) -> tuple[Instance, Instance]:
    """The owner of a session after its first prompt, and another instance."""
    await fleet[0].ask(session_id, "say first", **more)
    owner = await fleet.owner_of(session_id)
    return owner, (await fleet.others(owner))[0]


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_a_readonly_agent_that_is_asked_to_write_cannot(shared: Shared) -> None:
    session_id = await shared.of(profile="readonly")
    [other, _] = await shared.fleet.others(await shared.fleet.owner_of(session_id))
    for prompt in ("write notes.txt: hello", "run echo hello > notes.txt", "use tool WebFetch {}"):
        answer = await other.ask(session_id, prompt)
        assert "No such tool available" in answer["result"], answer
    assert "tools: Glob, Grep, Read" in (await other.ask(session_id, "list tools"))["result"]


async def test_a_sandboxed_agent_writes_without_asking_and_has_neither_commands_nor_network(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(profile="sandboxed")
    _, other = await elsewhere(fleet, session_id)
    assert "File created" in (await other.ask(session_id, "write notes.txt: hello"))["result"]
    outside = await other.ask(session_id, 'write "/var/tmp/outside.txt": hello')
    assert "EACCES" in outside["result"] or "EROFS" in outside["result"], outside  # the latter in namespaces
    assert "No such tool" in (await other.ask(session_id, "run curl http://127.0.0.1"))["result"]
    tools = (await other.ask(session_id, "list tools"))["result"]
    assert not {"Bash", "WebFetch", "WebSearch"} & set(tools.replace(",", "").split()), tools


async def test_an_agent_under_ci_runs_the_listed_commands_and_is_refused_the_rest(fleet: Fleet) -> None:
    session_id = await fleet[0].session(profile="ci")
    _, other = await elsewhere(fleet, session_id)
    refused = await other.ask(session_id, "run touch x")
    assert [denied["tool_name"] for denied in refused["permission_denials"]] == ["Bash"]
    allowed = await other.ask(session_id, "run make --version > made.txt; git status")
    assert allowed["permission_denials"] != [], "two commands where one is allowed"
    allowed = await other.ask(session_id, "run git diff --no-index /dev/null /dev/null")
    assert allowed["permission_denials"] == []


async def test_a_later_prompt_can_neither_leave_nor_widen_the_profile(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(profile="readonly")
    _, other = await elsewhere(fleet, session_id, profile="readonly")
    path, say = f"/sessions/{session_id}/query", {"prompt": "say no"}
    assert refusal(await other.post(path, {**say, "profile": "dev"})) == (422, "validation_error")
    for wider, code in (
        ({"permission_mode": "bypassPermissions"}, "option_not_permitted"),
        ({"tools": ["Bash"]}, "tool_not_permitted"),
        ({"allowed_tools": ["Write"]}, "tool_not_permitted"),
        ({"env": {"A": "b"}}, "option_not_permitted"),
        ({"expand_prompt": True}, "option_not_permitted"),
    ):
        assert refusal(await other.post(path, {**say, **wider})) == (403, code)
    assert (await other.get(f"/sessions/{session_id}")).json()["profile"] == "readonly"


async def test_a_bound_key_has_its_profile_and_uses_sessions_of_no_other(shared: Shared, new_key: NewKey) -> None:
    bound = await new_key("default", profiles=["readonly"])
    fleet, foreign = shared.fleet, await shared.of(profile="sandboxed")
    _, other = await elsewhere(fleet, foreign)
    before = (await other.get(f"/sessions/{foreign}/runs")).json()["data"]
    for body in (
        {"prompt": "say no"},
        {"prompt": "say no", "title": "mine"},
        {"prompt": "say no", "timeout_seconds": 9},
    ):
        answer = await other.post(f"/sessions/{foreign}/query", body, headers=bound)
        assert refusal(answer) == (403, "profile_not_permitted")
    assert (await other.get(f"/sessions/{foreign}/runs")).json()["data"] == before
    assert {run["status"] for run in before} == {"succeeded"}
    for body, code in (
        ({"permission_mode": "bypassPermissions"}, "option_not_permitted"),
        ({"profile": "dev"}, "profile_not_permitted"),
    ):
        assert refusal(await other.post("/sessions", body, headers=bound)) == (403, code)
    made = await other.post("/sessions", {}, headers=bound)
    assert made.json()["profile"] == "readonly"
    assert made.json()["permission_mode"] == "dontAsk"
    answer = await fleet[0].post(
        "/query/single", {"prompt": "say mine", "session_id": made.json()["session_id"]}, headers=bound
    )
    assert answer.status_code == 200, answer.text
    shown = (await other.get("/whoami", headers=bound)).json()
    assert shown["profiles"] == ["readonly"]
    listed = {entry["name"]: entry for entry in (await other.get("/profiles", headers=bound)).json()["data"]}
    assert [name for name, entry in listed.items() if entry["usable"]] == ["readonly"]
    assert listed["readonly"]["default"]


async def test_a_key_may_have_a_limit_of_its_own(fleet: Fleet, shared: Shared, new_key: NewKey) -> None:
    limited = await new_key("default", limits=Limits(runs_per_minute=1))
    body = {"prompt": "say one", "session_id": await shared.of(profile="readonly")}
    first = await fleet[0].post("/query/single", body, headers=limited)
    assert (first.status_code, first.headers["RateLimit-Limit"]) == (200, "1")
    assert refusal(await fleet[1].post("/query", {"prompt": "say two"}, headers=limited)) == (429, "rate_limited")


async def test_the_deadline_of_a_run_is_at_most_its_profiles(fleet: Fleet) -> None:
    too_long = await fleet[0].post("/query", {"prompt": "say no", "profile": "ci", "timeout_seconds": 3601})
    assert refusal(too_long) == (403, "option_not_permitted")


EDITED = """
[short]
description = "Half a second"
timeout_seconds = 0.5
"""
NARROWED = """
[open]
description = "Now without commands"
tools = ["Read"]
"""


async def test_sessions_follow_the_operators_file_when_it_narrows_and_fail_clearly_when_it_drops_their_profile(
    start_fleet: StartFleet, tmp_path: Path
) -> None:
    before, after = tmp_path / "before.toml", tmp_path / "after.toml"
    before.write_text(EDITED + '[open]\ndescription = "Everything"\n[gone]\ndescription = "Soon gone"\n')
    after.write_text(EDITED + NARROWED)
    fleet = await start_fleet(1, PROFILES_FILE=str(before), RUNNER_SLOTS="0")
    sessions = {name: await fleet[0].session(profile=name, tools=["Read", "Bash"]) for name in ("open", "gone")}
    sessions["short"] = await fleet[0].session(profile="short", permission_mode="bypassPermissions")
    await fleet.start(1, PROFILES_FILE=str(after), RUNNER_SLOTS="2")
    assert "tools: Read" in (await fleet[0].ask(sessions["open"], "list tools"))["result"]
    gone = await fleet[0].post("/query/single", {"prompt": "say no", "session_id": sessions["gone"]})
    assert refusal(gone) == (409, "profile_removed")
    late = await fleet[0].post(
        "/query/single", {"prompt": "run for i in 1; do sleep 60; done", "session_id": sessions["short"]}
    )
    assert refusal(late) == (504, "timeout")
    assert late.json()["error"]["details"]["run_id"]
