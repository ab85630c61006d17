"""prompts that are sent at times of a clock, and what came of each time"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

MOMENT, NOW = sa.DateTime(timezone=True), sa.text("now()")

# As those of runs and sessions, see 0001_tables.py.
_DELIVER = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO webhook_deliveries (webhook_id, type, payload)
  SELECT w.id, '{type}', jsonb_strip_nulls({data})::text FROM schedules s JOIN webhooks w ON w.tenant_id = s.tenant_id
  WHERE s.id = {schedule} AND w.disabled_at IS NULL AND '{type}' = ANY (w.events) FOR KEY SHARE OF w;
  RETURN NULL;
END $$
"""
OUTBOX = (
    _DELIVER.format(
        name="deliver_schedule_firing",
        type="schedule.failed",
        schedule="NEW.schedule_id",
        data="jsonb_build_object('schedule_id', NEW.schedule_id, 'firing_id', NEW.id, 'fire_at', to_char("
        "NEW.fire_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), 'session_id', NEW.session_id,"
        " 'run_id', NEW.run_id, 'error_code', NEW.error->>'code')",
    ),
    _DELIVER.format(
        name="deliver_schedule_pause",
        type="schedule.paused",
        schedule="NEW.id",
        data="jsonb_build_object('schedule_id', NEW.id, 'reason', NEW.paused_reason)",
    ),
    """
    CREATE TRIGGER schedule_firings_deliver_new AFTER INSERT ON schedule_firings FOR EACH ROW
    WHEN (NEW.state = 'failed') EXECUTE FUNCTION deliver_schedule_firing()
    """,
    """
    CREATE TRIGGER schedule_firings_deliver_end AFTER UPDATE OF state ON schedule_firings FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed') EXECUTE FUNCTION deliver_schedule_firing()
    """,
    """
    CREATE TRIGGER schedules_deliver_pause AFTER UPDATE OF paused_at ON schedules FOR EACH ROW
    WHEN (OLD.paused_at IS NULL AND NEW.paused_at IS NOT NULL) EXECUTE FUNCTION deliver_schedule_pause()
    """,
)


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid()),
        sa.Column("name", sa.Text()),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(), nullable=False),
        sa.Column("profile", sa.Text()),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("jitter_seconds", sa.Integer(), nullable=False),
        sa.Column("pause_after_failures", sa.Integer()),
        sa.Column("next_at", MOMENT),
        sa.Column("look_at", MOMENT),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("paused_at", MOMENT),
        sa.Column("paused_reason", sa.Text()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.CheckConstraint("session IN ('new','own','given')", name=op.f("schedules_session_check")),
        sa.CheckConstraint("overlap IN ('skip','queue')", name=op.f("schedules_overlap_check")),
        sa.CheckConstraint("(next_at IS NULL) = (look_at IS NULL)", name=op.f("schedules_look_at_check")),
        sa.PrimaryKeyConstraint("id", name="schedules_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="schedules_tenant_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="schedules_api_key_id_fkey", ondelete="SET NULL"),
    )
    op.create_index("schedules_list_idx", "schedules", ["tenant_id", "created_at", "id"])
    due, of_key = sa.text("look_at IS NOT NULL"), sa.text("api_key_id IS NOT NULL")
    op.create_index("schedules_due_idx", "schedules", ["look_at"], postgresql_where=due)
    op.create_index("schedules_api_key_id_idx", "schedules", ["api_key_id"], postgresql_where=of_key)
    op.create_table(
        "schedule_firings",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("fire_at", MOMENT, nullable=False),
        sa.Column("origin", sa.Text(), server_default=sa.text("'schedule'"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("times", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("error", postgresql.JSONB()),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("ended_at", MOMENT),
        sa.CheckConstraint(
            "state IN ('sent','succeeded','failed','interrupted','skipped','missed')",
            name=op.f("schedule_firings_state_check"),
        ),
        sa.CheckConstraint("origin IN ('schedule','request')", name=op.f("schedule_firings_origin_check")),
        sa.PrimaryKeyConstraint("id", name="schedule_firings_pkey"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name="schedule_firings_schedule_id_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("schedule_firings_time_key", "schedule_firings", ["schedule_id", "fire_at"], unique=True)
    sent, run = sa.text("state = 'sent'"), sa.text("run_id IS NOT NULL")
    op.create_index("schedule_firings_sent_idx", "schedule_firings", ["schedule_id"], postgresql_where=sent)
    op.create_index("schedule_firings_run_idx", "schedule_firings", ["run_id"], postgresql_where=run)
    op.create_index("schedule_firings_created_at_idx", "schedule_firings", ["created_at"])
    for statement in OUTBOX:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("schedule_firings")
    op.drop_table("schedules")
    op.execute("DROP FUNCTION deliver_schedule_firing")
    op.execute("DROP FUNCTION deliver_schedule_pause")
