"""what clients of a surface call a session, or a run of it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "session_names",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("surface", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "surface", "name", name="session_names_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id", "tenant_id"],
            ["sessions.id", "sessions.tenant_id"],
            name="session_names_session_id_fkey",
            ondelete="CASCADE",
        ),
    )
    op.create_index("session_names_session_idx", "session_names", ["session_id", "surface", "created_at", "name"])


def downgrade() -> None:
    op.drop_table("session_names")
