"""live sessions of tenants and keys"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

LIVE = "sessions (tenant_id, taken_by) WHERE owner_id IS NOT NULL"

# As with `run_started`: claims pass over who has reached the limit, and this holds where several claim at once.
HOLD = (
    """
    CREATE FUNCTION session_taken() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE of_tenant int; of_key int;
    BEGIN
      SELECT (t.limits ->> 'live_sessions')::int, (k.limits ->> 'live_sessions')::int INTO of_tenant, of_key
      FROM tenants t LEFT JOIN api_keys k ON k.id = NEW.taken_by WHERE t.id = NEW.tenant_id;
      IF of_tenant IS NULL AND of_key IS NULL THEN
        RETURN NEW;
      END IF;
      PERFORM pg_advisory_xact_lock(hashtext('live_sessions'), hashtext(NEW.tenant_id::text));
      IF of_tenant <= (SELECT count(*) FROM sessions WHERE tenant_id = NEW.tenant_id AND owner_id IS NOT NULL)
        OR of_key <= (SELECT count(*) FROM sessions
          WHERE tenant_id = NEW.tenant_id AND taken_by = NEW.taken_by AND owner_id IS NOT NULL)
      THEN
        RAISE EXCEPTION 'live_sessions' USING ERRCODE = 'QUOTA';
      END IF;
      RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER sessions_taken BEFORE UPDATE OF owner_id ON sessions FOR EACH ROW
    WHEN (OLD.owner_id IS NULL AND NEW.owner_id IS NOT NULL) EXECUTE FUNCTION session_taken()
    """,
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS taken_by uuid")
        with slow_builds():
            build_index("sessions_live_idx", LIVE)
    for statement in HOLD:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER sessions_taken ON sessions")
    op.execute("DROP FUNCTION session_taken")
    op.drop_index("sessions_live_idx")
    op.drop_column("sessions", "taken_by")
