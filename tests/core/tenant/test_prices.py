"""The table of prices: which model a name means, and what its tokens cost."""

from __future__ import annotations

from typing import Any

import pytest

from apps.api.core.tenant import prices
from apps.api.core.tenant.model_calls import Used

MILLION = 1_000_000


def used(model: str | None = "claude-sonnet-5-5", **figures: Any) -> Used:
    return Used(model, **figures)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("claude-opus-5", "claude-opus-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-sonnet-4-0", "claude-sonnet-4"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", "claude-haiku-4-5"),
        ("anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("claude-haiku-4-5@20251001", "claude-haiku-4-5"),
        ("anthropic/claude-opus-5-5", "claude-opus-5-5"),
        ("CLAUDE-OPUS-5-5", "claude-opus-5-5"),
    ],
)
def test_a_name_means_a_model_wherever_it_is_from(name: str, base: str) -> None:
    assert prices.of(name) == prices.TABLE[base]


@pytest.mark.parametrize(
    "name",
    [None, "", "claude", "claude-opus-6", "claude-opus-5-6", "claude-opus-5-5-preview", "demo-1", "gpt-9", "x" * 200],
)
def test_what_is_not_in_the_table_costs_what_the_dearest_does(name: str | None) -> None:
    assert prices.of(name) is None
    kinds = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    for figures in [{kind: MILLION} for kind in kinds] + [{"input_tokens": MILLION, "fast": True}]:
        dearest = max(prices.cost(used(known, **figures)) for known in prices.TABLE)
        assert prices.cost(used(name, **figures)) >= dearest


@pytest.mark.parametrize(
    ("figures", "usd"),
    [
        ({"input_tokens": MILLION}, 2),
        ({"output_tokens": MILLION}, 10),
        ({"cache_read_input_tokens": MILLION}, 0.1),
        ({"cache_creation_input_tokens": MILLION}, 2.5),
        ({"cache_creation_input_tokens": MILLION, "cache_creation_1h_input_tokens": MILLION}, 4),
        ({"cache_creation_input_tokens": MILLION, "cache_creation_1h_input_tokens": MILLION // 2}, 3.25),
        ({"cache_creation_1h_input_tokens": MILLION}, 0),
        ({"web_search_requests": 3}, 0.03),
        ({"input_tokens": MILLION, "web_search_requests": 1, "in_the_us": True}, 2.21),
        ({}, 0),
    ],
)
def test_each_kind_of_token_has_its_price(figures: dict[str, Any], usd: float) -> None:
    assert prices.cost(used(**figures)) == pytest.approx(usd)


def test_a_long_prompt_and_fast_mode_have_theirs() -> None:
    short, long = ({"cache_read_input_tokens": 90_000, "input_tokens": n} for n in (10_000, 10_001))
    assert prices.cost(used("claude-haiku-5-5", **short)) == pytest.approx(0.0019)
    assert prices.cost(used("claude-haiku-5-5", **long)) == pytest.approx(5 * 0.0019, rel=1e-3)
    assert prices.cost(used("claude-opus-5-5", output_tokens=MILLION, fast=True)) == pytest.approx(40)
