"""Deliveries: messages to webhooks, from the outbox in PostgreSQL to the endpoint, at least once.

The rows are written by triggers, in the transaction of the change that they tell (docs/adr/0010-outbox-by-trigger.md).
Every instance sends: a claim moves `next_attempt_at` behind the longest attempt and notes who claimed. What a dead
instance had claimed is due as soon as its lease has run out.

Places are shared: whoever has the fewest messages under way is next, and an endpoint that is slow has one place among
those that slow ones may take, so that however many of them there are, a message to another one leaves at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api import __version__, clock, tracing
from apps.api.core import pages, tasks
from apps.api.core.codec import decode, encode, timestamp
from apps.api.core.network.outbound import Failed, Outbound, Refused
from apps.api.core.pages import Page
from apps.api.core.tenant import signing, vault, webhooks
from apps.api.db import CONNECTION_ERRORS, Database, retrying
from apps.api.errors import Conflict, NotFound, Unavailable
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

TIMEOUT = 15.0
"""Seconds for one attempt."""

LEASE = 60.0
"""Seconds that a claimed delivery is left to who claimed it: more than an attempt and the notes about it take."""

BACKOFF: tuple[float, ...] = (5, 60, 300, 1800, 3600, 7200, 14400, *[28800] * 5)
"""Seconds before the second attempt and those after it: 13 attempts in two days. Each is varied by a tenth."""

DISABLE_AFTER_DAYS = 5
"""Days of nothing but failures after which an endpoint is disabled."""

KEEP_DAYS = 7
"""Days that deliveries stay in the log."""

AT_ONCE = 32
"""Attempts of this instance at the same time that are in their first LINGERS seconds."""

AT_ONCE_IN_ALL = 128
"""The same with those that wait for a slow endpoint, which cost a socket each and no work."""

AT_ONCE_SLOW = 64
"""Of AT_ONCE_IN_ALL those that slow endpoints may take."""

AT_ONCE_PER_TENANT = 8
AT_ONCE_PER_WEBHOOK = 4
"""Of all of them; half as many of a tenant's, and one of an endpoint's, where the endpoint is slow."""

LINGERS = 1.0
"""Seconds after which an endpoint counts as slow until it has answered. So does one whose last attempt timed out."""

MAX_SLOW = 10_000
"""Endpoints that are kept in mind as slow."""

POLL = 1.0
GONE = 410

# $1 free places; $2, $3 endpoints with attempts under way here, and how many; $4 slow ones, $5 places of each of them;
# $6 and $7 places of other endpoints and of a tenant. `turn` is the how-manieth of its tenant a message would be.
# `waiting` jumps from one endpoint with messages to the next: those that have none cost nothing.
_CLAIM = """
WITH RECURSIVE waiting AS (
  (SELECT webhook_id FROM webhook_deliveries WHERE status = 'pending' ORDER BY webhook_id LIMIT 1)
  UNION ALL
  SELECT (SELECT d.webhook_id FROM webhook_deliveries d
    WHERE d.status = 'pending' AND d.webhook_id > w.webhook_id ORDER BY d.webhook_id LIMIT 1)
  FROM waiting w WHERE w.webhook_id IS NOT NULL
), orphaned AS (
  UPDATE webhook_deliveries d SET next_attempt_at = now(), sender_id = NULL
  WHERE sender_id IS NOT NULL AND sender_id IS DISTINCT FROM $9 AND status = 'pending'
    AND NOT EXISTS (SELECT 1 FROM instances i WHERE i.id = d.sender_id AND i.lease_expires_at > now())
), ends AS (
  SELECT w.id, w.tenant_id, coalesce(b.busy, 0) AS busy, w.id = ANY ($4::uuid[]) AS slow,
    sum(coalesce(b.busy, 0)) OVER (PARTITION BY w.tenant_id) AS of_tenant
  FROM waiting JOIN webhooks w ON w.id = waiting.webhook_id AND w.disabled_at IS NULL
  JOIN tenants t ON t.id = w.tenant_id AND t.suspended_at IS NULL
  LEFT JOIN unnest($2::uuid[], $3::int[]) AS b(id, busy) ON b.id = w.id
), due AS (
  SELECT d.id, e.slow, e.of_tenant
    + row_number() OVER (PARTITION BY e.tenant_id ORDER BY e.slow, e.busy + d.nth, d.next_attempt_at) AS turn
  FROM ends e CROSS JOIN LATERAL (
    SELECT id, next_attempt_at, row_number() OVER (ORDER BY next_attempt_at) AS nth FROM webhook_deliveries
    WHERE webhook_id = e.id AND status = 'pending' AND next_attempt_at <= now()
    ORDER BY next_attempt_at LIMIT greatest(CASE WHEN e.slow THEN $5::int ELSE $6::int END - e.busy, 0)
  ) d
), chosen AS (
  SELECT id FROM webhook_deliveries WHERE status = 'pending' AND next_attempt_at <= now() AND id IN (
    SELECT id FROM due WHERE turn <= CASE WHEN slow THEN $7::int / 2 ELSE $7::int END ORDER BY turn, random() LIMIT $1)
  FOR UPDATE SKIP LOCKED
)
UPDATE webhook_deliveries d
SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => $8), sender_id = $9
FROM chosen, webhooks w WHERE d.id = chosen.id AND w.id = d.webhook_id
RETURNING d.id, w.tenant_id, d.webhook_id, d.type, d.payload, d.attempts, d.created_at, w.url, w.secret,
  CASE WHEN w.previous_secret_expires_at > now() THEN w.previous_secret END AS previous_secret,
  (SELECT traceparent FROM runs WHERE id = (d.payload::jsonb ->> 'run_id')::uuid) AS traceparent
"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that this instance sends now. Secrets are sealed. `traceparent`: of the run that it is about."""

    id: UUID
    tenant_id: UUID
    webhook_id: UUID
    type: str
    payload: str
    attempts: int
    created_at: datetime
    url: str
    secret: str
    previous_secret: str | None
    traceparent: str | None

    def body(self) -> bytes:
        """The message, the same in every attempt: `{"delivery_id", "type", "created_at", "data"}`."""
        created_at = timestamp(self.created_at)
        return encode(
            {"delivery_id": str(self.id), "type": self.type, "created_at": created_at, "data": decode(self.payload)}
        )


class Deliveries:
    """The sender of one instance.

    Attributes:
        sent: messages delivered since the start.
        failed, given_up: attempts that failed since the start, to be tried again, or the last of a message.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        outbound: Outbound,
        *,
        instance_id: UUID | None = None,
        backoff: Sequence[float] = BACKOFF,
        timeout: float = TIMEOUT,
    ) -> None:
        """`instance_id`: when its lease is over, what it had under way is due; without one when LEASE is."""
        self._db, self._settings, self._outbound = db, settings, outbound
        self._instance_id, self._backoff, self._timeout = instance_id, backoff, timeout
        self._sending: dict[asyncio.Task[None], tuple[UUID, float]] = {}  # to which webhook, since when
        self._timed_out: dict[UUID, None] = {}  # webhooks whose last attempt did
        self._free = asyncio.Event()
        self.sent = self.failed = self.given_up = 0

    async def run(self) -> None:
        """Send what is due, for ever."""
        try:
            while True:
                if not await self._start_due():
                    await tasks.nap(self._free, POLL)
        finally:
            await tasks.end(*self._sending)  # what was under way is due again when its lease is over

    async def send_due(self) -> None:
        """Send what is due now, and wait until it was sent."""
        while await self._start_due() or self._sending:
            await asyncio.wait(self._sending)

    async def _start_due(self) -> int:
        now = time.monotonic()
        lingering = [webhook_id for webhook_id, since in self._sending.values() if now - since >= LINGERS]
        room = min(AT_ONCE - len(self._sending) + len(lingering), AT_ONCE_IN_ALL - len(self._sending))
        if room <= 0:
            return 0
        busy = Counter(webhook_id for webhook_id, _ in self._sending.values())
        slow = {*lingering, *self._timed_out}
        for_slow = int(len(lingering) < AT_ONCE_SLOW)
        places = (for_slow, AT_ONCE_PER_WEBHOOK, AT_ONCE_PER_TENANT)
        try:
            rows = await self._db.pool.fetch(
                _CLAIM, room, list(busy), list(busy.values()), list(slow), *places, LEASE, self._instance_id
            )
        except CONNECTION_ERRORS as error:
            log.warning("webhook.claim_failed", error=type(error).__name__)
            return 0
        for row in rows:
            claimed = Claimed(**dict(row))
            task = asyncio.create_task(self._send(claimed), name=f"webhook-{claimed.id}")
            self._sending[task] = claimed.webhook_id, time.monotonic()
            task.add_done_callback(self._ended)
        return len(rows)

    def _ended(self, task: asyncio.Task[None]) -> None:
        webhook_id, since = self._sending.pop(task)
        self._timed_out.pop(webhook_id, None)
        if time.monotonic() - since >= 0.9 * self._timeout:
            self._timed_out[webhook_id] = None
            if len(self._timed_out) > MAX_SLOW:
                del self._timed_out[next(iter(self._timed_out))]
        self._free.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook.attempt_broke", error=error, exc_info=error)

    async def _send(self, claimed: Claimed) -> None:
        status: int | None = None
        leased_until = time.monotonic() + LEASE
        tracing.work_on(tracing.Work(claimed.traceparent))
        try:
            status = await self._post(claimed)
            failure = None if 200 <= status < 300 else f"it answered {status}"
        except (Failed, Refused) as error:
            failure = str(error)
        except Unavailable as error:
            failure = error.message
        except Exception as error:  # of this one message: a secret that no key opens, for example
            log.error("webhook.attempt_broke", delivery_id=str(claimed.id), error=error, exc_info=error)
            failure = f"it could not be sent: {type(error).__name__}"

        async def note() -> None:
            async with self._db.transaction() as connection:
                if failure is None:
                    await _note_success(connection, claimed, status)
                else:
                    await self._note_failure(connection, claimed, status, failure)

        try:
            await retrying(note, until=lambda: time.monotonic() > leased_until)
        except Unavailable as error:
            # The end of the lease brings it back. At worst it is sent twice, under the same id.
            log.warning("webhook.outcome_not_noted", delivery_id=str(claimed.id), error=type(error).__name__)
            return
        if failure is None:
            self.sent += 1
        elif self._is_last(claimed):
            self.given_up += 1
        else:
            self.failed += 1

    def _is_last(self, claimed: Claimed) -> bool:
        return claimed.attempts > len(self._backoff)

    async def _post(self, claimed: Claimed) -> int:
        sealed = [s for s in (claimed.secret, claimed.previous_secret) if s is not None]
        body = claimed.body()
        signed = signing.headers(
            [vault.unseal(self._settings, s) for s in sealed], str(claimed.id), int(clock.timestamp()), body
        )
        headers = {"Content-Type": "application/json", "User-Agent": f"claude-agent-api/{__version__}", **signed}
        headers |= tracing.headers(claimed.traceparent)
        return (await self._outbound.post(claimed.url, headers, body, self._timeout, claimed.tenant_id)).status

    async def _note_failure(
        self, connection: asyncpg.Connection, claimed: Claimed, status: int | None, failure: str
    ) -> None:
        # The endpoint's row first, here and where it is disabled: two attempts in opposite order would wait for ever.
        failing_too_long = await connection.fetchval(
            "UPDATE webhooks SET failing_since = coalesce(failing_since, now()) WHERE id = $1"
            " RETURNING failing_since < now() - make_interval(days => $2)",
            claimed.webhook_id,
            DISABLE_AFTER_DAYS,
        )
        over = self._is_last(claimed)
        wait = 0.0 if over else self._backoff[claimed.attempts - 1] * random.uniform(0.9, 1.1)
        await connection.execute(
            "UPDATE webhook_deliveries SET status = $2, next_attempt_at = now() + make_interval(secs => $3),"
            " last_status = $4, last_error = $5, sender_id = NULL"
            " WHERE id = $1 AND status = 'pending' AND attempts = $6",
            claimed.id,
            "failed" if over else "pending",
            wait,
            status,
            failure,
            claimed.attempts,
        )
        if status == GONE or failing_too_long:
            reason = "it answered 410" if status == GONE else f"it has failed for {DISABLE_AFTER_DAYS} days"
            await webhooks.disable(connection, claimed.webhook_id, reason)
            log.warning("webhook.disabled", webhook_id=str(claimed.webhook_id), reason=reason)


async def _note_success(connection: asyncpg.Connection, claimed: Claimed, status: int | None) -> None:
    await connection.execute(
        "UPDATE webhooks SET failing_since = NULL WHERE id = $1 AND failing_since IS NOT NULL", claimed.webhook_id
    )
    # A redelivery that was asked for meanwhile counts anew, and is sent.
    await connection.execute(
        "UPDATE webhook_deliveries SET status = 'delivered', delivered_at = now(), last_status = $2, last_error = NULL,"
        " sender_id = NULL WHERE id = $1 AND attempts = $3",
        claimed.id,
        status,
        claimed.attempts,
    )


_COLUMNS = """
SELECT d.id, d.webhook_id, d.position, d.type, d.payload, d.status, d.attempts, d.next_attempt_at, d.last_status,
  d.last_error, d.created_at, d.delivered_at FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
WHERE d.webhook_id = $1 AND w.tenant_id = $2
"""


def _delivery(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "delivery_id": str(row["id"]),
        "webhook_id": str(row["webhook_id"]),
        "type": row["type"],
        "data": decode(row["payload"]),
        "status": row["status"],
        "attempts": row["attempts"],
        "next_attempt_at": timestamp(row["next_attempt_at"]) if row["status"] == "pending" else None,
        "last_status": row["last_status"],
        "last_error": row["last_error"],
        "created_at": timestamp(row["created_at"]),
        "delivered_at": timestamp(row["delivered_at"]) if row["delivered_at"] else None,
    }


async def list_page(db: Database, tenant_id: UUID, webhook_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """The log of a webhook, newest first. Raises NotFound, ValidationError."""
    await webhooks.get(db, tenant_id, webhook_id)
    rows = await db.pool.fetch(
        _COLUMNS + "AND ($3::bigint IS NULL OR d.position < $3) ORDER BY d.position DESC LIMIT $4",
        webhook_id,
        tenant_id,
        pages.number_of(cursor),
        limit + 1,
    )
    more = len(rows) > limit
    return Page([_delivery(row) for row in rows[:limit]], str(rows[limit - 1]["position"]) if more else None)


async def _require_enabled(db: Database, tenant_id: UUID, webhook_id: UUID) -> None:
    if not (await webhooks.get(db, tenant_id, webhook_id))["enabled"]:
        raise Conflict("This webhook is disabled. Enable it first.", code="webhook_disabled")


async def redeliver(db: Database, tenant_id: UUID, webhook_id: UUID, delivery_id: UUID) -> dict[str, Any]:
    """Send a message again, under the same id and with all attempts. Raises NotFound, Conflict `webhook_disabled`."""
    await _require_enabled(db, tenant_id, webhook_id)
    await db.pool.execute(
        "UPDATE webhook_deliveries SET status = 'pending', attempts = 0, next_attempt_at = now(), delivered_at = NULL,"
        " sender_id = NULL WHERE id = $1 AND webhook_id = $2",
        delivery_id,
        webhook_id,
    )
    row = await db.pool.fetchrow(_COLUMNS + "AND d.id = $3", webhook_id, tenant_id, delivery_id)
    if row is None:
        raise NotFound.of("delivery")
    return _delivery(row)


async def ping(db: Database, tenant_id: UUID, webhook_id: UUID) -> dict[str, Any]:
    """Queue a message of type `webhook.test`. Raises NotFound, Conflict `webhook_disabled`."""
    await _require_enabled(db, tenant_id, webhook_id)
    delivery_id = await db.pool.fetchval(
        "INSERT INTO webhook_deliveries (webhook_id, type, payload) SELECT id, 'webhook.test', '{}' FROM webhooks"
        " WHERE id = $1 AND tenant_id = $2 RETURNING id",
        webhook_id,
        tenant_id,
    )
    row = await db.pool.fetchrow(_COLUMNS + "AND d.id = $3", webhook_id, tenant_id, delivery_id)
    if row is None:
        raise NotFound.of("webhook")
    return _delivery(row)


async def forget_old(db: Database) -> None:
    """Remove deliveries from the log whose time is over."""
    await db.sweep(
        "DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries"
        " WHERE created_at < now() - make_interval(days => $1) ORDER BY created_at LIMIT $2)",
        KEEP_DAYS,
    )
