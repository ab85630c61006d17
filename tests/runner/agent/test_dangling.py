"""A tool call without a result: whether it is the end of a conversation, and how a process is told to carry it out."""

from __future__ import annotations

import json
import subprocess
from typing import Any
from uuid import uuid4

import pytest

from apps.api.runner.agent.dangling import NOT_DONE, asking_hook, find_in

CALL = "toolu_01abc"


def use(id_: str, name: str = "Bash") -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": {"command": "ls"}}


def said(*blocks: dict[str, Any], message: str = "msg_1", **more: Any) -> dict[str, Any]:
    return {
        "type": "assistant",
        "uuid": str(uuid4()),
        "cwd": "/w",
        "message": {"id": message, "content": [*blocks]},
        **more,
    }


def done(id_: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "tool_result", "tool_use_id": id_, "content": "ok"}]
    return {"type": "user", "uuid": str(uuid4()), "cwd": "/w", "message": {"content": content}, **more}


PROMPT = {"type": "user", "uuid": str(uuid4()), "cwd": "/w", "message": {"content": "do it"}}


def test_the_last_call_is_found_and_becomes_one_that_was_put_off() -> None:
    entry = said(use(CALL), sessionId="s", version="2")
    found = find_in([PROMPT, said({"type": "text", "text": "hm"}), entry], CALL)
    assert found is not None
    assert (found.cwd, found.others, found.others_before) == ("/w", [], False)
    made = json.loads(found.deferral())
    assert (made["type"], made["parentUuid"], made["sessionId"]) == ("attachment", entry["uuid"], "s")
    assert made["attachment"]["type"] == "hook_deferred_tool"
    assert (made["attachment"]["toolUseID"], made["attachment"]["toolInput"]) == (CALL, {"command": "ls"})


@pytest.mark.parametrize(
    "entries",
    [
        [PROMPT],
        [said(use(CALL)), done(CALL)],
        [said(use(CALL)), said({"type": "text", "text": "next"}, message="msg_2")],
        [said(use("toolu_other"))],
        [said(use(CALL), uuid="no uuid")],
        [said(use(CALL), use("toolu'; rm -rf /; '"))],
        [said({"type": "tool_use", "id": CALL, "name": "Bash", "input": "text"})],
        [{"type": "assistant", "message": "text"}, {"type": "user"}, {"type": "assistant", "message": {"content": 7}}],
    ],
)
def test_what_is_no_such_end_is_left_alone(entries: list[dict[str, Any]]) -> None:
    assert find_in(entries, CALL) is None


def test_an_id_is_never_more_than_a_name() -> None:
    assert find_in([said(use("a'b"))], "a'b") is None


def test_calls_after_it_are_told_as_not_carried_out_and_one_before_it_may_be_at_work() -> None:
    first, second, third = said(use("toolu_0")), said(use(CALL)), said(use("toolu_2"))
    found = find_in([PROMPT, first, second, third, done("toolu_0")], CALL)
    assert found is not None
    assert not found.others_before
    [refused] = found.refusals()
    assert (refused["parentUuid"], refused["message"]["content"][0]["tool_use_id"]) == (third["uuid"], "toolu_2")
    assert refused["uuid"] == found.refusals()[0]["uuid"]  # stored twice it is one
    [message] = found.messages()
    assert (message.uuid, message.content[0].content) == (refused["uuid"], NOT_DONE)  # type: ignore[union-attr]
    unfinished = find_in([PROMPT, first, second, third], CALL)
    assert unfinished is not None
    assert unfinished.others_before


def test_the_directory_is_where_the_conversation_has_got_to() -> None:
    found = find_in([said(use("toolu_0")), said(use(CALL)), done("toolu_0", cwd="/w/sub")], CALL)
    assert found is not None
    assert found.cwd == "/w/sub"


def asked(given: str, path: str | None = None) -> tuple[int, str]:
    """What the hook says to what the CLI tells it."""
    [matcher] = asking_hook(CALL)["PreToolUse"]
    [hook] = matcher["hooks"]
    script = hook["args"][1] if path is None else hook["args"][1].replace("/usr/bin:/bin", path)
    ran = subprocess.run([hook["command"], "-c", script], input=given, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout


def test_the_hook_asks_for_this_call_alone_and_fails_where_it_cannot_tell() -> None:
    code, answer = asked(json.dumps({"tool_use_id": CALL, "tool_input": {"command": "x" * 100_000}}) + "\n")
    assert (code, json.loads(answer)["hookSpecificOutput"]["permissionDecision"]) == (0, "ask")
    assert asked(json.dumps({"tool_use_id": "toolu_other"})) == (0, "")
    assert asked("{}", path="/nowhere") == (2, "")
