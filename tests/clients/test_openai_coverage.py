"""What is said of the `openai` package is all that the installed one has, and what the page and the code say, too."""

from __future__ import annotations

import inspect
import tomllib
import typing
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import completion_create_params as of_chat
from openai.types.responses import ResponseStreamEvent
from openai.types.responses import response_create_params as of_responses

from apps.api.dialects.openai import history, schemas

ROOT = Path(__file__).parents[2]
FILE = ROOT / "apps/api/dialects/openai/coverage.toml"
COVERAGE: dict[str, dict[str, str]] = tomllib.loads(FILE.read_text(encoding="utf-8"))
PAGE = ROOT / "docs/openai.md"
CLIENT = AsyncOpenAI(api_key="none", base_url="http://127.0.0.1:9")
TITLES = {
    "methods": "method",
    "others": "other resources",
    "chat": "parameter of chat completions",
    "responses": "parameter of responses",
    "events": "event of responses",
    "items": "item",
    "tools": "tool of responses",
}


def resources(of: Any) -> list[str]:
    kinds = type(of).__mro__
    found = {n for k in kinds for n, v in vars(k).items() if isinstance(v, cached_property) and n[:5] != "with_"}
    return sorted(found)


def methods(path: str, of: Any) -> list[str]:
    own = [n for n, _ in inspect.getmembers(type(of), callable) if n[0] != "_" and n[:5] != "with_"]
    return [f"{path}.{name}" for name in own] + [
        method for name in resources(of) for method in methods(f"{path}.{name}", getattr(of, name))
    ]


def params(kind: Any) -> set[str]:
    return set(typing.get_type_hints(kind))


def test_every_method_of_the_package_is_in_the_file() -> None:
    covered = {name.partition(".")[0] for name in COVERAGE["methods"]}
    assert set(resources(CLIENT)) == covered | set(COVERAGE["others"])
    there = {method for name in covered for method in methods(name, getattr(CLIENT, name))}
    assert there == set(COVERAGE["methods"])


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("chat", of_chat.CompletionCreateParamsStreaming),
        ("responses", of_responses.ResponseCreateParamsStreaming),
    ],
)
def test_every_parameter_of_the_package_is_in_the_file(part: str, kind: Any) -> None:
    assert params(kind) == set(COVERAGE[part])


@pytest.mark.parametrize(
    ("part", "model", "others"),
    [
        ("chat", schemas.ChatRequest, schemas.CHAT_OTHERS),
        ("responses", schemas.ResponseRequest, schemas.RESPONSES_OTHERS),
    ],
)
def test_the_code_does_what_the_file_says(part: str, model: Any, others: Any) -> None:
    assert {*model.model_fields, *others} == set(COVERAGE[part])
    done = {name for name, said in COVERAGE[part].items() if not said.startswith("refused")}
    neutral = {name for name, values in others.items() if values == ("*",)}
    assert done == {*model.model_fields, *neutral}


def test_every_event_of_the_package_is_in_the_file() -> None:
    union = typing.get_args(ResponseStreamEvent)[0]
    there = {typing.get_args(one.model_fields["type"].annotation)[0] for one in typing.get_args(union)}
    assert {name for name in COVERAGE["events"] if "*" not in name} <= there
    sent = {name for name, said in COVERAGE["events"].items() if said == "done"}
    code = (FILE.parent / "items.py").read_text(encoding="utf-8")
    told = {name for name in there if name.startswith("response.") and f'"{name}"' in code}
    ends = {f"response.{status}" for status in ("completed", "failed", "incomplete", "queued", "in_progress")}
    assert told | ends == sent


def test_items_that_are_read_are_in_the_file() -> None:
    taken = {*history._ITEM_FIELDS, *history._OF_OTHERS}
    assert taken == {name for name in COVERAGE["items"] if name != "*"}


def table() -> str:
    """What docs/openai.md has of it."""
    lines = []
    for part, title in TITLES.items():
        lines += [f"| {title} | |", "|---|---|"]
        lines += [f"| `{name}` | {said.replace('|', ',')} |" for name, said in COVERAGE[part].items()]
        lines.append("")
    return "\n".join(lines)


def test_the_page_has_the_table() -> None:
    """`python -m tests.clients.test_openai_coverage` writes it there."""
    assert table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    head = text[: text.index("## What is supported\n") + len("## What is supported\n")]
    PAGE.write_text(f"{head}\n{table()}", encoding="utf-8")
