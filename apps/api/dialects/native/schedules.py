"""Schedules: prompts that are sent at times of a clock, and what came of each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from apps.api.auth import Principal
from apps.api.core.codec import timestamp
from apps.api.core.config.content import Content
from apps.api.core.config.cron import Cron, TimeZone
from apps.api.core.config.names import Name
from apps.api.core.context import Core
from apps.api.core.fleet import firing, firings, schedules
from apps.api.core.fleet.schedules import By, Draft
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.native.common import NO_BODY, PREFIX, Cursor, IdempotencyKey, Limit, answer, errors
from apps.api.dialects.native.schemas import (
    MAX_TIMEOUT_SECONDS,
    AgentRef,
    LabelFields,
    Page,
    Title,
    described,
)
from apps.api.errors import ValidationError
from apps.api.web.callers import LOOKS_UP, Prompter, Reader, Writer, policy_of
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["schedules"], route_class=ContentRoute)

ScheduleId = Annotated[UUID, Path(description="The schedule's id.")]

Moment = Annotated[
    datetime,
    PlainSerializer(timestamp),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]

MAX_JITTER_SECONDS = 3600

_EXAMPLE: dict[str, Any] = {
    "name": "Morning report",
    "cron": "0 7 * * MON-FRI",
    "time_zone": "Europe/Berlin",
    "agent": "reviewer",
    "prompt": "Report what has changed since yesterday.",
}


class ScheduleFields(LabelFields):
    """All of a schedule that may be left out."""

    name: Title | None = Field(None, description="For people.", examples=["Morning report"])
    time_zone: TimeZone = Field("UTC", description="An IANA time zone.", examples=["Europe/Berlin"])
    agent: AgentRef | None = Field(
        None,
        description="The preset that its sessions begin with: its name or id, in the newest version of then, or"
        " `name@version`.",
        examples=["reviewer"],
    )
    profile: Name | None = Field(None, description="The profile that its sessions run under.", examples=["readonly"])
    timeout_seconds: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT_SECONDS, description="Deadline of each run; the server's REQUEST_TIMEOUT if unset."
    )
    expand_prompt: bool = Field(
        False, description="Let slash commands and `@file` mentions in the prompt act; else it is taken word for word."
    )
    session: Literal["new", "one"] = Field(
        "new",
        description="A new session for each time; or one that is kept: that of `session_id`, or one of its own, which"
        " the first firing begins. With `session_id` it is `one`.",
    )
    session_id: UUID | None = Field(None, description="The session that it continues each time.")
    overlap: Literal["skip", "queue"] = Field(
        "skip",
        description="When a run of the schedule is not over at its next time: skip that time, or queue it all the same."
        " In one session it then waits behind the other; sessions of their own run side by side.",
    )
    jitter_seconds: int = Field(
        0,
        ge=0,
        le=MAX_JITTER_SECONDS,
        description="Fire up to so many seconds after the time, always as many after the same time.",
    )
    pause_after_failures: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        5, description="Pause it after so many failures in a row; null: never."
    )


_CRON = Field(
    description="Minute, hour, day of the month, month, day of the week (0 and 7 are Sunday): numbers, names, lists,"
    " ranges, steps. With a day of the month and a day of the week either is enough.",
    examples=["0 7 * * MON-FRI"],
)
_PROMPT = Field(
    description="What is said each time: text, or a list of blocks, as of `POST /query`.", examples=["say hello"]
)


class ScheduleBody(ScheduleFields):
    """A schedule to make."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=described(_EXAMPLE))

    cron: Annotated[Cron, _CRON]
    prompt: Annotated[Content, _PROMPT]


class SchedulePatch(ScheduleFields):
    """What to change of a schedule; what is left out stays. Null takes back to what it is when it is left out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=described({"cron": "30 6 * * MON-FRI"}))

    cron: Annotated[Cron | None, _CRON] = None
    prompt: Annotated[Content | None, _PROMPT] = None

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        usual = {name: field.default for name, field in ScheduleFields.model_fields.items()}
        usual["pause_after_failures"] = None  # which says: never
        return {name: usual.get(name) if value is None else value for name, value in given.items()}


class Firing(BaseModel):
    """What came of one time of a schedule."""

    firing_id: UUID
    schedule_id: UUID
    fire_at: Moment = Field(description="The time that it stands for.")
    origin: Literal["schedule", "request"] = Field(description="`request`: of `POST /schedules/{id}/run`.")
    state: Literal[
        "queued",
        "running",
        "requires_action",
        "succeeded",
        "failed",
        "interrupted",
        "skipped",
        "missed",
    ] = Field(description="Of its run; `failed` also when none could be queued. `missed`: nobody was there to fire it.")
    times: int = Field(description="Of `missed` ones, how many: from `fire_at` on; 1000 stands for as many or more.")
    run_id: UUID | None
    session_id: UUID | None
    error: dict[str, Any] | None = Field(
        description="Why it is `failed`, `skipped` or `missed`: `code` and `message`.",
        examples=[{"code": "key_revoked", "message": "The key that this schedule acts for has been revoked."}],
    )
    created_at: Moment = Field(description="When it was fired, or found to be skipped or missed.")
    ended_at: Moment | None


class ScheduleState(BaseModel):
    """A schedule as it is now."""

    schedule_id: UUID
    name: str | None = Field(examples=["Morning report"])
    status: Literal["active", "paused"]
    cron: str = Field(examples=["0 7 * * MON-FRI"])
    time_zone: str = Field(examples=["Europe/Berlin"])
    prompt: str | list[dict[str, Any]] = Field(examples=["Report what has changed since yesterday."])
    agent: str | None = Field(examples=["reviewer"])
    profile: str | None = Field(
        description="The profile that its sessions have, as of its last change.", examples=["readonly"]
    )
    title: str | None = Field(description="Of sessions that it begins, as `tags` and `metadata`.")
    tags: list[str] = Field(examples=[["reports"]])
    metadata: dict[str, str] = Field(examples=[{"customer": "42"}])
    timeout_seconds: float | None
    expand_prompt: bool
    session: Literal["new", "one"]
    session_id: UUID | None = Field(description="Of `one`: that session, once there is one.")
    overlap: Literal["skip", "queue"]
    jitter_seconds: int
    pause_after_failures: int | None
    key_id: UUID | None = Field(description="The key that it acts for: who made it, or changed it last.")
    next_at: Moment | None = Field(description="Its next time, without jitter; null while it is paused.")
    last: Firing | None = Field(description="What came of its newest time.")
    failures: int = Field(description="Failures in a row.")
    paused_at: Moment | None
    paused_reason: str | None = Field(
        description="`by request`, `session_deleted`, or so many failures in a row.", examples=["5 failures in a row"]
    )
    created_at: Moment
    updated_at: Moment


class ScheduleDetails(ScheduleState):
    """A schedule, and its next times."""

    upcoming: list[Moment] = Field(description="Its next five times, without jitter; none while it is paused.")


def _by(core: Core, caller: Principal) -> By:
    return By(caller.tenant_id, caller.key_id, policy_of(core, caller))


def _told(model: type[ScheduleState], state: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: state[name] for name in model.model_fields}
    last = told["last"]
    return {**told, "last": last and {name: last[name] for name in Firing.model_fields}}


async def _state(core: Core, by: By, schedule_id: UUID) -> Response:
    return answer(ScheduleDetails, _told(ScheduleDetails, await schedules.get(core, by, schedule_id)))


def _changed(draft: Draft, body: ScheduleFields, prompt: Any) -> Draft:
    """The draft with what a body gives of it. Raises ValidationError."""
    given: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    labels = {name: given.pop(name) for name in LabelFields.model_fields if name in given}
    if "prompt" in given:
        given["prompt"] = (
            prompt if isinstance(prompt, str) else [block.model_dump(exclude_none=True) for block in prompt]
        )
    if given.get("session_id") is not None and given.get("session") is None:
        given["session"] = "one"
    if given.get("session") == "new" and given.get("session_id") is None:
        given["session_id"] = None
    if given.get("session") == "new" and given["session_id"] is not None:
        raise ValidationError.of("session", "with a session_id it is one")
    return replace(draft, labels=replace(draft.labels, **labels), **given)


@router.post(
    "/schedules",
    status_code=201,
    dependencies=[LOOKS_UP],
    response_model=ScheduleDetails,
    responses=errors(400, 404, 409, 413, 429),
)
async def create_schedule(
    request: Request, core: CoreDep, caller: Writer, body: ScheduleBody, idempotency_key: IdempotencyKey = None
) -> Response:
    """Send a prompt at times of a clock, from the next one on. Each time is fired once, whichever instances there are.

    It acts for the key that makes it. 409 `too_many_schedules` at MAX_SCHEDULES_PER_TENANT.
    """
    asked, by = body.model_dump(mode="json", exclude_unset=True), _by(core, caller)
    repeat = Idempotency.given(idempotency_key, request.scope["path"], asked)
    draft = _changed(Draft(body.cron, body.time_zone, ""), body, body.prompt)
    made = await _state(core, by, await schedules.create(core, by, draft, repeat))
    made.status_code = 201
    return made


@router.get("/schedules", response_model=Page[ScheduleState], responses=errors())
async def list_schedules(core: CoreDep, caller: Reader, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """The tenant's schedules, newest first. A key that is bound to profiles sees those of these."""
    found = await schedules.list_page(core, _by(core, caller), limit=limit, cursor=cursor)
    shown = [_told(ScheduleState, state) for state in found.data]
    return answer(Page[ScheduleState], replace(found, data=shown))


@router.get("/schedules/{schedule_id}", response_model=ScheduleDetails, responses=errors(404))
async def get_schedule(core: CoreDep, caller: Reader, schedule_id: ScheduleId) -> Response:
    """A schedule, its next five times, and what came of the newest one."""
    return await _state(core, _by(core, caller), schedule_id)


@router.patch(
    "/schedules/{schedule_id}",
    dependencies=[LOOKS_UP],
    response_model=ScheduleDetails,
    responses=errors(400, 404, 409, 413, 429),
)
async def update_schedule(core: CoreDep, caller: Writer, schedule_id: ScheduleId, body: SchedulePatch) -> Response:
    """Change some of it; it is judged as a new one. From then on it acts for the key that changed it.

    With another preset, profile or session one that keeps a session of its own begins a new one.
    """
    if not body.model_fields_set:
        raise ValidationError.of("body", "must change something")
    for name in ("cron", "prompt"):
        if name in body.model_fields_set and getattr(body, name) is None:
            raise ValidationError.of(name, "must not be null")
    by, fields = _by(core, caller), sorted(body.model_fields_set)
    await schedules.update(core, by, schedule_id, fields, lambda draft: _changed(draft, body, body.prompt))
    return await _state(core, by, schedule_id)


@router.delete("/schedules/{schedule_id}", status_code=204, responses=errors(404))
async def delete_schedule(core: CoreDep, caller: Writer, schedule_id: ScheduleId) -> Response:
    """Remove it, with the list of its firings. Their sessions and runs stay, and what is queued goes on."""
    await schedules.delete(core, _by(core, caller), schedule_id)
    return Response(status_code=204)


@router.post(
    "/schedules/{schedule_id}/pause", dependencies=[NO_BODY], response_model=ScheduleDetails, responses=errors(404)
)
async def pause_schedule(core: CoreDep, caller: Writer, schedule_id: ScheduleId) -> Response:
    """Fire it no more until it is resumed. What it has queued goes on."""
    by = _by(core, caller)
    await schedules.pause(core, by, schedule_id)
    return await _state(core, by, schedule_id)


@router.post(
    "/schedules/{schedule_id}/resume",
    dependencies=[NO_BODY],
    response_model=ScheduleDetails,
    responses=errors(404, 409),
)
async def resume_schedule(core: CoreDep, caller: Writer, schedule_id: ScheduleId) -> Response:
    """Fire it again, from its next time on. Those while it was paused are not made up for."""
    by = _by(core, caller)
    await schedules.resume(core, by, schedule_id)
    return await _state(core, by, schedule_id)


@router.post(
    "/schedules/{schedule_id}/run", dependencies=[NO_BODY], status_code=202, responses=errors(400, 404, 409, 429)
)
async def run_schedule(
    request: Request, core: CoreDep, caller: Prompter, schedule_id: ScheduleId, idempotency_key: IdempotencyKey = None
) -> Firing:
    """Fire it now, also while it is paused or a run of it is not over. Its times stay as they are.

    Answered with the error that a time of it would fail with, if it could not be fired: nothing is noted then.
    """
    repeat = Idempotency.given(idempotency_key, request.scope["path"])
    return Firing.model_validate(await firing.run(core, _by(core, caller), schedule_id, repeat))


@router.get("/schedules/{schedule_id}/runs", responses=errors(404))
async def list_schedule_runs(
    core: CoreDep, caller: Reader, schedule_id: ScheduleId, limit: Limit = 50, cursor: Cursor = None
) -> Page[Firing]:
    """What came of its times in the last 30 days, the newest first; `GET /runs/{id}` has more of each run."""
    await schedules.find(core, _by(core, caller), schedule_id)
    return Page[Firing].of(await firings.list_page(core, schedule_id, limit=limit, cursor=cursor))
