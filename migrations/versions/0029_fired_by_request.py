"""schedules without times; which schedule has begun a session, and with which preset"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

INDEX = "sessions_schedule_idx"


def upgrade() -> None:
    # All of it may be done again: it may be broken off in the middle, as by a table that is in use.
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE schedules ALTER COLUMN cron DROP NOT NULL, ADD COLUMN IF NOT EXISTS fired_at timestamptz"
        )
        op.execute("ALTER TABLE schedule_firings ADD COLUMN IF NOT EXISTS agent text")
        op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS schedule_id uuid")
        with slow_builds():
            build_index(INDEX, "sessions (schedule_id, created_at) WHERE schedule_id IS NOT NULL")


def downgrade() -> None:
    op.drop_index(INDEX)
    op.drop_column("sessions", "schedule_id")
    op.drop_column("schedule_firings", "agent")
    op.drop_column("schedules", "fired_at")
    op.execute("DELETE FROM schedules WHERE cron IS NULL")
    op.alter_column("schedules", "cron", nullable=False)
