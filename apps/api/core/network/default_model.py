"""Whether the model API still has DEFAULT_MODEL: models are retired, and every session that names none would fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote

import httpx2
import structlog

from apps.api.core.network import model_api
from apps.api.core.tasks import Loop, pause
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

TIMEOUT = 2.0
"""Seconds for the answer, with the resolver, a proxy and TLS."""

ASK_EVERY, ASK_AGAIN = 3600.0, 60.0
"""Seconds between two questions, and after one that got no answer."""

MAX_ANSWER_BYTES = 65_536

Answer = Literal["ok", "missing", "unauthorized", "unknown"]
"""`unknown`: not asked yet, no answer, or one that says nothing of the model."""

ADVICE = "the model API does not have it: set DEFAULT_MODEL (and MODEL_ALIASES) to current models"
REFUSED = "the model API refuses the credentials: check ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL"


async def ask(settings: Settings) -> Answer:
    """Ask the model API for the default model, within TIMEOUT. Never raises: no answer is an answer, too.

    Source: GET /v1/models/{id} of the Anthropic API, and its error of type `not_found_error`, which names the model.
    """
    name = settings.default_model.partition("[")[0]  # `[1m]` is a mark for the CLI, not a part of the id
    # `sonnet` and the like are the CLI's own short names; clouds have no such question.
    if "-" not in name or not settings.operator_has_a_model or settings.cloud:
        return "unknown"
    try:
        base = model_api.of(settings).url
        async with asyncio.timeout(TIMEOUT), httpx2.AsyncClient(timeout=TIMEOUT) as client:
            url = f"{base}/v1/models/{quote(name, safe='')}"
            headers = {"anthropic-version": "2023-06-01", **model_api.credential(settings)}
            async with client.stream("GET", url, headers=headers) as response:
                said = b""
                async for piece in response.aiter_bytes():
                    said += piece
                    if len(said) > MAX_ANSWER_BYTES:
                        break
    except (TimeoutError, OSError, ValueError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        log.info("model.not_asked", model=name, error=type(error).__name__)
        return "unknown"
    if response.status_code == 200:
        return "ok"
    # A gateway may not know this path at all: only what names the model is about the model.
    if response.status_code == 404 and b"not_found_error" in said and name.encode() in said:
        return "missing"
    # A subscription's token may ask for messages and for nothing else.
    return "unauthorized" if response.status_code == 401 and not settings.agents_hold_the_credential else "unknown"


def misled(environment: Mapping[str, str | None]) -> str | None:
    """What in `environment` (the process's own, and what `.env` adds) leads to no model, and what to set instead."""
    if (environment.get("CLAUDE_CODE_USE_FOUNDRY") or "").strip().lower() in ("", "0", "false", "no", "off"):
        return None
    return (
        "CLAUDE_CODE_USE_FOUNDRY is set, and the gateway does not speak to it. Unset it, and set ANTHROPIC_BASE_URL and"
        " ANTHROPIC_API_KEY for an endpoint that speaks the Messages API and takes its key as x-api-key"
    )


def _of_cloud(settings: Settings) -> str | None:
    """What the operator's cloud lacks."""
    if settings.claude_code_use_bedrock and settings.claude_code_use_vertex:
        return "CLAUDE_CODE_USE_BEDROCK and CLAUDE_CODE_USE_VERTEX: set one of them"
    if settings.claude_code_use_bedrock and not settings.aws_region:
        return "CLAUDE_CODE_USE_BEDROCK without AWS_REGION: set it"
    if settings.claude_code_use_vertex and not (settings.cloud_ml_region and settings.anthropic_vertex_project_id):
        return "CLAUDE_CODE_USE_VERTEX without CLOUD_ML_REGION or ANTHROPIC_VERTEX_PROJECT_ID: set both"
    return None


def refusal(settings: Settings, environment: Mapping[str, str | None]) -> str | None:
    """Why no agent of a server with these settings could reach a model, and what to set; None when one may."""
    if settings.runner_slots == 0:
        return None
    if found := misled(environment):
        return found
    if settings.cloud:
        return _of_cloud(settings)
    if model_api.credential(settings) or settings.tenant_model_credentials == "required":
        return None
    if settings.anthropic_base_url:
        return (
            "ANTHROPIC_BASE_URL without ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN: the gateway sends one; for an"
            " endpoint that takes none, any word"
        )
    return "no ANTHROPIC_API_KEY: set one, or RUNNER_SLOTS=0 for an instance without agents; `dev` has a demo model"


class Watch:
    """Asks at the start and then for ever: the day on which a model is retired is no day of a restart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.answer: Answer = "unknown"
        self._asked = False

    async def until_next_look(self) -> None:
        """Wait until it is time to ask: at once at the start."""
        if self._asked:
            await pause(ASK_AGAIN if self.answer == "unknown" else ASK_EVERY)

    async def look(self, _loop: Loop | None = None) -> None:
        """Ask once, and say it loudly when runs are going to fail."""
        self._asked = True
        self.answer = await ask(self._settings)
        if reason := {"missing": ADVICE, "unauthorized": REFUSED}.get(self.answer):
            log.error("model.default_unusable", model=self._settings.default_model, error=reason)
