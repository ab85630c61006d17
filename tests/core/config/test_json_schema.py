"""Schemas for structured output: what the agent's program would refuse is refused when it arrives."""

from __future__ import annotations

from typing import Any

import pytest
import regress
from pydantic import ValidationError

from apps.api.core.config import json_schema
from apps.api.core.config.agent import AgentConfig


def of(part: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}, **more}


@pytest.mark.parametrize(
    "schema",
    [
        of({"type": "string", "format": "date", "default": "x", "examples": ["y"]}),
        of(True, required=["a", "b"], additionalProperties=False),
        of({"$ref": "#/$defs/x", "description": "d"}, **{"$defs": {"x": {"type": ["string", "null"]}}}),
        of({"$ref": "#/definitions/x~1y"}, definitions={"x/y": {"enum": [1, "1", True, None]}}),
        of({"$ref": "#"}, **{"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/a"}),
        of({"anyOf": [{"type": "number", "multipleOf": 0.1}, {"type": "string", "nullable": True}]}),
        of({"type": "array", "items": [{"type": "string"}], "additionalItems": False, "minItems": 1}),
        of({"if": {"type": "string"}, "then": {"minLength": 1}}, dependencies={"a": ["b"], "c": {"minProperties": 2}}),
        of({"properties": {"type": {"const": "foo"}, "unknown": {}}}, patternProperties={"^x-": {}}),
    ],
)
def test_schemas_of_draft_07_are_taken(schema: dict[str, Any]) -> None:
    json_schema.check(schema)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "array"}, "top level"),
        ({}, "top level"),
        (of({"type": "strin"}), "#/properties/a/type: "),
        (of({"minimum": "1"}), "#/properties/a/minimum: "),
        (of({}, **{"$schema": "https://json-schema.org/draft/2020-12/schema"}), "#/$schema: must be http://json"),
        (of({"anyOf": [{}, {"prefixItems": []}]}), "#/properties/a/anyOf/1/prefixItems: is no keyword"),
        (of({}, **{"$defs": {"x": {"items": {"x-note": 1}}}}), "#/$defs/x/items/x-note: is no keyword"),
        (of({"$ref": "#/$defs/x"}), "#/properties/a/$ref: must lead to a part"),
        (of({"$ref": "https://example.com/x"}), "#/properties/a/$ref: must lead to a part"),
        (of({"$ref": 7}), "#/properties/a/$ref: must lead to a part"),
        (of({"if": {}}), "'if' goes with"),
        (of({"additionalItems": False}), "#/properties/a/additionalItems: "),
        (of({"nullable": True}), "#/properties/a/nullable: "),
        (of({"enum": []}), "#/properties/a/enum: "),
        (of({"enum": [{"x": 1}, {"x": 1}]}), "#/properties/a/enum: "),
        (of({"pattern": "(?P<year>[0-9]{4})"}), "#/properties/a/pattern: "),
        (of({"pattern": r"[0-9]+\Z"}), "#/properties/a/pattern: "),
        (of({}, patternProperties={"(?i)x": {}}), "#/patternProperties: "),
        (of({"description": "x" * json_schema.MAX_SCHEMA_BYTES}), "larger than 65536 bytes"),
        (of({"type": [{"a": n} for n in range(3_000)]}), "#/properties/a: the lists of 'required', 'dependencies' and"),
        (
            of({}, dependencies={"x": [{"a": n} for n in range(3_000)]}),
            "#: the lists of 'required', 'dependencies' and",
        ),
        (of({}, required=[{"a": 1}]), "#: the lists of 'required', 'dependencies' and 'type' must be of texts"),
        (of({}, required=[f"a{n}" for n in range(1_001)]), "has more than 1000 names"),
        (of({"type": ["string", "string"]}), "#/properties/a/type: "),
        ({"type": "object", "anyOf": [{}] * 20_000}, "made of more than 1000 schemas"),
        (of({"pattern": "a|" * 501}), "#/properties/a/pattern: must be of at most 1000 characters"),
        (of({}, patternProperties={"a|" * 501: {}}), "#/patternProperties: must be of at most 1000 characters"),
        (
            of({}, properties={f"p{n}": {"pattern": "a" * 1000} for n in range(9)}),
            "#/properties/p8/pattern: the patterns of a schema must be of at most 8000 characters together",
        ),
        (of({"items": [{}], "$ref": "#/properties/a/items/" + "9" * 5000}), "#/properties/a/$ref: must lead to a part"),
    ],
)
def test_what_no_agent_would_start_with_is_refused_with_its_place(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        json_schema.check(schema)
    assert told in str(caught.value)


@pytest.mark.parametrize("pattern", [r"^\p{Lu}\u{1F600}?$", "(?<year>[0-9]{4})", "(?<=a)b", "^[^/]+$"])
def test_patterns_are_javascripts(pattern: str) -> None:
    json_schema.check(of({"type": "string", "pattern": pattern}, patternProperties={pattern: {}}))


def test_a_bottomless_schema_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    inner = schema
    for _ in range(50_000):
        inner["not"] = inner = {}
    with pytest.raises(ValueError, match="nested too deeply"):
        json_schema.check(schema)


def test_what_is_stored_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"output_format": {"type": "json_schema", "schema": of({"pattern": "^a+$"})}}
    compiled = []
    monkeypatch.setattr(regress, "Regex", lambda *pattern: compiled.append(pattern))
    assert AgentConfig.stored(config).given() == config
    assert compiled == []
    AgentConfig.model_validate(config)
    assert compiled == [("^a+$", "u")]


def test_what_a_release_took_that_was_less_strict_is_read() -> None:
    config = {"output_format": {"type": "json_schema", "schema": of({"pattern": "a|" * 30_000})}}
    assert AgentConfig.stored(config).given() == config
    with pytest.raises(ValidationError, match="at most 1000 characters"):
        AgentConfig.model_validate(config)
