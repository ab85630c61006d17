"""Whether the model is there, and answers: `doctor` asks it for one word."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dotenv import dotenv_values

from apps.api.core.config.aliases import first_fit
from apps.api.core.network import default_model, model_api
from apps.api.doctor.check import Check
from apps.api.settings import ENV_FILE, Settings

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, AsyncAnthropicBedrock, AsyncAnthropicVertex

ANSWER_SECONDS = 30.0
"""For one word, which takes a second or two."""

MAX_SHOWN = 200
"""Characters of what an API says."""

_CREDENTIALS = (
    "anthropic_api_key",
    "anthropic_auth_token",
    "claude_code_oauth_token",
    "anthropic_base_url",
    "claude_code_use_bedrock",
    "claude_code_use_vertex",
)


async def model(settings: Settings) -> Check:
    """Whether agents may have one, and DEFAULT_MODEL exists and answers."""
    found = [name.upper() for name in _CREDENTIALS if getattr(settings, name)]
    environment = {**dotenv_values(ENV_FILE), **os.environ}
    if misled := default_model.misled(environment):
        return Check("FAIL", "Model", misled)
    if not found and settings.tenant_model_credentials == "required":
        return Check("ok", "Model", "each tenant's own (TENANT_MODEL_CREDENTIALS=required)")
    if not found:
        return Check(
            "warn", "Model", "no ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN: only `dev` can answer, scripted"
        )
    if refused := default_model.refusal(settings, environment):
        return Check("FAIL", "Model", refused)
    shown = f"{settings.default_model}, {' and '.join(found)} set"
    answer = await default_model.ask(settings)
    if answer == "missing":
        return Check("FAIL", "Model", f"{settings.default_model}: {default_model.ADVICE}")
    if answer == "unauthorized":
        return Check("FAIL", "Model", f"{shown}: {default_model.REFUSED}")
    return await _answers(settings, shown)


async def _answers(settings: Settings, shown: str) -> Check:
    if settings.agents_hold_the_credential:
        return Check("warn", "Model", f"{shown}; only the CLI may ask with that token, so a prompt will tell")
    if "-" not in settings.default_model:
        return Check("warn", "Model", f"{shown}; that is a short name of the CLI's, so a prompt will tell")
    import anthropic  # takes seconds

    name = settings.default_model.partition("[")[0]
    try:
        async with _client(settings) as client:
            await client.messages.create(
                model=first_fit(settings.ids_in_the_cloud, name) or name if settings.cloud else name,
                max_tokens=1,
                messages=[{"role": "user", "content": "Say yes."}],
            )
    except (anthropic.RateLimitError, anthropic.InternalServerError) as error:
        return Check("warn", "Model", f"{shown}; it is busy ({_said(error)}): try again")
    except anthropic.APIStatusError as error:
        advice = "check the credentials, what they may do, and their balance"
        if error.status_code == 404:
            advice = "check DEFAULT_MODEL, and ANTHROPIC_BASE_URL or CLOUD_MODEL_IDS if they are set"
        return Check(
            "FAIL", "Model", f"{shown}: it does not answer, with status {error.status_code} ({_said(error)}): {advice}"
        )
    except Exception as error:  # the clouds' libraries have families of errors of their own for credentials
        advice = "check the network, HTTPS_PROXY, ANTHROPIC_BASE_URL, and the cloud's credentials if it is in one"
        return Check("FAIL", "Model", f"{shown}: it cannot be asked ({_said(error)}): {advice}")
    return Check("ok", "Model", f"{shown}; it answers")


def _client(settings: Settings) -> AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicVertex:
    from anthropic import AsyncAnthropic, AsyncAnthropicBedrock, AsyncAnthropicVertex

    if settings.cloud == "bedrock":
        return AsyncAnthropicBedrock(
            aws_region=settings.aws_region,
            base_url=settings.anthropic_bedrock_base_url,
            max_retries=0,
            open_telemetry=False,
            timeout=ANSWER_SECONDS,
        )
    if settings.cloud == "vertex":
        return AsyncAnthropicVertex(
            region=settings.cloud_ml_region or "",
            project_id=settings.anthropic_vertex_project_id or "",
            base_url=settings.anthropic_vertex_base_url,
            max_retries=0,
            open_telemetry=False,
            timeout=ANSWER_SECONDS,
        )
    key, token = settings.anthropic_api_key, settings.anthropic_auth_token
    return AsyncAnthropic(
        api_key=key.get_secret_value() if key else None,
        auth_token=token.get_secret_value() if token and not key else None,
        base_url=model_api.of(settings).url,
        max_retries=0,
        open_telemetry=False,
        timeout=ANSWER_SECONDS,
    )


def _said(error: Exception) -> str:
    body = getattr(error, "body", None)
    inner = body.get("error") if isinstance(body, dict) else None
    words = inner.get("message") if isinstance(inner, dict) else None
    return (str(words or error).splitlines() or [type(error).__name__])[0][:MAX_SHOWN]
