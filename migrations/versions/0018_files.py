"""files of tenants, and what the workspace of a run is given before it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("pieces", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="files_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="files_tenant_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="files_api_key_id_fkey", ondelete="SET NULL"),
    )
    op.create_index("files_page_idx", "files", ["tenant_id", "created_at", "id"])
    op.create_index("files_api_key_id_idx", "files", ["api_key_id"])
    op.create_index("files_expires_at_idx", "files", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL"))
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs ADD COLUMN IF NOT EXISTS resources jsonb")


def downgrade() -> None:
    op.drop_column("runs", "resources")
    op.drop_table("files")
