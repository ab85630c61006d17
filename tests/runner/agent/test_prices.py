"""The table of prices is what the installed CLI charges: one with other prices, or models that have none, fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage

from apps.api.core.tenant import prices
from apps.api.core.tenant.model_calls import Used

NAMES = {
    "claude-3-5-haiku": "claude-3-5-haiku-20241022",
    "claude-3-5-sonnet": "claude-3-5-sonnet-20241022",
    "claude-3-7-sonnet": "claude-3-7-sonnet-20250219",
    "claude-opus-4": "claude-opus-4-20250514",
    "claude-sonnet-4": "claude-sonnet-4-20250514",
}
"""Those that have no name without a date."""

NOTHING = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"), 0)
HOUR = {"cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 50_000}}
KINDS: list[dict[str, Any]] = [
    {"input_tokens": 50_000},
    {"output_tokens": 50_000},
    {"cache_read_input_tokens": 50_000},
    {"cache_creation_input_tokens": 50_000},
    {"cache_creation_input_tokens": 50_000, **HOUR},
    {"server_tool_use": {"web_search_requests": 10}},
    {"input_tokens": 50_000, "speed": "fast"},
    {"output_tokens": 50_000, "speed": "fast"},
    {"cache_read_input_tokens": 50_000, "speed": "fast"},
    {"cache_creation_input_tokens": 50_000, "speed": "fast", **HOUR},
    {"input_tokens": 50_000, "inference_geo": "us"},
    {"input_tokens": 60_000, "cache_read_input_tokens": 40_001},
    {"input_tokens": 60_000, "cache_creation_input_tokens": 50_000, "output_tokens": 50_000, **HOUR},
    {"input_tokens": 300_000},  # beyond the window of some: the last
]


def client(url: str, model: str, directory: Path) -> ClaudeSDKClient:
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "any",
        "CLAUDE_CONFIG_DIR": str(directory),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_LEGACY_MODEL_REMAP": "1",
        "DISABLE_AUTO_COMPACT": "1",
    }
    options = ClaudeAgentOptions(model=model, env=environment, cwd=directory, setting_sources=[], tools=[])
    return ClaudeSDKClient(options)


async def ask(agent: ClaudeSDKClient, prompt: str) -> ResultMessage:
    await agent.query(prompt)
    [result] = [message async for message in agent.receive_response() if isinstance(message, ResultMessage)]
    assert not result.is_error, result.result
    return result


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted(prices.TABLE))
async def test_the_cli_charges_what_is_in_the_table(model_url: str, tmp_path: Path, base: str) -> None:
    name = NAMES.get(base, base)
    assert prices.of(name) == prices.TABLE[base]
    before = 0.0
    async with client(model_url, name, tmp_path) as agent:
        for kind in KINDS:
            result = await ask(agent, f"tell usage {json.dumps(NOTHING | kind)}")
            assert list(result.model_usage or {}) == [name]
            used = Used(name)
            used.take(kind)
            assert result.total_cost_usd is not None
            assert result.total_cost_usd - before == pytest.approx(prices.cost(used), rel=1e-6), kind
            before = result.total_cost_usd


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sonnet", "opus", "haiku", "fable", "best", "default"])
async def test_the_models_that_the_cli_offers_are_in_the_table(model_url: str, tmp_path: Path, alias: str) -> None:
    async with client(model_url, alias, tmp_path) as agent:
        [name] = (await ask(agent, "say hello")).model_usage or {}
    assert prices.of(name), name
