"""prompts that are to go into the turn that runs, and the turn that they went into"""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE runs ADD COLUMN IF NOT EXISTS steer boolean NOT NULL DEFAULT false,"
            " ADD COLUMN IF NOT EXISTS steered_into uuid"
        )


def downgrade() -> None:
    op.drop_column("runs", "steered_into")
    op.drop_column("runs", "steer")
