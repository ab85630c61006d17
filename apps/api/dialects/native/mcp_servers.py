"""The tenant's registry of MCP servers. What may be secret is written, and never shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Response
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator

from apps.api.core.config.names import Name
from apps.api.core.config.parts import OwnServer
from apps.api.core.tenant import mcp
from apps.api.dialects.native.common import MAX_LIMIT, PREFIX, Cursor, Limit, errors, paged
from apps.api.dialects.native.schemas import Closed, Page
from apps.api.web.answer import Json
from apps.api.web.callers import LOOKS_UP, Configurer, Reader
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX, tags=["MCP servers"], route_class=ContentRoute)

ServerName = Annotated[Name, Path(description="The server's name in the registry.")]

_OWN: TypeAdapter[OwnServer] = TypeAdapter(OwnServer)
_REMOTE: dict[str, Any] = {"type": "http", "url": "https://tickets.example.com/mcp"}


class McpServerBody(Closed):
    """An MCP server: `command`, `args` and `env` go with `stdio`; `url` and `headers` with `http` and `sse`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_REMOTE]})

    type: Literal["stdio", "http", "sse"] = Field(description="How the agent talks to it.")
    command: str | None = Field(None, description="A program that the operator allows (MCP_STDIO_COMMANDS).")
    args: list[str] | None = Field(None, description="Its arguments. They are shown to whoever may read.")
    env: dict[str, str] | None = Field(
        None, description="Its variables; values may refer to secrets as `${NAME}`, and are never shown."
    )
    url: str | None = Field(None, description="Where it is; path and query may refer to secrets as `${NAME}`.")
    headers: dict[str, str] | None = Field(
        None, description="Sent with every request; values may refer to secrets as `${NAME}`, and are never shown."
    )

    _server: OwnServer = PrivateAttr()

    @model_validator(mode="after")
    def _is_a_server(self) -> McpServerBody:
        try:
            self._server = _OWN.validate_python(self.model_dump(exclude_none=True))
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"][1:])
            raise ValueError(f"{where}: {found['msg']}") from None
        return self

    @property
    def server(self) -> OwnServer:
        """What the body says."""
        return self._server


class McpServerState(BaseModel):
    """A registered MCP server; the values of `env` and `headers` are `***`."""

    name: str = Field(examples=["tickets"])
    type: Literal["stdio", "http", "sse"]
    command: str | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    url: str | None = Field(None, examples=["https://tickets.example.com/mcp"])
    headers: dict[str, str] | None = Field(None, examples=[{"Authorization": "***"}])
    created_at: datetime
    updated_at: datetime


@router.get("/mcp-servers", responses=errors(), response_model=Page[McpServerState])
async def list_mcp_servers(core: CoreDep, caller: Reader, limit: Limit = MAX_LIMIT, cursor: Cursor = None) -> Json:
    """The tenant's registered MCP servers."""
    return Json(paged(await mcp.list_all(core.db, caller.tenant_id), limit, cursor).model_dump())


@router.get("/mcp-servers/{name}", responses=errors(404), response_model=McpServerState)
async def get_mcp_server(core: CoreDep, caller: Reader, name: ServerName) -> Json:
    """One of the tenant's registered MCP servers."""
    return Json(await mcp.get(core.db, caller.tenant_id, name))


@router.put(
    "/mcp-servers/{name}",
    responses={201: {"model": McpServerState, "description": "It is new."}, **errors(400, 404, 409, 413, 429)},
    dependencies=[LOOKS_UP],
    response_model=McpServerState,
)
async def put_mcp_server(core: CoreDep, caller: Configurer, name: ServerName, body: McpServerBody) -> Json:
    """Register an MCP server (201) or replace it (200).

    Sessions use it as `{"type": "registered", "name": …}`. Agents that run keep what they were started with. 403
    `mcp_command_not_permitted` for a command that the operator does not allow; 503 `encryption_not_configured` when
    there are values to encrypt and the server has no ENCRYPTION_KEYS.
    """
    new = await mcp.put(core, caller.tenant_id, name, body.server)
    return Json(await mcp.get(core.db, caller.tenant_id, name), status_code=201 if new else 200)


@router.delete("/mcp-servers/{name}", status_code=204, responses=errors(404))
async def delete_mcp_server(core: CoreDep, caller: Configurer, name: ServerName) -> Response:
    """Forget an MCP server. Sessions that name it start no agent any more."""
    await mcp.delete(core.db, caller.tenant_id, name)
    return Response(status_code=204)
