"""`POST /agents/preview`: what a request would run, without running it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Depends, Request, Response
from pydantic import BaseModel, Field, ValidationError

from apps.api.core.config.parts import PermissionMode
from apps.api.core.sessions import dry_run
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, answer, errors
from apps.api.dialects.native.prompts import run_request
from apps.api.errors import BadRequest, Problem
from apps.api.errors import ValidationError as Refused
from apps.api.web import figures
from apps.api.web.callers import LOOKS_UP, Writer
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.errors import findings
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["agents"], route_class=ContentRoute)


class DryRunAgent(BaseModel):
    agent_id: str
    version: int


class DryRunServer(BaseModel):
    name: str
    agent: str | None = Field(description="The subagent that it is for; null for the session's.")
    type: str | None = Field(description="Null for a registered server that does not exist.")
    allowed: bool
    reachable: bool | None = Field(description="Whether a connection came about; null for `stdio`.")
    reason: str | None


class DryRunHook(BaseModel):
    event: str
    url: str
    reachable: bool
    reason: str | None


class Size(BaseModel):
    characters: int
    bytes: int = Field(description="In UTF-8.")


class PromptSize(BaseModel):
    """What the request adds. The agent's own system prompt and its tools' descriptions come on top."""

    system_prompt: Size
    prompt: Size
    output_schema: Size
    subagents: Size
    total: Size


class DryRun(BaseModel):
    """What would run. With problems: what would run without what they name."""

    ok: bool = Field(description="Whether the request would be accepted: there are no problems.")
    problems: list[Problem] = Field(description="All of them; `code` is that of the error which the request would get.")
    warnings: list[Problem] = Field(description="What does not answer now, for which the request is not refused.")
    agent: DryRunAgent | None
    profile: str | None = Field(examples=["readonly"])
    model: str = Field(examples=["claude-sonnet-5-5"])
    permission_mode: PermissionMode
    tools: list[str] = Field(description="Built-in tools after policy.", examples=[["Glob", "Grep", "Read"]])
    allowed_tools: list[str]
    disallowed_tools: list[str]
    mcp_servers: list[DryRunServer]
    hooks: list[DryRunHook]
    missing_secrets: list[str] = Field(examples=[["HOOK_SECRET"]])
    output_schema: Literal["valid", "invalid"] | None
    prompt_size: PromptSize
    config: dict[str, Any] = Field(description="The options in effect, with the profile's defaults.")


_PLACEHOLDER = {"prompt": "-"}
_BODY = {
    "required": True,
    "description": "The body of `POST /query`; `prompt` may be left out.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PromptBody"}}},
}


async def _object(request: Request) -> dict[str, Any]:
    # Not by FastAPI: it would refuse what is to be listed.
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise Refused.of("body", "send a JSON object, with Content-Type: application/json")
    return body


@router.post(
    "/agents/preview",
    response_model=DryRun,
    openapi_extra={"requestBody": _BODY},
    dependencies=[LOOKS_UP],
    responses=errors(400, 413, 429),
)
async def preview_agent(core: CoreDep, caller: Writer, body: Annotated[dict[str, Any], Depends(_object)]) -> Response:
    """What a request would run, without running it: tools after policy, MCP servers, hooks, secrets, sizes.

    Answers 200 with every problem at once: those for which the request itself would be refused with 422, 403 or 404.
    Addresses of MCP servers and hooks are connected to and sent nothing.
    """
    understood, found = _understood(body)
    if understood.session_id is not None:
        found.append(Problem("session_id", "validation_error", "a preview is of a new session"))
    wanted = run_request("", core, caller, understood, understood.prompt, None, None).wanted
    if "prompt" not in body:
        wanted = replace(wanted, prompt=None)
    told = await dry_run.preview(core, caller.tenant_id, wanted, found)
    return answer(DryRun, {**told, "config": figures.config(told["config"])})


def _understood(body: dict[str, Any]) -> tuple[wire.PromptBody, list[Problem]]:
    """The body without the fields that are wrong, and what is wrong with them."""
    given, found = {**_PLACEHOLDER, **body}, list[Problem]()
    while True:
        try:
            return wire.PromptBody.model_validate(given), found
        except ValidationError as error:
            problems = error.errors()
            found += [Problem(f["field"], "validation_error", f["reason"]) for f in findings(problems)]
            wrong = {str(problem["loc"][0]) for problem in problems if problem["loc"]} & set(given)
            given = {name: value for name, value in given.items() if name not in wrong} if wrong else {}
            given.setdefault("prompt", _PLACEHOLDER["prompt"])
