"""How long what tenants have is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from apps.api.core.config.names import Part
from apps.api.settings import Settings

Days = Annotated[int, Field(ge=1, le=36_500)]


class Retention(Part):
    """Days after which what a tenant has is removed. null: never. What is left out is as the server has it."""

    events_days: Days | None = Field(
        None,
        description="Events, what runs were asked and what came of them, answered requests, and messages to webhooks.",
        examples=[90],
    )
    transcripts_days: Days | None = Field(
        None, description="What the agent remembers of a session that nothing has happened in.", examples=[180]
    )
    idle_sessions_days: Days | None = Field(
        None, description="Sessions that nothing has happened in, with all that they have.", examples=[365]
    )
    workspaces_days: Days | None = Field(
        None, description="Files of a session that nothing has happened in.", examples=[30]
    )
    usage_days: Days | None = Field(
        None, description="Usage by run, calls to models, and what is left of deleted sessions.", examples=[400]
    )

    def given(self) -> dict[str, int | None]:
        """What was set, null included: the form that is stored."""
        return self.model_dump(exclude_unset=True)

    def over(self, defaults: Retention) -> Retention:
        """These, and the default where nothing was set."""
        return Retention.model_validate({**defaults.given(), **self.given()})


def read(data: Mapping[str, Any]) -> Retention:
    """What was stored, perhaps by a later release, which knows more. Raises ValueError for what none has stored."""
    return Retention.model_validate({name: data[name] for name in Retention.model_fields if name in data})


def of_server(settings: Settings) -> Retention:
    """What holds for tenants that have set nothing."""
    return Retention(
        events_days=settings.retention_events_days or None,
        transcripts_days=settings.retention_transcripts_days or None,
        idle_sessions_days=settings.retention_idle_sessions_days or None,
        workspaces_days=settings.retention_workspaces_days or None,
        usage_days=settings.retention_usage_days or None,
    )
