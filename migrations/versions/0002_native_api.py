"""native api"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalog",
        sa.Column("cli_version", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("cli_version", name=op.f("catalog_pkey")),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("agents_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("agents_pkey")),
    )
    op.create_index(
        "agents_name_key", "agents", ["tenant_id", "name"], unique=True, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_table(
        "mcp_servers",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
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
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("secrets_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("secrets_pkey")),
    )
    op.create_table(
        "skills",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("files", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('skill','command')", name=op.f("skills_kind_check")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("skills_tenant_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "kind", "name", name=op.f("skills_pkey")),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("webhooks_tenant_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("webhooks_pkey")),
    )
    op.create_index(op.f("webhooks_tenant_id_idx"), "webhooks", ["tenant_id"], unique=False)
    op.create_table(
        "agent_versions",
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("agent_versions_agent_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "version", name=op.f("agent_versions_pkey")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('pending','delivered','failed')", name=op.f("webhook_deliveries_status_check")),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("webhook_deliveries_webhook_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pkey")),
    )
    op.create_index(
        "webhook_deliveries_due_idx",
        "webhook_deliveries",
        ["webhook_id", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("webhook_deliveries_log_idx", "webhook_deliveries", ["webhook_id", "position"], unique=False)
    op.create_index("webhook_deliveries_created_at_idx", "webhook_deliveries", ["created_at"], unique=False)
    op.create_table(
        "requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'open'"), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("resolved_by", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
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
        "requests_inbox_idx",
        "requests",
        ["tenant_id", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'open'"),
    )
    op.create_index("requests_session_idx", "requests", ["session_id", "created_at"], unique=False)
    op.create_table(
        "usage",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=True),
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
    op.create_index("usage_report_idx", "usage", ["tenant_id", "day"], unique=False)
    op.create_index("usage_session_idx", "usage", ["session_id"], unique=False)
    op.add_column("api_keys", sa.Column("profiles", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("api_keys", sa.Column("prompts_per_minute", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_hash", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_unique_constraint(op.f("api_keys_previous_hash_key"), "api_keys", ["previous_hash"])
    op.add_column("runs", sa.Column("kind", sa.Text(), server_default=sa.text("'prompt'"), nullable=False))
    op.add_column("runs", sa.Column("expand_prompt", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "runs_unmeasured_idx",
        "runs",
        ["tenant_id", "finished_at"],
        unique=False,
        postgresql_where=sa.text("total_cost_usd IS NULL AND finished_at IS NOT NULL"),
    )
    op.create_check_constraint(op.f("runs_kind_check"), "runs", "kind IN ('prompt','rewind','reset')")
    op.alter_column("idempotency_keys", "session_id", nullable=True)
    op.add_column("idempotency_keys", sa.Column("object_id", sa.Uuid(), nullable=True))
    op.add_column("sessions", sa.Column("agent_id", sa.Uuid(), nullable=True))
    op.add_column("sessions", sa.Column("agent_version", sa.Integer(), nullable=True))
    op.add_column("sessions", sa.Column("profile", sa.Text(), nullable=True))
    op.add_column(
        "sessions",
        sa.Column("ports", sa.ARRAY(sa.Integer()), server_default=sa.text("'{}'::integer[]"), nullable=False),
    )
    for table, name in (("sessions", "preview_key"), ("instances", "forward_key")):
        op.add_column(table, sa.Column(name, sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False))
    op.add_column("instances", sa.Column("url", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("surface", sa.Text(), server_default=sa.text("'native'"), nullable=False))
    op.create_index(
        "sessions_surface_idx",
        "sessions",
        ["tenant_id", "surface", "created_at"],
        unique=False,
        postgresql_where=sa.text("surface <> 'native' AND deleted_at IS NULL"),
    )
    op.create_index(op.f("sessions_agent_id_idx"), "sessions", ["agent_id"], unique=False)
    op.create_foreign_key(
        op.f("sessions_agent_id_fkey"), "sessions", "agents", ["agent_id"], ["id"], ondelete="SET NULL"
    )

    for statement in OUTBOX:
        op.execute(statement)


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


def downgrade() -> None:
    op.execute("DROP TRIGGER sessions_deliver_end ON sessions")
    op.execute("DROP TRIGGER sessions_deliver_new ON sessions")
    op.execute("DROP TRIGGER runs_deliver_status ON runs")
    op.execute("DROP TRIGGER runs_deliver_new ON runs")
    op.execute("DROP FUNCTION deliver_session")
    op.execute("DROP FUNCTION deliver_run")
    op.drop_constraint(op.f("sessions_agent_id_fkey"), "sessions", type_="foreignkey")
    op.drop_index(op.f("sessions_agent_id_idx"), table_name="sessions")
    op.drop_index("sessions_surface_idx", table_name="sessions")
    op.drop_column("sessions", "surface")
    op.drop_column("sessions", "profile")
    op.drop_column("sessions", "agent_version")
    op.drop_column("sessions", "agent_id")
    op.drop_column("idempotency_keys", "object_id")
    op.execute("DELETE FROM idempotency_keys WHERE session_id IS NULL")
    op.alter_column("idempotency_keys", "session_id", nullable=False)
    op.execute("DELETE FROM runs WHERE kind <> 'prompt'")
    op.drop_index(
        "runs_unmeasured_idx",
        table_name="runs",
        postgresql_where=sa.text("total_cost_usd IS NULL AND finished_at IS NOT NULL"),
    )
    op.drop_column("runs", "expand_prompt")
    op.drop_column("runs", "kind")
    op.drop_column("api_keys", "previous_expires_at")
    op.drop_column("api_keys", "previous_hash")
    op.drop_column("api_keys", "prompts_per_minute")
    op.drop_column("api_keys", "profiles")
    op.drop_index("usage_session_idx", table_name="usage")
    op.drop_index("usage_report_idx", table_name="usage")
    op.drop_table("usage")
    op.drop_index("requests_session_idx", table_name="requests")
    op.drop_index("requests_inbox_idx", table_name="requests", postgresql_where=sa.text("status = 'open'"))
    op.drop_table("requests")
    op.drop_index("webhook_deliveries_created_at_idx", table_name="webhook_deliveries")
    op.drop_index("webhook_deliveries_log_idx", table_name="webhook_deliveries")
    op.drop_index(
        "webhook_deliveries_due_idx", table_name="webhook_deliveries", postgresql_where=sa.text("status = 'pending'")
    )
    op.drop_table("webhook_deliveries")
    op.drop_table("agent_versions")
    op.drop_index(op.f("webhooks_tenant_id_idx"), table_name="webhooks")
    op.drop_table("webhooks")
    op.drop_table("skills")
    op.drop_table("secrets")
    op.drop_table("mcp_servers")
    op.drop_index("agents_name_key", table_name="agents", postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_table("agents")
    op.drop_table("catalog")
