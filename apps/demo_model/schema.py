"""A smallest value that a JSON schema accepts, for replies that must have a shape."""

from __future__ import annotations

from typing import Any

from apps.demo_model.wire import JsonObject

MAX_DEPTH = 12


def instance_of(schema: JsonObject) -> Any:
    """Required properties only; strings are "demo", numbers 0, lists empty, unless the schema asks for more."""
    return _instance(schema, schema, 0)


def _instance(schema: Any, root: JsonObject, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _instance(_follow(reference, root), root, depth + 1)
    for choices in ("enum", "examples"):
        if schema.get(choices):
            return schema[choices][0]
    for branches in ("anyOf", "oneOf", "allOf"):
        if schema.get(branches):
            return _instance(schema[branches][0], root, depth + 1)
    return schema["const"] if "const" in schema else _typed(schema, root, depth + 1)


def _typed(schema: JsonObject, root: JsonObject, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _instance(properties.get(name), root, depth) for name in schema.get("required", [])}
        case "array":
            return [_instance(schema.get("items"), root, depth)] * min(int(schema.get("minItems", 0)), 100)
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return "demo".ljust(min(int(schema.get("minLength", 0)), 1_000), ".")[: schema.get("maxLength")]


def _number(schema: JsonObject) -> float:
    above = schema.get("exclusiveMinimum")
    least = above + 1 if above is not None else schema.get("minimum", 0)
    most = schema.get("maximum", least)
    number: float = min(max(0, least), most)
    return number


def _follow(reference: str, root: JsonObject) -> Any:
    found: Any = root
    for key in reference.removeprefix("#/").split("/"):
        found = found.get(key) if isinstance(found, dict) else None
    return found
