"""bytes of workspaces"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

BYTES = "sessions (tenant_id) INCLUDE (taken_by, workspace_bytes) WHERE workspace_bytes > 0 AND deleted_at IS NULL"

# Bytes are what was measured last, so nothing is locked for them: what is stored meanwhile counts the next time.
CHECK = """
  IF bytes_of_key IS NOT NULL THEN
    SELECT coalesce(sum(workspace_bytes), 0) INTO used FROM sessions
    WHERE tenant_id = _tenant AND taken_by = _key AND workspace_bytes > 0 AND deleted_at IS NULL;
    IF used >= bytes_of_key THEN
      RETURN jsonb_build_object('scope', 'key', 'name', 'workspace_bytes', 'limit', bytes_of_key, 'used', used);
    END IF;
  END IF;
  IF bytes_of_tenant IS NOT NULL THEN
    SELECT coalesce(sum(workspace_bytes), 0) INTO used FROM sessions
    WHERE tenant_id = _tenant AND workspace_bytes > 0 AND deleted_at IS NULL;
    IF used >= bytes_of_tenant THEN
      RETURN jsonb_build_object('scope', 'tenant', 'name', 'workspace_bytes', 'limit', bytes_of_tenant, 'used', used);
    END IF;
  END IF;
"""

# But for `check` as in 0010_quotas.py.
REFUSED = """
CREATE OR REPLACE FUNCTION run_refused(_tenant uuid, _key uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  of_tenant bigint;
  of_key bigint;
  bytes_of_tenant bigint;
  bytes_of_key bigint;
  used bigint;
BEGIN
  SELECT (t.limits ->> 'queued_runs')::bigint, (k.limits ->> 'queued_runs')::bigint,
    (t.limits ->> 'workspace_bytes')::bigint, (k.limits ->> 'workspace_bytes')::bigint
  INTO of_tenant, of_key, bytes_of_tenant, bytes_of_key
  FROM tenants t LEFT JOIN api_keys k ON k.id = _key WHERE t.id = _tenant;
{check}  IF of_tenant IS NOT NULL OR of_key IS NOT NULL THEN
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
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS workspace_bytes bigint NOT NULL DEFAULT 0")
        with slow_builds():
            build_index("sessions_bytes_idx", BYTES)
    op.execute(REFUSED.format(check=CHECK))


def downgrade() -> None:
    op.execute(REFUSED.format(check=""))
    op.drop_index("sessions_bytes_idx")
    op.drop_column("sessions", "workspace_bytes")
