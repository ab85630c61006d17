"""No change breaks a client of the last release; and what looks for that finds it."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.api.openapi import DIRECTORY
from tests.breaking import breaks
from tests.contract import document

ROOT = Path(__file__).parents[1]

MEANT: set[str] = set()
"""Breaks that the next release is to have, word for word as the test tells them; each is in CHANGELOG.md, too."""


def git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_client_of_the_last_release_still_works(path: Path) -> None:
    tag = (git("describe", "--tags", "--abbrev=0") or "").strip()
    if not tag:
        pytest.skip("no release has been tagged here")
    released = git("show", f"{tag}:{path.relative_to(ROOT)}")
    if released is None:
        pytest.skip(f"{tag} had no such document")
    found = set(breaks(yaml.load(released, Loader=yaml.CSafeLoader), document(path)))
    assert found - MEANT == set(), f"clients of {tag} break"


# --- what is found -------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]

FIELD = {"type": "integer", "minimum": 1, "maximum": 10}
OLD: dict[str, Any] = {
    "paths": {
        "/things": {
            "post": {
                "operationId": "create_thing",
                "parameters": [
                    {"name": "limit", "in": "query", "schema": FIELD},
                    {"name": "kind", "in": "query", "schema": {"enum": ["a", "b"], "type": "string"}},
                ],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}},
                "responses": {
                    "200": {
                        "headers": {"X-Run-ID": {"schema": {"type": "string"}}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}},
                    },
                    "404": {"$ref": "#/components/responses/NotFound"},
                },
            },
            "get": {"operationId": "list_things", "responses": {"200": {"description": "All."}}},
        }
    },
    "webhooks": {
        "thing.made": {
            "post": {
                "operationId": "on_thing",
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
            }
        }
    },
    "components": {
        "responses": {"NotFound": {"description": "No."}},
        "schemas": {
            "Body": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "more": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 9}},
                },
            },
            "Thing": {
                "type": "object",
                "required": ["id", "event"],
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "size": {"type": "integer"},
                    "event": {"oneOf": [{"$ref": "#/components/schemas/Made"}, {"$ref": "#/components/schemas/Gone"}]},
                    "inner": {"$ref": "#/components/schemas/Thing"},
                },
            },
            "Made": {
                "type": "object",
                "required": ["event"],
                "properties": {"event": {"const": "made", "type": "string"}, "by": {"type": "string"}},
            },
            "Gone": {
                "type": "object",
                "required": ["event"],
                "properties": {"event": {"const": "gone", "type": "string"}},
            },
        },
    },
}


def operation(new: dict[str, Any]) -> Any:
    return new["paths"]["/things"]["post"]


def schema(new: dict[str, Any], name: str) -> Any:
    return new["components"]["schemas"][name]


def limit(new: dict[str, Any], **bounds: Any) -> None:
    operation(new)["parameters"][0]["schema"] = {**FIELD, **bounds}


def fields(new: dict[str, Any], name: str) -> Any:
    return schema(new, name)["properties"]


BREAKING: dict[str, Change] = {
    "GET /things: removed": lambda new: new["paths"]["/things"].pop("get"),
    "POST /things: is called make_thing now, it was create_thing": lambda new: operation(new).update(
        operationId="make_thing"
    ),
    "POST /things: query parameter limit: removed": lambda new: operation(new)["parameters"].pop(0),
    "POST /things: query parameter limit: is required now": lambda new: operation(new)["parameters"][0].update(
        required=True
    ),
    "POST /things: query parameter sort: is required now": lambda new: operation(new)["parameters"].append(
        {"name": "sort", "in": "query", "required": True, "schema": {}}
    ),
    "POST /things: query parameter limit: maximum is 5 now, it was 10": lambda new: operation(new)["parameters"][
        0
    ].update(schema={**FIELD, "maximum": 5}),
    "POST /things: query parameter limit: minimum is 2 now, it was 1": lambda new: operation(new)["parameters"][
        0
    ].update(schema={**FIELD, "minimum": 2}),
    "POST /things: query parameter kind: b is refused now": lambda new: operation(new)["parameters"][1].update(
        schema={"enum": ["a", "c"], "type": "string"}
    ),
    "POST /things: body: is required now": lambda new: operation(new)["requestBody"].update(required=True),
    "POST /things: body: is refused now": lambda new: operation(new).pop("requestBody"),
    "POST /things: body: no application/json any more": lambda new: operation(new)["requestBody"].update(
        content={"text/plain": {}}
    ),
    "POST /things: body.size: is required now": lambda new: schema(new, "Body").update(required=["name", "size"]),
    "POST /things: body.tags: removed": lambda new: fields(new, "Body").pop("tags"),
    "POST /things: body.size: null is refused now": lambda new: fields(new, "Body").update(size={"type": "number"}),
    "POST /things: body.name: is integer now, it was string": lambda new: fields(new, "Body").update(
        name={"type": "integer"}
    ),
    "POST /things: body.name: must match ^a now": lambda new: fields(new, "Body")["name"].update(pattern="^a"),
    "POST /things: body.name: only some words are taken now": lambda new: fields(new, "Body")["name"].update(
        enum=["a"]
    ),
    "POST /things: body.tags[]: maxLength is 3 now, it was inf": lambda new: fields(new, "Body")["tags"][
        "items"
    ].update(maxLength=3),
    "POST /things: body.more.*: maxLength is 3 now, it was 9": lambda new: fields(new, "Body")["more"][
        "additionalProperties"
    ].update(maxLength=3),
    "POST /things: 200: is not answered any more": lambda new: operation(new)["responses"].pop("200"),
    "POST /things: 200: header X-Run-ID: removed": lambda new: operation(new)["responses"]["200"].pop("headers"),
    "POST /things: 200.size: removed": lambda new: fields(new, "Thing").pop("size"),
    "POST /things: 200.id: may be missing now": lambda new: schema(new, "Thing").update(required=["event"]),
    "POST /things: 200.size: may be null now": lambda new: fields(new, "Thing").update(
        size={"anyOf": [{"type": "integer"}, {"type": "null"}]}
    ),
    "POST /things: 200.size: is number now, it was integer": lambda new: fields(new, "Thing").update(
        size={"type": "number"}
    ),
    "POST /things: 200.id: has the format None now, it had uuid": lambda new: fields(new, "Thing")["id"].pop("format"),
    "POST /things: 200.event: {event: gone} does not come any more": lambda new: fields(new, "Thing")["event"][
        "oneOf"
    ].pop(1),
    "POST /things: 200.event.by: removed": lambda new: fields(new, "Made").pop("by"),
    "webhook thing.made: removed": lambda new: new.pop("webhooks"),
    "webhook thing.made: body.size: removed": lambda new: fields(new, "Thing").pop("size"),
}


@pytest.mark.parametrize("told", BREAKING)
def test_what_breaks_a_client_is_found(told: str) -> None:
    new = copy.deepcopy(OLD)
    BREAKING[told](new)
    assert told in breaks(OLD, new)


HARMLESS: dict[str, Change] = {
    "nothing": lambda new: None,
    "another operation": lambda new: new["paths"].update({"/more": {"get": {"operationId": "x", "responses": {}}}}),
    "another parameter": lambda new: operation(new)["parameters"].append({"name": "sort", "in": "query", "schema": {}}),
    "wider bounds": lambda new: operation(new)["parameters"][0].update(schema={"type": "integer", "minimum": 0}),
    "another word": lambda new: operation(new)["parameters"][1].update(
        schema={"enum": ["a", "b", "c"], "type": "string"}
    ),
    "another field of a body": lambda new: fields(new, "Body").update(title={"type": "string"}),
    "a field that need not be given": lambda new: schema(new, "Body").update(required=[]),
    "a number where a whole one was": lambda new: operation(new)["parameters"][0].update(
        schema={**FIELD, "type": "number"}
    ),
    "another type of a body's field": lambda new: fields(new, "Body").update(
        name={"anyOf": [{"type": "string"}, {"type": "array"}]}
    ),
    "another field of an answer": lambda new: fields(new, "Thing").update(title={"type": "string"}),
    "a field that is always there": lambda new: schema(new, "Thing").update(required=["id", "event", "size"]),
    "another event": lambda new: (
        schema(new, "Gone").update(),
        new["components"]["schemas"].update(New={"properties": {"event": {"const": "new", "type": "string"}}}),
        fields(new, "Thing")["event"]["oneOf"].append({"$ref": "#/components/schemas/New"}),
    ),
    "another name of a schema": lambda new: (
        new["components"]["schemas"].update(Other=schema(new, "Made")),
        fields(new, "Thing")["event"]["oneOf"].__setitem__(0, {"$ref": "#/components/schemas/Other"}),
    ),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_breaks_nobody_is_not_told(change: str) -> None:
    new = copy.deepcopy(OLD)
    HARMLESS[change](new)
    assert breaks(OLD, new) == []


def test_our_own_document_does_not_break_itself() -> None:
    assert breaks(document(), copy.deepcopy(document())) == []
    without = copy.deepcopy(document())
    del without["components"]["schemas"]["DoneData"]["properties"]["status"]
    assert any("{event: done}" in what or ".data.status: removed" in what for what in breaks(document(), without))
