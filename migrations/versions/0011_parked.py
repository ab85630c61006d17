"""parked runs"""

from __future__ import annotations

from alembic import op

from apps.api.migrate import build_index, slow_builds

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INDEXES = {
    "requests_expiry_idx": "requests (expires_at) WHERE status = 'open' AND run_id IS NOT NULL",
    "runs_parked_idx": "runs (session_id) WHERE parked IS NOT NULL",
}

# As before (0002_steady.py), but nothing may start in a session whose run is parked, though nobody owns it.
NOT_PARKED = (
    "NOT EXISTS (SELECT 1 FROM runs WHERE session_id = {} AND status = 'requires_action' AND parked IS NOT NULL{})"
)

_QUEUED = """
CREATE OR REPLACE FUNCTION run_queued() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE free boolean;
BEGIN
  SELECT owner_id IS NULL INTO free FROM sessions WHERE id = NEW.session_id FOR SHARE;{unless}
  NEW.startable := coalesce(free, false) AND NEW.position <= coalesce(
    (SELECT min(position) FROM runs WHERE session_id = NEW.session_id AND status = 'queued'), NEW.position);
  RETURN NEW;
END $$
"""

_NEXT = """
CREATE OR REPLACE FUNCTION run_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE session uuid;
BEGIN
  IF TG_TABLE_NAME = 'sessions' THEN session := NEW.id; ELSE session := NEW.session_id; END IF;{unless}
  UPDATE runs SET startable = true WHERE NOT startable AND id = (
    SELECT r.id FROM sessions s JOIN runs r ON r.session_id = s.id
    WHERE s.id = session AND s.owner_id IS NULL AND s.deleted_at IS NULL AND r.status = 'queued'
    ORDER BY r.position LIMIT 1);
  RETURN NULL;
END $$
"""

_CANCELLED = """
CREATE TRIGGER runs_cancelled AFTER UPDATE OF status ON runs FOR EACH ROW
WHEN ({of} AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION run_next()
"""

QUEUE = (
    _QUEUED.format(unless="\n  free := free AND " + NOT_PARKED.format("NEW.session_id", " AND id <> NEW.id") + ";"),
    _NEXT.format(unless="\n  IF NOT (" + NOT_PARKED.format("session", "") + ") THEN RETURN NULL; END IF;"),
    _CANCELLED.format(of="(OLD.startable AND OLD.status = 'queued' OR OLD.parked IS NOT NULL)"),
)
BEFORE = (
    _QUEUED.format(unless=""),
    _NEXT.format(unless=""),
    _CANCELLED.format(of="OLD.startable AND OLD.status = 'queued'"),
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs ADD COLUMN IF NOT EXISTS parked text")
        with slow_builds():
            for name, on in INDEXES.items():
                build_index(name, on)
    _replace(QUEUE)


def _replace(queue: tuple[str, ...]) -> None:
    op.execute("DROP TRIGGER runs_cancelled ON runs")
    for statement in queue:
        op.execute(statement)


def downgrade() -> None:
    _replace(BEFORE)
    for name in INDEXES:
        op.drop_index(name)
    op.drop_column("runs", "parked")
