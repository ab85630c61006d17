"""environments, in which sessions work; presets and sessions that are archived; titles and metadata of presets"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "environments",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("network", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="environments_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="environments_tenant_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("environments_list_idx", "environments", ["tenant_id", "created_at", "id"])
    with op.get_context().autocommit_block():  # one table that is in use in each transaction
        op.execute("ALTER TABLE agents ADD COLUMN IF NOT EXISTS archived_at timestamptz")
        op.execute(
            "ALTER TABLE agent_versions ADD COLUMN IF NOT EXISTS title text,"
            " ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}' NOT NULL"
        )
        op.execute(
            "ALTER TABLE sessions ADD COLUMN IF NOT EXISTS archived_at timestamptz,"
            " ADD COLUMN IF NOT EXISTS environment_id uuid, ADD COLUMN IF NOT EXISTS network jsonb"
        )


def downgrade() -> None:
    for column in ("archived_at", "environment_id", "network"):
        op.drop_column("sessions", column)
    for column in ("title", "metadata"):
        op.drop_column("agent_versions", column)
    op.drop_column("agents", "archived_at")
    op.drop_table("environments")
