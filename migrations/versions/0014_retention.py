"""retention"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "tenants",
        sa.Column("retention", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )
    op.add_column("tenants", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("sessions", sa.Column("expired_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("sessions", "expired_seq")
    op.drop_column("tenants", "swept_at")
    op.drop_column("tenants", "retention")
