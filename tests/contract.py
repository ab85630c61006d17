"""What the documents say, for tests that compare it with what servers do: above all that every event is as it says."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema_rs import Draft202012Validator

from apps.api.core.codec import decode
from apps.api.db import Database
from apps.api.openapi import DIRECTORY, TARGET
from apps.api.web import figures

METHODS = ("get", "put", "post", "patch", "delete", "head")


@cache
def document(path: Path = TARGET) -> dict[str, Any]:
    """A document as it was exported: tests/test_openapi.py compares it with the code."""
    loaded: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return loaded


def documents() -> list[dict[str, Any]]:
    """All of them, the native one first."""
    return [document(), *(document(path) for path in sorted(DIRECTORY.glob("*.yaml")) if path != TARGET)]


def everything() -> dict[str, Any]:
    """Paths and schemas of all documents, as if they were one."""
    paths, schemas = dict[str, Any](), dict[str, Any]()
    for found in reversed(documents()):
        paths |= found["paths"]
        schemas |= found["components"]["schemas"]
    return {"paths": paths, "components": {"schemas": schemas}}


def operations(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`GET /api/v1/sessions` and what the document says of it, for each operation."""
    for path, methods in found["paths"].items():
        for method in METHODS:
            if method in methods:
                yield f"{method.upper()} {path}", methods[method]


@cache
def _validator(event: str) -> Draft202012Validator:
    schemas = document()["components"]["schemas"]
    found = schemas["Event"]["discriminator"]["mapping"].get(event)
    assert found, f"the document knows no event {event}"
    return Draft202012Validator({"$ref": found, "components": {"schemas": schemas}})


def check_event(event: str, ident: str | None, data: Any) -> None:
    """Raises AssertionError for an event that is not as the document says."""
    told = {"id": ident, "event": event, "data": data}
    errors = list(_validator(event).iter_errors(told))
    wrong = "\n".join(f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in errors)
    assert not errors, f"{told}\n{wrong}"


async def stored_events_fit(db: Database) -> None:
    """Raises AssertionError for a stored event that is not as the document says."""
    async with db.pool.acquire() as connection, connection.transaction():
        async for row in connection.cursor("SELECT seq, type, data FROM events"):
            data = decode(row["data"])
            told = figures.result(data) if row["type"] == "result" else data
            check_event(row["type"], str(row["seq"]), told)
