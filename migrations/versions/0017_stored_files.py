"""where a session's files are stored, and which of a tenant's objects were looked for that nothing refers to"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("sessions", sa.Column("stored", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("stored_before", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("stored_at", moment, nullable=True))
    op.add_column("sessions", sa.Column("stored_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("sessions", sa.Column("unstored_since", moment, nullable=True))
    op.add_column("tenants", sa.Column("collected_at", moment, nullable=True))


def downgrade() -> None:
    op.drop_column("tenants", "collected_at")
    for column in ("unstored_since", "stored_bytes", "stored_at", "stored_before", "stored"):
        op.drop_column("sessions", column)
