"""What agents cost: sums of the SDK's own figures."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from apps.api import clock
from apps.api.core.config.names import EndUser, ModelName
from apps.api.core.sessions import sessions
from apps.api.core.tenant import budgets, usage
from apps.api.core.tenant.usage import Group, Scope
from apps.api.dialects.native.common import PREFIX, Cursor, Limit, SessionId, errors
from apps.api.dialects.native.schemas import ModelUsage, Usd
from apps.api.errors import ValidationError
from apps.api.web.callers import Reader
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["usage"])

MAX_DAYS = 366
DEFAULT_DAYS = 30


class UsageSums(ModelUsage):
    """Sums over runs."""

    runs: int = Field(description="Runs with figures; one that used two models counts once in a sum over both.")


class UsageRow(UsageSums):
    """Sums of one group. It has the fields of the groupings that were asked for."""

    day: date | None = Field(None, description="Day in UTC on which the runs ended.")
    key_id: UUID | None = Field(None, description="The API key; null when it is gone.")
    key_name: str | None = None
    model: str | None = Field(None, examples=["claude-sonnet-5-5"])
    session_id: UUID | None = Field(None, description="Also of sessions that were deleted since.")
    end_user: str | None = Field(None, examples=["customer-42"])


class Budget(BaseModel):
    """What may be spent until `resets_at`, by the gateway's count: USD or tokens."""

    scope: Literal["session", "key", "tenant"]
    name: str = Field(description="What it is: USD or tokens, of a day or a month in UTC, or of a session.")
    limit_usd: Usd | None = None
    used_usd: Usd | None = None
    left_usd: Usd | None = None
    limit: int | None = Field(None, description="Of tokens, as `used` and `left`.")
    used: int | None = None
    left: int | None = None
    resets_at: datetime | None = Field(description="When there is a new one; null of a session.")


class UsageReport(BaseModel):
    """Groups in the order day, key, model, session, end_user; and the sums of all groups, on this page or not."""

    first: date = Field(alias="from", description="First day, in UTC.")
    last: date = Field(alias="to", description="Last day, in UTC, included.")
    data: list[UsageRow]
    totals: UsageSums
    unmeasured_runs: int | None = Field(
        description="Runs that ended without figures, because their agent was killed before it told any. Null with"
        " `model`: no model is known of them."
    )
    budgets: list[Budget] = Field(description="Those of the caller's key and of its tenant.")
    next_cursor: str | None


class UsageModelRow(UsageSums):
    """Sums of one model."""

    model: str = Field(examples=["claude-sonnet-5-5"])


class SessionUsage(BaseModel):
    """What a session has used since its creation, by model."""

    session_id: UUID
    data: list[UsageModelRow]
    totals: UsageSums
    unmeasured_runs: int = Field(description="Runs that ended without figures.")
    budgets: list[Budget] = Field(description="That of the session, and those of the caller's key and of its tenant.")


def _days(first: date | None, last: date | None) -> tuple[date, date]:
    last = last or clock.now().date()
    try:
        first = first or last - timedelta(days=DEFAULT_DAYS - 1)
    except OverflowError as error:
        raise ValidationError.of("to", "out of range") from error
    if first > last:
        raise ValidationError.of("from", "is after to")
    if (last - first).days >= MAX_DAYS:
        raise ValidationError.of("from", f"more than {MAX_DAYS} days")
    return first, last


@router.get("/usage", responses=errors(), response_model_exclude_unset=True)
async def get_usage(
    core: CoreDep,
    caller: Reader,
    group_by: Annotated[
        str,
        Query(
            pattern=r"^(day|key|model|session|end_user)(,(day|key|model|session|end_user))*$",
            max_length=100,
            description="Any of `day`, `key`, `model`, `session`, `end_user`, with commas between.",
            examples=["day,model"],
        ),
    ] = "day",
    first: Annotated[date | None, Query(alias="from", description="First day, in UTC; 30 days if left out.")] = None,
    last: Annotated[date | None, Query(alias="to", description="Last day, in UTC; today if left out.")] = None,
    session_id: Annotated[UUID | None, Query(description="Only this session, deleted or not.")] = None,
    key_id: Annotated[UUID | None, Query(description="Only runs that this API key asked for.")] = None,
    model: Annotated[ModelName | None, Query(description="Only this model.")] = None,
    end_user: Annotated[EndUser | None, Query(description="Only runs for this end user.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> UsageReport:
    """What the tenant's agents have used, by day, key, model, session and end user: at most 366 days at once.

    All figures are the SDK's own. A run counts on the day it ended, for the key that asked for it. A turn that the
    agent began itself counts for the key, and the end user, of the
    session's last prompt. By `end_user`, and with it, only runs that have one are counted.
    """
    first, last = _days(first, last)
    groups: list[Group] = [name for name in usage.GROUPS if name in group_by.split(",")]
    # A key that is bound to profiles reads the tenant's sums; of sessions it sees those that it may use.
    scope = Scope(first, last, session_id, key_id, model, caller.profiles if "session" in groups else None)
    scope = replace(scope, end_user=end_user, of_end_users="end_user" in groups)
    page = await usage.report(core.db, caller.tenant_id, scope, groups, limit=limit, cursor=cursor)
    totals = await usage.report(core.db, caller.tenant_id, scope, (), limit=1, cursor=None)
    answered = {
        "from": first,
        "to": last,
        "data": page.data,
        "totals": totals.data[0],
        "unmeasured_runs": None if model else await usage.unmeasured(core.db, caller.tenant_id, scope),
        "budgets": await budgets.of(core.db, caller.tenant_id, caller.key_id),
        "next_cursor": page.next_cursor,
    }
    return UsageReport.model_validate(answered)


@router.get("/sessions/{session_id}/usage", responses=errors(404))
async def get_session_usage(core: CoreDep, caller: Reader, session_id: SessionId) -> SessionUsage:
    """What a session has used since its creation, by model. For one that was deleted: `GET /usage?session_id=`."""
    await sessions.require(core.db, caller.tenant_id, session_id)
    scope = Scope(session_id=session_id)
    rows = await usage.report(core.db, caller.tenant_id, scope, ("model",), limit=1000, cursor=None)
    totals = await usage.report(core.db, caller.tenant_id, scope, (), limit=1, cursor=None)
    return SessionUsage(
        session_id=session_id,
        data=[UsageModelRow.model_validate(row) for row in rows.data],
        totals=UsageSums.model_validate(totals.data[0]),
        unmeasured_runs=await usage.unmeasured(core.db, caller.tenant_id, scope),
        budgets=[Budget(**b) for b in await budgets.of(core.db, caller.tenant_id, caller.key_id, session_id)],
    )
