"""What the resources share: errors as these clients read them, ids in paths, pages, and what bodies are made of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from apps.api.core import pages
from apps.api.core.config.names import Text
from apps.api.dialects.managed import examples, ids
from apps.api.errors import ApiError, BadRequest, ValidationError
from apps.api.web.answer import Json
from apps.api.web.doors import ContentRoute, FileRoute, Route, Router

PREFIX = "/compat/managed-agents"
TAG = "managed agents"

RETRY, SHOULD_RETRY = "x-should-retry", ("preset_busy", "schedule_busy")
"""Header that tells the official clients whether to try again; by themselves they do after 408, 409, 429 and 5xx."""

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_STATUSES = {405: 404, 410: 404, 412: 409, 422: 400}
"""How some of ours are told."""

_NO_ROOM = ("budget_reached", "quota_exceeded")
"""What a limit says that no waiting helps against; ours are 429."""


def error_shape(error: ApiError, request_id: str) -> tuple[int, Any]:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`, with `request-id` and `x-should-retry`."""
    status = 400 if error.code in _NO_ROOM else _STATUSES.get(error.status, error.status)
    usual = "invalid_request_error" if status < 500 else "api_error"
    kind = "billing_error" if error.code == "budget_reached" else _TYPES.get(status, usual)
    error.headers["request-id"] = request_id
    if status < 500 and status != 429:
        error.headers[RETRY] = "true" if error.code in SHOULD_RETRY else "false"
    return status, {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


def unsupported(field: str, reason: str) -> BadRequest:
    """What is asked for and cannot be honoured here: 400 that names the field."""
    return BadRequest(f"{field}: {reason}", details={"errors": [{"field": field, "reason": reason}]})


def _ours(params: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(params)
    for name, prefix in ids.PREFIXES.items():
        if name in found:
            found[name] = str(ids.read(prefix, found[name]))
    return found


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def _known_here(handle: Handler) -> Handler:
    async def known(request: Request) -> Response:
        # Before anybody asks whose the session is: see `callers.may_touch`.
        request.scope["path_params"] = _ours(request.scope["path_params"])
        response = await handle(request)
        response.headers["request-id"] = request.state.request_id
        return response

    return known


class ManagedRoute(ContentRoute):
    """A route whose path has this API's ids, which it gives to its function as ours."""

    ignored = frozenset({"beta"})

    def get_route_handler(self) -> Handler:
        return _known_here(super().get_route_handler())


class ManagedFileRoute(FileRoute):
    """The same for what is streamed in."""

    ignored = frozenset({"beta"})

    def get_route_handler(self) -> Handler:
        return _known_here(super().get_route_handler())


def router(route_class: type[Route] = ManagedRoute) -> Router:
    """A resource's router. Its paths begin with `/v1`."""
    return Router(prefix="/v1", tags=[TAG], route_class=route_class)


class ManagedErrorDetail(BaseModel):
    """What went wrong."""

    type: str = Field(examples=["invalid_request_error"])
    message: str = Field(examples=["name: Field required"])


class ManagedError(BaseModel):
    """An error, as the official clients read it."""

    type: Literal["error"]
    error: ManagedErrorDetail
    request_id: str


_WHY: dict[int, tuple[str, str, str]] = {
    400: ("The request is not valid, or asks for what is not supported.", "invalid_request_error", "name: required"),
    401: ("No key, or one that is unknown, revoked or expired.", "authentication_error", "This key is not valid."),
    403: ("The key may not do this.", "permission_error", "This key lacks the scope 'write'."),
    404: ("No such thing, or it belongs to another tenant.", "not_found_error", "No such session."),
    408: ("The body did not come in time.", "invalid_request_error", "The body did not come in time."),
    409: ("It is in another state than this needs.", "invalid_request_error", "This session is archived."),
    413: ("The body is too large.", "invalid_request_error", "The body is larger than 8000000 bytes."),
    416: ("There is no such part of it.", "invalid_request_error", "The file has 8 bytes."),
    429: ("Too many requests.", "rate_limit_error", "This key may send 60 prompts per minute."),
    500: ("The server failed.", "api_error", "The server failed. The request id helps to find out why."),
    503: ("Something that the server depends on is away.", "overloaded_error", "Try again."),
}


def errors(*statuses: int, shows: Any = None) -> dict[int | str, dict[str, Any]]:
    """What a route documents: these statuses, and those that any may answer; and what it answers, shown."""
    success: dict[int | str, dict[str, Any]] = (
        {200: {"content": {"application/json": {"example": shows}}}} if shows is not None else {}
    )
    return success | {
        status: {
            "model": ManagedError,
            "description": _WHY[status][0],
            "content": {
                "application/json": {
                    "example": {
                        "type": "error",
                        "error": {"type": _WHY[status][1], "message": _WHY[status][2]},
                        "request_id": "5d0c5c0c9a0a4c0f",
                    }
                }
            },
        }
        for status in sorted({400, 401, 403, 429, 500, 503, *statuses})
    }


class Closed(BaseModel):
    """A part of a request. A field that is not known is refused: it would ask for something that does not happen."""

    model_config = ConfigDict(extra="forbid")


def explained(**texts: str) -> ConfigDict:
    """For a body: what its fields are, in the document, and the example of its name."""

    def explain(schema: dict[str, Any]) -> None:
        schema["examples"] = [examples.BODIES[schema["title"]]]
        for name, field in schema["properties"].items():
            field["description"] = texts.get(name) or FIELDS[name]

    return ConfigDict(extra="forbid", json_schema_extra=explain)


FIELDS = {
    "name": "What people call it; others may have the same name.",
    "description": "For people.",
    "metadata": "Up to 16 pairs of your own. In an update null takes a key away, and what is not named stays.",
    "config": "Where it is, and what agents may reach there.",
    "scope": "`organization`; `account` is refused.",
    "model": "A model's name, or an object with `id` and `effort`.",
    "system": "The system prompt.",
    "tools": "Toolsets and custom tools.",
    "mcp_servers": "MCP servers by URL; an `mcp_toolset` in `tools` refers to each.",
    "skills": "Skills that the agent has.",
    "multiagent": "Refused.",
    "execution_identity": "`service_account`; `aws_role` is refused.",
    "version": "The version that is to be the newest; 409 if it is not.",
    "title": "What people call it; null takes it away.",
    "agent": "An agent's id; or an object with `type`, `id`, and `version` or what differs in this session.",
    "environment_id": "Where its agents work.",
    "budget": "What the session may cost.",
    "initial_events": "Messages that it begins with.",
    "resources": "What its workspace is given.",
    "vault_ids": "Whose credentials its agent may use.",
    "events": "What is sent, in order.",
    "schedule": "When it begins sessions by itself; null: only when it is run.",
    "type": "What kind it is.",
    "file_id": "A file that was uploaded.",
    "mount_path": "Where it goes, in `/workspace`; `/workspace/uploads/` and its id if left out.",
    "authorization_token": "Refused: store the tenant's secret GIT_TOKEN.",
    "display_name": "What people call it.",
    "auth": "The secret, and what it is for. `static_bearer` or `environment_variable`; `mcp_oauth` is refused.",
}
"""What fields of bodies are, where no body says something else."""


def page(data: list[dict[str, Any]], next_page: str | None, **more: Any) -> Json:
    """A page of a list."""
    return Json({"data": data, "next_page": next_page, **more})


class ManagedPage(BaseModel):
    """A page. `next_page` goes into `page` of the next request, beside the same other parameters."""

    data: list[dict[str, Any]]
    next_page: str | None


def listed(name: str, each: Any) -> Callable[..., Coroutine[Any, Any, list[Any]]]:
    """A dependency: a list in the query, written `name[]=a&name[]=b`, or without the brackets."""
    values: Any = list[each]

    async def given(bracketed: Any = (), plain: Any = ()) -> list[Any]:
        return [*bracketed, *plain]

    given.__annotations__ |= {
        "bracketed": Annotated[values, Query(alias=f"{name}[]", max_length=100, description="Any of these.")],
        "plain": Annotated[values, Query(alias=name, max_length=100, description="The same.")],
    }
    return given


class ManagedObject(BaseModel):
    """One thing, in the official API's own fields: see the `anthropic` package, and docs/managed-agents.md for what is
    not supported."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str


def answer(data: dict[str, Any]) -> Json:
    """One thing."""
    return Json(data)


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key and request within 24 hours make the same thing.",
    ),
]


def moment(field: str, given: datetime | None) -> datetime | None:
    """A moment of the query, in UTC. Raises ValidationError."""
    try:
        return given and pages.utc(given)
    except ValueError as error:
        raise ValidationError.of(field, str(error)) from error


Limit = Annotated[int, Query(ge=1, le=100, description="Rows on a page.")]
PageOf = Annotated[str | None, Query(alias="page", max_length=400, description="`next_page` of the page before.")]
Archived = Annotated[bool, Query(description="Archived ones, too.")]


def id_path(noun: str) -> Any:
    """A parameter of a path."""
    return Path(description=f"The {noun}'s id.")


MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512


def _pairs(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) > MAX_PAIRS:
        raise ValueError(f"has more than {MAX_PAIRS} pairs")
    return value


Key = Annotated[Text, Field(min_length=1, max_length=MAX_KEY)]
Value = Annotated[Text, Field(max_length=MAX_VALUE)]
Metadata = Annotated[dict[Key, Value], AfterValidator(_pairs)]
MetadataPatch = Annotated[dict[Key, Value | None], Field(max_length=100)]


def patched(before: Mapping[str, str], changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """The pairs with these changed; None takes one away. Raises ValidationError."""
    found = {**before, **(changes or {})}
    kept = {key: value for key, value in found.items() if value is not None}
    if len(kept) > MAX_PAIRS:
        raise ValidationError.of("metadata", f"has more than {MAX_PAIRS} pairs")
    return kept
