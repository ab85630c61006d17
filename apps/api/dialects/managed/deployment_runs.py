"""Runs of deployments: what came of each time, which is a session, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query, Response

from apps.api.core.context import Core
from apps.api.core.fleet import firings
from apps.api.dialects.managed import beginning, examples, ids
from apps.api.dialects.managed.common import (
    ManagedObject,
    ManagedPage,
    PageOf,
    answer,
    errors,
    id_path,
    moment,
    page,
    router,
)
from apps.api.dialects.managed.sessions import SURFACE
from apps.api.errors import NotFound
from apps.api.web.callers import Reader
from apps.api.web.route import CoreDep

routes = router()

RunId = Annotated[UUID, id_path("run")]

_GONE = {
    "environment_not_found": "environment_not_found_error",
    "vault_not_found": "vault_not_found_error",
    "file_not_found": "file_not_found_error",
    "skill_not_found": "skill_not_found_error",
    "tenant_suspended": "organization_disabled_error",
}
_REFUSED = {
    "budget_reached": "session_rate_limited_error",
    "quota_exceeded": "session_rate_limited_error",
    "rate_limited": "session_rate_limited_error",
    "validation_error": "session_creation_rejected_error",
    "agent_not_found": "session_creation_rejected_error",
}
"""Codes of why no session began, and how they are told here. Only the first ones are also told of a pause."""

_ARCHIVED = {
    "agent": "agent_archived_error",
    "environment_id": "environment_archived_error",
    "vault_ids": "vault_archived_error",
}


def _archived(error: Mapping[str, Any]) -> str | None:
    """What was archived: the core says so of a field."""
    field, _, reason = (error.get("message") or "").partition(": ")
    return _ARCHIVED.get(field.partition(".")[0]) if reason.startswith("is archived") else None


def failed_by(error: Mapping[str, Any]) -> str:
    """The type of what a run failed with."""
    code = error.get("code")
    return _archived(error) or _GONE.get(code or "") or _REFUSED.get(code or "") or "unknown_error"


def paused_by(error: Mapping[str, Any]) -> str:
    """The type of what has paused a deployment."""
    return _archived(error) or _GONE.get(error.get("code") or "") or "unknown_error"


async def shown(core: Core, tenant_id: UUID, fired: Mapping[str, Any]) -> dict[str, Any]:
    """A firing as these clients know it."""
    asked, error = fired["origin"] == "request", None
    if fired["session_id"] is None:  # what became of the session is the session's
        why = fired["error"] or {}
        error = {"type": failed_by(why), "message": why.get("message") or "No session could begin."}
    return {
        "id": ids.write("drun", fired["firing_id"]),
        "type": "deployment_run",
        "deployment_id": ids.write("depl", fired["schedule_id"]),
        "agent": await beginning.reference_of(core, tenant_id, fired["agent"]),
        "session_id": fired["session_id"] and ids.write("sesn", fired["session_id"]),
        "error": error,
        "trigger_context": {"type": "manual"} if asked else {"type": "schedule", "scheduled_at": fired["fire_at"]},
        "created_at": fired["created_at"],
    }


@routes.get(
    "/deployment_runs", response_model=ManagedPage, responses=errors(shows=examples.page_of(examples.DEPLOYMENT_RUN))
)
async def list_managed_deployment_runs(
    core: CoreDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Rows on a page.")] = 20,
    page_of: PageOf = None,
    deployment_id: Annotated[str | None, Query(max_length=80, description="Of this deployment.")] = None,
    has_error: Annotated[bool | None, Query(description="Whether no session began.")] = None,
    trigger_type: Annotated[Literal["schedule", "manual"] | None, Query(description="What began them.")] = None,
    after: Annotated[datetime | None, Query(alias="created_at[gt]", description="Made later.")] = None,
    since: Annotated[datetime | None, Query(alias="created_at[gte]", description="Made then or later.")] = None,
    before: Annotated[datetime | None, Query(alias="created_at[lt]", description="Made earlier.")] = None,
    until: Annotated[datetime | None, Query(alias="created_at[lte]", description="Made then or earlier.")] = None,
) -> Response:
    """Runs of deployments of the last 30 days, newest first."""
    origins = {"schedule": "schedule", "manual": "request"}
    sought = firings.Sought(
        SURFACE,
        None if deployment_id is None else ids.read("depl", deployment_id),
        failed=has_error,
        origin=origins[trigger_type] if trigger_type else None,
        created={
            ">": moment("created_at[gt]", after),
            ">=": moment("created_at[gte]", since),
            "<": moment("created_at[lt]", before),
            "<=": moment("created_at[lte]", until),
        },
        profiles=caller.profiles,
    )
    found = await firings.search(core, caller.tenant_id, sought, limit=limit, cursor=page_of)
    return page([await shown(core, caller.tenant_id, fired) for fired in found.data], found.next_cursor)


@routes.get(
    "/deployment_runs/{deployment_run_id}",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.DEPLOYMENT_RUN),
)
async def get_managed_deployment_run(core: CoreDep, caller: Reader, deployment_run_id: RunId) -> Response:
    """One run of a deployment. What became of its session is the session's to tell."""
    sought = firings.Sought(SURFACE, firing_id=deployment_run_id, profiles=caller.profiles)
    found = await firings.search(core, caller.tenant_id, sought, limit=1, cursor=None)
    if not found.data:
        raise NotFound("No such deployment run.")
    return answer(await shown(core, caller.tenant_id, found.data[0]))
