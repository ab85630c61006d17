"""Rules of permission with the real CLI: it reads each as it was given, and nothing more."""

from __future__ import annotations

import pytest

from tests.acceptance.asking import ASKING, all_asked, asked, decide
from tests.fleet import Fleet

ALLOWED = {
    "Bash(touch a,b)": "touch a,b",
    r"Bash(touch '\(x\)')": "touch '(x)'",
    "Bash(touch 'y(1)')": "touch 'y(1)'",
    r"Bash(touch 'c\\d')": r"touch 'c\d'",
    "Bash(mkdir:*)": "mkdir -p made",
    "Bash(rmdir m*)": "rmdir made",
}
OTHERS = ["touch a", "touch b", "touch x", "touch 'x,y'", "touch 'y(2)'", "cp a,b c"]


@pytest.mark.parametrize("text", ["Read(x),Bash(*)", "Read(x) Bash(*)", "Read(x)),Bash(*)", "Read(x", r"Bash(x\)"])
async def test_what_is_not_one_rule_is_refused_wherever_it_is_sent(fleet: Fleet, text: str) -> None:
    session_id, name = await fleet[0].session(profile="ci"), f"rules-{abs(hash(text))}"
    for path, body in (
        ("/sessions", {"profile": "ci"}),
        ("/query/single", {"profile": "ci", "prompt": "run id"}),
        (f"/sessions/{session_id}/query", {"prompt": "run id"}),
        (f"/sessions/{session_id}/fork", {}),
        ("/agents", {"name": name}),
    ):
        for field in ("allowed_tools", "disallowed_tools"):
            answer = await fleet[1].post(path, {**body, field: [text]})
            assert answer.status_code == 422, (path, answer.text)
            assert answer.json()["error"]["details"]["errors"][0]["field"] == f"{field}.0"


async def test_the_agent_runs_what_the_rules_say_and_nothing_else(fleet: Fleet) -> None:
    session_id = await fleet[0].session(permission_mode="dontAsk", tools=["Bash"], allowed_tools=list(ALLOWED))
    for command in ALLOWED.values():
        answer = await fleet[1].ask(session_id, f"run {command}")
        assert answer["permission_denials"] == [], command
    for command in OTHERS:
        answer = await fleet[1].ask(session_id, f"run {command}")
        assert len(answer["permission_denials"]) == 1, command


async def test_what_is_forbidden_stays_forbidden_whatever_is_allowed(fleet: Fleet) -> None:
    forbidden = [r"Bash(touch '\(x\)')", "Bash(rm:*)", "Write", "Web*"]
    session_id = await fleet[0].session(permission_mode="bypassPermissions", disallowed_tools=forbidden)
    for command in ("touch '(x)'", "rm -f a", "touch a && rm a"):
        assert "denied" in (await fleet[1].ask(session_id, f"run {command}"))["result"], command
    assert "denied" not in (await fleet[1].ask(session_id, "run touch a"))["result"]
    tools = (await fleet[1].ask(session_id, "list tools"))["result"]
    assert not {"Write", "WebFetch", "WebSearch"} & set(tools.replace(",", "").split()), tools


async def test_a_remembered_command_allows_no_other_here_or_in_another_process(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**ASKING)
    command, others = "touch a; echo ') ,Bash,('", ["touch other", "touch a; echo ') ,Bash,(' > b", "touch a"]
    run_id = await fleet[0].prompt(session_id, f"run {command}")
    await decide(fleet[1], await asked(fleet[1], run_id), decision="allow", remember=True)
    events = await fleet[1].follow(run_id)
    [told] = [event.data["rules"] for event in events if event.event == "action_resolved"]
    assert told == [r"Bash(touch a; echo '\) ,Bash,\(')"]
    for _ in range(2):
        again = await fleet[1].follow(await fleet[0].prompt(session_id, f"run {command}"))
        assert "permission_request" not in [event.event for event in again]
        for other in others:
            run_id = await fleet[0].prompt(session_id, f"run {other}")
            await decide(fleet[1], await asked(fleet[1], run_id), decision="deny")
            await fleet[1].follow(run_id)
        await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})
    assert len(await all_asked(fleet[1], f"/sessions/{session_id}/events", 7)) == 7
