"""JSON schemas for structured output, as strict as the agent's own program is with them.

It reads draft 07, refuses what it does not know, and does not start with a schema that it refuses. What it knows was
tried with it, keyword by keyword. A schema is judged on the event loop, in one walk: see the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import regress

from apps.api.core.codec import encode

MAX_SCHEMA_BYTES = 64 * 1024
"""Size of a schema. It is part of every request to the model."""

MAX_PARTS = 5_000
"""Schemas that one schema is made of. The walk took 2.7 ms for a thousand of them, 8 ms where they are 90 deep; without
this limit 160 ms for what MAX_SCHEMA_BYTES has room for."""

MAX_PATTERN, MAX_PATTERNS = 1_000, 8_000
r"""Characters of one pattern (of `pattern`, or a key of `patternProperties`) and of all in a schema.

The time to compile one grows faster than its length: 1,000 characters took 1 ms, 5 ms were they classes like
`[\p{Cn}\p{L}]` throughout; 60,000 took 3 to 9 s.
"""

_DRAFT = frozenset({"http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-07/schema"})
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_ONE = frozenset(
    {"additionalProperties", "propertyNames", "contains", "not", "if", "then", "else", "items", "additionalItems"}
)
_LIST = frozenset({"allOf", "anyOf", "oneOf", "items"})
_MAP = frozenset({"properties", "patternProperties", "definitions", "$defs", "dependencies"})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and (isinstance(value, int) or value.is_integer())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value) and len(set(value)) == len(value)


def _is_type(value: Any) -> bool:
    return value in _TYPES or (value != [] and _are_texts(value) and set(value) <= set(_TYPES))


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_schema, value))


_KINDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (
        "$id $schema $ref $comment title description pattern format contentEncoding contentMediaType",
        "must be a text",
        lambda value: isinstance(value, str),
    ),
    ("readOnly uniqueItems", "must be true or false", lambda value: isinstance(value, bool)),
    ("maximum exclusiveMaximum minimum exclusiveMinimum", "must be a number", _is_number),
    ("multipleOf", "must be a number above 0", lambda value: _is_number(value) and value > 0),
    (
        "maxLength minLength maxItems minItems maxProperties minProperties",
        "must be a whole number, 0 or more",
        _is_count,
    ),
    ("enum examples", "must be a list", lambda value: isinstance(value, list)),
    ("required", "must be a list of texts, each once", _are_texts),
    ("type", f"must be one of {', '.join(_TYPES)}, or a list of them, each once", _is_type),
    ("additionalProperties propertyNames contains not if then else additionalItems", "must be a schema", _is_schema),
    ("allOf anyOf oneOf", "must be a list of schemas", _are_schemas),
    ("items", "must be a schema or a list of schemas", lambda value: _is_schema(value) or _are_schemas(value)),
    (
        "properties patternProperties definitions $defs",
        "must be an object of schemas",
        lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())),
    ),
    (
        "dependencies",
        "must be an object of schemas or lists of texts, each once",
        lambda value: isinstance(value, dict) and all(_is_schema(v) or _are_texts(v) for v in value.values()),
    ),
    ("default const writeOnly deprecated nullable", "", lambda _: True),
)
_KEYWORDS = {name: (must, fits) for names, must, fits in _KINDS for name in names.split()}
"""What is known, and what draft 07's own schema says that it must be."""

_Place = tuple[object, ...]


def check(schema: dict[str, Any]) -> None:
    """Raises ValueError, which names the place, for a schema that no agent would start with, or beyond the limits."""
    try:
        if len(encode(schema)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"is larger than {MAX_SCHEMA_BYTES} bytes")
        if schema.get("type") != "object":
            raise ValueError('must have "type": "object" at its top level')
        patterns = 0
        for number, (place, part) in enumerate(_parts(schema, ("#",)), 1):
            if number > MAX_PARTS:
                raise ValueError(f"is made of more than {MAX_PARTS} schemas")
            _check_part(schema, place, part)
            for where, pattern in _patterns(part):
                patterns += len(pattern)
                _check_pattern((*place, where), pattern, patterns)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _refused(place: _Place, reason: str) -> ValueError:
    return ValueError(f"{'/'.join(map(str, place))[:300]}: {reason}")


def _parts(schema: Any, place: _Place) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """A schema and those inside it, each with its place."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for name, value in schema.items():
        if name in _MAP and isinstance(value, dict):
            for key, inner in value.items():
                yield from _parts(inner, (*place, name, key))
        elif name in _LIST and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _parts(inner, (*place, name, number))
        elif name in _ONE:
            yield from _parts(value, (*place, name))


def _patterns(part: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The patterns of a part, not of those inside it, each with its keyword."""
    if "pattern" in part:
        yield "pattern", part["pattern"]
    for pattern in part.get("patternProperties", ()):
        yield "patternProperties", pattern


def _check_pattern(place: _Place, pattern: str, total: int) -> None:
    """A pattern is JavaScript's with the flag `u`, as the agent's program compiles it."""
    if len(pattern) > MAX_PATTERN:
        raise _refused(place, f"must be of at most {MAX_PATTERN} characters")
    if total > MAX_PATTERNS:
        raise _refused(place, f"the patterns of a schema must be of at most {MAX_PATTERNS} characters together")
    try:
        regress.Regex(pattern, "u")
    except regress.RegressError as error:
        raise _refused(place, f"is no regular expression: {error}"[:300]) from error


def _check_part(root: dict[str, Any], place: _Place, part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name not in _KEYWORDS or (name == "$id" and part is not root):
            raise _refused((*place, name), "is no keyword of JSON schema draft 07 that agents know")
        must, fits = _KEYWORDS[name]
        if not fits(value):
            raise _refused((*place, name), must)
    if part.get("$schema", "http://json-schema.org/draft-07/schema#") not in _DRAFT:
        raise _refused((*place, "$schema"), "must be http://json-schema.org/draft-07/schema#, or left out")
    if "$ref" in part and not _resolves(root, part["$ref"]):
        raise _refused((*place, "$ref"), "must lead to a part of this schema, for example #/$defs/item")
    if ("if" in part) != bool({"then", "else"} & part.keys()):
        raise _refused(place, "'if' goes with 'then' or 'else'")
    if "additionalItems" in part and not isinstance(part.get("items"), list):
        raise _refused((*place, "additionalItems"), "goes with 'items' that is a list")
    if "nullable" in part and "type" not in part:
        raise _refused((*place, "nullable"), "goes with 'type'")
    values = part.get("enum")
    if isinstance(values, list) and len({encode(value) for value in values}) != (len(values) or None):
        raise _refused((*place, "enum"), "must have values, and each once")


def _resolves(root: Any, reference: Any) -> bool:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return False
    found = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and len(name) < 7 and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return False
    return isinstance(found, dict | bool)
