"""JSON schemas for structured output, as strict as the agent's own program is with them.

It reads draft 07, refuses what it does not know, and does not start with a schema that it refuses. What it knows was
tried with it, keyword by keyword. A schema is judged on the event loop: hence the limits.
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

MAX_PARTS = 1_000
"""Schemas that one schema is made of. A thousand of them took 40 to 100 ms, nearly all in the library's own check; what
MAX_SCHEMA_BYTES has room for took 1.4 s."""

MAX_NAMES = 1_000
"""Names in all lists of `required`, `dependencies` and `type`: 30 ms of the library's check."""

MAX_PATTERN, MAX_PATTERNS = 1_000, 8_000
r"""Characters of one pattern (of `pattern`, or a key of `patternProperties`) and of all in a schema.

The time to compile one grows faster than its length: 1,000 characters took 1 ms, 5 ms were they classes like
`[\p{Cn}\p{L}]` throughout; 60,000 took 3 to 9 s.
"""

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

_NO_FORMATS = FormatChecker(formats=())
"""The library's own would compile patterns as Python's."""

_Place = tuple[object, ...]


def check(schema: dict[str, Any]) -> None:
    """Raises ValueError, which names the place, for a schema that no agent would start with, or beyond the limits."""
    try:
        if len(encode(schema)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"is larger than {MAX_SCHEMA_BYTES} bytes")
        if schema.get("type") != "object":
            raise ValueError('must have "type": "object" at its top level')
        names = patterns = 0  # in all lists; characters of them
        for number, (place, part) in enumerate(_parts(schema, ("#",)), 1):
            if number > MAX_PARTS:
                raise ValueError(f"is made of more than {MAX_PARTS} schemas")
            names += _check_names(place, part)
            if names > MAX_NAMES:
                raise ValueError(f"has more than {MAX_NAMES} names in lists of 'required', 'dependencies' and 'type'")
            _check_part(schema, place, part)
            for where, pattern in _patterns(part):
                patterns += len(pattern)
                _check_pattern((*place, where), pattern, patterns)
        Draft7Validator.check_schema(schema, format_checker=_NO_FORMATS)
    except SchemaError as error:
        raise _refused(("#", *error.absolute_path), error.message[:200]) from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _refused(place: _Place, reason: str) -> ValueError:
    return ValueError(f"{'/'.join(map(str, place))[:300]}: {reason}")


def parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema that was checked and those inside it, each with its place in words."""
    yield from (("/".join(map(str, place))[:300], part) for place, part in _parts(schema, ("#",)))


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
    if isinstance(pattern := part.get("pattern"), str):
        yield "pattern", pattern
    if isinstance(patterns := part.get("patternProperties"), dict):
        yield from (("patternProperties", pattern) for pattern in patterns)


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


def _check_names(place: _Place, part: dict[str, Any]) -> int:
    """How many names there are in the lists of a part. The library compares each value of a list with each other one,
    which takes half a minute for 3,000 objects in the place of names."""
    dependencies = part.get("dependencies")
    lists = [part.get("required"), part.get("type"), *(dependencies.values() if isinstance(dependencies, dict) else ())]
    found = [name for names in lists if isinstance(names, list) for name in names]
    if not all(isinstance(name, str) for name in found):
        raise _refused(place, "the lists of 'required', 'dependencies' and 'type' must be of texts")
    return len(found)


def _check_part(root: dict[str, Any], place: _Place, part: dict[str, Any]) -> None:
    for name in part:
        if name not in _KNOWN and not (name == "$id" and part is root):
            raise _refused((*place, name), "is no keyword of JSON schema draft 07 that agents know")
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
