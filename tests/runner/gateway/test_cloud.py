"""The gateway before Amazon Bedrock and Google Vertex: what they are asked, by what right, and what comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest

from apps.api.core.network.model_api import ModelApi
from apps.api.runner.gateway.cloud import EVENT_STREAM, decoder
from apps.demo_model.server import serving
from tests.clouds import Bedrock, Vertex, frame_of
from tests.runner.gateway.test_gateway import ASKED, Place, gateway_before
from tests.world import until

IDS = {
    "eu.anthropic.claude-sonnet-5-5-v1:0": "claude-sonnet-5-5",
    "arn:aws:bedrock:eu-test-1:1:inference-profile/x": "claude-haiku-5-5",
    "claude-sonnet-5-5@20260301": "claude-sonnet-5-5",
    "claude-opus-5-5": "claude-opus-5-5",
}
MAP = {
    "bedrock": "claude-sonnet-5-5=eu.anthropic.claude-sonnet-5-5-v1:0,"
    "*haiku*=arn:aws:bedrock:eu-test-1:1:inference-profile/x",
    "vertex": "*sonnet-5-5=claude-sonnet-5-5@20260301",
}


@asynccontextmanager
async def before(cloud: Bedrock | Vertex, url: str, **more: Any) -> AsyncIterator[Place]:
    async def operators(_tenant_id: UUID) -> ModelApi | None:
        return None

    if isinstance(cloud, Bedrock):
        given: dict[str, Any] = {
            "claude_code_use_bedrock": True,
            "aws_region": cloud.region,
            "anthropic_bedrock_base_url": url,
        }
    else:
        given = {
            "claude_code_use_vertex": True,
            "cloud_ml_region": cloud.region,
            "anthropic_vertex_base_url": f"{url}/v1",
        }
        given |= {"anthropic_vertex_project_id": cloud.project}
    name = "bedrock" if isinstance(cloud, Bedrock) else "vertex"
    given |= {"cloud_model_ids": MAP[name], "anthropic_api_key": None, "anthropic_base_url": None}
    async with gateway_before(url, operators, **given, **more) as place:
        yield place


@pytest.fixture
async def bedrock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Bedrock, Place]]:
    cloud = Bedrock(IDS, token="token-of-the-session")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cloud.secret)
    monkeypatch.setenv("AWS_SESSION_TOKEN", cloud.token or "")
    with serving(cloud.wrap) as url:
        async with before(cloud, url) as place:
            yield cloud, place


@pytest.fixture
async def vertex(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[tuple[Vertex, Place]]:
    cloud, file = Vertex(IDS), tmp_path / "account.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with serving(cloud.wrap) as url:
        file.write_text(json.dumps(cloud.credentials(url)))
        async with before(cloud, url) as place:
            yield cloud, place


@pytest.fixture(params=["bedrock", "vertex"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def events(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("event:")]


async def test_a_stream_comes_as_the_messages_api_sends_it_and_is_counted(
    either: tuple[Bedrock | Vertex, Place], model_url: str
) -> None:
    cloud, place = either
    through = await place.ask("/v1/messages?beta=true", stream=True)
    async with httpx2.AsyncClient(headers={"x-api-key": "any"}) as direct:
        past = await direct.post(f"{model_url}/v1/messages", json=ASKED | {"stream": True})
    assert cloud.refused == []
    assert (through.status_code, through.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert events(through.text) == events(past.text)
    await until(lambda: len(place.noted) == 1)
    used = place.noted[0].used
    assert used.complete
    assert used.model == "claude-sonnet-5-5"
    assert used.input_tokens > 0 < used.output_tokens


async def test_an_answer_in_one_piece_comes_as_it_is(either: tuple[Bedrock | Vertex, Place]) -> None:
    cloud, place = either
    answer = await place.ask()
    assert (answer.status_code, answer.json()["type"]) == (200, "message"), cloud.refused
    await until(lambda: len(place.noted) == 1)
    assert place.noted[0].used.complete


async def test_bedrock_is_asked_for_its_own_names_with_the_betas_in_the_body(bedrock: tuple[Bedrock, Place]) -> None:
    cloud, place = bedrock
    given = {"anthropic-beta": "one-1,two-2", "anthropic-version": "2023-06-01", "x-stainless-lang": "js"}
    for model in ("claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"):
        answer = await place.client.post("/v1/messages", json=ASKED | {"model": model, "stream": True}, headers=given)
        assert answer.status_code == 200, cloud.refused
    assert [asked.path for asked in cloud.asked] == [
        "/model/eu.anthropic.claude-sonnet-5-5-v1:0/invoke-with-response-stream",
        "/model/arn:aws:bedrock:eu-test-1:1:inference-profile%2Fx/invoke-with-response-stream",
        "/model/claude-opus-5-5/invoke-with-response-stream",
    ]
    assert {tuple(asked.body["anthropic_beta"]) for asked in cloud.asked} == {("one-1", "two-2")}
    assert not any(place.holder.token in str(asked) for asked in cloud.asked)
    counted = await place.ask("/v1/messages/count_tokens")
    assert (counted.status_code, counted.json()["error"]["type"]) == (404, "not_found_error")


async def test_vertex_is_asked_with_a_token_of_the_service_account(vertex: tuple[Vertex, Place]) -> None:
    cloud, place = vertex
    answer = await place.client.post("/v1/messages", json=ASKED | {"stream": True}, headers={"anthropic-beta": "one-1"})
    assert answer.status_code == 200, cloud.refused
    assert (await place.ask("/v1/messages/count_tokens?beta=true")).json()["input_tokens"] > 0
    base = "/v1/projects/project-of-the-tests/locations/europe-test1/publishers/anthropic/models"
    assert [asked.path for asked in cloud.asked] == [
        f"{base}/claude-sonnet-5-5@20260301:streamRawPredict",
        f"{base}/count-tokens:rawPredict",
    ]
    assert cloud.asked[0].headers["anthropic-beta"] == "one-1"
    assert cloud.tokens == ["token-1"]
    cloud.tokens[:] = ["another"]
    assert (await place.ask()).status_code == 403


@pytest.mark.parametrize("status", [400, 429, 503, 529])
async def test_a_clouds_refusal_keeps_its_status_and_when_to_ask_again(
    either: tuple[Bedrock | Vertex, Place], status: int
) -> None:
    cloud, place = either
    cloud.fails = (
        status,
        {"retry-after": "7", "x-amzn-errortype": "Some", "x-account": "mine"},
        {"message": "Too many"},
    )
    answer = await place.ask(stream=True)
    assert (answer.status_code, answer.headers["retry-after"], answer.json()) == (status, "7", {"message": "Too many"})
    assert "x-amzn-errortype" not in answer.headers
    await until(lambda: len(place.noted) == 1)
    assert place.noted[0].status == status


@pytest.mark.parametrize("model", ["", "..", None, 5, "../../x"])
async def test_a_name_that_leads_elsewhere_is_no_model(either: tuple[Bedrock | Vertex, Place], model: Any) -> None:
    cloud, place = either
    answer = await place.ask(model=model)
    assert 400 <= answer.status_code < 500
    assert all("/models/" in asked.path or asked.path.startswith("/model/") for asked in cloud.asked)
    assert cloud.refused == []


@pytest.mark.parametrize("body", [b"", b"[]", b"no json", b'{"model":'])
async def test_a_body_that_is_none_is_refused_here(either: tuple[Bedrock | Vertex, Place], body: bytes) -> None:
    cloud, place = either
    answer = await place.client.post("/v1/messages", content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert cloud.asked == []


async def test_without_credentials_nothing_is_asked_and_the_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    cloud = Bedrock(IDS, region="eu-test-2")
    with serving(cloud.wrap) as url:
        async with before(cloud, url) as place:
            answer = await place.ask()
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
            assert [error.code for error in place.refused] == ["model_not_configured"]
    assert cloud.asked == []


@pytest.mark.parametrize("said", [b"no events at all, but enough bytes", frame_of(b"{}")[:-1] + b"x"])
async def test_what_is_no_stream_of_events_breaks_off(bedrock: tuple[Bedrock, Place], said: bytes) -> None:
    cloud, place = bedrock
    cloud.fails = 200, {"content-type": EVENT_STREAM}, said
    with pytest.raises(httpx2.TransportError):
        await place.ask(stream=True)
    await until(lambda: len(place.noted) == 1)
    assert not place.noted[0].used.complete


async def test_bedrock_takes_a_key_of_its_own_in_place_of_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "a-key-of-bedrock")
    cloud = Bedrock(IDS, bearer="a-key-of-bedrock")
    with serving(cloud.wrap) as url:
        async with before(cloud, url) as place:
            assert (await place.ask()).status_code == 200, cloud.refused


def test_an_exception_in_the_middle_is_told_as_the_messages_api_tells_it() -> None:
    decode = decoder(EVENT_STREAM)
    assert decode is not None
    told = decode(frame_of(b'{"type":"ping"}')).decode()
    assert told == 'event: ping\ndata: {"type":"ping"}\n\n'
    told = decode(frame_of(b'{"message": "slow down"}', exception="throttlingException")).decode()
    assert told.startswith("event: error\ndata: ")
    assert json.loads(told.partition("data: ")[2])["error"]["message"] == "slow down"


def test_what_is_one_already_is_not_decoded() -> None:
    assert decoder("text/event-stream") is None
    assert decoder("application/json") is None
