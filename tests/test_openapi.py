"""The OpenAPI document: the file agrees with the code, and the document says all that a client needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from apps.api.openapi import TARGET, export
from apps.api.settings import Settings

EXPORT = "run scripts/export-openapi"
METHODS = ("get", "put", "post", "patch", "delete")

# Every route with a key may answer these; `test_every_error_answer_…` checks their shape.
ALWAYS = {"401", "403", "422", "500", "503"}


@pytest.fixture(scope="module")
def exported() -> str:
    return export()


@pytest.fixture(scope="module")
def document(exported: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(exported, Loader=yaml.CSafeLoader)
    return loaded


# Dialects of older servers keep the statuses and the shape of the originals, and are FastAPI's own.
ALWAYS_COMPAT = {"401", "403", "500"}


def is_compat(name: str) -> bool:
    return " /compat/" in name


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield f"{method.upper()} {path}", methods[method]


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_examples_of_refusals_say_the_figures_of_the_code(document: dict[str, Any]) -> None:
    for said, name in (
        (r"larger than (\d+) bytes", "max_body_bytes"),
        (r"'limit_bytes': (\d+)", "max_body_bytes"),
        (r"may send (\d+) prompts", "rate_limit_query_per_minute"),
        (r"has (\d+) queued runs", "max_queued_runs_per_session"),
    ):
        assert set(re.findall(said, str(document))) == {str(Settings.model_fields[name].default)}


def test_the_file_is_what_the_code_exports(exported: str) -> None:
    assert TARGET.is_file(), EXPORT
    assert TARGET.read_text(encoding="utf-8") == exported, f"the API has changed: {EXPORT}"


def test_the_document_names_its_schemas_only(document: dict[str, Any]) -> None:
    named = set(document["components"]["schemas"])
    assert "HTTPValidationError" not in named, "a route documents FastAPI's own 422 instead of ours"


def test_every_route_has_a_summary_a_description_and_a_tag(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation.get("summary"), name
        assert len(operation.get("description", "")) > 20, f"{name}: write a docstring that says what it does"
        assert operation.get("tags"), name


def test_every_parameter_and_every_field_of_a_body_has_a_description(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), f"{name}: parameter {parameter['name']}"
        body = operation.get("requestBody")
        if body is not None and "application/json" in body["content"]:  # else a file
            schema = resolve(document, body["content"]["application/json"]["schema"])
            assert not is_compat(name) or schema.get("additionalProperties") is not False, name
            for field, described in schema["properties"].items():
                assert described.get("description"), f"{name}: field {field} (options: dialects/native/examples.py)"


def test_every_route_with_a_key_documents_its_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if "security" not in operation:
            assert operation["tags"] == ["health"], f"{name} needs no key"
            continue
        statuses = set(operation["responses"])
        wanted = set(ALWAYS_COMPAT if is_compat(name) else ALWAYS)
        if "{" in name:
            wanted.add("404")
        if "requestBody" in operation:
            fastapi = "/execute-server/" in name or "/chat-server/" in name
            wanted |= {"413", "422" if fastapi else "400"}
        assert wanted <= statuses, f"{name} lacks {sorted(wanted - statuses)}"


def test_every_error_answer_has_our_shape_and_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status < "400" or operation["tags"] == ["health"]:
                continue
            content = answer["content"]["application/json"]
            compat = "Details" if status == "422" else "Detail"
            model = compat if is_compat(name) else "ErrorAnswer"
            assert content["schema"] == {"$ref": f"#/components/schemas/{model}"}, f"{name} {status}"
            example = content["example"]
            assert example["detail"] if is_compat(name) else example["error"]["code"], f"{name} {status}"


def test_examples_of_answers_fit_their_schemas(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            for media, content in answer.get("content", {}).items():
                if "example" in content:
                    errors = list(validator(document, content["schema"]).iter_errors(content["example"]))
                    assert not errors, f"{name} {status} {media}: {errors[0].message}"


def test_examples_of_schemas_fit_them(document: dict[str, Any]) -> None:
    seen = 0
    for name, schema in document["components"]["schemas"].items():
        parts = [(name, schema), *((f"{name}.{field}", s) for field, s in schema.get("properties", {}).items())]
        for where, part in parts:
            for example in part.get("examples", ()):
                errors = list(validator(document, part).iter_errors(example))
                assert not errors, f"{where}: {errors[0].message}"
                seen += 1
    assert seen > 10


def test_every_body_and_every_object_in_an_answer_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if operation["tags"] == ["health"]:
            continue
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        contents += [answer["content"] for status, answer in operation["responses"].items() if answer.get("content")]
        for content in contents:
            for media, described in content.items():
                schema = resolve(document, described.get("schema", {}))
                fields = schema.get("properties", {}).values()
                # A list shows its rows' example, a flat object those of its fields.
                rows = [resolve(document, f.get("items", {})) for f in (schema, *fields)]
                fields = [field for row in (schema, *rows) for field in row.get("properties", {}).values()]
                shown = any("examples" in s for s in (schema, *fields, *rows)) or "example" in described
                assert shown, f"{name}: {media}"
