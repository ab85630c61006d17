"""Whatever the document allows, and much that it does not, gets an answer that the document names; and never a 5xx."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from apps.api.dev.embedded import Servers
from tests.conftest import _fleets
from tests.contract import documents, operations
from tests.fleet import HEADERS

for media in ("application/gzip", "application/zip"):
    schemathesis.serializer.alias(media, "application/octet-stream")

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 5
"""Generated requests for each route, of those that fit and of those that do not."""

LONGEST_WAIT = 1.0
"""Seconds. No run ever ends on a server without slots: what waits for one is not waited for."""

OPERATIONS = [label for document in documents() for label, _ in operations(document)]
# What is deleted cannot be asked for.
OPERATIONS.sort(key=lambda label: label.startswith("DELETE "))


@pytest.fixture(scope="module")
def known_operations() -> dict[str, APIOperation[Any, Any, Any, Any]]:
    every = [
        cast(Ok[Any], found).ok()
        for document in documents()
        for found in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    assert sorted(OPERATIONS) == sorted(operation.label for operation in every)
    return {operation.label: operation for operation in every}


@pytest.fixture(scope="module")
async def server(
    servers: Servers, template: str, model_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """The address of an instance of our own that takes prompts and runs none."""
    async for start in _fleets(servers, model_url, tmp_path_factory.mktemp("schema")):
        yield (await start(1, RUNNER_SLOTS="0", DEBUG="false"))[0].url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.fixture(scope="module")
def known(server: str, session: requests.Session) -> dict[str, str]:
    """Values for the parameters of paths that lead to something."""

    def made(method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = session.request(method, f"{server}/api/v1{path}", json=body, headers=HEADERS, timeout=10)
        assert answer.ok, f"{method} {path}: {answer.text}"
        found: dict[str, Any] = answer.json()
        return found

    ids = {"session_id": made("POST", "/sessions", {})["session_id"]}
    ids["run_id"] = made("POST", f"/sessions/{ids['session_id']}/query", {"prompt": "hi"})["run_id"]
    ids["agent"] = made("POST", "/agents", {"name": "known"})["name"]
    ids["webhook_id"] = made("POST", "/webhooks", {"url": "https://127.0.0.1:1/"})["webhook_id"]
    ids["delivery_id"] = made("POST", f"/webhooks/{ids['webhook_id']}/test", {})["delivery_id"]
    ids["schedule_id"] = made("POST", "/schedules", {"cron": "0 0 1 1 *", "prompt": "hi"})["schedule_id"]
    made("POST", "/admin/tenants", {"name": "known"})
    ids["key_id"] = made("POST", "/admin/keys", {"tenant": "known", "name": "known"})["key_id"]
    openai = session.post(f"{server}/compat/openai/v1/conversations", json={}, headers=HEADERS, timeout=10).json()
    ids["conversation_id"] = openai["id"]
    asked: dict[str, Any] = {"model": "claude-sonnet-5-5", "input": "hi", "background": True}
    openai = session.post(f"{server}/compat/openai/v1/responses", json=asked, headers=HEADERS, timeout=10).json()
    ids["response_id"] = openai["id"]
    return ids | _managed(server, session)


def _managed(server: str, session: requests.Session) -> dict[str, str]:
    def made(path: str, **body: Any) -> str:
        url = f"{server}/compat/managed-agents/v1/{path}"
        answer = session.post(url, json=body or None, headers=HEADERS, timeout=10)
        assert answer.ok, f"{path}: {answer.text}"
        return str(answer.json()["id"])

    ids = {"agent_id": made("agents", name="known", model="claude-sonnet-5-5")}
    ids["environment_id"] = made("environments", name="known")
    says = [{"type": "user.message", "content": [{"type": "text", "text": "hi"}]}]
    begin = {"agent": ids["agent_id"], "environment_id": ids["environment_id"], "initial_events": says}
    ids["deployment_id"] = made("deployments", name="known", **begin)
    ids["deployment_run_id"] = made(f"deployments/{ids['deployment_id']}/run")
    return ids


Send = Callable[[Case[Any]], None]


@pytest.fixture
def send(server: str, session: requests.Session) -> Send:
    """Send a request and check its answer. What streams is read up to its headers."""

    def sending(case: Case[Any]) -> None:
        arguments = case.as_transport_kwargs(base_url=server, headers=HEADERS)
        try:
            answer = session.request(**arguments, stream=True, timeout=LONGEST_WAIT)
        except requests.ReadTimeout:
            return
        with closing(answer):
            if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                assert str(answer.status_code) in case.operation.definition.raw["responses"]
                return
            case.validate_response(Response.from_requests(answer, verify=True), checks=CHECKS)

    return sending


def requests_to(operation: APIOperation[Any, Any, Any, Any], known: dict[str, str]) -> st.SearchStrategy[Case[Any]]:
    """Requests with the document's examples, such that fit it, and such that do not; half of them about what exists."""

    def pointed(case: Case[Any], at_known: bool) -> Case[Any]:
        if at_known:
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
        return case

    kinds = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    return st.builds(pointed, st.one_of(kinds + operation.get_strategies_from_examples()), st.booleans())


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_server_answers_as_the_document_says(
    label: str, known_operations: dict[str, APIOperation[Any, Any, Any, Any]], known: dict[str, str], send: Send
) -> None:
    @seed(1)
    @settings(
        max_examples=2 * EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests_to(known_operations[label], known))
    def generated(case: Case[Any]) -> None:
        send(case)

    generated()
