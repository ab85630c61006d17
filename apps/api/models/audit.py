"""What was done by whom."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, func
from sqlalchemy.orm import Mapped, mapped_column

from apps.api.models.base import EMPTY_OBJECT, Base


class AuditLine(Base):
    """A line of the audit log. It refers to nothing, and outlives all that it names."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("audit_log_created_at_idx", "created_at", "id"),
        Index("audit_log_tenant_idx", "tenant", "created_at", "id"),
        Index("audit_log_action_idx", "action", "created_at", "id"),
        Index("audit_log_actor_idx", "actor", "created_at", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    action: Mapped[str]
    tenant_id: Mapped[UUID]
    tenant: Mapped[str | None]
    target: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    actor: Mapped[str]
    actor_name: Mapped[str | None]
    actor_tenant: Mapped[str | None]
    address: Mapped[str | None]
    request_id: Mapped[str | None]
