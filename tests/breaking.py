"""What a change of an OpenAPI document breaks for clients that were made for the document before it.

A request that was valid must stay valid, and an answer must still be one that such a client can read. New operations,
new optional fields of bodies and new fields of answers break nobody: clients ignore what they do not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tests.contract import operations

Document = Mapping[str, Any]
Way = Literal["request", "answer"]

_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def breaks(old: Document, new: Document) -> list[str]:
    """One sentence for each thing that breaks a client of the old document."""
    before, after = dict(operations(dict(old))), dict(operations(dict(new)))
    found = [f"{name}: removed" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        found += [f"{name}: {what}" for what in _Comparison(old, new).of_operation(before[name], after[name])]
    gone = old.get("webhooks", {}).keys() - new.get("webhooks", {}).keys()
    found += [f"webhook {name}: removed" for name in gone]
    for name in old.get("webhooks", {}).keys() & new.get("webhooks", {}).keys():
        bodies = [document["webhooks"][name]["post"]["requestBody"] for document in (old, new)]
        told = _Comparison(old, new).of_contents(bodies[0]["content"], bodies[1]["content"], "body", "answer")
        found += [f"webhook {name}: {what}" for what in told]
    return sorted(dict.fromkeys(found))


class _Comparison:
    """Of two documents, whose components they may refer to."""

    def __init__(self, old: Document, new: Document) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[str, str, Way]] = set()

    def of_operation(self, old: Document, new: Document) -> Iterator[str]:
        if old["operationId"] != new["operationId"]:
            yield f"is called {new['operationId']} now, it was {old['operationId']}"
        yield from self._parameters(old, new)
        yield from self._body(old, new)
        for status, answer in old["responses"].items():
            if status.startswith("2"):
                yield from self._answer(status, answer, new["responses"])

    def _parameters(self, old: Document, new: Document) -> Iterator[str]:
        before, after = (
            {(p["in"], p["name"]): p for p in (_at(document, one) for one in operation.get("parameters", ()))}
            for document, operation in ((self._old, old), (self._new, new))
        )
        for kind, name in before.keys() - after.keys():
            yield f"{kind} parameter {name}: removed"
        for kind, name in after:
            parameter, was = after[kind, name], before.get((kind, name))
            if parameter.get("required") and not (was or {}).get("required"):
                yield f"{kind} parameter {name}: is required now"
            if was is not None:
                yield from self.of_schemas(was["schema"], parameter["schema"], f"{kind} parameter {name}", "request")

    def _body(self, old: Document, new: Document) -> Iterator[str]:
        before, after = old.get("requestBody"), new.get("requestBody")
        if before is None and after is not None and after.get("required"):
            yield "body: is required now"
        if before is not None and after is None:
            yield "body: is refused now"
        if before is not None and after is not None:
            if after.get("required") and not before.get("required"):
                yield "body: is required now"
            yield from self.of_contents(before["content"], after["content"], "body", "request")

    def _answer(self, status: str, old: Document, answers: Document) -> Iterator[str]:
        if status not in answers:
            yield f"{status}: is not answered any more"
            return
        before, after = _at(self._old, old), _at(self._new, answers[status])
        yield from self.of_contents(before.get("content", {}), after.get("content", {}), status, "answer")
        for name in before.get("headers", {}).keys() - after.get("headers", {}).keys():
            yield f"{status}: header {name}: removed"

    def of_contents(self, old: Document, new: Document, where: str, way: Way) -> Iterator[str]:
        for media in old:
            if media not in new:
                yield f"{where}: no {media} any more"
            else:
                before, after = old[media].get("schema", {}), new[media].get("schema", {})
                yield from self.of_schemas(before, after, where, way)

    def of_schemas(self, old: Document, new: Document, where: str, way: Way) -> Iterator[str]:
        pair = (old.get("$ref", ""), new.get("$ref", ""), way)
        if all(pair) and pair in self._seen:
            return
        self._seen.add(pair)
        old, new = _at(self._old, old), _at(self._new, new)
        before, after = self._variants(self._old, old), self._variants(self._new, new)
        if len(before) > 1 or len(after) > 1:
            yield from self._of_variants(before, after, where, way)
            return
        yield from self._of_types(old, new, where, way)
        yield from _of_bounds(old, new, where, way)
        yield from self._of_objects(old, new, where, way)
        if "items" in old and "items" in new:
            yield from self.of_schemas(old["items"], new["items"], f"{where}[]", way)
        values = [schema.get("additionalProperties") for schema in (old, new)]
        if isinstance(values[0], dict) and isinstance(values[1], dict):
            yield from self.of_schemas(values[0], values[1], f"{where}.*", way)

    def _variants(self, document: Document, schema: Document) -> dict[str, Document]:
        """What a schema is one of, by what tells them apart: the constants of an object, else the type."""
        found = [_at(document, one) for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))] or [schema]
        named: dict[str, Document] = {}
        for one in found:
            inner = self._variants(document, one) if one is not schema else {_name_of(one): one}
            for name, variant in inner.items():
                named[name if name not in named else f"{name}'"] = variant
        return named

    def _of_variants(
        self, before: Mapping[str, Document], after: Mapping[str, Document], where: str, way: Way
    ) -> Iterator[str]:
        # Of a request the server may take more than before, of an answer it may give less.
        for name in before.keys() - after.keys() if way == "request" else after.keys() - before.keys():
            if not (way == "answer" and name.startswith("{")):  # a new kind of event is one that clients ignore
                yield f"{where}: {name} is refused now" if way == "request" else f"{where}: may be {name} now"
        if way == "answer":
            for name in before.keys() - after.keys():
                if name.startswith("{"):
                    yield f"{where}: {name} does not come any more"
        for name in before.keys() & after.keys():
            yield from self.of_schemas(before[name], after[name], where, way)

    def _of_types(self, old: Document, new: Document, where: str, way: Way) -> Iterator[str]:
        before, after = old.get("type"), new.get("type")
        wider = {"integer": "number"}
        given, taken = (before, after) if way == "request" else (after, before)
        if given != taken and taken is not None and wider.get(str(given)) != taken:
            yield f"{where}: is {after or 'anything'} now, it was {before or 'anything'}"
        words = [_words(schema) for schema in (old, new)]
        if words[0] is not None and words[1] is not None and way == "request" and words[0] - words[1]:
            yield f"{where}: {', '.join(sorted(words[0] - words[1]))} is refused now"
        if way == "request" and words[0] is None and words[1] is not None:
            yield f"{where}: only some words are taken now"
        if old.get("format") != new.get("format") and (way == "answer" or "format" in new):
            yield f"{where}: has the format {new.get('format')} now, it had {old.get('format')}"
        if way == "request" and new.get("pattern") not in (None, old.get("pattern")):
            yield f"{where}: must match {new['pattern']} now"

    def _of_objects(self, old: Document, new: Document, where: str, way: Way) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        required = [set(schema.get("required", ())) for schema in (old, new)]
        for name in before.keys() - after.keys():
            if way == "answer" or new.get("additionalProperties") is False:
                yield f"{where}.{name}: removed"
        for name in sorted(required[1] - required[0] if way == "request" else required[0] - required[1]):
            if name in after:
                yield f"{where}.{name}: {'is required now' if way == 'request' else 'may be missing now'}"
        for name in before.keys() & after.keys():
            yield from self.of_schemas(before[name], after[name], f"{where}.{name}", way)


def _of_bounds(old: Document, new: Document, where: str, way: Way) -> Iterator[str]:
    if way == "answer":
        return
    for name in (*_LEAST, *_MOST):
        beyond = -math.inf if name in _LEAST else math.inf
        before, after = old.get(name, beyond), new.get(name, beyond)
        if after > before if name in _LEAST else after < before:
            yield f"{where}: {name} is {after} now, it was {before}"


def _words(schema: Document) -> set[str] | None:
    """What a text may be, where that is listed."""
    if "const" in schema:
        return {str(schema["const"])}
    return set(map(str, schema["enum"])) if "enum" in schema else None


def _name_of(schema: Document) -> str:
    fields = schema.get("properties", {})
    constants = {name: field["const"] for name, field in fields.items() if isinstance(field.get("const"), str)}
    if constants:
        name = next((name for name in ("event", "type", "status") if name in constants), min(constants))
        return f"{{{name}: {constants[name]}}}"
    return str(schema.get("const") or schema.get("type") or "anything")


def _at(document: Document, part: Document) -> Document:
    """What a reference leads to, with what stands beside it."""
    while "$ref" in part:
        found: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = {**found, **{key: value for key, value in part.items() if key != "$ref"}}
    return part
