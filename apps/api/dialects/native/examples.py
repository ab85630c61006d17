"""Texts and examples of the OpenAPI document. Nothing here changes what the API does."""

from __future__ import annotations

from typing import Any

from apps.api.codes import ErrorCode
from apps.api.limits import DEFAULTS

# FastAPI leaves null values out of examples, so these are chosen to have none where a schema requires the field.

IDS = {"session_id": "6975080a-2ab1-4c32-b91d-3c7dd095a62a", "run_id": "74fc4ab6-a3f1-4a7b-b17c-fac01c6b5154"}
MOMENT = "2026-01-31T12:00:00.000Z"
MESSAGE: dict[str, Any] = {
    **IDS,
    "seq": 2,
    "created_at": MOMENT,
    "role": "user",
    "content": [{"type": "text", "text": "List the Python files here."}],
    "parent_tool_use_id": None,
    "uuid": IDS["run_id"],
}
EVENT: dict[str, Any] = {
    "id": "5",
    "event": "done",
    "data": {**IDS, "seq": 5, "created_at": MOMENT, "status": "succeeded"},
}
OPTIONS = {
    "model": "Model name; the server's DEFAULT_MODEL if unset.",
    "fallback_model": "Model to use when the first one is overloaded.",
    "system_prompt": "Replaces the agent's own system prompt.",
    "system_prompt_append": "Is added to the end of the system prompt.",
    "tools": "Tools that exist for the agent; the server's default set if unset. `[]`: none.",
    "allowed_tools": "Tools that run without asking, for example `Read` or `Bash(git status:*)`.",
    "ask_tools": "Tools that always wait for a person, also where they would run without asking, for example `Bash` or"
    " `Bash(git push:*)`.",
    "disallowed_tools": "Tools that never run.",
    "permission_mode": "What happens to a tool call that no rule covers; without it `default`, which asks a person.",
    "unattended": "Nobody is there to be asked: a tool call that needs a person's permission is refused at once, and"
    " the agent cannot ask questions.",
    "max_turns": "Turns of the agent that one prompt may take; more fail with `max_turns_exceeded`.",
    "max_budget_usd": "Cost of one agent process, which may serve several prompts, after which a run fails with"
    " `max_budget_exceeded`.",
    "max_session_usd": "Cost of the session in all, by the gateway's count; then a run ends in the middle, and prompts"
    " are refused, with `budget_reached`.",
    "task_budget": 'Tokens, as `{"total": N}`, that the model is told it may use for a prompt, so that it paces itself.'
    " Models that know no such budget refuse it.",
    "betas": "Beta features of the model's API; the agent's program lets these pass.",
    "thinking": "How the model thinks: `adaptive`, `enabled` with `budget_tokens`, or `disabled`.",
    "effort": "How much effort the model puts into its answers.",
    "output_format": "A JSON schema that the final answer must match; it comes as `structured_output`.",
    "mcp_servers": "MCP servers by name: `stdio` (the operator allows its command), `http`, `sse`, or `registered`.",
    "client_tools": "Tools that the caller's own program executes; a call waits for its result as `client_tool_call`.",
    "agents": "Custom subagents by name; each may have `skills`, `mcp_servers` and a `permission_mode` of its own.",
    "skills": 'Skills that are enabled, by name; `"all"` for all of them.',
    "hooks": "Webhooks by hook event, which may allow, deny or change what the agent does.",
    "enable_file_checkpointing": "Whether the agent keeps checkpoints of the files it changes.",
    "cwd": "Working directory, relative to the workspace, in its shortest form; fixed when the session is created.",
    "add_dirs": "Directories beside `cwd`, relative to the workspace, that count as the agent's own too.",
    "repository": "A git repository that the workspace begins with, `url` and maybe `ref`; fixed when the session is"
    " created.",
    "resources": "What the workspace is given before the agent goes to work, in this order: files that were uploaded"
    " (`file_id`), what URLs answer (`url`), repositories; each at its `path`. Of a session: before its first run; of a"
    " prompt: before this one.",
    "env": "Environment variables for the agent and its tools. Names that steer the agent itself are refused.",
}
"""What the options of `AgentConfig` mean, for readers of the OpenAPI document."""


def _error(description: str, code: ErrorCode, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {"code": code, "message": message, "details": details or {}}
    example = {"error": body, "request_id": "7f9c2ba4e88f827d616045507605853e"}
    schema = {"$ref": "#/components/schemas/ErrorAnswer"}
    headers = {"X-Request-ID": {"schema": {"type": "string"}, "description": "The same as `request_id`."}}
    return {
        "description": description,
        "headers": headers,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


_ERRORS = {
    400: _error("`invalid_json`, or the model refused the request.", "invalid_json", "The body is not valid JSON."),
    401: _error("No key, or one that is unknown, revoked or expired.", "invalid_api_key", "This API key is not valid."),
    403: _error(
        "The key does not allow this, or not from this address.",
        "insufficient_scope",
        "This key lacks the scope 'write'.",
    ),
    404: _error("No such object, or it belongs to another tenant.", "session_not_found", "No such session."),
    409: _error(
        "The state of the session or of the idempotency key does not allow this.",
        "session_busy",
        "Another run of this session is queued or running.",
    ),
    410: _error(
        "What is asked for has been removed for its age.",
        "events_expired",
        "The events of this run have been removed for their age.",
    ),
    408: _error("The body has not come in time.", "body_too_slow", "The body has not come in time."),
    412: _error(
        "The file is not what `If-Match` or `If-None-Match` asks for; `details.etag` is what it has.",
        "etag_mismatch",
        "The file is not the one that If-Match names.",
        {"etag": '"18cf3a2b4c5d6e7f-4b4"'},
    ),
    416: _error("The file has no such range.", "range_not_satisfiable", "The file has no such range."),
    413: _error(
        "The body is too large.",
        "body_too_large",
        f"The body is larger than {DEFAULTS['max_body_bytes']} bytes.",
        {"limit_bytes": DEFAULTS["max_body_bytes"]},
    ),
    422: _error(
        "A field is missing, unknown or out of range; `details.errors` names each.",
        "validation_error",
        "prompt: must not be empty",
        {"errors": [{"field": "prompt", "reason": "must not be empty"}]},
    ),
    429: _error(
        "The prompts of the key or of its tenant, or the requests that look up names, of this minute are used up, or a"
        " budget is, or too many wrong keys came from this address; see `Retry-After`.",
        "rate_limited",
        f"This key may send {DEFAULTS['rate_limit_query_per_minute']} prompts per minute.",
        {
            "limit": DEFAULTS["rate_limit_query_per_minute"],
            "used": DEFAULTS["rate_limit_query_per_minute"],
            "resets_at": "2026-11-21T13:54:46.428438Z",
            "scope": "key",
            "retry_after_seconds": 21,
        },
    ),
    500: _error(
        "A bug. The request id leads to its log line.",
        "internal_error",
        "The server failed. The request id helps to find out why.",
    ),
    502: _error(
        "The agent or the model failed.",
        "agent_crashed",
        "The agent process ended without a result.",
        {**IDS, "result": None},
    ),
    503: _error(
        "A part that the service depends on is away, or the run's instance or model is.",
        "dependency_unavailable",
        "A part that this service depends on is away. Try again.",
    ),
    504: _error(
        "The run took longer than its timeout, or was still queued when the wait was over.",
        "timeout",
        "The run took longer than its timeout.",
        {**IDS, "result": None},
    ),
}

_NAMES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    408: "BodyTooSlow",
    409: "Conflict",
    410: "Gone",
    412: "PreconditionFailed",
    413: "TooLarge",
    416: "RangeNotSatisfiable",
    422: "Invalid",
    429: "TooMany",
    500: "InternalError",
    502: "AgentFailed",
    503: "Unavailable",
    504: "Timeout",
}
RESPONSES = {name: _ERRORS[status] for status, name in _NAMES.items()}
"""Answers that all routes share, by the name that the document has for them."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"$ref": f"#/components/responses/{name}"} for status, name in _NAMES.items()
}
"""What a route documents for each status that it may answer."""

_UUID_HEADER = {"schema": {"type": "string", "format": "uuid"}}
_STREAM_CONTENT = {"text/event-stream": {"schema": {"$ref": "#/components/schemas/Event"}, "example": EVENT}}

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events. The schema is that of one: its lines `id`, `event` and `data` (JSON).",
        "content": _STREAM_CONTENT,
        "headers": {"X-Session-ID": _UUID_HEADER, "X-Run-ID": _UUID_HEADER},
    }
}
"""What a route documents that streams the run it has started."""

FOLLOWED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, each an `Event`; with `Accept: application/json` a page of stored ones.",
        "content": {**_STREAM_CONTENT, "application/json": {}},
        "headers": {"X-Session-ID": _UUID_HEADER},
    },
    204: {
        "description": "Nothing is left to stream, and nothing will come.",
        "headers": {"X-Session-ID": _UUID_HEADER},
    },
}
"""What a route documents that follows events."""
