"""What the dialects make of events that are hard to bring about."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from apps.api.core.config.aliases import current_model
from apps.api.core.events.frames import Frame, Position, event_data
from apps.api.dialects.compat.code_server.schemas import QueryBody, StartBody
from apps.api.dialects.compat.code_server.translate import Lines
from apps.api.dialects.compat.execute_server import translate as execute_server
from apps.api.dialects.compat.execute_server.schemas import ExecuteBody
from apps.api.settings import Settings


def frame(kind: str, part: int = 0, **fields: Any) -> Frame:
    data = event_data(uuid4(), uuid4(), 1, datetime.now(UTC), fields)
    return Frame.build(Position(1, part), kind, data)


def delta(text: str, kind: str = "text", parent: str | None = None) -> Frame:
    return frame("partial", 1, index=0, delta={"type": kind, kind: text}, parent_tool_use_id=parent)


def message(*blocks: dict[str, Any], role: str = "assistant", parent: str | None = None) -> Frame:
    return frame("message", role=role, content=list(blocks), parent_tool_use_id=parent)


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def told(*frames: Frame) -> list[dict[str, Any]]:
    lines = Lines()
    joined = b"".join(lines.of(f) for f in frames).decode()
    return [json.loads(line.removeprefix("data: ")) for line in joined.split("\n\n") if line]


def said(*frames: Frame) -> str:
    return "".join(line["content"] for line in told(*frames))


def test_a_message_adds_nothing_to_the_deltas_that_built_it() -> None:
    assert said(delta("one "), delta("two"), message(text("one two")), delta("three"), message(text("three"))) == (
        "one twothree"
    )


def test_deltas_that_were_lost_are_made_up_for_by_their_message() -> None:
    assert said(message(text("one two"))) == "one two"
    assert said(delta("one "), message(text("one two")), message(text("three"))) == "one twothree"


def test_thinking_subagents_tools_and_the_prompt_are_not_told() -> None:
    silent = (
        message(text("prompt"), role="user"),
        delta("hm", "thinking"),
        message({"type": "thinking", "thinking": "hm"}),
        delta("{}", "input_json"),
        message({"type": "tool_use", "id": "t", "name": "Task", "input": {}}),
        delta("inner", parent="t"),
        message(text("inner"), parent="t"),
        frame("result", result="x"),
    )
    assert told(*silent) == []


def test_half_of_a_surrogate_pair_is_told_as_it_is() -> None:
    assert told(delta("\ud800")) == [{"type": "text", "content": "\ud800"}]


def test_a_message_of_the_execute_server_is_text_and_other_blocks_as_json() -> None:
    call = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "printf '\ud800'"}}
    found = execute_server.message(message(text("I run it."), call))
    assert found["type"] == "AssistantMessage"
    first, second = found["content"].split("\n")
    assert first == "I run it."
    assert json.loads(second) == call
    assert execute_server.message(message(text("x"), role="system"))["type"] == "SystemMessage"


def test_a_session_without_a_prompt_is_pending() -> None:
    found = execute_server.status("id", None, [])
    assert (found["status"], found["messages"], found["result"], found["duration_ms"]) == ("pending", [], None, None)


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("claude-3-5-sonnet-20241022", "claude-sonnet-5-5"),
        ("claude-3-5-haiku-20241022", "claude-haiku-5-5"),
        ("claude-3-opus-20240229", "claude-opus-5-5"),
        ("sonnet", "claude-sonnet-5-5"),
        ("haiku", "claude-haiku-5-5"),
        ("opus", "claude-opus-5-5"),
        ("Opus", "claude-opus-5-5"),
        ("gpt-4", None),
        ("claude-2.1", None),
        ("never-heard-of", None),
        ("a name / that is none", None),
        (None, None),
    ],
)
def test_an_old_model_name_stands_for_a_current_one_and_an_unknown_one_for_the_default(
    asked: str | None, model: str | None
) -> None:
    given = {"prompt": "x", "initial_prompt": "x", "model": asked}
    for body in (QueryBody(**given), StartBody(**given), ExecuteBody(**given)):
        assert current_model(Settings(_env_file=None), body.model) == model


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    nothing = {"model": None, "allowed_tools": None, "permission_mode": None}
    assert StartBody(initial_prompt="x", **nothing) == StartBody(initial_prompt="x")
    assert QueryBody(prompt="x", **nothing) == QueryBody(prompt="x")


@pytest.mark.parametrize(
    ("cwd", "inside"), [("/srv/project", "srv/project"), ("project", "project"), ("/", "."), ("", None), (None, None)]
)
def test_a_directory_is_one_inside_the_workspace(cwd: str | None, inside: str | None) -> None:
    assert ExecuteBody(prompt="x", cwd=cwd).cwd == inside
