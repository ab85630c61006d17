"""The default model: asked for by the server and by `doctor`, at the demo model and at things that answer otherwise."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from apps.api import doctor
from apps.api.core.network import default_model
from apps.api.core.tenant import model_credentials
from apps.api.db import Database
from apps.api.settings import Settings

ROOT = Path(__file__).parents[3]
Asked = Callable[[bytes], Awaitable[None]]


def named(model: str, url: str, **more: object) -> Settings:
    given = {"default_model": model, "anthropic_base_url": url, "anthropic_api_key": "a-key", **more}
    return Settings(_env_file=None, **given)  # type: ignore[arg-type]


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The address of a server that says just this to every request, or nothing at all."""
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not answer:
            await silent.wait()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        silent.set()
        server.close()


def http(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        (Settings.model_fields["default_model"].default, "ok"),
        ("claude-opus-5-5[1m]", "ok"),
        ("claude-nonexistent-9", "missing"),
        ("sonnet", "unknown"),
    ],
)
async def test_the_model_api_says_whether_it_has_the_default_model(model_url: str, model: str, answer: str) -> None:
    assert await default_model.ask(named(model, model_url)) == answer


async def test_without_any_credential_nobody_is_asked() -> None:
    assert await default_model.ask(Settings(_env_file=None)) == "unknown"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (http(401, '{"error": {"type": "authentication_error"}}'), "unauthorized"),
        (http(404, "<h1>no such path at this gateway</h1>"), "unknown"),
        (http(404, '{"error": {"type": "not_found_error", "message": "Not Found"}}'), "unknown"),
        (http(503, "later"), "unknown"),
        (b"this is no HTTP\r\n\r\n", "unknown"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "unknown"),
        (b"", "unknown"),
    ],
)
async def test_only_a_clear_answer_counts(said: bytes, answer: str) -> None:
    async with answering(said) as url, asyncio.timeout(30):
        assert await default_model.ask(named("claude-sonnet-5-5", url)) == answer


async def test_a_model_api_that_cannot_be_reached_is_no_error() -> None:
    assert await default_model.ask(named("claude-sonnet-5-5", "http://127.0.0.1:1")) == "unknown"
    assert await default_model.ask(named("claude-sonnet-5-5", "no url at all")) == "unknown"


@pytest.mark.parametrize(
    ("model", "verdict", "words"),
    [
        ("claude-sonnet-5-5", "ok", "claude-sonnet-5-5, ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL set; it answers"),
        ("claude-nonexistent-9", "FAIL", "claude-nonexistent-9: the model API does not have it: set DEFAULT_MODEL"),
        ("opus", "warn", "opus, ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL set; that is a short name of the CLI's"),
    ],
)
async def test_doctor_tells(model_url: str, model: str, verdict: str, words: str) -> None:
    check = await doctor.model.model(named(model, model_url))
    assert (check.verdict, check.finding[: len(words)]) == (verdict, words)


async def test_a_server_learns_of_a_retired_default_model_and_says_so(model_url: str) -> None:
    watch = default_model.Watch(named("claude-nonexistent-9", model_url))
    with capture_logs() as logs:
        await watch.look()
    assert watch.answer == "missing"
    assert [(line["log_level"], line["event"]) for line in logs] == [("error", "model.default_unusable")]


@pytest.mark.parametrize(
    ("environment", "given", "words"),
    [
        (
            {"CLAUDE_CODE_USE_FOUNDRY": "yes"},
            {"anthropic_base_url": "http://gateway"},
            "CLAUDE_CODE_USE_FOUNDRY is set",
        ),
        ({}, {"claude_code_use_bedrock": True, "anthropic_api_key": "k"}, "CLAUDE_CODE_USE_BEDROCK without AWS_REGION"),
        ({}, {"claude_code_use_vertex": True, "cloud_ml_region": "global"}, "CLAUDE_CODE_USE_VERTEX without"),
        ({}, {"claude_code_use_vertex": True, "claude_code_use_bedrock": True}, "CLAUDE_CODE_USE_BEDROCK and"),
        ({}, {"anthropic_base_url": "http://gateway"}, "ANTHROPIC_BASE_URL without ANTHROPIC_API_KEY"),
        ({}, {}, "no ANTHROPIC_API_KEY: set one"),
    ],
)
def test_a_server_whose_agents_would_reach_no_model_is_refused_with_what_to_set(
    environment: dict[str, str | None], given: dict[str, Any], words: str
) -> None:
    settings = Settings(_env_file=None, **given)
    assert (default_model.refusal(settings, environment) or "").startswith(words)
    assert default_model.refusal(settings.model_copy(update={"runner_slots": 0}), environment) is None


async def started(settings: Settings, **more: str) -> subprocess.CompletedProcess[str]:
    given = {"DATABASE_URL": settings.database_url.get_secret_value(), "RUNNER_SLOTS": "1", "DEBUG": "true"}
    given |= {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **more}
    words = [sys.executable, "-m", "apps.api.cli", "serve"]
    return await asyncio.to_thread(subprocess.run, words, env=given, capture_output=True, text=True, timeout=60)


async def test_a_server_whose_agents_would_reach_no_model_does_not_start(settings: Settings) -> None:
    done = await started(settings, CLAUDE_CODE_USE_FOUNDRY="1")
    assert done.returncode == 2
    assert "cannot start: CLAUDE_CODE_USE_FOUNDRY is set" in done.stderr


async def test_a_server_of_several_tenants_does_not_start_with_a_subscription_alone(
    db: Database, settings: Settings
) -> None:
    mine = settings.model_copy(update={"claude_code_oauth_token": SecretStr("a-token"), "anthropic_api_key": None})
    await db.pool.execute("INSERT INTO tenants (name) VALUES ('a')")
    assert await model_credentials.refusal(mine) is None
    await db.pool.execute("INSERT INTO tenants (name) VALUES ('b')")
    assert await model_credentials.refusal(mine.model_copy(update={"anthropic_api_key": SecretStr("k")})) is None
    done = await started(settings, CLAUDE_CODE_OAUTH_TOKEN="a-token")
    assert done.returncode == 2
    assert "cannot start: CLAUDE_CODE_OAUTH_TOKEN is for a server that serves nobody but" in done.stderr


@pytest.mark.parametrize("environment", [{}, {"CLAUDE_CODE_USE_FOUNDRY": "0"}, {"ANTHROPIC_AUTH_TOKEN": "t"}])
def test_a_server_with_a_key_starts(environment: dict[str, str | None]) -> None:
    settings = Settings(_env_file=None, anthropic_api_key="k")
    assert default_model.refusal(settings, environment) is None


def test_a_server_whose_tenants_bring_their_own_starts_without_a_key() -> None:
    settings = Settings(_env_file=None, anthropic_api_key=None, tenant_model_credentials="required")
    assert default_model.refusal(settings, {}) is None
    assert settings.model_is_configured


@pytest.mark.parametrize(
    "given",
    [
        {"claude_code_use_bedrock": True, "aws_region": "eu-west-1"},
        {"claude_code_use_vertex": True, "cloud_ml_region": "global", "anthropic_vertex_project_id": "p"},
    ],
)
async def test_a_server_with_a_cloud_starts_and_asks_it_for_no_model(given: dict[str, Any]) -> None:
    settings = Settings(_env_file=None, **given)
    assert default_model.refusal(settings, {}) is None
    assert settings.model_is_configured
    assert await default_model.ask(settings) == "unknown"
