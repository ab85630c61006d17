"""limits"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tenants", "api_keys"):
        column = sa.Column("limits", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False)
        op.add_column(table, column)
    # 0 was no limit, which is now said by a number that nobody reaches.
    op.execute(
        "UPDATE api_keys SET limits = jsonb_build_object('runs_per_minute',"
        " CASE WHEN prompts_per_minute BETWEEN 1 AND 1000000 THEN prompts_per_minute ELSE 1000000 END)"
        " WHERE prompts_per_minute IS NOT NULL"
    )
    op.drop_column("api_keys", "prompts_per_minute")


def downgrade() -> None:
    op.add_column("api_keys", sa.Column("prompts_per_minute", sa.Integer(), nullable=True))
    op.execute("UPDATE api_keys SET prompts_per_minute = (limits ->> 'runs_per_minute')::integer")
    for table in ("tenants", "api_keys"):
        op.drop_column(table, "limits")
