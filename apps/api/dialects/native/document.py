"""What the document of the native API says beside its routes. Nothing here changes what the API does."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model

from apps.api.codes import ErrorCode, RunCode
from apps.api.core.tenant.webhooks import WEBHOOK_EVENTS
from apps.api.dialects.native.content_blocks import Ours
from apps.api.dialects.native.event_schemas import Event, EventList, MessageList
from apps.api.dialects.native.examples import IDS, MOMENT, RESPONSES
from apps.api.dialects.native.schemas import ErrorAnswer, RunStatus
from apps.api.web.document import Description

_TEXT = """
Run Claude agents over HTTP. Send a prompt to any instance; follow it from any other; be cut off and lose nothing.

Every route but health needs a key: `X-API-Key: KEY` or `Authorization: Bearer KEY`.

`/api/v1/query/ws` is a WebSocket, which this document cannot describe: prompts, answers, interrupts and events on one
connection; its events are `Event`. See docs/websocket.md.

Ignore events, and fields of answers, that you do not know: there will be more. Fields of a body that the
server does not know are refused.
"""

TAGS = {
    "prompts": "Send a prompt: to a new session, or to one that exists.",
    "sessions": "Conversations: their configuration, their state, and what can be done to them.",
    "files": "Files of sessions, and files that a tenant uploads for them.",
    "requests": "What agents ask a person or a client's program, and the answers.",
    "events": "What happens in sessions and runs: stored and live, on any instance.",
    "runs": "Executions of prompts.",
    "schedules": "Prompts that are sent at times of a clock.",
    "agents": "Presets: named, versioned configurations that sessions begin with.",
    "profiles": "What the operator lets agents do.",
    "MCP servers": "The tenant's registry of MCP servers.",
    "skills and commands": "Skills and slash commands: those of the image, and the tenant's own.",
    "secrets": "Values that configuration refers to as `${NAME}`; never shown.",
    "webhooks": "Endpoints of the tenant that are told what happens.",
    "usage": "What agents have used, and what it cost.",
    "account": "The key that asks, what binds it, and which models there are.",
    "administration": "For operators: tenants, keys, instances, the audit log.",
    "health": "Whether the server works. Needs no key.",
}


class _Run(Ours):
    session_id: UUID
    run_id: UUID


class RunChanged(_Run):
    """A run, and what has become of it. Ask `GET /runs/{run_id}` for more."""

    status: RunStatus
    error_code: RunCode | None = Field(None, description="Of a run that failed.")


class SessionChanged(Ours):
    """A session."""

    session_id: UUID


class ScheduleFailed(Ours):
    """A time of a schedule that came to nothing, or whose run failed."""

    schedule_id: UUID
    firing_id: UUID
    fire_at: datetime = Field(description="The time.")
    session_id: UUID | None = Field(None, description="Of its run, if one was queued.")
    run_id: UUID | None = None
    error_code: ErrorCode | None = None


class SchedulePaused(Ours):
    """A schedule that is fired no more."""

    schedule_id: UUID
    reason: str = Field(description="As `paused_reason` of the schedule.")


class Nothing(Ours):
    """A test tells nothing."""


class WebhookMessage(Ours):
    """What every message to a webhook has."""

    delivery_id: UUID = Field(description="The same in every attempt: it is the header `webhook-id`, too.")
    created_at: datetime = Field(description="When it happened, in UTC.")


_OF_SCHEDULES: dict[str, dict[str, JsonValue]] = {
    "failed": {"firing_id": IDS["run_id"], "fire_at": MOMENT, "error_code": "key_revoked"},
    "paused": {"reason": "5 failures in a row"},
}


def _message(type_: str) -> type[BaseModel]:
    """The model of one kind of message: `run.failed` → RunFailedMessage."""
    noun, _, what = type_.partition(".")
    data: dict[str, JsonValue] = {"session_id": IDS["session_id"]}
    if noun == "run":
        data |= {"run_id": IDS["run_id"], "status": what}
    if noun == "schedule":
        data = {"schedule_id": IDS["session_id"], **_OF_SCHEDULES[what]}
    kinds: dict[str, type[Ours]] = {"run": RunChanged, "session": SessionChanged, "webhook": Nothing}
    kinds |= {"schedule": ScheduleFailed if what == "failed" else SchedulePaused}
    example: dict[str, JsonValue] = {
        "delivery_id": IDS["run_id"],
        "type": type_,
        "created_at": MOMENT,
        "data": {} if noun == "webhook" else data,
    }
    name = f"{noun}_{what}".title().replace("_", "")
    fields: dict[str, Any] = {"type": (Literal[type_], ...), "data": (kinds[noun], ...)}
    made = create_model(f"{name}Message", __base__=WebhookMessage, __doc__=f"`{type_}`.", **fields)
    made.model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})
    made.model_rebuild(force=True)
    return made


_WHEN = {
    "run.queued": "A prompt was accepted; or a run that was parked has its answer, and waits for an instance.",
    "run.running": "An instance runs it; again after each `run.requires_action`.",
    "run.requires_action": "It waits for a person, or for the client's program.",
    "run.succeeded": "It has ended well.",
    "run.failed": "It has failed; `error_code` says why.",
    "run.interrupted": "It was stopped.",
    "session.created": "There is a new session.",
    "session.deleted": "A session was deleted.",
    "schedule.failed": "A time of a schedule came to nothing, or its run failed; `error_code` says why.",
    "schedule.paused": "A schedule is fired no more; `reason` says why.",
    "webhook.test": "Somebody asked for it: `POST /webhooks/{webhook_id}/test`.",
}
_MESSAGES = {type_: _message(type_) for type_ in _WHEN}
_HEADERS = {
    "webhook-id": "The message's id: it may come more than once.",
    "webhook-timestamp": "Seconds since 1970, of the attempt.",
    "webhook-signature": "`v1,` and the signature, as Standard Webhooks says; after a rotation two, parted by a space.",
}
_PARAMETERS = {
    name: {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
    for name, text in _HEADERS.items()
}


def _told(type_: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{_MESSAGES[type_].__name__}"}
    return {
        "post": {
            "tags": ["webhooks"],
            "summary": type_,
            "description": f"{_WHEN[type_]} Sent to the tenant's webhooks, and again until one answers.",
            "operationId": f"on_{type_.replace('.', '_')}",
            "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS],
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"2XX": {"description": "Within 15 s: it is taken. Any other answer is none."}},
        }
    }


NATIVE = Description(
    title="Claude Agent API",
    text=_TEXT,
    has=lambda path: path.startswith(("/api/", "/health", "/metrics")),
    tags=TAGS,
    models=(ErrorAnswer, Event, EventList, MessageList, *_MESSAGES.values()),
    words={"ErrorCode": get_args(ErrorCode), "RunCode": get_args(RunCode), "WebhookType": WEBHOOK_EVENTS},
    shared={"responses": RESPONSES, "parameters": _PARAMETERS},
    webhooks={type_: _told(type_) for type_ in _WHEN},
)
