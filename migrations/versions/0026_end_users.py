"""end users of sessions, runs and usage: found by lists, and summed up for reports"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

FIGURES = (
    *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    *("web_search_requests", "cost_usd"),
)
SUMS = ("runs", "first_runs", *FIGURES)

INDEXES = {
    "sessions_end_user_idx": "sessions (tenant_id, end_user, created_at, id) WHERE end_user IS NOT NULL",
    "runs_end_user_idx": "runs (tenant_id, end_user, created_at, id) WHERE end_user IS NOT NULL",
}


def _added(sign: str, rows: str, by_user: bool) -> str:
    """Rows of `usage` as rows of `usage_sums`, or of `usage_user_sums`."""
    sums = ", ".join(f"{sign} sum({rows}.{name}::numeric)" for name in FIGURES)
    table, also, kinds = (
        ("usage_user_sums", "end_user, ", "1, 2, 3, 4, 5") if by_user else ("usage_sums", "", "1, 2, 3, 4")
    )
    own = f"{rows}.end_user, " if by_user else ""
    those = f"{rows}.end_user IS NOT NULL" if by_user else f"{rows}.counts_run IS NOT NULL"
    return f"""
    INSERT INTO {table} (tenant_id, {also}day, api_key_id, model, {", ".join(SUMS)})
    SELECT {rows}.tenant_id, {own}{rows}.day, {rows}.api_key_id, {rows}.model, {sign} count(*),
      {sign} count(*) FILTER (WHERE {rows}.counts_run), {sums}
    FROM {rows} JOIN tenants t ON t.id = {rows}.tenant_id AND t.deleting_at IS NULL
    WHERE {those} GROUP BY {kinds};
    """  # noqa: S608 - ours


def _changed(*by_users: bool) -> str:
    """The function of the triggers of 0020, for these tables of sums."""
    gone = "".join(_added("-", "gone", by_user) for by_user in by_users)
    come = "".join(_added("", "come", by_user) for by_user in by_users)
    return f"""
    CREATE OR REPLACE FUNCTION usage_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF TG_OP <> 'INSERT' THEN {gone} END IF;
      IF TG_OP <> 'DELETE' THEN {come} END IF;
      RETURN NULL;
    END $$
    """


def upgrade() -> None:
    # All of it may be done again: it may be broken off in the middle, as by a table that is in use.
    with op.get_context().autocommit_block():
        for table in ("sessions", "runs", "usage"):
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS end_user text")
        op.create_table(
            "usage_user_sums",
            sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
            sa.Column("tenant_id", sa.Uuid(), nullable=False),
            sa.Column("end_user", sa.Text(), nullable=False),
            sa.Column("day", sa.Date(), nullable=False),
            sa.Column("api_key_id", sa.Uuid()),
            sa.Column("model", sa.Text(), nullable=False),
            *(sa.Column(name, sa.Numeric(), nullable=False) for name in SUMS),
            sa.Column("fresh", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.PrimaryKeyConstraint("id", name=op.f("usage_user_sums_pkey")),
            sa.ForeignKeyConstraint(
                ["tenant_id"], ["tenants.id"], name=op.f("usage_user_sums_tenant_id_fkey"), ondelete="CASCADE"
            ),
            if_not_exists=True,
        )
        op.create_index(
            "usage_user_sums_report_idx", "usage_user_sums", ["tenant_id", "day", "end_user"], if_not_exists=True
        )
        op.create_index(
            "usage_user_sums_user_idx", "usage_user_sums", ["tenant_id", "end_user", "day"], if_not_exists=True
        )
        op.create_index(
            "usage_user_sums_fresh_idx",
            "usage_user_sums",
            ["id"],
            postgresql_where=sa.text("fresh"),
            if_not_exists=True,
        )
        op.execute(_changed(False, True))
        with slow_builds():
            for name, on in INDEXES.items():
                build_index(name, on)


def downgrade() -> None:
    op.execute(_changed(False))
    for name in INDEXES:
        op.drop_index(name)
    op.drop_table("usage_user_sums")
    for table in ("usage", "runs", "sessions"):
        op.drop_column(table, "end_user")
