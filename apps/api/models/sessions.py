"""Instances, sessions and what belongs to a session."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT8RANGE
from sqlalchemy.orm import Mapped, mapped_column

from apps.api.models.base import EMPTY_ARRAY, EMPTY_OBJECT, NOW, Base


class Instance(Base):
    """One server process and its lease, on the database's clock.

    `facts`: what it must have in common with the others, and its port, see `core/fleet/facts.py`; empty of earlier
    versions.
    `url`: where the other instances reach it. `forward_key`: signs the requests for previews that they pass on to it.
    """

    __tablename__ = "instances"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    version: Mapped[str]
    slots: Mapped[int] = mapped_column(Integer)
    facts: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    url: Mapped[str | None]
    forward_key: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    draining: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    lease_expires_at: Mapped[datetime] = mapped_column(index=True)


class Invalidation(Base):
    """A name in Redis that an instance could not remove there; the others read it with their leases, and do."""

    __tablename__ = "invalidations"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str]
    ttl_ms: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW, index=True)


class Session(Base):
    """A durable conversation.

    `generation` is the fencing token: it grows whenever the owner changes, and every write of an owner
    names the generation that it was given. `last_seq` is the position of the newest event. `lost`: numbers of events
    that readers had been told before the database lost them; by now they may be numbers of others. `purged_at`: since
    when a deleted session holds nothing any more. `expired_seq`: events up to this one were removed for their age.
    `stored`: the manifest of its files, see `core/files/manifest.py`, `stored_before` the one before; `unstored_since`:
    when an agent began to change what is in it. `environment_id`, `network`: see `Environment`; environments are only
    marked as deleted. `archived_at`: since when it takes no prompt. `schedule_id`: what has begun it, perhaps gone.
    """

    __tablename__ = "sessions"
    __table_args__ = (
        CheckConstraint("last_seq >= 0", name="last_seq"),
        CheckConstraint("generation >= 0", name="generation"),
        Index("sessions_list_idx", "tenant_id", "created_at", "id"),
        Index("sessions_owner_id_idx", "owner_id", postgresql_where=text("owner_id IS NOT NULL")),
        Index("sessions_live_idx", "tenant_id", "taken_by", postgresql_where=text("owner_id IS NOT NULL")),
        Index(
            "sessions_bytes_idx",
            "tenant_id",
            postgresql_include=["taken_by", "workspace_bytes"],
            postgresql_where=text("workspace_bytes > 0 AND deleted_at IS NULL"),
        ),
        Index(
            "sessions_surface_idx",
            "tenant_id",
            "surface",
            "created_at",
            postgresql_where=text("surface <> 'native' AND deleted_at IS NULL"),
        ),
        Index(
            "sessions_unpurged_idx",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL AND purged_at IS NULL"),
        ),
        Index("sessions_unstored_idx", "id", postgresql_where=text("stored IS NOT NULL AND deleted_at IS NOT NULL")),
        Index("sessions_agent_idx", "agent_id", "created_at", "id", postgresql_where=text("agent_id IS NOT NULL")),
        Index(
            "sessions_end_user_idx",
            *("tenant_id", "end_user", "created_at", "id"),
            postgresql_where=text("end_user IS NOT NULL"),
        ),
        Index("sessions_schedule_idx", "schedule_id", "created_at", postgresql_where=text("schedule_id IS NOT NULL")),
        Index("sessions_tags_idx", "tags", postgresql_using="gin"),
        Index("sessions_metadata_idx", "metadata", postgresql_using="gin"),
        UniqueConstraint("id", "tenant_id", name="sessions_id_tenant_id_key"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    parent_session_id: Mapped[UUID | None] = mapped_column(ForeignKey("sessions.id", ondelete="SET NULL"), index=True)
    agent_id: Mapped[UUID | None] = mapped_column(ForeignKey("agents.id", ondelete="SET NULL"))
    agent_version: Mapped[int | None] = mapped_column(Integer)
    environment_id: Mapped[UUID | None]
    network: Mapped[dict[str, Any] | None]
    vault_ids: Mapped[list[UUID] | None]
    schedule_id: Mapped[UUID | None]
    profile: Mapped[str | None]
    surface: Mapped[str] = mapped_column(server_default=text("'native'"))
    end_user: Mapped[str | None]
    title: Mapped[str | None]
    tags: Mapped[list[str]] = mapped_column(server_default=EMPTY_ARRAY)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    config: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    sdk_session_id: Mapped[UUID]
    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey("instances.id", ondelete="RESTRICT"))
    taken_by: Mapped[UUID | None]
    workspace_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    stored: Mapped[str | None]
    stored_before: Mapped[str | None]
    stored_at: Mapped[datetime | None]
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    unstored_since: Mapped[datetime | None]
    generation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    expired_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lost: Mapped[Any] = mapped_column(INT8RANGE, nullable=True)
    num_turns: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    total_cost_usd: Mapped[float] = mapped_column(server_default=text("0"))
    usage: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    permission_mode: Mapped[str | None]
    tools: Mapped[list[str] | None]
    ports: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'::integer[]"))
    preview_key: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_active_at: Mapped[datetime] = mapped_column(server_default=NOW)
    archived_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]


class Run(Base):
    """The execution of one prompt, or of one change to the session that must wait its turn (`kind`).

    `position` orders the queue; at most one run of a session is active. `startable`: it is the first that waits in a
    session that nobody owns; triggers keep it so (docs/adr/0015-what-may-start.md). `unsent`: it was claimed, and no
    agent has been given the prompt yet; false also of what is claimed by versions that do not know it. `requeued`: how
    often it came back to the queue, last at `requeued_at` from the instance `requeued_by`. `parked`: what it takes to
    go on with it, while no process waits for the person whom it asks (docs/adr/0019-parked-sessions.md). `traceparent`:
    of the request that brought it (docs/adr/0027-observability.md). `steer`: it is to go into the turn that runs;
    `steered_into`: the run whose agent was given it (docs/adr/0031-steering.md).
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(
            "status IN ('queued','running','requires_action','succeeded','failed','interrupted')", name="status"
        ),
        CheckConstraint("origin IN ('client','background')", name="origin"),
        CheckConstraint("kind IN ('prompt','rewind','reset')", name="kind"),
        CheckConstraint("status = 'queued' OR started_at IS NOT NULL OR finished_at IS NOT NULL", name="started"),
        CheckConstraint(
            "(status IN ('succeeded','failed','interrupted')) = (finished_at IS NOT NULL)", name="finished"
        ),
        ForeignKeyConstraint(["session_id", "tenant_id"], ["sessions.id", "sessions.tenant_id"], ondelete="CASCADE"),
        Index(
            "runs_one_active_idx",
            "session_id",
            unique=True,
            postgresql_where=text("status IN ('running','requires_action')"),
        ),
        Index("runs_active_idx", "tenant_id", postgresql_where=text("status IN ('running','requires_action')")),
        Index("runs_queued_idx", "session_id", "position", postgresql_where=text("status = 'queued'")),
        Index(
            "runs_turns_idx",
            "tenant_id",
            text("coalesce(api_key_id, '00000000-0000-0000-0000-000000000000'::uuid)"),
            "position",
            postgresql_where=text("startable AND status = 'queued'"),
        ),
        Index(
            "runs_running_idx",
            "tenant_id",
            "api_key_id",
            postgresql_where=text("status = 'running' AND origin = 'client'"),
        ),
        Index("runs_api_key_id_idx", "api_key_id", postgresql_where=text("api_key_id IS NOT NULL")),
        Index("runs_parked_idx", "session_id", postgresql_where=text("parked IS NOT NULL")),
        Index("runs_session_idx", "session_id", "position"),
        Index("runs_tenant_idx", "tenant_id", "position"),
        Index("runs_list_idx", "tenant_id", "created_at", "id"),
        Index(
            "runs_ended_idx",
            *("tenant_id", "status", "created_at", "id"),
            postgresql_where=text("status IN ('failed','interrupted')"),
        ),
        Index(
            "runs_error_idx",
            "tenant_id",
            text("(error ->> 'code')"),
            *("created_at", "id"),
            postgresql_where=text("error IS NOT NULL"),
        ),
        Index(
            "runs_end_user_idx",
            *("tenant_id", "end_user", "created_at", "id"),
            postgresql_where=text("end_user IS NOT NULL"),
        ),
        Index("runs_places_idx", "tenant_id", "position", postgresql_where=text("status = 'queued'")),
        Index(
            "runs_untold_idx",
            "position",
            postgresql_where=text("status = 'queued' AND announced_position IS NULL"),
        ),
        Index("runs_waiting_idx", "tenant_id", "api_key_id", postgresql_where=text("status = 'queued'")),
        Index(
            "runs_unmeasured_idx",
            "tenant_id",
            "finished_at",
            postgresql_where=text("total_cost_usd IS NULL AND finished_at IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    session_id: Mapped[UUID]
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"))
    end_user: Mapped[str | None]
    position: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    origin: Mapped[str] = mapped_column(server_default=text("'client'"))
    kind: Mapped[str] = mapped_column(server_default=text("'prompt'"))
    prompt: Mapped[str | None]
    expand_prompt: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    config: Mapped[dict[str, Any] | None]
    resources: Mapped[list[Any] | None]
    timeout_seconds: Mapped[float]
    startable: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    unsent: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    requeued: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    requeued_by: Mapped[UUID | None]
    requeued_at: Mapped[datetime | None]
    parked: Mapped[str | None]
    traceparent: Mapped[str | None]
    steer: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    steered_into: Mapped[UUID | None]
    announced_position: Mapped[int | None] = mapped_column(BigInteger)
    first_seq: Mapped[int | None] = mapped_column(BigInteger)
    last_seq: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[dict[str, Any] | None]
    result: Mapped[str | None]
    total_cost_usd: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Event(Base):
    """What clients read: append-only, numbered without a gap within its session. `data` is the JSON sent.

    `subject`: what it is about, for those that are looked for by it, see `core/events/log.py`.
    """

    __tablename__ = "events"
    __table_args__ = (
        CheckConstraint("seq > 0", name="seq"),
        Index("events_run_idx", "run_id", "seq"),
        Index("events_messages_idx", "session_id", "seq", postgresql_where=text("type = 'message'")),
        Index("events_tasks_idx", "session_id", "seq", postgresql_where=text("type = 'task'")),
        Index("events_resolved_idx", "session_id", "subject", postgresql_where=text("type = 'action_resolved'")),
        Index(
            "events_parent_idx",
            "session_id",
            "parent_tool_use_id",
            "seq",
            postgresql_where=text("parent_tool_use_id IS NOT NULL"),
        ),
    )

    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    type: Mapped[str]
    parent_tool_use_id: Mapped[str | None]
    subject: Mapped[str | None]
    data: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Command(Base):
    """A durable message to the owner of a session. Redis only wakes the owner up."""

    __tablename__ = "commands"
    __table_args__ = (
        CheckConstraint("status IN ('pending','applied','rejected')", name="status"),
        Index("commands_pending_idx", "session_id", "created_at", postgresql_where=text("status = 'pending'")),
        Index("commands_settled_idx", "applied_at", postgresql_where=text("applied_at IS NOT NULL")),
        Index("commands_run_id_idx", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    type: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    applied_at: Mapped[datetime | None]


class Request(Base):
    """What an agent asks a person, may this tool run or which answer, or a program: what came of this call.

    `run_id` is null between two runs.

    `remember`: the call was allowed for the rest of the session.
    """

    __tablename__ = "requests"
    __table_args__ = (
        CheckConstraint("kind IN ('permission','question','client_tool')", name="kind"),
        CheckConstraint("status IN ('open','answered','closed')", name="status"),
        CheckConstraint("(status = 'open') = (resolved_at IS NULL)", name="resolved"),
        ForeignKeyConstraint(["session_id", "tenant_id"], ["sessions.id", "sessions.tenant_id"], ondelete="CASCADE"),
        Index("requests_inbox_idx", "tenant_id", "created_at", "id", postgresql_where=text("status = 'open'")),
        Index("requests_tenant_idx", "tenant_id", "created_at", "id"),
        Index(
            "requests_status_idx",
            *("tenant_id", "status", "created_at", "id"),
            postgresql_where=text("status <> 'open'"),
        ),
        Index("requests_open_idx", "session_id", postgresql_where=text("status = 'open'")),
        Index("requests_expiry_idx", "expires_at", postgresql_where=text("status = 'open' AND run_id IS NOT NULL")),
        Index("requests_session_idx", "session_id", "created_at"),
        Index("requests_run_id_idx", "run_id", postgresql_where=text("run_id IS NOT NULL")),
        Index("requests_remembered_idx", "session_id", "resolved_at", postgresql_where=text("remember")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    session_id: Mapped[UUID]
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    kind: Mapped[str]
    data: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'open'"))
    decision: Mapped[str | None]
    remember: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    resolved_by: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]


class TranscriptEntry(Base):
    """One line of the SDK's own transcript, from which any instance resumes the conversation.

    `type` and `said_at` are the entry's own; null where it has none.
    """

    __tablename__ = "transcript_entries"
    __table_args__ = (
        Index("transcript_entries_key_idx", "session_id", "project_key", "sdk_session_id", "subpath", "id"),
        Index(
            "transcript_entries_uuid_key",
            "session_id",
            "project_key",
            "sdk_session_id",
            "subpath",
            "uuid",
            unique=True,
            postgresql_where=text("uuid IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    project_key: Mapped[str]
    sdk_session_id: Mapped[str]
    subpath: Mapped[str] = mapped_column(server_default=text("''"))
    uuid: Mapped[str | None]
    type: Mapped[str | None]
    said_at: Mapped[datetime | None]
    entry: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
