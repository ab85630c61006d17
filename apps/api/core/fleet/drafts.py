"""What a schedule is made of, as a client gives it and as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from apps.api.core.codec import decode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.cron import NEVER, Times
from apps.api.core.sessions.admission import NO_CHANGES, Prompt
from apps.api.core.sessions.prompts import NO_LABELS
from apps.api.core.sessions.sessions import Labels

Overlap = Literal["skip", "queue"]
SessionMode = Literal["new", "one"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A schedule as a client gives it.

    Attributes:
        cron, time_zone: see `config.cron`; without a `cron` it is fired by request only.
        agent: a preset, by name or id, perhaps with `@version`; without that the newest of then.
        session: a new one for each time, or one that is kept.
        session_id: the one that is kept; None: the first firing begins it.
        overlap: what to do at a time at which a run of the schedule is not over yet.
        jitter_seconds: it is fired up to so many seconds after its time, always as many after the same time.
        pause_after_failures: failures in a row after which it is paused; None: never.
        labels, surface, environment, vaults: of sessions that it begins, see `admission.Choice`.
        data: what its surface keeps with it: a small JSON object.
    """

    cron: str | None
    time_zone: str
    prompt: Prompt
    name: str | None = None
    agent: str | None = None
    profile: str | None = None
    config: AgentConfig = NO_CHANGES
    labels: Labels = NO_LABELS
    timeout_seconds: float | None = None
    expand_prompt: bool = False
    session: SessionMode = "new"
    session_id: UUID | None = None
    overlap: Overlap = "skip"
    jitter_seconds: int = 0
    pause_after_failures: int | None = 5
    surface: str = "native"
    environment: UUID | None = None
    vaults: tuple[UUID, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def begins(self) -> tuple[Any, ...]:
        """What its sessions begin with: of another one than before it wants a new session."""
        where = (self.environment, self.vaults, self.surface)
        return self.session, self.session_id, self.agent, self.profile, self.config, *where

    @property
    def times(self) -> Times:
        return NEVER if self.cron is None else Times.of(self.cron, self.time_zone)

    def spec(self) -> dict[str, Any]:
        """What is stored as one."""
        return {
            "agent": self.agent,
            "profile": self.profile,
            "config": self.config.given(),
            "title": self.labels.title,
            "tags": None if self.labels.tags is None else list(self.labels.tags),
            "metadata": None if self.labels.metadata is None else dict(self.labels.metadata),
            "timeout_seconds": self.timeout_seconds,
            "expand_prompt": self.expand_prompt,
            "surface": self.surface,
            "environment": self.environment and str(self.environment),
            "vaults": [str(id_) for id_ in self.vaults],
            "data": dict(self.data),
        }

    @classmethod
    def stored(cls, row: Mapping[str, Any]) -> Draft:
        """What a row of `schedules` holds."""
        spec = row["spec"]
        return cls(
            row["cron"],
            row["time_zone"],
            decode(row["prompt"]),
            name=row["name"],
            agent=spec["agent"],
            profile=spec["profile"],
            config=AgentConfig.stored(spec["config"]) if spec["config"] else NO_CHANGES,
            labels=Labels(spec["title"], spec["tags"], spec["metadata"]),
            timeout_seconds=spec["timeout_seconds"],
            expand_prompt=spec["expand_prompt"],
            session="new" if row["session"] == "new" else "one",
            session_id=row["session_id"] if row["session"] == "given" else None,
            overlap=row["overlap"],
            jitter_seconds=row["jitter_seconds"],
            pause_after_failures=row["pause_after_failures"],
            surface=spec["surface"],
            # Earlier versions have stored none of these.
            environment=UUID(spec["environment"]) if spec.get("environment") else None,
            vaults=tuple(map(UUID, spec.get("vaults", ()))),
            data=spec.get("data", {}),
        )
