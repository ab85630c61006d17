"""deletion in batches"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UNPURGED = "sessions (deleted_at) WHERE deleted_at IS NOT NULL AND purged_at IS NULL"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # What was deleted before holds nothing; that is found and noted by whoever looks for what was left.
        op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS purged_at timestamptz")
        op.execute("SET lock_timeout = '60s'")  # nobody waits behind one that builds an index like this
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS sessions_unpurged_idx")  # what was broken off is of no use
        op.execute(f"CREATE INDEX CONCURRENTLY sessions_unpurged_idx ON {UNPURGED}")
        op.execute("SET lock_timeout = '300ms'")
    op.add_column("tenants", sa.Column("deleting_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tenants", sa.Column("removed", sa.dialects.postgresql.JSONB(), nullable=True))
    op.create_index("tenants_deleting_idx", "tenants", ["id"], postgresql_where=sa.text("deleting_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("tenants_deleting_idx", "tenants")
    op.drop_column("tenants", "removed")
    op.drop_column("tenants", "deleting_at")
    op.drop_index("sessions_unpurged_idx", "sessions")
    op.drop_column("sessions", "purged_at")
