"""A person or a program in the loop: what agents ask, and the answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from apps.api.auth import Principal
from apps.api.core.config import client_tools
from apps.api.core.config.content import TextBlock
from apps.api.core.config.names import Text, storable
from apps.api.core.context import Core
from apps.api.core.fleet import answering
from apps.api.core.sessions import requests
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, Cursor, Limit, SessionId, answer, errors
from apps.api.errors import NotFound, ValidationError
from apps.api.web.callers import Reader, SessionDecider, SessionReader, may_touch, policy_of
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, route_class=ContentRoute)

RequestId = Annotated[UUID, Path(description="`request_id` of the event.")]
Status = Annotated[
    Literal["open", "answered", "closed", "all"], Query(description="Open ones only, unless something else is said.")
]


class DecisionBody(wire.Closed):
    """Whether a tool call may run."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"decision": "allow", "remember": True}]})

    decision: Literal["allow", "deny"] = Field(description="`allow`: the tool runs. `deny`: the agent reads why not.")
    updated_input: dict[str, Any] | None = Field(None, description="`allow`: run the tool with this input instead.")
    remember: bool = Field(
        False,
        description="`allow`: for the rest of the session: this command; other tools as the agent suggests, or all.",
    )
    message: Annotated[Text, Field(max_length=10_000)] | None = Field(None, description="`deny`: told to the agent.")
    interrupt: bool = Field(False, description="`deny`: end the run, too.")

    @model_validator(mode="after")
    def _fits(self) -> DecisionBody:
        strangers = {"allow": ("message", "interrupt"), "deny": ("updated_input", "remember")}[self.decision]
        if given := [name for name in strangers if getattr(self, name)]:
            raise ValueError(f"{given[0]} does not go with {self.decision}")
        return self


class AnswerBody(wire.Closed):
    """Answers to the questions of a request."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"answers": {"Which colour?": "Blue"}}]})

    request_id: UUID | None = Field(None, description="The request; may be left out while one question is open.")
    answers: Annotated[dict[Text, Text | list[Text]], Field(min_length=1, max_length=20)] = Field(
        description="By the question's text: the label that was chosen, several labels, or words of your own."
    )


class ToolResultBody(wire.Closed):
    """What a tool that the caller's program executes has come to."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"content": "21 °C", "is_error": False}]})

    content: Annotated[Text, Field(max_length=1_000_000)] | list[client_tools.ResultBlock] = Field(
        description="Text, or up to 20 blocks of `text` and `image`. The agent reads it as the tool's result."
    )
    is_error: bool = Field(False, description="Whether it tells of a failure, which the agent may try to mend.")

    @field_validator("content", mode="after")
    @classmethod
    def _bounded(cls, value: str | list[client_tools.ResultBlock]) -> str | list[client_tools.ResultBlock]:
        if isinstance(value, list) and not 1 <= len(value) <= client_tools.MAX_BLOCKS:
            raise ValueError(f"must have 1 to {client_tools.MAX_BLOCKS} blocks")
        for block in value if isinstance(value, list) else ():
            if isinstance(block, TextBlock):
                storable(block.text)
        return value


class Answered(BaseModel):
    """`applied`: the agent goes on with it. `accepted`: it is stored, and the agent has not taken it yet."""

    request_id: UUID
    session_id: UUID
    status: Literal["applied", "accepted"] = Field(examples=["applied"])


class RequestState(BaseModel):
    """What an agent asks, with the fields of its event, and what came of it."""

    model_config = ConfigDict(extra="allow")

    request_id: UUID
    session_id: UUID
    run_id: UUID | None = Field(description="Null when a background task asked between two runs.")
    type: Literal["permission", "question", "client_tool"]
    status: Literal["open", "answered", "closed"] = Field(examples=["open"])
    decision: str | None = Field(None, description="`allow`, `deny`, `answered` or `closed`.")
    resolved_by: dict[str, Any] | None = Field(None, description="A key, or why the system closed it.")
    created_at: datetime
    expires_at: datetime
    resolved_at: datetime | None = None


def by_key(caller: Principal) -> dict[str, Any]:
    """Who answers, as others may see it."""
    by = {"type": "key", "key_id": str(caller.key_id), "key_name": caller.key_name}
    return by if caller.end_user is None else {**by, "end_user": caller.end_user}


@router.post("/sessions/{session_id}/permissions/{request_id}", tags=["requests"], responses=errors(400, 404, 409, 413))
async def decide_permission(
    core: CoreDep,
    caller: SessionDecider,
    session_id: SessionId,
    request_id: RequestId,
    body: DecisionBody,
) -> Answered:
    """Allow or deny a tool call that waits, from any instance.

    What is remembered must be within the session's profile, and the input of a tool of which the profile forbids some
    uses cannot be changed (403). The first decision counts: a later one is 409
    `request_resolved`, whose details say what was decided and by whom.
    """
    decision = body.model_dump(exclude_none=True)
    return await _answer(core, caller, session_id, request_id, "permission", decision)


@router.post("/sessions/{session_id}/answer", tags=["requests"], responses=errors(400, 404, 409, 413))
async def answer_question(core: CoreDep, caller: SessionDecider, session_id: SessionId, body: AnswerBody) -> Answered:
    """Answer a question of the agent, from any instance. The first answer counts.

    A question that was not asked is 422; one that is left out stays without an answer.
    """
    request_id = body.request_id or await _only_question(core, caller, session_id)
    answers = {q: a if isinstance(a, str) else ", ".join(a) for q, a in body.answers.items()}
    decision = {"decision": "answered", "answers": answers}
    return await _answer(core, caller, session_id, request_id, "question", decision)


@router.post(
    "/sessions/{session_id}/tool-results/{request_id}", tags=["requests"], responses=errors(400, 404, 409, 413)
)
async def give_tool_result(
    core: CoreDep, caller: SessionDecider, session_id: SessionId, request_id: RequestId, body: ToolResultBody
) -> Answered:
    """Give the result of a client tool's call (`client_tool_call`), from any instance. The first result counts: a later
    one is 409 `request_resolved`.

    One that is refused (422) leaves the call open.
    """
    given = body.model_dump(exclude_none=True)
    content = [{"type": "text", "text": given["content"]}] if isinstance(given["content"], str) else given["content"]
    decision = {"decision": "answered", "content": content, "is_error": body.is_error}
    return await _answer(core, caller, session_id, request_id, "client_tool", decision)


async def _answer(
    core: Core, caller: Principal, session_id: UUID, request_id: UUID, kind: str, decision: dict[str, Any]
) -> Answered:
    by, policy = by_key(caller), policy_of(core, caller)
    sent = await answering.answer(core, caller.tenant_id, session_id, request_id, kind, decision, by, policy)
    return Answered.model_validate({"request_id": request_id, "session_id": session_id, "status": sent.status})


async def _only_question(core: Core, caller: Principal, session_id: UUID) -> UUID:
    page = await requests.list_page(core.db, caller.tenant_id, session_id, status="open", limit=200, cursor=None)
    questions = [request for request in page.data if request["type"] == "question"]
    if not questions:
        raise NotFound("No question of this session is open.", code="request_not_found")
    if len(questions) > 1:
        raise ValidationError.of("request_id", "several questions are open: say which one this answers")
    return UUID(questions[0]["request_id"])


@router.get(
    "/sessions/{session_id}/requests", tags=["requests"], response_model=wire.Page[RequestState], responses=errors(404)
)
async def list_session_requests(
    core: CoreDep,
    caller: SessionReader,
    session_id: SessionId,
    status: Status = "open",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """What this session's agent asks, oldest first."""
    return await _list(core, caller, session_id, status, limit, cursor)


@router.get("/requests", tags=["requests"], response_model=wire.Page[RequestState], responses=errors())
async def list_requests(
    core: CoreDep, caller: Reader, status: Status = "open", limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """What all of the tenant's agents ask, oldest first: the inbox of whoever decides."""
    return await _list(core, caller, None, status, limit, cursor)


@router.get("/requests/{request_id}", tags=["requests"], response_model=RequestState, responses=errors(404))
async def get_request(core: CoreDep, caller: Reader, request_id: RequestId) -> Response:
    """What an agent asks, and what came of it."""
    state = await requests.get(core.db, caller.tenant_id, request_id)
    if caller.profiles is not None:
        await may_touch(core, caller, state)
    return answer(RequestState, state)


async def _list(
    core: Core, caller: Principal, session_id: UUID | None, status: str, limit: int, cursor: str | None
) -> Response:
    wanted = None if status == "all" else status
    page = await requests.list_page(
        core.db, caller.tenant_id, session_id, status=wanted, limit=limit, cursor=cursor, profiles=caller.profiles
    )
    return answer(wire.Page[RequestState], page)
