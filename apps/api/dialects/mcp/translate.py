"""Between tools of MCP and what the core knows: pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mcp import types
from pydantic import BaseModel

from apps.api.core.codec import clean
from apps.api.dialects.mcp import schemas
from apps.api.errors import ApiError

OF_PRESET = "preset_"
"""What the names of the presets' tools begin with."""

ADVICE = {
    "queued": "The run waits for its turn. Call get_run with this run_id.",
    "running": "The run goes on. Call get_run with this run_id.",
    "requires_action": "A person or a program must answer first. Call get_run with this run_id afterwards.",
}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _tool(name: str, description: str, takes: type[BaseModel], tells: Mapping[str, Any] | None) -> types.Tool:
    return types.Tool(
        name=name,
        description=description,
        input_schema=_schema(takes),
        output_schema=None if tells is None else dict(tells),
    )


_TOLD = _schema(schemas.Told)

TOOLS = (
    _tool(
        "run_agent",
        "Give a task to a Claude agent with tools and a workspace of its own, in a new session. Answers with the"
        " result or, when that takes longer, with a run_id for get_run.",
        schemas.RunArguments,
        _TOLD,
    ),
    _tool(
        "continue_session",
        "Give the agent of a session its next task. It knows what was said there, and has its files.",
        schemas.NextArguments,
        _TOLD,
    ),
    _tool("get_run", "Ask what has become of a run, and wait for its end if you like.", schemas.GetArguments, _TOLD),
    _tool("cancel_run", "Stop a run that is queued or goes on.", schemas.CancelArguments, _TOLD),
)


def output_schema(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of a preset's answers, where it has one that a tool may have: of an object."""
    schema = (config.get("output_format") or {}).get("schema")
    return schema if isinstance(schema, dict) and schema.get("type") == "object" else None


def of_preset(preset: Mapping[str, Any]) -> types.Tool:
    """The tool of a preset, as `presets` shows that."""
    described = preset["description"] or f"Give a task to the agent {preset['name']}, in a new session."
    tells = output_schema(preset["config"]) or _TOLD
    return _tool(f"{OF_PRESET}{preset['name']}", described, schemas.PresetArguments, tells)


def told(run: Mapping[str, Any], asked: Sequence[Mapping[str, Any]] = ()) -> schemas.Told:
    """A run as `runs.get` reads it, and the requests that are open."""
    result, error, status = run["result"] or {}, run["error"], run["status"]
    good, words = status == "succeeded", result.get("result")
    return schemas.Told(
        session_id=run["session_id"],
        run_id=run["run_id"],
        status=status,
        result=words if good and isinstance(words, str) else None,
        structured_output=result.get("structured_output") if good else None,
        asked=[schemas.Asked(request_id=one["request_id"], type=one["type"], about=_about(one)) for one in asked],
        error={"code": error["code"], "message": error["message"]} if error else None,
        advice=ADVICE.get(status),
    )


_ABOUT = ("tool_name", "input", "title", "description", "reason", "questions", "expires_at")


def _about(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: request[name] for name in _ABOUT if request.get(name) is not None}


def _text(value: Any) -> list[types.ContentBlock]:
    # As ASCII: agents do print halves of surrogate pairs, which are no text in a message.
    return [types.TextContent(type="text", text=value if isinstance(value, str) else json.dumps(value))]


def answer(what: schemas.Told, tells: Mapping[str, Any] | None = None) -> types.CallToolResult:
    """A tool's answer.

    `tells`: the schema of the preset's own, in whose shape the answer is once there is one. Until then, and where the
    run has failed, there is nothing in that shape, and so the answer counts as an error.
    """
    said = clean(what.model_dump(mode="json", exclude_none=True))
    ids = {"session_id": said["session_id"], "run_id": said["run_id"], "status": said["status"]}
    failed = what.status in ("failed", "interrupted")
    if tells is None:
        return types.CallToolResult(content=_text(said), structured_content=said, is_error=failed, _meta=ids)
    if isinstance(what.structured_output, dict):
        output = said["structured_output"]
        return types.CallToolResult(content=_text(output), structured_content=output, _meta=ids)
    return types.CallToolResult(content=_text(said), structured_content=said, is_error=True, _meta=ids)


def refusal(error: ApiError) -> types.CallToolResult:
    """An error of ours, as the answer of a tool."""
    body = {"error": {"code": error.code, "message": error.message, "details": error.details}}
    return types.CallToolResult(content=_text(f"{error.code}: {error.message}"), structured_content=body, is_error=True)
