"""What the document shows: one thing of each kind, as the official clients read it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from apps.api.dialects.managed import ids

_TIMES = {"created_at": "2026-01-31T12:00:00.000Z", "updated_at": "2026-01-31T12:00:00.000Z"}
_METADATA = {"team": "support"}
_MODEL = {"id": "claude-sonnet-5-5", "speed": "standard"}
_TOOLSET = {"type": "agent_toolset_20260401"}


def _id(prefix: str) -> str:
    return ids.write(prefix, UUID("0f6a2c1e-5b7d-4e3a-9c8b-1a2b3c4d5e6f"))


AGENT: dict[str, Any] = {
    "id": _id("agent"),
    "type": "agent",
    "version": 1,
    "name": "Support",
    "description": "Answers customers.",
    "model": _MODEL,
    "system": "You answer customers.",
    "tools": [_TOOLSET],
    "mcp_servers": [],
    "skills": [],
    "execution_identity": {"type": "service_account"},
    "metadata": _METADATA,
    **_TIMES,
}
ENVIRONMENT: dict[str, Any] = {
    "id": _id("env"),
    "type": "environment",
    "name": "Support",
    "description": "No network but the wiki.",
    "metadata": {},
    "config": {
        "type": "cloud",
        "networking": {
            "type": "limited",
            "allowed_hosts": ["wiki.example.com"],
            "allow_mcp_servers": True,
            "allow_package_managers": False,
        },
    },
    "scope": "organization",
    **_TIMES,
}
RESOURCE: dict[str, Any] = {
    "id": _id("sesrsc"),
    "type": "file",
    "file_id": _id("file"),
    "mount_path": "/workspace/cities.csv",
    **_TIMES,
}
SESSION: dict[str, Any] = {
    "id": _id("sesn"),
    "type": "session",
    "status": "idle",
    "title": "A question about cities",
    "metadata": _METADATA,
    "agent": {name: value for name, value in AGENT.items() if name not in _TIMES},
    "environment_id": _id("env"),
    "resources": [RESOURCE],
    "vault_ids": [_id("vlt")],
    "outcome_evaluations": [],
    "stats": {},
    "usage": {"input_tokens": 3, "output_tokens": 12},
    **_TIMES,
}
THREAD: dict[str, Any] = {
    "id": _id("sthr"),
    "type": "session_thread",
    "session_id": _id("sesn"),
    "agent": SESSION["agent"],
    "status": "idle",
    **_TIMES,
}
_ASKED = {"type": "user.message", "content": [{"type": "text", "text": "Which of the cities is the largest?"}]}
SENT: dict[str, Any] = {"data": [{"id": _id("sevt"), **_ASKED, "processed_at": _TIMES["created_at"]}]}
EVENT: dict[str, Any] = {
    "id": _id("sevt"),
    "type": "agent.message",
    "content": [{"type": "text", "text": "Oslo."}],
    "processed_at": _TIMES["created_at"],
}
STREAM = f'event: agent.message\ndata: {{"id":"{EVENT["id"]}","type":"agent.message",…}}\n\n'
FILE: dict[str, Any] = {
    "id": _id("file"),
    "type": "file",
    "filename": "cities.csv",
    "mime_type": "text/csv",
    "size_bytes": 48,
    "downloadable": False,
    "created_at": _TIMES["created_at"],
}
VAULT: dict[str, Any] = {
    "id": _id("vlt"),
    "type": "vault",
    "display_name": "Support",
    "metadata": {},
    **_TIMES,
}
CREDENTIAL: dict[str, Any] = {
    "id": _id("vcrd"),
    "type": "vault_credential",
    "vault_id": _id("vlt"),
    "display_name": "The wiki",
    "metadata": {},
    "auth": {"type": "static_bearer", "mcp_server_url": "https://wiki.example.com/mcp"},
    **_TIMES,
}

_REFERENCE = {"type": "agent", "id": _id("agent"), "version": 1}
_SCHEDULE = {"type": "cron", "expression": "0 7 * * 1-5", "timezone": "Europe/Berlin"}
DEPLOYMENT: dict[str, Any] = {
    "id": _id("depl"),
    "type": "deployment",
    "name": "Morning report",
    "description": "For the team.",
    "metadata": _METADATA,
    "agent": _REFERENCE,
    "environment_id": _id("env"),
    "initial_events": [_ASKED],
    "resources": [{"type": "file", "file_id": _id("file"), "mount_path": "/workspace/cities.csv"}],
    "vault_ids": [_id("vlt")],
    "schedule": {**_SCHEDULE, "last_run_at": None, "upcoming_runs_at": ["2026-02-02T06:00:00.000Z"]},
    "budget": None,
    "status": "active",
    "paused_reason": None,
    **_TIMES,
}
DEPLOYMENT_RUN: dict[str, Any] = {
    "id": _id("drun"),
    "type": "deployment_run",
    "deployment_id": _id("depl"),
    "agent": _REFERENCE,
    "session_id": _id("sesn"),
    "error": None,
    "trigger_context": {"type": "schedule", "scheduled_at": "2026-02-02T06:00:00.000Z"},
    "created_at": _TIMES["created_at"],
}


def page_of(one: dict[str, Any]) -> dict[str, Any]:
    """A page of a list that has one row, and goes on."""
    return {"data": [one], "next_page": "b64.eyJhZnRlciI6MX0"}


def gone(one: dict[str, Any]) -> dict[str, Any]:
    """What is told of something that was deleted."""
    kind = "session_resource" if one is RESOURCE else one["type"]
    return {"id": one["id"], "type": f"{kind}_deleted"}


BODIES: dict[str, dict[str, Any]] = {
    "AgentCreate": {
        "name": "Support",
        "model": "claude-sonnet-5-5",
        "system": "You answer customers.",
        "tools": [_TOOLSET],
        "metadata": _METADATA,
    },
    "AgentUpdate": {"version": 1, "system": "You answer customers, in one sentence.", "metadata": {"team": None}},
    "EnvironmentCreate": {"name": "Support", "config": ENVIRONMENT["config"]},
    "EnvironmentUpdate": {"description": "No network but the wiki."},
    "SessionCreate": {
        "agent": _id("agent"),
        "environment_id": _id("env"),
        "title": "A question about cities",
        "resources": [{"type": "file", "file_id": _id("file"), "mount_path": "/workspace/cities.csv"}],
        "initial_events": [_ASKED],
    },
    "SessionUpdate": {"title": "Cities", "metadata": {"team": None}},
    "SendEvents": {"events": [_ASKED]},
    "ManagedFileMount": {"type": "file", "file_id": _id("file"), "mount_path": "/workspace/cities.csv"},
    "ManagedResourceUpdate": {"authorization_token": "ghp_…"},
    "ManagedVaultCreate": {"display_name": "Support"},
    "ManagedVaultUpdate": {"display_name": "Support, Europe"},
    "ManagedCredentialCreate": {
        "display_name": "The wiki",
        "auth": {"type": "static_bearer", "mcp_server_url": "https://wiki.example.com/mcp", "token": "a-token"},
    },
    "DeploymentCreate": {
        "name": "Morning report",
        "agent": _id("agent"),
        "environment_id": _id("env"),
        "initial_events": [_ASKED],
        "schedule": _SCHEDULE,
    },
    "DeploymentUpdate": {"schedule": _SCHEDULE, "metadata": {"team": None}},
    "ManagedCredentialUpdate": {"auth": {"type": "static_bearer", "token": "a-token"}},
}
"""Of each body, by the name of its schema."""
