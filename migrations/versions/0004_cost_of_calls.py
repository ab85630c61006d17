"""what calls to the model cost"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # What was counted before has no cost.
    op.add_column("model_calls", sa.Column("cost_usd", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.alter_column("model_calls", "cost_usd", server_default=None)


def downgrade() -> None:
    op.drop_column("model_calls", "cost_usd")
