"""Tools that the caller's own program executes: what describes one, whether an input fits, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import re2
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag

from apps.api.core.codec import encode
from apps.api.core.config import json_schema
from apps.api.core.config.content import ImageBlock, TextBlock, type_of
from apps.api.core.config.names import Document, Part, Text, unless_stored

SERVER = "client"
"""The MCP server whose tools they are to the model, and in rules of permission: `mcp__client__NAME`."""

MAX_TOOLS, MAX_TOOLS_BYTES = 64, 256 * 1024
"""Of one session, and of all their descriptions and schemas together, which are part of every request to the model."""

MAX_INPUT_BYTES, MAX_STEPS = 256 * 1024, 50_000
"""Of one call's input, and keywords of its schema that are applied to it: some seconds of a core. A schema of a few
hundred bytes can ask for more steps than anybody has time for."""

MAX_BLOCKS = 20
"""Blocks of one result."""

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9-]*(_[A-Za-z0-9-]+)*$", max_length=64)]
"""Without two underscores in a row, which part the names of servers and tools."""


def _askable(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that a model can be told, and whose patterns need no more time for a longer text than it is longer."""
    json_schema.check(schema)
    for place, part in json_schema.parts(schema):
        if "patternProperties" in part:
            raise ValueError(f"{place}/patternProperties: is not supported in a client tool's schema")
        if isinstance(pattern := part.get("pattern"), str):
            try:
                re2.compile(pattern)
            except re2.error as error:
                raise ValueError(f"{place}/pattern: is no pattern of RE2: {error}"[:300]) from error
    return schema


class ClientTool(Part):
    """A tool that the caller's program executes. The agent knows it as `mcp__client__NAME`."""

    name: ToolName
    description: Annotated[Text, Field(min_length=1, max_length=10_000)]
    input_schema: Annotated[Document, AfterValidator(unless_stored(_askable))]
    read_only: bool = False


def _distinct(tools: list[ClientTool]) -> list[ClientTool]:
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"has {twice} twice")
    if sum(len(encode(tool.model_dump())) for tool in tools) > MAX_TOOLS_BYTES:
        raise ValueError(f"is larger than {MAX_TOOLS_BYTES} bytes")
    return tools


ClientTools = Annotated[list[ClientTool], Field(max_length=MAX_TOOLS), AfterValidator(unless_stored(_distinct))]

ResultBlock = Annotated[
    Annotated[TextBlock, Tag("[text]")] | Annotated[ImageBlock, Tag("[image]")],
    Discriminator(type_of, custom_error_type="type", custom_error_message="type: must be 'text' or 'image'"),
]
"""A part of a result."""


def full_name(name: str) -> str:
    """As the model and rules of permission name a tool."""
    return f"mcp__{SERVER}__{name}"


# --- inputs --------------------------------------------------------------------------------------------------------

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]

_left: ContextVar[list[int]] = ContextVar("steps left")


class _TooMuch(Exception):
    """The steps are used up."""


def _spend(steps: int) -> None:
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        raise _TooMuch


def _counted(keyword: Keyword) -> Keyword:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _spend(len(value) if isinstance(value, list) else 1)
        yield from keyword(validator, value, instance, schema) or ()

    return counted


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not re2.search(pattern, instance):
        yield ValidationError(f"{instance[:100]!r} does not match {pattern[:100]!r}")


def _unique(_validator: Any, wanted: bool, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    # The library compares each item with each other one.
    if wanted and isinstance(instance, list) and len({encode(item) for item in instance}) < len(instance):
        yield ValidationError("has the same item twice")


_KEYWORDS: dict[str, Keyword] = {**Draft7Validator.VALIDATORS, "pattern": _pattern, "uniqueItems": _unique}
_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft7Validator, {name: _counted(keyword) for name, keyword in _KEYWORDS.items()}
)


def misfit(tool: ClientTool, given: dict[str, Any]) -> str | None:
    """Why an input does not fit a tool's schema, in words for the agent; None when it does. Blocks for seconds at
    most."""
    if len(encode(given)) > MAX_INPUT_BYTES:
        return f"it is larger than {MAX_INPUT_BYTES} bytes"
    _left.set([MAX_STEPS])
    try:
        error = next(_Validator(tool.input_schema).iter_errors(given), None)
    except (_TooMuch, RecursionError):
        return "it takes too long to compare"
    if error is None:
        return None
    where = "/".join(map(str, error.absolute_path))
    return f"{f'{where}: ' if where else ''}{error.message}"[:1000]
