"""OpenAPI documents: one of the native API, and one of each dialect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from apps.api import __version__

SERVERS = [{"url": "/", "description": "The server that gave this document; any instance of it."}]

_SCHEMAS = "#/components/schemas/"
_FASTAPIS = "HTTPValidationError"
"""Its 422, which it documents where a route does not, and which no route of ours gives."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a document says of an API beside its routes.

    Attributes:
        has: whether a path belongs to it.
        tags: name → what its routes are for, in the order of the document.
        models: what no route's own model leads to.
        words: sets of words that fields are made of, by the name that each has.
        shared: further components, to which operations refer: kind → name → what it is.
        webhooks: messages that the server sends.
    """

    title: str
    text: str
    has: Callable[[str], bool]
    tags: Mapping[str, str]
    models: Sequence[type[BaseModel]] = ()
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    webhooks: Mapping[str, Any] = field(default_factory=dict)


def build(app: FastAPI, of: Description) -> dict[str, Any]:
    """The document of an application's routes. Takes a second of work."""
    found = get_openapi(
        title=of.title,
        version=__version__,
        description=of.text,
        license_info={"name": "MIT", "identifier": "MIT"},
        routes=[route for route in iter_route_contexts(app.routes) if of.has(route.path or "")],
        tags=[{"name": name, "description": text} for name, text in of.tags.items()],
        servers=SERVERS,
    )
    components = found["components"]
    # Once more, since FastAPI leaves null values out of examples.
    _, made = models_json_schema([(m, "serialization") for m in of.models], ref_template=f"{_SCHEMAS}{{model}}")
    own = {name: schema for name, schema in components["schemas"].items() if name not in (_FASTAPIS, "ValidationError")}
    schemas = {**own, **made.get("$defs", {})}
    for operation in (operation for path in found["paths"].values() for operation in path.values()):
        _clean(operation)
    named = {tuple(words): name for name, words in of.words.items()}
    for part in (schemas, found["paths"]):
        _shorten(part, named)
    schemas = {_name(name): schema for name, schema in schemas.items()}
    schemas |= {name: {"type": "string", "enum": list(words)} for name, words in of.words.items()}
    found["components"] = {**of.shared, **components, "schemas": dict(sorted(schemas.items()))}
    if of.webhooks:
        found["webhooks"] = dict(of.webhooks)
    return found


def _clean(operation: dict[str, Any]) -> None:
    if _FASTAPIS in str(operation["responses"].get("422")):  # such a route says 400 in its place, in its own shape
        del operation["responses"]["422"]
    for status, answer in operation["responses"].items():
        if "$ref" in answer:  # beside it stands what FastAPI has to say of any status
            operation["responses"][status] = {"$ref": answer["$ref"]}
    for parameter in operation.get("parameters", ()):
        if parameter["schema"].get("description") == parameter.get("description"):
            parameter["schema"].pop("description", None)


def _name(name: str) -> str:
    """A page of `SessionState`, which pydantic calls `Page_SessionState_`, is a `SessionStatePage`."""
    return re.sub(r"^([A-Za-z]+)_([A-Za-z]+)_$", r"\2\1", name)


def _shorten(part: Any, named: Mapping[tuple[str, ...], str]) -> None:
    """Leave out titles, which only repeat names; let sets of words that have a name be called by it."""
    if isinstance(part, list):
        for inner in part:
            _shorten(inner, named)
    if not isinstance(part, dict):
        return
    if isinstance(part.get("title"), str) and ("type" in part or "$ref" in part or "anyOf" in part or "oneOf" in part):
        del part["title"]
    if isinstance(part.get("$ref"), str):
        above, _, last = part["$ref"].rpartition("/")
        part["$ref"] = f"{above}/{_name(last)}"
    name = named.get(tuple(part["enum"])) if isinstance(part.get("enum"), list) else None
    if name is not None:
        del part["enum"], part["type"]
        part["$ref"] = f"{_SCHEMAS}{name}"
    for key, inner in part.items():
        if key not in ("example", "examples", "default", "const"):
            _shorten(inner, named)
