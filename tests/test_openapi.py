"""The OpenAPI documents: the files agree with the code, and say all that a client needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from apps.api.codes import ErrorCode
from apps.api.core.sessions.requests import EVENTS
from apps.api.dialects.native.content_blocks import Ours, Theirs
from apps.api.dialects.native.event_schemas import Event
from apps.api.openapi import TARGET, export
from apps.api.settings import Settings
from tests.contract import check_event, operations
from tests.test_documents import events_in_the_code

EXPORT = "run scripts/export-openapi"

# Every route with a key may answer these; `test_every_error_answer_…` checks their shape.
ALWAYS = {"401", "403", "422", "500", "503"}

# Dialects of older servers keep the statuses and the shape of the originals, and are FastAPI's own.
ALWAYS_COMPAT = {"401", "403", "500"}


@pytest.fixture(scope="module")
def exported() -> dict[Path, str]:
    return export()


@pytest.fixture(scope="module")
def documents(exported: dict[Path, str]) -> list[dict[str, Any]]:
    """The native one first."""
    return [yaml.load(text, Loader=yaml.CSafeLoader) for text in exported.values()]


@pytest.fixture(scope="module")
def document(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


OFFICIAL = {"openai": "OpenAIError", "managed-agents": "ManagedError"}
"""Surfaces for the official clients of others, and their model of an error."""


FRONT_ENDS = ("ag-ui", "ui")
"""Surfaces for front ends, whose errors are the native API's."""


def surface_of(name: str) -> str | None:
    """What an operation belongs to beside the native API."""
    first, _, rest = name.partition(" /")[2].partition("/")
    return rest.split("/")[0] if first == "compat" else first if first in FRONT_ENDS else None


def is_compat(name: str) -> bool:
    """Whether it is of an older server."""
    return surface_of(name) not in (None, *OFFICIAL, *FRONT_ENDS)


def everywhere(documents: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Each operation, with its document and its name."""
    for document in documents:
        for name, operation in operations(document):
            yield document, name, operation


def resolve(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: dict[str, Any] = document["components"][kind][name]
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def schemas_in(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for inner in part.values():
            yield from schemas_in(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from schemas_in(inner)


def test_the_documents_are_valid_and_all_that_they_refer_to_is_there(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        OPENAPI_31_VALIDATOR.validate(document)
        for part in schemas_in(document):
            if isinstance(part.get("$ref"), str):
                assert resolve(document, part), part
            for there in part.get("discriminator", {}).get("mapping", {}).values():
                assert resolve(document, {"$ref": there}), there


def test_examples_of_refusals_say_the_figures_of_the_code(documents: list[dict[str, Any]]) -> None:
    for said, name in (
        (r"larger than (\d+) bytes", "max_body_bytes"),
        (r"'limit_bytes': (\d+)", "max_body_bytes"),
        (r"may send (\d+) prompts", "rate_limit_query_per_minute"),
        (r"has (\d+) queued runs", "max_queued_runs_per_session"),
    ):
        assert set(re.findall(said, str(documents))) == {str(Settings.model_fields[name].default)}


def test_the_files_are_what_the_code_exports(exported: dict[Path, str]) -> None:
    assert next(iter(exported)) == TARGET
    assert {path for path in TARGET.parent.iterdir() if path.suffix == ".yaml"} == set(exported), EXPORT
    for path, text in exported.items():
        assert path.read_text(encoding="utf-8") == text, f"the API has changed: {EXPORT}"


def test_each_document_has_its_own_routes_only(documents: list[dict[str, Any]]) -> None:
    own = [{surface_of(f"GET {path}") for path in document["paths"]} for document in documents]
    older = [{"chat-server"}, {"code-server"}, {"execute-server"}]
    assert own == [{None}, *older, {"managed-agents"}, {"openai"}, {"ag-ui"}, {"ui"}]


def test_the_documents_name_their_schemas_only(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        named = document["components"]["schemas"]
        assert "HTTPValidationError" not in named, "a route documents FastAPI's own 422 instead of ours"
        assert [name for name in named if not re.fullmatch(r"[A-Z][A-Za-z0-9]+", name)] == []
        used = {part["$ref"] for part in schemas_in(document) if isinstance(part.get("$ref"), str)}
        assert {f"#/components/schemas/{name}" for name in named} - used == set()


def test_every_operation_has_an_id_of_its_own_that_reads_as_a_function(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        ids = [operation["operationId"] for _, operation in operations(document)]
        ids += [told["post"]["operationId"] for told in document.get("webhooks", {}).values()]
        assert len(ids) == len(set(ids))
        assert [id_ for id_ in ids if not re.fullmatch(r"[a-z]+(_[a-z]+)*", id_)] == []


def test_every_route_has_a_summary_a_description_and_a_tag_that_is_explained(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        explained = {tag["name"]: tag["description"] for tag in document["tags"]}
        used = set()
        for name, operation in operations(document):
            assert operation.get("summary"), name
            assert len(operation.get("description", "")) > 20, f"{name}: write a docstring that says what it does"
            assert operation.get("tags"), name
            used |= set(operation["tags"])
        assert used <= set(explained)
        assert set(explained) - used <= {"health"}
        assert document["servers"]
        assert document["components"]["securitySchemes"]


def test_every_parameter_and_every_field_of_a_body_has_a_description(documents: list[dict[str, Any]]) -> None:
    for document, name, operation in everywhere(documents):
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), f"{name}: parameter {parameter['name']}"
        body = operation.get("requestBody")
        if body is not None and "application/json" in body["content"]:  # else a file
            schema = resolve(document, body["content"]["application/json"]["schema"])
            assert not is_compat(name) or schema.get("additionalProperties") is not False, name
            for field, described in schema["properties"].items():
                assert described.get("description"), f"{name}: field {field} (options: dialects/native/examples.py)"


def test_every_route_with_a_key_documents_its_errors(documents: list[dict[str, Any]]) -> None:
    for _, name, operation in everywhere(documents):
        if "security" not in operation:
            assert operation["tags"] == ["health"], f"{name} needs no key"
            continue
        statuses = set(operation["responses"])
        wanted = set(ALWAYS_COMPAT if is_compat(name) else ALWAYS)
        if surface_of(name) in OFFICIAL:
            wanted = (wanted | {"400"}) - {"422"}
        if "{" in name:
            wanted.add("404")
        if "requestBody" in operation:
            fastapi = "/execute-server/" in name or "/chat-server/" in name
            wanted |= {"413", "422" if fastapi else "400"}
        assert wanted <= statuses, f"{name} lacks {sorted(wanted - statuses)}"


def test_every_error_answer_has_our_shape_and_an_example(documents: list[dict[str, Any]]) -> None:
    for document, name, operation in everywhere(documents):
        for status, answer in operation["responses"].items():
            if status < "400" or operation["tags"] == ["health"]:
                continue
            assert surface_of(name) or set(answer) == {"$ref"}, f"{name} {status} is not shared"
            content = resolve(document, answer)["content"]["application/json"]
            compat = "Details" if status == "422" else "Detail"
            model = OFFICIAL.get(surface_of(name) or "", compat if is_compat(name) else "ErrorAnswer")
            assert content["schema"] == {"$ref": f"#/components/schemas/{model}"}, f"{name} {status}"
            example = content["example"]
            said = (
                example["detail"]
                if is_compat(name)
                else example["error"]["type" if surface_of(name) in OFFICIAL else "code"]
            )
            assert said, f"{name} {status}"


def test_errors_have_codes_that_are_listed(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["ErrorCode"]["enum"] == list(get_args(ErrorCode))
    assert schemas["ErrorBody"]["properties"]["code"]["$ref"] == "#/components/schemas/ErrorCode"


def test_examples_of_answers_fit_their_schemas(documents: list[dict[str, Any]]) -> None:
    for document, name, operation in everywhere(documents):
        answers = {**operation["responses"], "body": operation.get("requestBody", {})}
        for status, answer in answers.items():
            for media, content in resolve(document, answer).get("content", {}).items():
                if "example" in content:
                    errors = list(validator(document, content["schema"]).iter_errors(content["example"]))
                    assert not errors, f"{name} {status} {media}: {errors[0].message}"


def test_examples_of_schemas_fit_them(documents: list[dict[str, Any]]) -> None:
    seen = 0
    for document in documents:
        for name, schema in document["components"]["schemas"].items():
            parts = [(name, schema), *((f"{name}.{field}", s) for field, s in schema.get("properties", {}).items())]
            for where, part in parts:
                for example in part.get("examples", ()):
                    errors = list(validator(document, part).iter_errors(example))
                    assert not errors, f"{where}: {errors[0].message}"
                    seen += 1
    assert seen > 10


def test_every_body_and_every_object_in_an_answer_has_an_example(documents: list[dict[str, Any]]) -> None:
    for document, name, operation in everywhere(documents):
        if operation["tags"] == ["health"]:
            continue
        answers = (resolve(document, answer) for answer in operation["responses"].values())
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        contents += [answer["content"] for answer in answers if answer.get("content")]
        for content in contents:
            for media, described in content.items():
                schema = resolve(document, described.get("schema", {}))
                fields = schema.get("properties", {}).values()
                # A list shows its rows' example, a flat object those of its fields.
                rows = [resolve(document, f.get("items", {})) for f in (schema, *fields)]
                fields = [field for row in (schema, *rows) for field in row.get("properties", {}).values()]
                shown = any("examples" in s for s in (schema, *fields, *rows)) or "example" in described
                assert shown, f"{name}: {media}"


# --- events --------------------------------------------------------------------------------------------------------


def test_streams_and_pages_of_events_lead_to_the_schema_of_an_event(document: dict[str, Any]) -> None:
    streams = 0
    for name, operation in operations(document):
        content = operation["responses"].get("200", {}).get("content", {})
        if "text/event-stream" in content:
            assert content["text/event-stream"]["schema"] == {"$ref": "#/components/schemas/Event"}, name
            streams += 1
    assert streams == 5
    assert document["components"]["schemas"]["EventList"]["properties"]["data"]["items"]["$ref"].endswith("/Event")


def test_every_event_that_the_code_sends_is_in_the_union(document: dict[str, Any]) -> None:
    union = document["components"]["schemas"]["Event"]
    assert union["discriminator"]["propertyName"] == "event"
    assert set(union["discriminator"]["mapping"]) == events_in_the_code() | set(EVENTS.values())
    assert len(union["oneOf"]) == len(union["discriminator"]["mapping"])


def test_what_we_make_is_closed_and_what_the_sdk_makes_is_open(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    of_events = validator(document, {"$ref": "#/components/schemas/Event"})
    assert of_events.is_valid(schemas["Event"]["examples"][0])

    def below(kind: type[BaseModel]) -> Iterator[str]:
        for one in kind.__subclasses__():
            yield one.__name__
            yield from below(one)

    for name in set(below(Ours)) & set(schemas):
        assert schemas[name]["additionalProperties"] is False, name
    for name in set(below(Theirs)) & set(schemas):
        assert schemas[name]["additionalProperties"] is True, name
    assert Event.__name__ in schemas


def test_an_event_that_is_not_as_the_document_says_is_found(document: dict[str, Any]) -> None:
    told = document["components"]["schemas"]["Event"]["examples"][0]
    check_event(told["event"], told["id"], told["data"])
    wrong: tuple[tuple[str, str | None, Any], ...] = (
        ("unknown", told["id"], told["data"]),
        (told["event"], None, told["data"]),
        (told["event"], told["id"], {**told["data"], "more": 1}),
        (told["event"], told["id"], {**told["data"], "status": "queued"}),
        ("status", told["id"], {**told["data"], "status": "unknown"}),
        ("queued", told["id"], told["data"]),
    )
    for event in wrong:
        with pytest.raises(AssertionError):
            check_event(*event)


# --- webhooks ------------------------------------------------------------------------------------------------------


def test_every_message_to_webhooks_is_described(document: dict[str, Any]) -> None:
    types = {*document["components"]["schemas"]["WebhookType"]["enum"], "webhook.test"}
    assert set(document["webhooks"]) == types
    for type_, told in document["webhooks"].items():
        schema = told["post"]["requestBody"]["content"]["application/json"]["schema"]
        [example] = resolve(document, schema)["examples"]
        assert example["type"] == type_
        assert validator(document, schema).is_valid(example)
        assert not validator(document, schema).is_valid({**example, "type": "run.unknown"})
