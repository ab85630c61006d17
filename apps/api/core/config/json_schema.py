"""JSON schemas for structured output, as strict as the agent's own program is with them.

It reads draft 07, refuses what it does not know, and does not start with a schema that it refuses. What it knows was
tried with it, keyword by keyword.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import regress
from jsonschema import Draft7Validator, FormatChecker
from jsonschema.exceptions import SchemaError

from apps.api.core.codec import encode

MAX_SCHEMA_BYTES = 64 * 1024
"""Size of a schema. It is part of every request to the model."""

_DRAFT = frozenset({"http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-07/schema"})
_ONE = frozenset(
    {"additionalProperties", "propertyNames", "contains", "not", "if", "then", "else", "items", "additionalItems"}
)
_LIST = frozenset({"allOf", "anyOf", "oneOf", "items"})
_MAP = frozenset({"properties", "patternProperties", "definitions", "$defs", "dependencies"})
_PLAIN = frozenset(
    "$schema $ref $comment title description default examples readOnly writeOnly deprecated type nullable enum const"  # noqa: SIM905
    " multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern format maxItems minItems"
    " uniqueItems maxProperties minProperties required contentEncoding contentMediaType".split()
)
_KNOWN = _ONE | _LIST | _MAP | _PLAIN

_FORMATS = FormatChecker(formats=())


@_FORMATS.checks("regex", raises=regress.RegressError)
def _is_pattern(value: object) -> bool:
    """The agent's program runs patterns as JavaScript does, with the flag `u`."""
    return not isinstance(value, str) or bool(regress.Regex(value, "u"))


def check(schema: dict[str, Any]) -> None:
    """Raises ValueError, which names the place, for a schema that no agent would start with."""
    try:
        if len(encode(schema)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"is larger than {MAX_SCHEMA_BYTES} bytes")
        if schema.get("type") != "object":
            raise ValueError('must have "type": "object" at its top level')
        for place, part in _parts(schema, "#"):
            _check_part(schema, place, part)
        Draft7Validator.check_schema(schema, format_checker=_FORMATS)
    except SchemaError as error:
        place = "/".join(("#", *(str(part) for part in error.absolute_path)))
        raise ValueError(f"{place}: {error.message[:200]}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _parts(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and those inside it, each with its place."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for name, value in schema.items():
        if name in _MAP and isinstance(value, dict):
            for key, inner in value.items():
                yield from _parts(inner, f"{place}/{name}/{key}")
        elif name in _LIST and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _parts(inner, f"{place}/{name}/{number}")
        elif name in _ONE:
            yield from _parts(value, f"{place}/{name}")


def _check_part(root: dict[str, Any], place: str, part: dict[str, Any]) -> None:
    for name in part:
        if name not in _KNOWN and not (name == "$id" and part is root):
            raise ValueError(f"{place}/{name}: is no keyword of JSON schema draft 07 that agents know"[:300])
    if part.get("$schema", "http://json-schema.org/draft-07/schema#") not in _DRAFT:
        raise ValueError(f"{place}/$schema: must be http://json-schema.org/draft-07/schema#, or left out")
    if "$ref" in part and not _resolves(root, part["$ref"]):
        raise ValueError(f"{place}/$ref: must lead to a part of this schema, for example #/$defs/item")
    if ("if" in part) != bool({"then", "else"} & part.keys()):
        raise ValueError(f"{place}: 'if' goes with 'then' or 'else'")
    if "additionalItems" in part and not isinstance(part.get("items"), list):
        raise ValueError(f"{place}/additionalItems: goes with 'items' that is a list")
    if "nullable" in part and "type" not in part:
        raise ValueError(f"{place}/nullable: goes with 'type'")
    values = part.get("enum")
    if isinstance(values, list) and len({encode(value) for value in values}) != (len(values) or None):
        raise ValueError(f"{place}/enum: must have values, and each once")


def _resolves(root: Any, reference: Any) -> bool:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return False
    found = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return False
    return isinstance(found, dict | bool)
