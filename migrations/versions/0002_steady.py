"""steady"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from apps.api.migrate import build_index, slow_builds

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = {
    "agents_tenant_id_idx": "agents (tenant_id)",
    "commands_run_id_idx": "commands (run_id) WHERE run_id IS NOT NULL",
    "commands_session_id_idx": "commands (session_id)",
    "commands_settled_idx": "commands (applied_at) WHERE applied_at IS NOT NULL",
    "events_resolved_idx": "events (session_id, subject) WHERE type = 'action_resolved'",
    "events_tasks_idx": "events (session_id, seq) WHERE type = 'task'",
    "idempotency_keys_run_id_idx": "idempotency_keys (run_id) WHERE run_id IS NOT NULL",
    "idempotency_keys_session_id_idx": "idempotency_keys (session_id) WHERE session_id IS NOT NULL",
    "requests_open_idx": "requests (session_id) WHERE status = 'open'",
    "requests_run_id_idx": "requests (run_id) WHERE run_id IS NOT NULL",
    "requests_tenant_idx": "requests (tenant_id, created_at, id)",
    "runs_api_key_id_idx": "runs (api_key_id) WHERE api_key_id IS NOT NULL",
    "runs_queued_idx": "runs (session_id, position) WHERE status = 'queued'",
    "runs_startable_idx": "runs (position) WHERE startable AND status = 'queued'",
    "usage_api_key_id_idx": "usage (api_key_id) WHERE api_key_id IS NOT NULL",
    "webhook_deliveries_sender_idx": "webhook_deliveries (sender_id) WHERE sender_id IS NOT NULL",
}

# docs/adr/0015-what-may-start.md. The lock on the session comes before the look at its runs: whoever gives the session
# back or cancels the run in front holds it, too, and the statements of a function see what was committed before them.
QUEUE = (
    """
    CREATE FUNCTION run_queued() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE free boolean;
    BEGIN
      SELECT owner_id IS NULL INTO free FROM sessions WHERE id = NEW.session_id FOR SHARE;
      NEW.startable := coalesce(free, false) AND NEW.position <= coalesce(
        (SELECT min(position) FROM runs WHERE session_id = NEW.session_id AND status = 'queued'), NEW.position);
      RETURN NEW;
    END $$
    """,
    """
    CREATE FUNCTION run_next() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE session uuid;
    BEGIN
      IF TG_TABLE_NAME = 'sessions' THEN session := NEW.id; ELSE session := NEW.session_id; END IF;
      UPDATE runs SET startable = true WHERE NOT startable AND id = (
        SELECT r.id FROM sessions s JOIN runs r ON r.session_id = s.id
        WHERE s.id = session AND s.owner_id IS NULL AND s.deleted_at IS NULL AND r.status = 'queued'
        ORDER BY r.position LIMIT 1);
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER runs_queued BEFORE INSERT OR UPDATE OF status ON runs FOR EACH ROW
    WHEN (NEW.status = 'queued') EXECUTE FUNCTION run_queued()
    """,
    """
    CREATE TRIGGER runs_cancelled AFTER UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.startable AND OLD.status = 'queued' AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION run_next()
    """,
    """
    CREATE TRIGGER sessions_freed AFTER UPDATE OF owner_id ON sessions FOR EACH ROW
    WHEN (OLD.owner_id IS NOT NULL AND NEW.owner_id IS NULL AND NEW.deleted_at IS NULL) EXECUTE FUNCTION run_next()
    """,
    """
    UPDATE runs SET startable = true WHERE id IN (
      SELECT DISTINCT ON (r.session_id) r.id FROM runs r JOIN sessions s ON s.id = r.session_id
      WHERE r.status = 'queued' AND s.owner_id IS NULL AND s.deleted_at IS NULL ORDER BY r.session_id, r.position)
    """,
)


def upgrade() -> None:
    # First what takes long on large tables, while others read and write. Each step stands for itself and is left out
    # when the whole is repeated. Columns come before indexes, since they are what may have to wait for a reader.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs ADD COLUMN IF NOT EXISTS startable boolean NOT NULL DEFAULT false")
        op.execute(
            "ALTER TABLE runs ADD COLUMN IF NOT EXISTS unsent boolean NOT NULL DEFAULT false,"
            " ADD COLUMN IF NOT EXISTS requeued integer NOT NULL DEFAULT 0,"
            " ADD COLUMN IF NOT EXISTS requeued_by uuid, ADD COLUMN IF NOT EXISTS requeued_at timestamptz"
        )
        op.execute("ALTER TABLE instances ADD COLUMN IF NOT EXISTS facts jsonb NOT NULL DEFAULT '{}'::jsonb")
        op.execute("ALTER TABLE webhook_deliveries ADD COLUMN IF NOT EXISTS sender_id uuid")
        with slow_builds():
            for name, on in INDEXES.items():
                build_index(name, on)
            # The planner took it for what one session has queued, and read the whole queue. `runs_queued_idx` is for
            # both.
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS runs_queue_idx")
    # Then the rest, all or nothing.
    op.add_column("sessions", sa.Column("lost", postgresql.INT8RANGE()))
    for statement in QUEUE:
        op.execute(statement)
    op.create_table(
        "invalidations",
        sa.Column("id", sa.Uuid(), server_default=sa.func.gen_random_uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ttl_ms", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("invalidations_pkey")),
    )
    op.create_index(op.f("invalidations_created_at_idx"), "invalidations", ["created_at"])


def downgrade() -> None:
    op.drop_table("invalidations")
    op.drop_column("sessions", "lost")
    op.execute("DROP TRIGGER sessions_freed ON sessions")
    op.execute("DROP TRIGGER runs_cancelled ON runs")
    op.execute("DROP TRIGGER runs_queued ON runs")
    op.execute("DROP FUNCTION run_next")
    op.execute("DROP FUNCTION run_queued")
    for name in INDEXES:
        op.drop_index(name)
    op.create_index("runs_queue_idx", "runs", ["position"], postgresql_where=sa.text("status = 'queued'"))
    op.drop_column("webhook_deliveries", "sender_id")
    op.drop_column("instances", "facts")
    for name in ("requeued_at", "requeued_by", "requeued", "unsent", "startable"):
        op.drop_column("runs", name)
