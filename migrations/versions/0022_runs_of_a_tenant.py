"""runs of a tenant are found in the order of their list, also those that failed, and by the code of their error"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

INDEXES = {
    "runs_list_idx": "runs (tenant_id, created_at, id)",
    "runs_ended_idx": "runs (tenant_id, status, created_at, id) WHERE status IN ('failed','interrupted')",
    "runs_error_idx": "runs (tenant_id, (error ->> 'code'), created_at, id) WHERE error IS NOT NULL",
}


def upgrade() -> None:
    with op.get_context().autocommit_block(), slow_builds():
        for name, on in INDEXES.items():
            build_index(name, on)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name)
