"""Answers by schema: given as data, or a clear failure; the client on another instance than the owner."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet import Fleet, Shared

PROPERTIES = {"a": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["a"]}
FORMAT = {"output_format": {"type": "json_schema", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def shared(fleet: Fleet) -> Shared:
    return Shared(fleet, "answer by schema")


async def failed(shared: Shared, prompt: str) -> dict[str, Any]:
    body = {"prompt": prompt, "session_id": await shared.of(**FORMAT)}
    response = await shared.fleet[1].post("/query/single", body)
    assert response.status_code == 502, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def test_the_answer_comes_as_data(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**FORMAT)
    first = await fleet[0].ask(session_id, 'answer by schema {"a": 7}')
    assert first["structured_output"] == {"a": 7}
    for instance in await fleet.others(await fleet.owner_of(session_id)):
        answer = await instance.ask(session_id, "answer by schema")
        assert answer["structured_output"] == {"a": 0}
        events = await fleet[0].follow(answer["run_id"])
        assert next(e for e in events if e.event == "result").data["structured_output"] == {"a": 0}


async def test_an_agent_without_tools_can_answer_by_schema_too_and_judges_patterns_as_we_do(fleet: Fleet) -> None:
    patterns = {"b": r"^\p{Lu}(?<=A)\u{42}?$", "c": "(?<name>x)"}
    properties = {name: {"type": "string", "pattern": pattern} for name, pattern in patterns.items()}
    schema = {**SCHEMA, "properties": {**PROPERTIES, **properties}}
    output_format = {"type": "json_schema", "schema": schema}
    session_id = await fleet[0].session(output_format=output_format, tools=[], permission_mode="dontAsk")
    assert (await fleet[1].ask(session_id, 'answer by schema {"a": 0}'))["structured_output"] == {"a": 0}
    mended = await fleet[1].ask(session_id, 'answer by schema {"a": 0, "b": "x"} then answer by schema {"a": 1}')
    assert mended["structured_output"] == {"a": 1}


async def test_an_answer_without_the_data_is_a_failure_that_shows_the_text(shared: Shared) -> None:
    fleet, error = shared.fleet, await failed(shared, "answer without schema")
    assert error["code"] == "structured_output_missing"
    assert error["details"]["result"]["result"].endswith("I answer without the schema.")
    assert error["details"]["result"]["status"] == "failed"
    run = (await fleet[2].get(f"/runs/{error['details']['run_id']}")).json()
    assert (run["status"], run["error"]["code"]) == ("failed", "structured_output_missing")
    assert run["error"]["retryable"] is True
    events = await fleet[0].follow(run["run_id"])
    assert [e.event for e in events[-3:]] == ["result", "error", "done"]
    assert events[-1].data["status"] == "failed"
    again = await fleet[2].ask(run["session_id"], 'answer by schema {"a": 1}')
    assert again["structured_output"] == {"a": 1}


async def test_a_first_answer_that_does_not_match_can_be_mended(shared: Shared) -> None:
    session_id = await shared.of(**FORMAT)
    answer = await shared.fleet[1].ask(session_id, 'answer by schema {"a": "x"}')
    assert answer["structured_output"] == {"a": 0}


async def test_answers_that_never_match_are_a_failure_that_says_why(shared: Shared) -> None:
    fleet, error = shared.fleet, await failed(shared, " then ".join(['answer by schema {"a": "x"}'] * 6))
    assert error["code"] == "structured_output_invalid"
    assert "/a: must be integer" in error["message"]
    run = (await fleet[2].get(f"/runs/{error['details']['run_id']}")).json()
    assert run["usage"]["output_tokens"] > 0


async def test_a_prompt_can_take_a_schema_back_and_a_later_one_can_ask_for_it(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**FORMAT)
    free = await fleet[1].ask(session_id, "say goodbye", output_format=None)
    assert (free["result"], free["structured_output"]) == ("[demo model, scripted] goodbye", None)
    assert "output_format" not in (await fleet[2].get(f"/sessions/{session_id}")).json()["config"]
    asked = await fleet[1].ask(session_id, "answer by schema", **FORMAT)
    assert asked["structured_output"] == {"a": 0}
    still = await fleet[2].ask(session_id, "answer by schema")
    assert still["structured_output"] == {"a": 0}


async def test_null_takes_away_what_a_preset_has(fleet: Fleet) -> None:
    name = "answers-by-schema"
    assert (await fleet[0].post("/agents", {"name": name, **FORMAT})).status_code == 201
    session_id = await fleet[1].session(agent=name, output_format=None, max_turns=5)
    assert (await fleet[2].get(f"/sessions/{session_id}")).json()["config"] == {"max_turns": 5}
    kept = await fleet[1].session(agent=name)
    assert (await fleet[2].get(f"/sessions/{kept}")).json()["config"].keys() == {"output_format"}


async def test_a_bad_schema_is_refused_when_it_arrives_with_its_place(fleet: Fleet) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integr"}}}
    for path, body in (("/sessions", {}), ("/query", {"prompt": "say hello"}), ("/agents", {"name": "never"})):
        response = await fleet[0].post(path, {**body, "output_format": {"type": "json_schema", "schema": schema}})
        assert response.status_code == 422, path
        [error] = response.json()["error"]["details"]["errors"]
        assert error["field"] == "output_format.schema"
        assert error["reason"].startswith("#/properties/a/type: ")
