"""Limits: how much a key, or a tenant with all its keys, may have or do at once or within a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from apps.api.core.config.names import ModelPattern, Part, Usd
from apps.api.settings import Settings

Scope = Literal["key", "tenant"]
"""Whose a limit is: a key's, or that of a tenant, which all its keys have together."""

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=1, le=1 << 50)]
Most = Annotated[Usd, Field(gt=0, le=100_000_000)]
Tokens = Annotated[int, Field(ge=1, le=1 << 50)]


class Limits(Part):
    """What one key, or one tenant with all its keys, is limited to. What is left out or null sets no limit of its
    own."""

    runs_per_minute: Count | None = Field(None, description="Prompts within any minute.", examples=[60])
    concurrent_runs: Count | None = Field(
        None,
        description="Runs that are executed at a time, on all instances together; others wait. A run that waits for a"
        " person does not count, nor what an agent goes on with by itself.",
        examples=[10],
    )
    queued_runs: Count | None = Field(None, description="Runs that wait to be executed.", examples=[1000])
    live_sessions: Count | None = Field(
        None,
        description="Sessions that have an agent's process, idle ones included, on all instances together. One that is"
        " idle gives its place to one that waits.",
        examples=[20],
    )
    streams: Count | None = Field(
        None,
        description="Event streams and requests that wait for a run, at a time on each instance.",
        examples=[100],
    )
    workspace_bytes: Bytes | None = Field(
        None,
        description="Bytes of the files of all sessions, as they are measured while agents are at work.",
        examples=[10_000_000_000],
    )
    file_bytes: Bytes | None = Field(
        None, description="Bytes of the files that were uploaded by `POST /files`.", examples=[10_000_000_000]
    )
    usd_per_day: Most | None = Field(None, description="USD for models on a day in UTC, at list prices.", examples=[20])
    usd_per_month: Most | None = Field(None, description="The same in a month in UTC.", examples=[200])
    tokens_per_day: Tokens | None = Field(
        None, description="Tokens read and written on a day in UTC, the cache included.", examples=[50_000_000]
    )
    tokens_per_month: Tokens | None = Field(None, description="The same in a month in UTC.", examples=[500_000_000])
    models: Annotated[list[ModelPattern], Field(min_length=1, max_length=100)] | None = Field(
        None, description="Models that may be used: names, or patterns as in file names.", examples=[["*sonnet*"]]
    )

    def given(self) -> dict[str, Any]:
        """Only what was set, JSON-safe: the form that is stored."""
        return self.model_dump(exclude_none=True)

    def over(self, defaults: Limits) -> Limits:
        """These, and the default where there is none of its own."""
        return Limits.model_validate({**defaults.given(), **self.given()})


def read(data: Mapping[str, Any]) -> Limits:
    """What was stored, perhaps by a later release, which knows more. Raises ValueError for what none has stored."""
    return Limits.model_validate({name: data[name] for name in Limits.model_fields if name in data})


Stored = Annotated[Limits, BeforeValidator(read)]
"""As a column or a cache holds them."""

NO_LIMITS = Limits()


def of_every_key(settings: Settings) -> Limits:
    """What the server sets for keys that have no limit of their own."""
    return Limits(runs_per_minute=settings.rate_limit_query_per_minute or None, streams=settings.max_streams_per_key)
