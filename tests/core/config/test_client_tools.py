"""Tools of the client's own program: what describes one, and whether an input fits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.client_tools import MAX_INPUT_BYTES, ClientTool, misfit

OBJECT = {"type": "object"}


def tool(**schema: Any) -> ClientTool:
    return ClientTool(name="t", description="d", input_schema={**OBJECT, **schema})


def given(**changes: Any) -> dict[str, Any]:
    return {"name": "t", "description": "d", "input_schema": OBJECT, **changes}


@pytest.mark.parametrize("name", ["a", "order_status", "Order-status2", "x" * 64])
def test_names_that_the_model_is_told(name: str) -> None:
    assert AgentConfig(client_tools=[given(name=name)]).given()["client_tools"][0]["name"] == name


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([given(name="a__b")], "pattern"),  # it would name a server and a tool
        ([given(name="_a")], "pattern"),
        ([given(name="a_")], "pattern"),
        ([given(name="1")], "pattern"),
        ([given(name="a b")], "pattern"),
        ([given(name="ä")], "pattern"),
        ([given(name="x" * 65)], "at most 64"),
        ([given(description="")], "at least 1"),
        ([given(input_schema={})], '"type": "object"'),
        ([given(input_schema={**OBJECT, "properties": {"a": {"type": "thing"}}})], "properties/a"),
        ([given(input_schema={**OBJECT, "properties": {"a": {"pattern": "("}}})], "pattern"),
        ([given(input_schema={**OBJECT, "properties": {"a": {"pattern": "(?=a)"}}})], "RE2"),
        ([given(input_schema={**OBJECT, "patternProperties": {"a": {}}})], "patternProperties"),
        ([given(), given()], "t twice"),
        ([given(name=f"t{n}") for n in range(65)], "at most 64"),
        ([given(name=f"t{n}", input_schema={**OBJECT, "description": "x" * 60_000}) for n in range(5)], "262144 bytes"),
        ([given(more=1)], "Extra"),
    ],
)
def test_what_cannot_be_told_to_a_model_is_refused(tools: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AgentConfig(client_tools=tools)


def test_what_was_stored_is_read_again_by_a_release_that_is_stricter() -> None:
    tools = [given(), given(input_schema={**OBJECT, "patternProperties": {"a": {}}})]
    assert AgentConfig.stored({"client_tools": tools}).given()["client_tools"][1]["name"] == "t"


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"required": ["a"]}, {}, "'a' is a required property"),
        ({"properties": {"a": {"type": "integer"}}}, {"a": "1"}, "a: '1' is not of type 'integer'"),
        ({"properties": {"a": {"items": {"minimum": 2}}}}, {"a": [2, 1]}, "a/1: 1 is less than the minimum of 2"),
        ({"properties": {"a": {"pattern": "^x+$"}}}, {"a": "xy"}, "a: 'xy' does not match '^x+$'"),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{}, {}]}, "a: has the same item twice"),
        ({"additionalProperties": False}, {"b": 1}, "Additional properties"),
        ({"properties": {"a": {"$ref": "#/definitions/n"}}, "definitions": {"n": {"const": 1}}}, {"a": 2}, "a: 1 was"),
    ],
)
def test_what_does_not_fit_is_told_by_its_place(schema: dict[str, Any], value: dict[str, Any], reason: str) -> None:
    assert (misfit(tool(**schema), value) or "").startswith(reason)


def test_what_fits() -> None:
    schema = {"properties": {"a": {"pattern": "^x", "type": "string"}, "b": {"uniqueItems": True}}, "required": ["a"]}
    assert misfit(tool(**schema), {"a": "xyz", "b": [1, 2, {}], "c": None}) is None


def _doubling(levels: int) -> dict[str, Any]:
    """A schema that is applied 2^levels times."""
    steps = {f"s{n}": {"allOf": [{"$ref": f"#/definitions/s{n - 1}"}] * 2} for n in range(1, levels)}
    return {
        "definitions": {"s0": {"type": "integer"}, **steps},
        "properties": {"a": {"$ref": f"#/definitions/s{levels - 1}"}},
    }


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        (_doubling(40), {"a": 1}, "it takes too long"),
        ({"properties": {"a": {"pattern": "^(x+x+)+$"}}}, {"a": "x" * 200_000 + "y"}, "a: "),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"n": n} for n in range(20_000)]}, None),
        ({"properties": {"a": {"items": {"enum": [{"n": n} for n in range(1000)]}}}}, {"a": [0] * 50_000}, "a"),
        ({"properties": {"a": {"items": {"enum": ["x", *range(999)]}}}}, {"a": ["x"] * 50_000}, "it takes too long"),
        ({}, {"a": "x" * MAX_INPUT_BYTES}, "it is larger than"),
    ],
)
def test_no_schema_and_no_input_takes_long(schema: dict[str, Any], value: dict[str, Any], reason: str | None) -> None:
    found = misfit(tool(**schema), value)
    assert found is None if reason is None else (found or "").startswith(reason)
