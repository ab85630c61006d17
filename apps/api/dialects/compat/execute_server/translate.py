"""Between the execute server's words and the core's. Pure functions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from apps.api import clock
from apps.api.core.codec import decode, encode
from apps.api.core.config.aliases import current_model
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame
from apps.api.dialects.compat.execute_server.schemas import ExecuteBody

SURFACE = "execute_server"
TOLD = ["init", "message", "result"]
"""Types of the events that its clients see as messages."""

STATUS = {
    None: "pending",
    "queued": "pending",
    "running": "running",
    "requires_action": "running",
    "succeeded": "completed",
    "failed": "error",
    "interrupted": "cancelled",
}


def options(core: Core, body: ExecuteBody) -> dict[str, Any]:
    """What a new session begins with."""
    return {
        "surface": SURFACE,
        "model": current_model(core.settings, body.model),
        "system_prompt": body.system_prompt,
        "permission_mode": body.permission_mode,
        "cwd": body.cwd,
        "allowed_tools": body.allowed_tools or None,
    }


def _block(block: dict[str, Any]) -> str:
    return block["text"] if block["type"] == "text" else encode(block).decode()


def message(frame: Frame) -> dict[str, Any]:
    """A message of the conversation, from one of the events in TOLD."""
    data = decode(frame.data)
    if frame.type == "init":
        shown = {"subtype": "init", **{k: data.get(k) for k in ("model", "tools", "permission_mode")}}
        kind, content = "SystemMessage", encode(shown).decode()
    elif frame.type == "result":
        kind, content = "ResultMessage", data["result"] or ""
    else:
        kind = f"{data['role'].capitalize()}Message"
        blocks = data["content"]
        content = blocks if isinstance(blocks, str) else "\n".join(map(_block, blocks))
    return {"type": kind, "content": content, "timestamp": data["created_at"]}


def _result(run: dict[str, Any]) -> str | None:
    return (run["result"] or {}).get("result") if run["status"] == "succeeded" else None


def _error(run: dict[str, Any]) -> str | None:
    return run["error"]["message"] if run["status"] == "failed" and run["error"] else None


def _duration_ms(run: dict[str, Any]) -> int | None:
    if run["started_at"] is None:
        return None
    if run["result"] and run["result"].get("duration_ms") is not None:
        return int(run["result"]["duration_ms"])
    end = datetime.fromisoformat(run["finished_at"]) if run["finished_at"] else clock.now()
    return max(int((end - datetime.fromisoformat(run["started_at"])).total_seconds() * 1000), 0)


def status(session_id: str, run: dict[str, Any] | None, frames: list[Frame]) -> dict[str, Any]:
    """A session's state; `run`: its newest one, None for a session without a prompt."""
    begun = run is not None and run["started_at"] is not None
    return {
        "session_id": session_id,
        "status": STATUS[run["status"] if run else None],
        "messages": [message(frame) for frame in frames],
        "result": _result(run) if run else None,
        "error": _error(run) if run else None,
        "duration_ms": _duration_ms(run) if run else None,
        "total_cost_usd": (run["total_cost_usd"] or 0.0) if run and begun else None,
    }


def listed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the list, from one of `surfaces.overview`."""
    prompt = row["prompt"] or ""
    return {
        "session_id": row["session_id"],
        "status": STATUS[row["status"]],
        "prompt": prompt if isinstance(prompt, str) else "\n".join(map(_block, prompt)),
        "created_at": row["created_at"],
        "start_time": row["started_at"],
        "end_time": row["finished_at"],
        "error": _error(row),
        "result": _result(row),
        "message_count": row["events"],
    }
