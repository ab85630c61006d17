"""the trace of a run: that of the request which brought it"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs ADD COLUMN IF NOT EXISTS traceparent text")


def downgrade() -> None:
    op.drop_column("runs", "traceparent")
