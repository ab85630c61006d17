"""What holds of every log, whatever was done to the fleet: asked after each test that has one."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from apps.api.db import Database

_FLAWS = """
WITH mine AS (
  SELECT id, last_seq, expired_seq FROM sessions
  WHERE deleted_at IS NULL AND ($1::uuid IS NULL OR tenant_id = $1)
    AND ($2::timestamptz IS NULL OR last_active_at >= $2)
), told AS (
  SELECT e.session_id, e.run_id, count(*) FILTER (WHERE e.type = 'done') AS dones,
    max(e.seq) FILTER (WHERE e.type = 'done') AS done, max(e.seq) AS last
  FROM events e WHERE e.session_id IN (SELECT id FROM mine) AND e.run_id IS NOT NULL GROUP BY 1, 2
), numbered AS (
  SELECT mine.id, mine.last_seq, count(e.seq) + mine.expired_seq AS count,
    coalesce(max(e.seq), mine.expired_seq) AS last
  FROM mine LEFT JOIN events e ON e.session_id = mine.id GROUP BY mine.id, mine.last_seq, mine.expired_seq
)
SELECT format('session %s: %s events up to %s, and last_seq is %s', id, count, last, last_seq) FROM numbered
WHERE count <> last OR last <> last_seq
UNION ALL
SELECT format('run %s: %s times done', run_id, dones) FROM told WHERE dones > 1
UNION ALL
SELECT format('run %s: done is %s, and %s follows', run_id, done, last) FROM told WHERE done < last
UNION ALL
SELECT format('run %s: %s, and %s times done', r.id, r.status, coalesce(told.dones, 0))
FROM runs r JOIN mine ON mine.id = r.session_id
LEFT JOIN told ON told.session_id = r.session_id AND told.run_id = r.id
WHERE $3 AND coalesce(r.last_seq > mine.expired_seq, true)
  AND (r.finished_at IS NOT NULL) <> (coalesce(told.dones, 0) > 0)
"""


async def logs_hold(
    db: Database, *, tenant_id: UUID | None = None, since: datetime | None = None, by_instances: bool = True
) -> None:
    """Raises AssertionError for what is wrong with the logs of a tenant's sessions, or of those active since then.

    Positions are contiguous, and the session knows the last one. A run has at most one `done`, and nothing of the run
    follows it; `by_instances`: nobody else has written here, so that each run that has ended has one, and no other.
    """
    found = [row[0] for row in await db.pool.fetch(_FLAWS, tenant_id, since, by_instances)]
    if found:
        raise AssertionError("\n".join(found))
