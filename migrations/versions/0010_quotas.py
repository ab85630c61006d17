"""quotas of what waits"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WAITING = "runs (tenant_id, api_key_id) WHERE status = 'queued'"

# The lock comes before the count, and is kept until the run is stored: the statements of a function see what was
# committed before they began. No more is counted than the limit, however long the queue is.
REFUSED = """
CREATE FUNCTION run_refused(_tenant uuid, _key uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  of_tenant bigint;
  of_key bigint;
  used bigint;
BEGIN
  SELECT (t.limits ->> 'queued_runs')::bigint, (k.limits ->> 'queued_runs')::bigint INTO of_tenant, of_key
  FROM tenants t LEFT JOIN api_keys k ON k.id = _key WHERE t.id = _tenant;
  IF of_tenant IS NOT NULL OR of_key IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock(hashtextextended('queued:' || _tenant, 0));
  END IF;
  IF of_key IS NOT NULL THEN
    SELECT count(*) INTO used FROM (
      SELECT FROM runs WHERE tenant_id = _tenant AND api_key_id = _key AND status = 'queued' LIMIT of_key) found;
    IF used >= of_key THEN
      RETURN jsonb_build_object('scope', 'key', 'name', 'queued_runs', 'limit', of_key, 'used', used);
    END IF;
  END IF;
  IF of_tenant IS NOT NULL THEN
    SELECT count(*) INTO used FROM (
      SELECT FROM runs WHERE tenant_id = _tenant AND status = 'queued' LIMIT of_tenant) found;
    IF used >= of_tenant THEN
      RETURN jsonb_build_object('scope', 'tenant', 'name', 'queued_runs', 'limit', of_tenant, 'used', used);
    END IF;
  END IF;
  RETURN NULL;
END $$
"""


def upgrade() -> None:
    with op.get_context().autocommit_block(), slow_builds():
        build_index("runs_waiting_idx", WAITING)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS runs_tenant_queued_idx")  # it serves for what that was for
    op.execute(REFUSED)


def downgrade() -> None:
    op.execute("DROP FUNCTION run_refused")
    op.drop_index("runs_waiting_idx")
    where = sa.text("status = 'queued'")
    op.create_index("runs_tenant_queued_idx", "runs", ["tenant_id", "position"], postgresql_where=where)
