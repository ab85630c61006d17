"""requests that a caller's program answers: calls of client tools"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def _allow(kinds: str) -> None:
    # Looked through in a step of its own, which keeps nobody from reading and writing.
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE requests DROP CONSTRAINT IF EXISTS requests_kind_check,"
            f" ADD CONSTRAINT requests_kind_check CHECK (kind IN ({kinds})) NOT VALID"
        )
        op.execute("ALTER TABLE requests VALIDATE CONSTRAINT requests_kind_check")


def upgrade() -> None:
    _allow("'permission','question','client_tool'")


def downgrade() -> None:
    op.execute("DELETE FROM requests WHERE kind = 'client_tool'")
    _allow("'permission','question'")
