"""Prompts that are sent at times of a clock, and what came of each time."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, func, text
from sqlalchemy.orm import Mapped, mapped_column

from apps.api.models.base import NOW, Base


class Schedule(Base):
    """A prompt that is sent at times, for the key that made it or changed it last.

    `next_at` is the next of its times; `look_at` is when instances look at it: then, and later by its jitter, or a
    moment after one has taken it on. Both are null while it is paused. `revision` fences what is done with it: each
    change and each firing counts it up. `profile` is the one that its sessions have, as of its last change. `session`:
    a new one each time, one of its `own`, or a `given` one. Without a `cron` it has no times, and is fired by request.
    `fired_at`: when a time of it has queued a run last.
    """

    __tablename__ = "schedules"
    __table_args__ = (
        CheckConstraint("session IN ('new','own','given')", name="session"),
        CheckConstraint("overlap IN ('skip','queue')", name="overlap"),
        CheckConstraint("(next_at IS NULL) = (look_at IS NULL)", name="look_at"),
        Index("schedules_list_idx", "tenant_id", "created_at", "id"),
        Index("schedules_due_idx", "look_at", postgresql_where=text("look_at IS NOT NULL")),
        Index("schedules_api_key_id_idx", "api_key_id", postgresql_where=text("api_key_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"))
    name: Mapped[str | None]
    cron: Mapped[str | None]
    time_zone: Mapped[str]
    prompt: Mapped[str]
    spec: Mapped[dict[str, Any]]
    profile: Mapped[str | None]
    session: Mapped[str]
    session_id: Mapped[UUID | None]
    overlap: Mapped[str]
    jitter_seconds: Mapped[int] = mapped_column(Integer)
    pause_after_failures: Mapped[int | None] = mapped_column(Integer)
    next_at: Mapped[datetime | None]
    look_at: Mapped[datetime | None]
    revision: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    paused_at: Mapped[datetime | None]
    paused_reason: Mapped[str | None]
    fired_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ScheduleFiring(Base):
    """What came of one time of a schedule. The one of a time and schedule is unique, and stored with the run that it
    queues: so there is one run at most.

    `sent`: its run is not known to have ended. `times`: of a `missed` one, how many it stands for. Nothing refers to
    run and session, which may go before it. `agent`: the preset that the schedule named, as it named it.
    """

    __tablename__ = "schedule_firings"
    __table_args__ = (
        CheckConstraint("state IN ('sent','succeeded','failed','interrupted','skipped','missed')", name="state"),
        CheckConstraint("origin IN ('schedule','request')", name="origin"),
        Index("schedule_firings_time_key", "schedule_id", "fire_at", unique=True),
        Index("schedule_firings_sent_idx", "schedule_id", postgresql_where=text("state = 'sent'")),
        Index("schedule_firings_run_idx", "run_id", postgresql_where=text("run_id IS NOT NULL")),
        Index("schedule_firings_created_at_idx", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id", ondelete="CASCADE"))
    fire_at: Mapped[datetime]
    origin: Mapped[str] = mapped_column(server_default=text("'schedule'"))
    state: Mapped[str]
    times: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    run_id: Mapped[UUID | None]
    session_id: Mapped[UUID | None]
    error: Mapped[dict[str, Any] | None]
    agent: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    ended_at: Mapped[datetime | None]
