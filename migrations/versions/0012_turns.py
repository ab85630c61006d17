"""turns of tenants"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INDEXES = {
    "runs_turns_idx": "runs (tenant_id, coalesce(api_key_id, '00000000-0000-0000-0000-000000000000'::uuid), position)"
    " WHERE startable AND status = 'queued'",
    "runs_running_idx": "runs (tenant_id, api_key_id) WHERE status = 'running' AND origin = 'client'",
}

# docs/adr/0021-turns.md. Claims pass over who has reached a limit; this holds where several claim at the same moment.
# The lock comes before the count: the statements of a function see what was committed before they began.
HOLD = (
    """
    CREATE FUNCTION run_started() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE of_tenant int; of_key int;
    BEGIN
      SELECT (t.limits ->> 'concurrent_runs')::int, (k.limits ->> 'concurrent_runs')::int INTO of_tenant, of_key
      FROM tenants t LEFT JOIN api_keys k ON k.id = NEW.api_key_id WHERE t.id = NEW.tenant_id;
      IF of_tenant IS NULL AND of_key IS NULL THEN
        RETURN NEW;
      END IF;
      PERFORM pg_advisory_xact_lock(hashtext('concurrent_runs'), hashtext(NEW.tenant_id::text));
      IF of_tenant <= (SELECT count(*) FROM runs
          WHERE tenant_id = NEW.tenant_id AND status = 'running' AND origin = 'client')
        OR of_key <= (SELECT count(*) FROM runs
          WHERE tenant_id = NEW.tenant_id AND api_key_id = NEW.api_key_id AND status = 'running' AND origin = 'client')
      THEN
        RAISE EXCEPTION 'concurrent_runs' USING ERRCODE = 'QUOTA';
      END IF;
      RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER runs_started BEFORE UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.status = 'queued' AND NEW.status = 'running') EXECUTE FUNCTION run_started()
    """,
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE tenants ADD COLUMN IF NOT EXISTS claimed_at timestamptz")
        with slow_builds():
            for name, on in INDEXES.items():
                build_index(name, on)
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS runs_startable_idx")
    for statement in HOLD:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_started ON runs")
    op.execute("DROP FUNCTION run_started")
    for name in INDEXES:
        op.drop_index(name)
    where = sa.text("startable AND status = 'queued'")
    op.create_index("runs_startable_idx", "runs", ["position"], postgresql_where=where)
    op.drop_column("tenants", "claimed_at")
