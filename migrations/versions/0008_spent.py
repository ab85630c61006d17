"""what calls to the model cost, and what sessions, keys and tenants have spent, by day"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # What was counted before has no cost.
    op.add_column("model_calls", sa.Column("cost_usd", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.alter_column("model_calls", "cost_usd", server_default=None)
    op.add_column(
        "model_calls", sa.Column("call_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False)
    )
    op.alter_column("model_calls", "call_id", server_default=None)
    op.create_unique_constraint(op.f("model_calls_call_id_key"), "model_calls", ["call_id"])
    op.create_table(
        "spent",
        sa.Column("subject", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("usd", sa.Double(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "day", name=op.f("spent_pkey")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("spent_tenant_id_fkey"), ondelete="CASCADE"),
        # Rows change with every call of an agent, in place as long as their page has room.
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index("spent_tenant_id_idx", "spent", ["tenant_id"])


def downgrade() -> None:
    op.drop_table("spent")
    op.drop_constraint(op.f("model_calls_call_id_key"), "model_calls")
    for column in ("call_id", "cost_usd"):
        op.drop_column("model_calls", column)
