"""Skills and slash commands: those of the image, and the tenant's own."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from apps.api.core.config.names import Name, Text
from apps.api.core.tenant import skills
from apps.api.core.tenant.skills import (
    BODY,
    MAX_CHARS,
    MAX_FILES,
    MAX_FILES_CHARS,
    Described,
    Skill,
    check_files,
)
from apps.api.dialects.native.common import MAX_LIMIT, PREFIX, Cursor, Limit, errors, paged
from apps.api.dialects.native.schemas import Closed, Page
from apps.api.web.answer import Json
from apps.api.web.callers import Configurer, Reader
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["skills and commands"], route_class=ContentRoute)

FilePath = Annotated[str, StringConstraints(min_length=1, max_length=200)]
FileText = Annotated[Text, Field(max_length=MAX_CHARS)]
SkillName = Annotated[Name, Path(description="The skill's name, without `tenant:`.")]
CommandName = Annotated[Name, Path(description="The command's name, without `tenant:`.")]

_EXAMPLE: dict[str, Any] = {
    "description": "How to write the weekly report",
    "content": "Write three sentences. See style.md for the tone.",
}


class CommandBody(Closed):
    """A slash command."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    description: Described = Field(description="One line that says what it is for; the model sees it.")
    content: Annotated[Text, Field(min_length=1, max_length=MAX_CHARS)] = Field(
        description="What the agent is told. `$ARGUMENTS` becomes what follows the name."
    )


class SkillBody(CommandBody):
    """A skill: what SKILL.md says, and further files that it may refer to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_EXAMPLE, "files": {"style.md": "Be brief."}}]})

    files: Annotated[dict[FilePath, FileText], Field(max_length=MAX_FILES)] = Field(
        default_factory=dict,
        description=f"Texts by relative path, at most {MAX_FILES_CHARS} characters together.",
    )

    @field_validator("files")
    @classmethod
    def _fit_in_a_directory(cls, value: dict[str, str]) -> dict[str, str]:
        check_files(value)
        return value


class Listed(BaseModel):
    """A skill or command that sessions may use."""

    name: str = Field(examples=["report"])
    qualified_name: str = Field(description="The name in the option `skills`, and after the slash in a prompt.")
    description: str = Field(examples=["How to write the weekly report"])
    source: Literal["image", "tenant"] = Field(description="Of the agent's program, or the tenant's own.")
    argument_hint: str | None = Field(None, description="What may follow the command's name.")


class CommandState(Listed):
    """One of the tenant's own commands."""

    content: str = Field(examples=["Say hello."])
    created_at: datetime
    updated_at: datetime


class SkillState(CommandState):
    """One of the tenant's own skills."""

    files: dict[str, str]


def _created(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {201: {"model": model, "description": "It is new."}}


@router.get("/skills", responses=errors(), response_model=Page[Listed])
async def list_skills(core: CoreDep, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None) -> Json:
    """Skills that sessions of this tenant may use, by the option `skills`.

    Those of the image are known once a runner of this release has started.
    """
    return Json(paged(await skills.offered(core.db, caller.tenant_id, "skill"), limit, cursor).model_dump())


@router.get("/skills/{name}", responses=errors(404), response_model=SkillState)
async def get_skill(core: CoreDep, caller: Reader, name: SkillName) -> Json:
    """One of the tenant's own skills, with its texts."""
    return Json(await skills.get(core.db, caller.tenant_id, "skill", name))


@router.put(
    "/skills/{name}", responses={**_created(SkillState), **errors(400, 404, 409, 413)}, response_model=SkillState
)
async def put_skill(core: CoreDep, caller: Configurer, name: SkillName, body: SkillBody) -> Json:
    """Store a skill (201) or replace it (200). Agents that start from now on have it as `tenant:NAME`."""
    files = {BODY: body.content, **body.files}
    new = await skills.put(core.db, caller.tenant_id, Skill("skill", name, body.description, files))
    state = await skills.get(core.db, caller.tenant_id, "skill", name)
    return Json(state, status_code=201 if new else 200)


@router.delete("/skills/{name}", status_code=204, responses=errors(404))
async def delete_skill(core: CoreDep, caller: Configurer, name: SkillName) -> Response:
    """Remove a skill. Agents that run keep it until they end."""
    await skills.delete(core.db, caller.tenant_id, "skill", name)
    return Response(status_code=204)


@router.get("/commands", responses=errors(), response_model=Page[Listed])
async def list_commands(core: CoreDep, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None) -> Json:
    """Slash commands for prompts with `expand_prompt: true`. Skills are commands, too, and listed with the skills."""
    return Json(paged(await skills.offered(core.db, caller.tenant_id, "command"), limit, cursor).model_dump())


@router.get("/commands/{name}", responses=errors(404), response_model=CommandState)
async def get_command(core: CoreDep, caller: Reader, name: CommandName) -> Json:
    """One of the tenant's own commands, with its text."""
    return Json(await _command(core, caller, name))


@router.put(
    "/commands/{name}", responses={**_created(CommandState), **errors(400, 404, 409, 413)}, response_model=CommandState
)
async def put_command(core: CoreDep, caller: Configurer, name: CommandName, body: CommandBody) -> Json:
    """Store a slash command (201) or replace it (200). Agents that start from now on have it as `/tenant:NAME`."""
    command = Skill("command", name, body.description, {BODY: body.content})
    new = await skills.put(core.db, caller.tenant_id, command)
    return Json(await _command(core, caller, name), status_code=201 if new else 200)


@router.delete("/commands/{name}", status_code=204, responses=errors(404))
async def delete_command(core: CoreDep, caller: Configurer, name: CommandName) -> Response:
    """Remove a slash command. Agents that run keep it until they end."""
    await skills.delete(core.db, caller.tenant_id, "command", name)
    return Response(status_code=204)


async def _command(core: CoreDep, caller: Reader, name: str) -> dict[str, Any]:
    state = await skills.get(core.db, caller.tenant_id, "command", name)
    del state["files"]
    return state
