"""steady"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("lost", postgresql.INT8RANGE()))


def downgrade() -> None:
    op.drop_column("sessions", "lost")
