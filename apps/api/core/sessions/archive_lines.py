"""The lines of an archive, each by its kind: what an import takes for one. A stranger may have written them."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from apps.api import clock
from apps.api.core import codec
from apps.api.core.config.names import Document, EndUser, Name, Part, SecretName, Text
from apps.api.core.config.parts import OwnServer, PermissionMode, Url
from apps.api.core.config.retention import Retention
from apps.api.core.files.tarball import BadArchive
from apps.api.core.pages import utc
from apps.api.core.sessions.transcripts import MAX_PART
from apps.api.core.tenant import skills
from apps.api.core.tenant.presets import as_id
from apps.api.core.tenant.webhooks import WebhookEvent
from apps.api.settings import TENANT_NAME

T = TypeVar("T")

MAX_NESTED = 200
"""Lists and objects inside one another in what was said. Whoever writes it into an answer gives up at 254 (orjson)."""

AHEAD = timedelta(days=1)
"""By how much the clocks of two installations may differ."""


def said(text: str) -> Any:
    """What was said, from the JSON that it is stored as. Raises ValueError: no JSON, or nested too deeply."""
    try:
        value = codec.decode(text)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > MAX_NESTED:
            raise ValueError(f"is nested more than {MAX_NESTED} deep")
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        waiting += [(part, depth + 1) for part in inner if isinstance(part, dict | list)]
    return value


def _said(text: str) -> str:
    said(text)
    return text


def _past(moment: datetime) -> datetime:
    moment = utc(moment)
    if moment > clock.now() + AHEAD:  # nothing would ever be too old to be kept
        raise ValueError("lies in the future")
    return moment


def _past_day(day: date) -> date:
    if day > (clock.now() + AHEAD).date():
        raise ValueError("lies in the future")
    return day


Number = Annotated[int, Field(ge=0, lt=2**62)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Moment = Annotated[datetime, AfterValidator(_past)]
Said = Annotated[Text, AfterValidator(_said)]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]
Short = Annotated[Text, Field(max_length=1000)]


class Manifest(Part):
    format: Literal["claude-agent-api"]
    version: Literal[1]
    kind: Literal["session", "tenant"]
    server: Short
    created_at: Moment
    workspaces_dir: Annotated[Text, Field(min_length=1, max_length=4096)]


class End(Part):
    members: Number


class Pinned(Part):
    id: UUID
    version: Number


class SessionLine(Part):
    id: UUID
    title: Annotated[Text, Field(max_length=200)] | None
    tags: Annotated[list[Annotated[Text, Field(max_length=64)]], Field(max_length=32)]
    metadata: Annotated[
        dict[Annotated[Text, Field(max_length=512)], Annotated[Text, Field(max_length=512)]], Field(max_length=32)
    ]
    config: dict[str, Any]
    profile: Name | None
    surface: Word
    end_user: EndUser | None = None
    agent: Pinned | None
    conversation: UUID
    parent_session_id: UUID | None
    num_turns: Number
    total_cost_usd: Amount
    usage: Annotated[dict[Word, Number], Field(max_length=20)]
    permission_mode: PermissionMode | None
    tools: Annotated[list[Short], Field(max_length=2000)] | None
    created_at: Moment
    updated_at: Moment
    last_seq: Number
    expired_seq: Number

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> SessionLine:
        if self.expired_seq > self.last_seq:
            raise ValueError("expired_seq is beyond last_seq")
        return self


class RunLine(Part):
    id: UUID
    kind: Literal["prompt", "rewind", "reset"]
    origin: Literal["client", "background"]
    end_user: EndUser | None = None
    status: Literal["succeeded", "failed", "interrupted"]
    prompt: Said | None
    expand_prompt: bool
    timeout_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
    first_seq: Number | None
    last_seq: Number | None
    error: Document | None
    result: Said | None
    total_cost_usd: Amount | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment

    @model_validator(mode="after")
    def _can_be_shown(self) -> RunLine:
        prompt = None if self.prompt is None else said(self.prompt)
        if isinstance(prompt, list):
            _check({"prompt": prompt}, {"prompt": [_BLOCK]}, "run")
            _check_blocks(prompt, "run.prompt")
        elif not isinstance(prompt, str | None) and (self.kind == "prompt" or not isinstance(prompt, dict)):
            raise ValueError("prompt: is neither a text nor blocks")
        result = {} if self.result is None else said(self.result)
        if not isinstance(result, dict):
            raise ValueError("result: is no object")
        _check(result, {name: shape for name, shape in _SHAPES["result"].items() if name in result}, "result")
        if self.error is not None:
            _check({"details": {}, **self.error}, {"code": str, "message": str, "details": dict}, "error")
        return self


class UsageLine(Part):
    run_id: UUID
    model: Annotated[Text, Field(min_length=1, max_length=300)]
    end_user: EndUser | None = None
    day: Annotated[date, AfterValidator(_past_day)]
    input_tokens: Number
    output_tokens: Number
    cache_read_input_tokens: Number
    cache_creation_input_tokens: Number
    web_search_requests: Number
    cost_usd: Amount


class EventLine(Part):
    seq: Number
    run_id: UUID | None
    type: Word
    data: Text
    created_at: Moment


class EntryLine(Part):
    subpath: Annotated[Text, Field(max_length=MAX_PART)]
    entry: Text


class TenantLine(Part):
    type: Literal["tenant"]
    name: Annotated[str, StringConstraints(pattern=TENANT_NAME)]
    retention: Retention


def _no_id(name: str) -> str:
    if as_id(name) is not None:
        raise ValueError("must not look like an id")
    return name


class PresetLine(Part):
    type: Literal["preset"]
    id: UUID
    name: Annotated[Name, AfterValidator(_no_id)]
    description: Annotated[Text, Field(max_length=2000)] | None
    version: Annotated[int, Field(ge=1, lt=2**31)]


class PresetVersionLine(Part):
    type: Literal["preset_version"]
    agent_id: UUID
    version: Annotated[int, Field(ge=1, lt=2**31)]
    profile: Name | None
    config: dict[str, Any]
    created_at: Moment


class McpServerLine(Part):
    type: Literal["mcp_server"]
    name: Name
    spec: OwnServer


class SkillLine(Part):
    type: Literal["skill"]
    of: skills.Kind
    name: Name
    description: skills.Described
    files: Annotated[
        dict[Annotated[str, Field(max_length=200)], Annotated[Text, Field(max_length=skills.MAX_CHARS)]],
        Field(min_length=1, max_length=skills.MAX_FILES + 1),
    ]

    @model_validator(mode="after")
    def _fits_in_a_directory(self) -> SkillLine:
        files = dict(self.files)
        if not files.pop(skills.BODY, ""):
            raise ValueError(f"has no {skills.BODY}")
        if files and self.of == "command":
            raise ValueError("a command is one file")
        skills.check_files(files)
        return self


class WebhookLine(Part):
    type: Literal["webhook"]
    url: Url
    description: Annotated[Text, Field(max_length=2000)] | None
    events: Annotated[list[WebhookEvent], Field(min_length=1, max_length=20)]


class SecretLine(Part):
    type: Literal["secret"]
    name: SecretName


AnyOfTenant = TenantLine | PresetLine | PresetVersionLine | McpServerLine | SkillLine | WebhookLine | SecretLine
OF_TENANT: TypeAdapter[AnyOfTenant] = TypeAdapter(Annotated[AnyOfTenant, Field(discriminator="type")])
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


# --- events --------------------------------------------------------------------------------------------------------

_NAMED = {"name": str}
_BLOCK = {"type": str}
_OPTIONAL = (str, type(None))
_SHAPES: dict[str, dict[str, Any]] = {
    "queued": {},
    "init": {"model": _OPTIONAL, "cwd": _OPTIONAL, "tools": list, "mcp_servers": [_NAMED]},
    "message": {
        "role": {"user", "assistant"},
        "content": [_BLOCK],
        "parent_tool_use_id": _OPTIONAL,
        "uuid": _OPTIONAL,
    },
    "permission_request": {"request_id": str},
    "question": {"request_id": str},
    "client_tool_call": {"request_id": str},
    "action_resolved": {"request_id": str},
    "task": {"task_id": str, "status": str},
    "checkpoint": {"checkpoint_id": str},
    "files": {},
    "hook": {},
    "network_denied": {},
    "steered": {"message_id": str, "state": {"taken", "next_run"}},
    "status": {"status": str},
    "result": {
        "status": str,
        "result": _OPTIONAL,
        "terminal_reason": _OPTIONAL,
        "is_error": (bool, type(None)),
        "duration_ms": (int, float, type(None)),
        "num_turns": (int, float, type(None)),
        "total_cost_usd": (int, float, type(None)),
        "usage": (dict, type(None)),
    },
    "error": {"code": str, "message": str},
    "done": {"status": {"succeeded", "failed", "interrupted"}},
}
"""What is relied on of events of each type, wherever the server reads them again. An agent's owner, a reaper or a list
of another tenant's must not fail because of what a stranger has made up."""

_BLOCKS: dict[str, dict[str, Any]] = {"text": {"text": str}, "tool_use": {"id": _OPTIONAL}}


def check_event(type_: str, fields: dict[str, Any]) -> None:
    """Whether an event is such as owners write. Raises ValueError."""
    if type_ not in _SHAPES:
        raise ValueError(f"no event of the type {type_} is stored")
    _check(fields, _SHAPES[type_], "data")
    if type_ == "message":
        _check_blocks(fields["content"], "data.content")
    if type_ == "status" and fields["status"] == "ports":
        _check(fields, {"ports": list}, "data")
        if not all(isinstance(port, int) for port in fields["ports"]):
            raise ValueError("data.ports: are no numbers")


def _check_blocks(blocks: list[dict[str, Any]], where: str) -> None:
    for number, block in enumerate(blocks):
        _check(block, _BLOCKS.get(block["type"], {}), f"{where}.{number}")


def _check(fields: dict[str, Any], shape: dict[str, Any], where: str) -> None:
    for name, wanted in shape.items():
        if name not in fields:
            raise ValueError(f"{where}.{name}: is missing")
        value = fields[name]
        if isinstance(wanted, set):
            fits = isinstance(value, str) and value in wanted
        else:
            fits = isinstance(value, list if isinstance(wanted, list) else wanted)
        if not fits:
            raise ValueError(f"{where}.{name}: is not what it is in an event of this type")
        for number, part in enumerate(value if isinstance(wanted, list) else ()):
            if not isinstance(part, dict):
                raise ValueError(f"{where}.{name}.{number}: is no object")
            _check(part, wanted[0], f"{where}.{name}.{number}")


# --- reading -------------------------------------------------------------------------------------------------------


def read(kind: type[T] | TypeAdapter[T], line: bytes, where: str) -> T:
    """One line as what it is to be. Raises BadArchive, saying where, which field, and why."""
    adapter = kind if isinstance(kind, TypeAdapter) else _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        found: T = adapter.validate_python(codec.parse(line))
        return found
    except ValidationError as error:
        raise BadArchive(f"{where}: {misfit(error)}") from None
    except ValueError as error:  # codec.NotJson, codec.Unsuitable
        raise BadArchive(f"{where}: {error}") from None


def misfit(error: ValidationError) -> str:
    """Which field is not as it must be, and why: the first of them."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"
