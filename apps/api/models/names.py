"""What clients call sessions and runs, and what a repeated request stood for."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from apps.api.models.base import NOW, Base


class SessionName(Base):
    """What clients of a surface call a session, or a run of it: see `core/sessions/names.py`. `data`: JSON."""

    __tablename__ = "session_names"
    __table_args__ = (
        ForeignKeyConstraint(["session_id", "tenant_id"], ["sessions.id", "sessions.tenant_id"], ondelete="CASCADE"),
        Index("session_names_session_idx", "session_id", "surface", "created_at", "name"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    surface: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[UUID]
    run_id: Mapped[UUID | None]
    data: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class IdempotencyKey(Base):
    """What an `Idempotency-Key` stood for: a repeat within 24 hours finds the same session and run, or the same
    object of another kind."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        Index("idempotency_keys_created_at_idx", "created_at"),
        Index("idempotency_keys_session_id_idx", "session_id", postgresql_where=text("session_id IS NOT NULL")),
        Index("idempotency_keys_run_id_idx", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    session_id: Mapped[UUID | None] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    object_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
