"""sums of usage, for reports; sessions of a preset, requests of a status, and what is queued, in order"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

FIGURES = (
    *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    *("web_search_requests", "cost_usd"),
)
SUMS = ("runs", "first_runs", *FIGURES)

INDEXES = {
    "usage_sessions_idx": "usage (tenant_id, session_id, day)",
    "sessions_agent_idx": "sessions (agent_id, created_at, id) WHERE agent_id IS NOT NULL",
    "runs_places_idx": "runs (tenant_id, position) WHERE status = 'queued'",
    "runs_untold_idx": "runs (position) WHERE status = 'queued' AND announced_position IS NULL",
    "requests_status_idx": "requests (tenant_id, status, created_at, id) WHERE status <> 'open'",
}
REPLACED = {
    "usage_session_idx": "usage (session_id)",
    "sessions_agent_id_idx": "sessions (agent_id)",
}


def _added(sign: str, rows: str) -> str:
    """Rows of `usage` as rows of `usage_sums`. Those with NULL were stored before, and are not added up yet."""
    sums = ", ".join(f"{sign} sum({rows}.{name}::numeric)" for name in FIGURES)
    return f"""
    INSERT INTO usage_sums (tenant_id, day, api_key_id, model, {", ".join(SUMS)})
    SELECT {rows}.tenant_id, {rows}.day, {rows}.api_key_id, {rows}.model, {sign} count(*),
      {sign} count(*) FILTER (WHERE {rows}.counts_run), {sums}
    FROM {rows} JOIN tenants t ON t.id = {rows}.tenant_id AND t.deleting_at IS NULL
    WHERE {rows}.counts_run IS NOT NULL GROUP BY 1, 2, 3, 4;
    """  # noqa: S608 - ours


# Rows are appended here, and added up later (`usage.add_up`): two runs that end at once do not wait for each other. A
# run is counted once, at the first of its models; a row trigger sees what the statement has stored before.
TRIGGERS = (
    """
    CREATE OR REPLACE FUNCTION usage_counted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      NEW.counts_run := NOT EXISTS (SELECT FROM usage WHERE run_id = NEW.run_id);
      RETURN NEW;
    END $$
    """,
    f"""
    CREATE OR REPLACE FUNCTION usage_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF TG_OP <> 'INSERT' THEN {_added("-", "gone")} END IF;
      IF TG_OP <> 'DELETE' THEN {_added("", "come")} END IF;
      RETURN NULL;
    END $$
    """,
    "CREATE OR REPLACE TRIGGER usage_counts BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION usage_counted()",
    """
    CREATE OR REPLACE TRIGGER usage_comes AFTER INSERT ON usage REFERENCING NEW TABLE AS come
    FOR EACH STATEMENT EXECUTE FUNCTION usage_changed()
    """,
    """
    CREATE OR REPLACE TRIGGER usage_changes AFTER UPDATE ON usage REFERENCING OLD TABLE AS gone NEW TABLE AS come
    FOR EACH STATEMENT EXECUTE FUNCTION usage_changed()
    """,
    """
    CREATE OR REPLACE TRIGGER usage_goes AFTER DELETE ON usage REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION usage_changed()
    """,
)

# Day by day of each tenant, while others read and write: the trigger adds up what is marked.
ADD_UP_ALL = """
DO $$
DECLARE
  _tenant uuid := '00000000-0000-0000-0000-000000000000';
  _day date := '-infinity';
BEGIN
  LOOP
    SELECT tenant_id, day INTO _tenant, _day FROM usage WHERE (tenant_id, day) > (_tenant, _day)
    ORDER BY tenant_id, day LIMIT 1;
    EXIT WHEN NOT FOUND;
    UPDATE usage u SET counts_run =
      NOT EXISTS (SELECT FROM usage o WHERE o.run_id = u.run_id AND o.model < u.model)
    WHERE u.tenant_id = _tenant AND u.day = _day AND u.counts_run IS NULL;
    COMMIT;
  END LOOP;
END $$
"""


def upgrade() -> None:
    # All of it may be done again: it may be broken off in the middle, as by a table that is in use.
    with op.get_context().autocommit_block():
        op.create_table(
            "usage_sums",
            sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
            sa.Column("tenant_id", sa.Uuid(), nullable=False),
            sa.Column("day", sa.Date(), nullable=False),
            sa.Column("api_key_id", sa.Uuid()),
            sa.Column("model", sa.Text(), nullable=False),
            *(sa.Column(name, sa.Numeric(), nullable=False) for name in SUMS),
            sa.Column("fresh", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.PrimaryKeyConstraint("id", name=op.f("usage_sums_pkey")),
            sa.ForeignKeyConstraint(
                ["tenant_id"], ["tenants.id"], name=op.f("usage_sums_tenant_id_fkey"), ondelete="CASCADE"
            ),
            if_not_exists=True,
        )
        op.create_index("usage_sums_report_idx", "usage_sums", ["tenant_id", "day", "model"], if_not_exists=True)
        op.create_index(
            "usage_sums_fresh_idx", "usage_sums", ["id"], postgresql_where=sa.text("fresh"), if_not_exists=True
        )
        op.execute("ALTER TABLE usage ADD COLUMN IF NOT EXISTS counts_run boolean")
        for statement in TRIGGERS:
            op.execute(statement)
        op.execute(ADD_UP_ALL)
        with slow_builds():
            for name, on in INDEXES.items():
                build_index(name, on)
            for name in REPLACED:
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def downgrade() -> None:
    for name, on in REPLACED.items():
        op.execute(f"CREATE INDEX {name} ON {on}")
    for name in INDEXES:
        op.drop_index(name)
    for name in ("usage_counts", "usage_comes", "usage_changes", "usage_goes"):
        op.execute(f"DROP TRIGGER {name} ON usage")
    for function in ("usage_counted", "usage_changed"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_column("usage", "counts_run")
    op.drop_table("usage_sums")
