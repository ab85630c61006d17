"""suspended tenants"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '60s'")  # nobody waits behind one that builds an index like this
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS runs_tenant_queued_idx")  # what was broken off is of no use
        op.execute(
            "CREATE INDEX CONCURRENTLY runs_tenant_queued_idx ON runs (tenant_id, position) WHERE status = 'queued'"
        )
        op.execute("SET lock_timeout = '300ms'")
    op.add_column("tenants", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("tenants_suspended_idx", "tenants", ["id"], postgresql_where=sa.text("suspended_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("tenants_suspended_idx", "tenants")
    op.drop_column("tenants", "suspended_at")
    op.drop_index("runs_tenant_queued_idx", "runs")
