"""What of the official API is said to be there, compared with the installed package and with the routes."""

from __future__ import annotations

import re

from apps.api.main import descriptions
from tests.contract import documents
from tests.dialects import managed_sdk

PREFIX = "/compat/managed-agents"
WORDS = re.compile(r"done|not yet.*|refused.*|never.*|not told|always .*|`[^`]+`.* (is|are) refused")


def test_everything_that_the_package_has_is_listed() -> None:
    said = managed_sdk.coverage()
    assert {*said["routes"]} == managed_sdk.routes(), "say in coverage.toml what of the new version is done"
    assert {*said["sent"]} == {*managed_sdk.sent()}
    assert {*said["told"]} == {*managed_sdk.told()}
    refused = {f"send {name}" for name, what in said["sent"].items() if what != "done"}
    refused |= {f"event {name}" for name, what in said["told"].items() if what != "done"}
    has = {name: own for name, own in managed_sdk.fields().items() if name not in refused}
    assert {name: {*own["done"], *own} - {"done"} for name, own in said["fields"].items()} == has


def test_what_is_said_is_said_in_the_same_words() -> None:
    said = managed_sdk.coverage()
    words = [what for part in ("routes", "sent", "told") for what in said[part].values()]
    words += [what for own in said["fields"].values() for name, what in own.items() if name != "done"]
    assert [what for what in words if not WORDS.fullmatch(what)] == []


def test_the_routes_that_are_done_are_those_that_there_are() -> None:
    assert PREFIX in descriptions()
    paths = next(found["paths"] for found in documents() if any(path.startswith(PREFIX) for path in found["paths"]))
    there = {f"{method.upper()} {path.removeprefix(PREFIX)}" for path, methods in paths.items() for method in methods}
    said = managed_sdk.coverage()["routes"]
    done = {route for route, what in said.items() if what == "done"}
    assert done <= there
    assert {said[route] for route in there - done} == {
        "refused: a subagent is a part of its session",
        "refused: tokens of repositories are secrets of the tenant, not of a session",
    }


def test_the_page_has_what_is_said() -> None:
    assert managed_sdk.PAGE.read_text(encoding="utf-8") == managed_sdk.page(), "python -m tests.dialects.managed_sdk"
