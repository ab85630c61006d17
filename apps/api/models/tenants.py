"""Tenants and their keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from apps.api.models.base import EMPTY_OBJECT, NOW, Base


class Tenant(Base):
    """Owner of everything else; found through an API key.

    `limits`: what all its keys are limited to together. `retention`: how long what it has is kept; `swept_at`: when it
    was last looked for what is too old, `collected_at`: for stored files that nothing refers to. `removed`: of one that
    is being deleted, how many rows have gone, and bytes where known, by table. `claimed_at`: when a run of it was last
    claimed while others waited.
    """

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name="name"),
        Index("tenants_suspended_idx", "id", postgresql_where=text("suspended_at IS NOT NULL")),
        Index("tenants_deleting_idx", "id", postgresql_where=text("deleting_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    suspended_at: Mapped[datetime | None]
    limits: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    retention: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    swept_at: Mapped[datetime | None]
    collected_at: Mapped[datetime | None]
    deleting_at: Mapped[datetime | None]
    removed: Mapped[dict[str, Any] | None]
    claimed_at: Mapped[datetime | None]


class ApiKey(Base):
    """A credential. Only the SHA-256 of the secret is kept: 256 random bits need no slow hash.

    `previous_hash`: of the secret before a rotation, which is valid until `previous_expires_at`.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("scopes <@ ARRAY['admin','write','read']", name="scopes"),
        CheckConstraint("octet_length(secret_hash) = 64", name="secret_hash"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    secret_hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    profiles: Mapped[list[str] | None]
    limits: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    networks: Mapped[list[str] | None]
    previous_hash: Mapped[str | None] = mapped_column(unique=True)
    previous_expires_at: Mapped[datetime | None]
