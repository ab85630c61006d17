"""where a session's files are stored, and which of a tenant's objects were looked for that nothing refers to"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


COLUMNS = {
    "sessions": (
        "stored text",
        "stored_before text",
        "stored_at timestamptz",
        "stored_bytes bigint NOT NULL DEFAULT 0",
        "unstored_since timestamptz",
    ),
    "tenants": ("collected_at timestamptz",),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, columns in COLUMNS.items():
            for column in columns:
                op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}")
        with slow_builds():
            build_index("sessions_unstored_idx", "sessions (id) WHERE stored IS NOT NULL AND deleted_at IS NOT NULL")


def downgrade() -> None:
    op.drop_index("sessions_unstored_idx")
    for table, columns in COLUMNS.items():
        for column in reversed(columns):
            op.drop_column(table, column.split()[0])
