"""tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSONB, MOMENT, TEXTS = postgresql.JSONB(), sa.DateTime(timezone=True), postgresql.ARRAY(sa.Text())
NOW = sa.text("now()")

TABLES = [
    "catalog",
    "instances",
    "tenants",
    "agents",
    "api_keys",
    "mcp_servers",
    "secrets",
    "skills",
    "webhooks",
    "agent_versions",
    "sessions",
    "webhook_deliveries",
    "runs",
    "transcript_entries",
    "commands",
    "events",
    "idempotency_keys",
    "requests",
    "usage",
]
"""Each after those that it refers to."""

# docs/adr/0010-outbox-by-trigger.md. FOR KEY SHARE passes over an endpoint that is being removed: its foreign key would
# fail the change of the run.
_DELIVER = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE told text := {type};
BEGIN
  INSERT INTO webhook_deliveries (webhook_id, type, payload)
  SELECT w.id, told, jsonb_strip_nulls({data})::text FROM webhooks w
  WHERE w.tenant_id = NEW.tenant_id AND w.disabled_at IS NULL AND told = ANY (w.events) FOR KEY SHARE;
  RETURN NULL;
END $$
"""
OUTBOX = (
    _DELIVER.format(
        name="deliver_run",
        type="'run.' || NEW.status",
        data="jsonb_build_object('session_id', NEW.session_id, 'run_id', NEW.id, 'status', NEW.status,"
        " 'error_code', NEW.error->>'code')",
    ),
    _DELIVER.format(
        name="deliver_session",
        type="CASE TG_OP WHEN 'INSERT' THEN 'session.created' ELSE 'session.deleted' END",
        data="jsonb_build_object('session_id', NEW.id)",
    ),
    "CREATE TRIGGER runs_deliver_new AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION deliver_run()",
    """
    CREATE TRIGGER runs_deliver_status AFTER UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION deliver_run()
    """,
    "CREATE TRIGGER sessions_deliver_new AFTER INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION deliver_session()",
    """
    CREATE TRIGGER sessions_deliver_end AFTER UPDATE OF deleted_at ON sessions FOR EACH ROW
    WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION deliver_session()
    """,
)


def upgrade() -> None:
    op.create_table(
        "catalog",
        sa.Column("cli_version", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("cli_version", name=op.f("catalog_pkey")),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("forward_key", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("started_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("lease_expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("instances_pkey")),
    )
    op.create_index(op.f("instances_lease_expires_at_idx"), "instances", ["lease_expires_at"])
    op.create_table(
        "tenants",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.CheckConstraint("name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name=op.f("tenants_name_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("tenants_pkey")),
        sa.UniqueConstraint("name", name=op.f("tenants_name_key")),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("deleted_at", MOMENT),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("agents_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("agents_pkey")),
    )
    op.create_index(
        "agents_name_key", "agents", ["tenant_id", "name"], unique=True, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("scopes", TEXTS, nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.Column("profiles", TEXTS),
        sa.Column("prompts_per_minute", sa.Integer()),
        sa.Column("previous_hash", sa.Text()),
        sa.Column("previous_expires_at", MOMENT),
        sa.CheckConstraint("scopes <@ ARRAY['admin','write','read']", name=op.f("api_keys_scopes_check")),
        sa.CheckConstraint("octet_length(secret_hash) = 64", name=op.f("api_keys_secret_hash_check")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("api_keys_tenant_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("previous_hash", name=op.f("api_keys_previous_hash_key")),
        sa.UniqueConstraint("secret_hash", name=op.f("api_keys_secret_hash_key")),
    )
    op.create_index(op.f("api_keys_tenant_id_idx"), "api_keys", ["tenant_id"])
    op.create_table(
        "mcp_servers",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("sealed", sa.Text()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("mcp_servers_tenant_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("mcp_servers_pkey")),
    )
    op.create_table(
        "secrets",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("secrets_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("secrets_pkey")),
    )
    op.create_table(
        "skills",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("files", JSONB, nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.CheckConstraint("kind IN ('skill','command')", name=op.f("skills_kind_check")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("skills_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "kind", "name", name=op.f("skills_pkey")),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("events", TEXTS, nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text()),
        sa.Column("previous_secret_expires_at", MOMENT),
        sa.Column("failing_since", MOMENT),
        sa.Column("disabled_at", MOMENT),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("webhooks_tenant_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("webhooks_pkey")),
    )
    op.create_index(op.f("webhooks_tenant_id_idx"), "webhooks", ["tenant_id"])
    op.create_table(
        "agent_versions",
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("profile", sa.Text()),
        sa.Column("config", JSONB, nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("agent_versions_agent_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "version", name=op.f("agent_versions_pkey")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("parent_session_id", sa.Uuid()),
        sa.Column("agent_id", sa.Uuid()),
        sa.Column("agent_version", sa.Integer()),
        sa.Column("profile", sa.Text()),
        sa.Column("surface", sa.Text(), server_default=sa.text("'native'"), nullable=False),
        sa.Column("title", sa.Text()),
        sa.Column("tags", TEXTS, server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("metadata", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("config", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("sdk_session_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid()),
        sa.Column("generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_turns", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_cost_usd", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("usage", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("permission_mode", sa.Text()),
        sa.Column("tools", TEXTS),
        sa.Column("ports", postgresql.ARRAY(sa.Integer()), server_default=sa.text("'{}'::integer[]"), nullable=False),
        sa.Column("preview_key", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("last_active_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("deleted_at", MOMENT),
        sa.CheckConstraint("generation >= 0", name=op.f("sessions_generation_check")),
        sa.CheckConstraint("last_seq >= 0", name=op.f("sessions_last_seq_check")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("sessions_agent_id_fkey"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["instances.id"], name=op.f("sessions_owner_id_fkey"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["parent_session_id"], ["sessions.id"], name=op.f("sessions_parent_session_id_fkey"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("sessions_tenant_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("sessions_pkey")),
        sa.UniqueConstraint("id", "tenant_id", name="sessions_id_tenant_id_key"),
    )
    op.create_index(op.f("sessions_agent_id_idx"), "sessions", ["agent_id"])
    op.create_index("sessions_list_idx", "sessions", ["tenant_id", "created_at", "id"])
    op.create_index("sessions_metadata_idx", "sessions", ["metadata"], postgresql_using="gin")
    op.create_index("sessions_owner_id_idx", "sessions", ["owner_id"], postgresql_where=sa.text("owner_id IS NOT NULL"))
    op.create_index(op.f("sessions_parent_session_id_idx"), "sessions", ["parent_session_id"])
    op.create_index(
        "sessions_surface_idx",
        "sessions",
        ["tenant_id", "surface", "created_at"],
        postgresql_where=sa.text("surface <> 'native' AND deleted_at IS NULL"),
    )
    op.create_index("sessions_tags_idx", "sessions", ["tags"], postgresql_using="gin")
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("last_status", sa.Integer()),
        sa.Column("last_error", sa.Text()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("delivered_at", MOMENT),
        sa.CheckConstraint("status IN ('pending','delivered','failed')", name=op.f("webhook_deliveries_status_check")),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("webhook_deliveries_webhook_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pkey")),
    )
    op.create_index("webhook_deliveries_created_at_idx", "webhook_deliveries", ["created_at"])
    op.create_index(
        "webhook_deliveries_due_idx",
        "webhook_deliveries",
        ["webhook_id", "next_attempt_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("webhook_deliveries_log_idx", "webhook_deliveries", ["webhook_id", "position"])
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid()),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("origin", sa.Text(), server_default=sa.text("'client'"), nullable=False),
        sa.Column("kind", sa.Text(), server_default=sa.text("'prompt'"), nullable=False),
        sa.Column("prompt", sa.Text()),
        sa.Column("expand_prompt", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("config", JSONB),
        sa.Column("timeout_seconds", sa.Double(), nullable=False),
        sa.Column("announced_position", sa.BigInteger()),
        sa.Column("first_seq", sa.BigInteger()),
        sa.Column("last_seq", sa.BigInteger()),
        sa.Column("error", JSONB),
        sa.Column("result", sa.Text()),
        sa.Column("total_cost_usd", sa.Double()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.CheckConstraint(
            "(status IN ('succeeded','failed','interrupted')) = (finished_at IS NOT NULL)",
            name=op.f("runs_finished_check"),
        ),
        sa.CheckConstraint("kind IN ('prompt','rewind','reset')", name=op.f("runs_kind_check")),
        sa.CheckConstraint("origin IN ('client','background')", name=op.f("runs_origin_check")),
        sa.CheckConstraint(
            "status = 'queued' OR started_at IS NOT NULL OR finished_at IS NOT NULL", name=op.f("runs_started_check")
        ),
        sa.CheckConstraint(
            "status IN ('queued','running','requires_action','succeeded','failed','interrupted')",
            name=op.f("runs_status_check"),
        ),
        sa.ForeignKeyConstraint(
            ["api_key_id"], ["api_keys.id"], name=op.f("runs_api_key_id_fkey"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["session_id", "tenant_id"],
            ["sessions.id", "sessions.tenant_id"],
            name=op.f("runs_session_id_tenant_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("runs_pkey")),
    )
    op.create_index(
        "runs_one_active_idx",
        "runs",
        ["session_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('running','requires_action')"),
    )
    op.create_index("runs_queue_idx", "runs", ["position"], postgresql_where=sa.text("status = 'queued'"))
    op.create_index("runs_session_idx", "runs", ["session_id", "position"])
    op.create_index("runs_tenant_idx", "runs", ["tenant_id", "position"])
    op.create_index(
        "runs_unmeasured_idx",
        "runs",
        ["tenant_id", "finished_at"],
        postgresql_where=sa.text("total_cost_usd IS NULL AND finished_at IS NOT NULL"),
    )
    op.create_table(
        "transcript_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("project_key", sa.Text(), nullable=False),
        sa.Column("sdk_session_id", sa.Text(), nullable=False),
        sa.Column("subpath", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("uuid", sa.Text()),
        sa.Column("type", sa.Text()),
        sa.Column("said_at", MOMENT),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("transcript_entries_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("transcript_entries_pkey")),
    )
    op.create_index(
        "transcript_entries_key_idx",
        "transcript_entries",
        ["session_id", "project_key", "sdk_session_id", "subpath", "id"],
    )
    op.create_index(
        "transcript_entries_uuid_key",
        "transcript_entries",
        ["session_id", "project_key", "sdk_session_id", "subpath", "uuid"],
        unique=True,
        postgresql_where=sa.text("uuid IS NOT NULL"),
    )
    op.create_table(
        "commands",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("result", JSONB),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("applied_at", MOMENT),
        sa.CheckConstraint("status IN ('pending','applied','rejected')", name=op.f("commands_status_check")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("commands_run_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("commands_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("commands_pkey")),
    )
    op.create_index(
        "commands_pending_idx", "commands", ["session_id", "created_at"], postgresql_where=sa.text("status = 'pending'")
    )
    op.create_table(
        "events",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("parent_tool_use_id", sa.Text()),
        sa.Column("subject", sa.Text()),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.CheckConstraint("seq > 0", name=op.f("events_seq_check")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("events_run_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("events_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "seq", name=op.f("events_pkey")),
    )
    op.create_index(
        "events_messages_idx", "events", ["session_id", "seq"], postgresql_where=sa.text("type = 'message'")
    )
    op.create_index(
        "events_parent_idx",
        "events",
        ["session_id", "parent_tool_use_id", "seq"],
        postgresql_where=sa.text("parent_tool_use_id IS NOT NULL"),
    )
    op.create_index("events_run_idx", "events", ["run_id", "seq"])
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("object_id", sa.Uuid()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("idempotency_keys_run_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("idempotency_keys_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("idempotency_keys_tenant_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index("idempotency_keys_created_at_idx", "idempotency_keys", ["created_at"])
    op.create_table(
        "requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'open'"), nullable=False),
        sa.Column("decision", sa.Text()),
        sa.Column("remember", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("resolved_by", JSONB),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("resolved_at", MOMENT),
        sa.CheckConstraint("(status = 'open') = (resolved_at IS NULL)", name=op.f("requests_resolved_check")),
        sa.CheckConstraint("kind IN ('permission','question')", name=op.f("requests_kind_check")),
        sa.CheckConstraint("status IN ('open','answered','closed')", name=op.f("requests_status_check")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("requests_run_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["session_id", "tenant_id"],
            ["sessions.id", "sessions.tenant_id"],
            name=op.f("requests_session_id_tenant_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("requests_pkey")),
    )
    op.create_index(
        "requests_inbox_idx", "requests", ["tenant_id", "created_at", "id"], postgresql_where=sa.text("status = 'open'")
    )
    op.create_index(
        "requests_remembered_idx", "requests", ["session_id", "resolved_at"], postgresql_where=sa.text("remember")
    )
    op.create_index("requests_session_idx", "requests", ["session_id", "created_at"])
    op.create_table(
        "usage",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid()),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_creation_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("web_search_requests", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["api_key_id"], ["api_keys.id"], name=op.f("usage_api_key_id_fkey"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("usage_run_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("usage_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "model", name=op.f("usage_pkey")),
    )
    op.create_index("usage_report_idx", "usage", ["tenant_id", "day"])
    op.create_index("usage_session_idx", "usage", ["session_id"])
    for statement in OUTBOX:
        op.execute(statement)


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute("DROP FUNCTION deliver_session")
    op.execute("DROP FUNCTION deliver_run")
