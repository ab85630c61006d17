"""What models cost: one table, of list prices.

Source: what the bundled CLI charges, asked kind by kind; the slow test tests/runner/agent/test_prices.py asks the
installed one again, and fails when its prices are others. Your bill may differ: discounts and taxes are in no table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apps.api.core.tenant.model_calls import Used

SOURCE = "Claude Code 2.1.332, bundled with claude-agent-sdk 0.2.189"
DATE = "2026-11-29"

WEB_SEARCH = 0.01
"""USD for a search of the model's own tool."""

IN_THE_US = 1.1
"""Factor of tokens of an answer that was asked for from the US alone (`inference_geo`)."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens of each kind.

    Attributes:
        cache_write_5m, cache_write_1h: what is put into the cache for so long.
        fast: factor of answers in fast mode.
        long, long_above: factor of answers to prompts of more tokens than this.
    """

    input: float
    output: float
    cache_read: float
    cache_write_5m: float
    cache_write_1h: float
    fast: float = 1.0
    long: float = 1.0
    long_above: int = 0


TABLE = {
    "claude-3-5-haiku": Price(0.8, 4, 0.08, 1, 1.6),
    "claude-3-5-sonnet": Price(3, 15, 0.3, 3.75, 6),
    "claude-3-7-sonnet": Price(3, 15, 0.3, 3.75, 6),
    "claude-fable-5": Price(10, 50, 1, 12.5, 20),
    "claude-fable-5-1": Price(10, 50, 0.25, 12.5, 20),
    "claude-fable-5-2": Price(8, 40, 0.2, 10, 16, fast=2),
    "claude-haiku-4-5": Price(1, 5, 0.1, 1.25, 2),
    "claude-haiku-5-5": Price(0.1, 0.5, 0.01, 0.125, 0.2, long=5, long_above=100_000),
    "claude-mythos-5": Price(10, 50, 1, 12.5, 20),
    "claude-mythos-5-1": Price(10, 50, 0.25, 12.5, 20),
    "claude-mythos-5-2": Price(8, 40, 0.2, 10, 16, fast=2),
    "claude-opus-4": Price(15, 75, 1.5, 18.75, 30),
    "claude-opus-4-1": Price(15, 75, 1.5, 18.75, 30),
    "claude-opus-4-5": Price(5, 25, 0.5, 6.25, 10),
    "claude-opus-4-6": Price(5, 25, 0.5, 6.25, 10, fast=6),
    "claude-opus-4-7": Price(5, 25, 0.5, 6.25, 10, fast=6),
    "claude-opus-4-8": Price(5, 25, 0.5, 6.25, 10, fast=2),
    "claude-opus-5": Price(5, 25, 0.5, 6.25, 10, fast=2),
    "claude-opus-5-5": Price(4, 20, 0.2, 5, 8, fast=2),
    "claude-sonnet-4": Price(3, 15, 0.3, 3.75, 6),
    "claude-sonnet-4-5": Price(3, 15, 0.3, 3.75, 6),
    "claude-sonnet-4-6": Price(3, 15, 0.3, 3.75, 6),
    "claude-sonnet-5": Price(2, 10, 0.2, 2.5, 4),
    "claude-sonnet-5-5": Price(2, 10, 0.1, 2.5, 4),
}

UNKNOWN = Price(
    input=max(price.input for price in TABLE.values()),
    output=max(price.output for price in TABLE.values()),
    cache_read=max(price.cache_read for price in TABLE.values()),
    cache_write_5m=max(price.cache_write_5m for price in TABLE.values()),
    cache_write_1h=max(price.cache_write_1h for price in TABLE.values()),
    fast=max(price.input * price.fast for price in TABLE.values()) / max(price.input for price in TABLE.values()),
)
"""What is not in the table costs what the dearest in it does: no budget is passed by a model that nobody has priced."""

# Names as the Messages API, Bedrock and Vertex have them: a region and a maker before, a date and a version after.
_NAME = re.compile(
    r"(?:[a-z-]{1,20}\.)?(?:anthropic\.)?(?P<base>claude-[a-z0-9-]{1,40}?)(?:-0)?"
    r"(?:-latest)?(?:[-@][0-9]{8})?(?:-v[0-9]{1,3}(?::[0-9]{1,3})?)?"
)


def of(model: str | None) -> Price | None:
    """The price of a model; None: it is not in the table."""
    found = _NAME.fullmatch(model.rpartition("/")[2].lower()) if model else None
    return TABLE.get(found["base"]) if found else None


def cost(used: Used) -> float:
    """What a call cost, in USD."""
    price = of(used.model) or UNKNOWN
    hour = min(used.cache_creation_1h_input_tokens, used.cache_creation_input_tokens)
    tokens = (
        used.input_tokens * price.input
        + used.output_tokens * price.output
        + used.cache_read_input_tokens * price.cache_read
        + (used.cache_creation_input_tokens - hour) * price.cache_write_5m
        + hour * price.cache_write_1h
    ) / 1_000_000
    if used.fast:
        tokens *= price.fast
    elif used.prompt_tokens > price.long_above:
        tokens *= price.long
    return tokens * (IN_THE_US if used.in_the_us else 1) + used.web_search_requests * WEB_SEARCH
