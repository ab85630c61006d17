"""What every surface and the runner work with, built once by the composition root."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import Profile
from apps.api.core.events.follow import DELETED, Followers
from apps.api.core.events.frames import Frame
from apps.api.core.events.relay import Publisher, Subscriptions
from apps.api.core.files.objects import Objects
from apps.api.core.network.outbound import Outbound
from apps.api.db import Database
from apps.api.redis import TOMBSTONE_TTL_MS, Redis
from apps.api.settings import Settings
from apps.api.threads import Blocking


@dataclass(frozen=True, slots=True)
class Core:
    """The open connections and shared parts of one instance.

    Attributes:
        profiles: what PROFILES_FILE says, by name.
        objects: the store of sessions' files.
        blocking: threads for what blocks.
        wake_local: called when a run was queued here, so that this instance tries first.
        take_ahead: asked for a session that was begun ahead, see `begun_ahead`.
    """

    settings: Settings
    instance_id: UUID
    db: Database
    redis: Redis
    publisher: Publisher
    subscriptions: Subscriptions
    followers: Followers
    outbound: Outbound
    profiles: Mapping[str, Profile]
    objects: Objects
    blocking: Blocking = field(default_factory=Blocking)
    wake_local: list[Callable[[], None]] = field(default_factory=list)
    take_ahead: list[Callable[[UUID, AgentConfig, str | None], UUID | None]] = field(default_factory=list)

    def begun_ahead(self, tenant_id: UUID, config: AgentConfig, profile: str | None) -> UUID | None:
        """The id of a session that nobody has yet, and whose agent this instance has started for just this, if it has
        one. Whoever asks makes the session at once: nobody else is given it."""
        taken = (take(tenant_id, config, profile) for take in self.take_ahead)
        return next(filter(None, taken), None)

    def wake(self, tenant_id: UUID, session_id: UUID) -> None:
        """Say that a run of this session waits. Losing this costs a poll interval."""
        for call in self.wake_local:
            call()
        self._forget_cached(tenant_id, session_id)
        self.publisher.notify(self.redis.keys.wake, f"{self.instance_id}:{session_id}")

    def relay(self, tenant_id: UUID, session_id: UUID, frames: list[Frame]) -> None:
        """Publish events that were stored without an owner's writer."""
        self.publisher.send(self.redis.keys.feed(tenant_id, session_id), frames)
        self._forget_cached(tenant_id, session_id)

    def _forget_cached(self, tenant_id: UUID, session_id: UUID) -> None:
        self.publisher.forget(self.redis.keys.session(tenant_id, session_id), TOMBSTONE_TTL_MS)

    def forget(self, tenant_id: UUID, session_id: UUID) -> None:
        """After a session's deletion: tell followers and owners, and remove what is cached or on disk."""
        keys = self.redis.keys
        self.publisher.command("DEL", keys.stream(tenant_id, session_id), keys.active_session(session_id))
        self._forget_cached(tenant_id, session_id)
        self.publisher.notify(keys.channel(tenant_id, session_id), DELETED)
        self.publisher.notify(keys.deleted, str(session_id))
