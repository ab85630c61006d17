"""runs under way, by their tenant: lists of sessions by status go through no others"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block(), slow_builds():
        build_index("runs_active_idx", "runs (tenant_id) WHERE status IN ('running','requires_action')")


def downgrade() -> None:
    op.drop_index("runs_active_idx", "runs")
