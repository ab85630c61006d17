"""What tenants configure for their agents: presets, MCP servers, secrets, skills and commands; and what agents cost."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from apps.api.models.base import EMPTY_OBJECT, NOW, Base


class Agent(Base):
    """A preset: named agent configuration. `version` is the newest; sessions pin the one they began with. No session
    begins with one that is archived."""

    __tablename__ = "agents"
    __table_args__ = (
        Index("agents_name_key", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    description: Mapped[str | None]
    version: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    archived_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class AgentVersion(Base):
    """One version of a preset. It never changes. `title`: what people call it, where that is not its name."""

    __tablename__ = "agent_versions"

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    profile: Mapped[str | None]
    config: Mapped[dict[str, Any]]
    title: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Environment(Base):
    """Where agents of sessions work: what they may reach there. A session pins the `network` of the one it began in."""

    __tablename__ = "environments"
    __table_args__ = (Index("environments_list_idx", "tenant_id", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    description: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    network: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    archived_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class Vault(Base):
    """Secrets that only sessions have which name it: see `sessions.vault_ids`."""

    __tablename__ = "vaults"
    __table_args__ = (Index("vaults_list_idx", "tenant_id", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    archived_at: Mapped[datetime | None]


class Credential(Base):
    """What is in a vault. `target`: the URL of an MCP server, or the name of a variable. `sealed`: the secret,
    encrypted; gone once it is archived."""

    __tablename__ = "credentials"
    __table_args__ = (Index("credentials_list_idx", "vault_id", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    vault_id: Mapped[UUID] = mapped_column(ForeignKey("vaults.id", ondelete="CASCADE"))
    kind: Mapped[str]
    target: Mapped[str]
    name: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    sealed: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    archived_at: Mapped[datetime | None]


class McpServer(Base):
    """An MCP server that a tenant has registered. `sealed` holds the values of its env or headers, encrypted."""

    __tablename__ = "mcp_servers"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    spec: Mapped[dict[str, Any]]
    sealed: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Secret(Base):
    """A tenant's secret, encrypted. Configuration refers to it as `${NAME}`; nobody reads it back."""

    __tablename__ = "secrets"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sealed: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Skill(Base):
    """A tenant's own skill or slash command: `files` maps a path to its text."""

    __tablename__ = "skills"
    __table_args__ = (CheckConstraint("kind IN ('skill','command')", name="kind"),)

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    files: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Catalog(Base):
    """What the agent's own program offers: its skills, commands and models, as JSON, by the program's version."""

    __tablename__ = "catalog"

    cli_version: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Usage(Base):
    """What one run used of one model, in the SDK's own figures. It outlives the session's content.

    `counts_run`: the run is counted here, not at its other models; a trigger says so.
    """

    __tablename__ = "usage"
    __table_args__ = (
        Index("usage_report_idx", "tenant_id", "day"),
        Index("usage_sessions_idx", "tenant_id", "session_id", "day"),
        Index("usage_api_key_id_idx", "api_key_id", postgresql_where=text("api_key_id IS NOT NULL")),
    )

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    session_id: Mapped[UUID]
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"))
    day: Mapped[date] = mapped_column(Date)
    end_user: Mapped[str | None]
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_read_input_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_creation_input_tokens: Mapped[int] = mapped_column(BigInteger)
    web_search_requests: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[float]
    counts_run: Mapped[bool | None] = mapped_column(Boolean)


class _Summed:
    """Sums of `usage` of one kind, or a part of them.

    `runs`: those that used the model; `first_runs`: those that are counted at it when models do not matter. `fresh`:
    not yet added up with others of its kind. Nothing refers to a key, so that one may go.
    """

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    day: Mapped[date] = mapped_column(Date)
    api_key_id: Mapped[UUID | None]
    model: Mapped[str]
    runs: Mapped[Decimal] = mapped_column(Numeric)
    first_runs: Mapped[Decimal] = mapped_column(Numeric)
    input_tokens: Mapped[Decimal] = mapped_column(Numeric)
    output_tokens: Mapped[Decimal] = mapped_column(Numeric)
    cache_read_input_tokens: Mapped[Decimal] = mapped_column(Numeric)
    cache_creation_input_tokens: Mapped[Decimal] = mapped_column(Numeric)
    web_search_requests: Mapped[Decimal] = mapped_column(Numeric)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric)
    fresh: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))


class UsageSum(_Summed, Base):
    """A part of the sums of `usage` by day, key and model, all of whose rows together are the sums: see core/tenant."""

    __tablename__ = "usage_sums"
    __table_args__ = (
        Index("usage_sums_report_idx", "tenant_id", "day", "model"),
        Index("usage_sums_fresh_idx", "id", postgresql_where=text("fresh")),
    )


class UserUsageSum(_Summed, Base):
    """The same by end user as well, of the runs that have one."""

    __tablename__ = "usage_user_sums"
    __table_args__ = (
        Index("usage_user_sums_report_idx", "tenant_id", "day", "end_user"),
        Index("usage_user_sums_user_idx", "tenant_id", "end_user", "day"),
        Index("usage_user_sums_fresh_idx", "id", postgresql_where=text("fresh")),
    )

    end_user: Mapped[str]


class ModelCredential(Base):
    """By what a tenant is known to the model API, in place of the operator's credential."""

    __tablename__ = "model_credentials"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str]
    sealed: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ModelCall(Base):
    """One call of an agent to a model, as the gateway counted it. It outlives the session's content."""

    __tablename__ = "model_calls"
    __table_args__ = (
        Index("model_calls_tenant_idx", "tenant_id", "began_at"),
        Index("model_calls_run_idx", "run_id", postgresql_where=text("run_id IS NOT NULL")),
        Index("model_calls_session_idx", "session_id"),
        Index("model_calls_api_key_id_idx", "api_key_id", postgresql_where=text("api_key_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    call_id: Mapped[UUID] = mapped_column(unique=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    session_id: Mapped[UUID]
    run_id: Mapped[UUID | None]
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"))
    kind: Mapped[str]
    began_at: Mapped[datetime]
    status: Mapped[int]
    first_byte_seconds: Mapped[float | None]
    seconds: Mapped[float]
    model: Mapped[str | None]
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_read_input_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_creation_input_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_creation_1h_input_tokens: Mapped[int] = mapped_column(BigInteger)
    web_search_requests: Mapped[int] = mapped_column(BigInteger)
    complete: Mapped[bool]
    cost_usd: Mapped[float]


class Spent(Base):
    """What a session, a key or a tenant (`subject`) has spent on a day in UTC, as the gateway counted it."""

    __tablename__ = "spent"
    __table_args__ = (Index("spent_tenant_id_idx", "tenant_id"),)

    subject: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    usd: Mapped[float]
    tokens: Mapped[int] = mapped_column(BigInteger)
