"""vaults: secrets that only sessions have which name them"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def _times() -> list[sa.Column[sa.DateTime]]:
    kind, now = sa.DateTime(timezone=True), sa.text("now()")
    when = [sa.Column(name, kind, server_default=now, nullable=False) for name in ("created_at", "updated_at")]
    return [*when, sa.Column("archived_at", kind, nullable=True)]


def upgrade() -> None:
    op.create_table(
        "vaults",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        *_times(),
        sa.PrimaryKeyConstraint("id", name="vaults_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="vaults_tenant_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("vaults_list_idx", "vaults", ["tenant_id", "created_at", "id"])
    op.create_table(
        "credentials",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("vault_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=True),
        *_times(),
        sa.PrimaryKeyConstraint("id", name="credentials_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="credentials_tenant_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["vault_id"], ["vaults.id"], name="credentials_vault_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("credentials_list_idx", "credentials", ["vault_id", "created_at", "id"])
    op.create_index("credentials_tenant_id_idx", "credentials", ["tenant_id"])
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS vault_ids uuid[]")


def downgrade() -> None:
    op.drop_column("sessions", "vault_ids")
    op.drop_table("credentials")
    op.drop_table("vaults")
