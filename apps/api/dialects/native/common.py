"""What the modules of routes share: parameters, documented errors, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel

from apps.api.auth import Principal
from apps.api.core import pages
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import EndUser
from apps.api.core.context import Core
from apps.api.core.events.frames import Position
from apps.api.core.fleet import dispatch
from apps.api.core.pages import Page
from apps.api.core.sessions import prompts
from apps.api.core.sessions.admission import NO_CHANGES, Choice
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.examples import ERRORS
from apps.api.dialects.native.stream import position
from apps.api.errors import ValidationError
from apps.api.web.answer import Json
from apps.api.web.callers import policy_of

PREFIX = "/api/v1"

T = TypeVar("T")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents: these statuses, and those that any route may answer."""
    answered = sorted({401, 403, 422, 429, 500, 503, *statuses})
    return {status: ERRORS[status] for status in answered}


async def _no_body(request: Request) -> None:
    if (await request.body()).strip() not in (b"", b"{}"):
        raise ValidationError.of("body", "no field is known here")


NO_BODY = Depends(_no_body)
"""Of a route that takes no body: what a client says in one is refused, not ignored."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key and request within 24 hours give the same run, session or object.",
    ),
]
SessionId = Annotated[UUID, Path(description="The session's id.")]
RunId = Annotated[UUID, Path(description="The run's id.")]
MAX_LIMIT = 200
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows on a page.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
OfEndUser = Annotated[EndUser | None, Query(description="Of this end user.")]
Moment = Annotated[datetime | None, Query(description="A moment with its time zone.")]
After = Annotated[Position | None, Depends(position)]


def moment(field: str, given: datetime | None) -> datetime | None:
    """A moment of the query, in UTC. Raises ValidationError."""
    try:
        return given and pages.utc(given)
    except ValueError as error:
        raise ValidationError.of(field, str(error)) from error


def paged(rows: Sequence[T], limit: int, cursor: str | None) -> wire.Page[T]:
    """A page of a list that is short, and there as a whole; its cursors are numbers. Raises ValidationError."""
    start = pages.number_of(cursor) or 0
    end = start + limit
    return wire.Page[T](data=list(rows[start:end]), next_cursor=str(end) if len(rows) > end else None)


def config(body: AgentConfig, but: str = "") -> AgentConfig:
    """The configuration in a body that holds more than that. What was given as null is still known to be given.

    `but`: an option that is not meant for the session here.
    """
    given = (body.model_fields_set & AgentConfig.model_fields.keys()) - {but}
    if not given:
        return NO_CHANGES
    meant = AgentConfig.model_fields.keys() - {but}
    return AgentConfig.model_construct(given, **{name: getattr(body, name) for name in meant})


def labels(body: wire.LabelFields) -> Labels:
    """The labels in a body."""
    return Labels(body.title, body.tags, body.metadata, getattr(body, "end_user", None))


async def send_change(
    core: Core,
    caller: Principal,
    session_id: UUID,
    kind: Literal["reset", "rewind"],
    wanted: dict[str, Any],
    idempotency: Idempotency | None,
) -> Submitted:
    """Queue a change of a session that waits its turn as prompts do. Raises as `prompts.submit`."""
    asked = prompts.Submission(
        prompt=wanted,
        timeout_seconds=core.settings.request_timeout,
        session_id=session_id,
        idempotency=idempotency,
        kind=kind,
        choice=Choice(policy=policy_of(core, caller)),
    )
    return await dispatch.send(core, caller.tenant_id, caller.key_id, asked)


def answer(model: type[BaseModel], data: dict[str, Any] | Page, headers: Mapping[str, str] | None = None) -> Json:
    """The data as it is, once its shape has been checked."""
    if isinstance(data, Page):
        data = {"data": data.data, "next_cursor": data.next_cursor}
    # Pydantic checks the shape, but does not write what agents said: it refuses lone surrogates.
    model.model_validate(data)
    return Json(data, headers=headers)
