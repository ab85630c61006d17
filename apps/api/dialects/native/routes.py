"""The native API, `/api/v1`, in the order of its documentation."""

from __future__ import annotations

from apps.api.dialects.native import (
    account,
    admin,
    agents,
    audit_log,
    checkpoints,
    client_tokens,
    control,
    dry_run,
    exports,
    file_work,
    files,
    forks,
    mcp_servers,
    profiles,
    prompts,
    requests,
    runs,
    schedules,
    secret_values,
    sessions,
    skills,
    uploads,
    usage,
    webhooks,
    workspace,
    ws,
)

_TALKS = (prompts, ws, sessions, client_tokens)
_SESSIONS = (*_TALKS, exports, files, workspace, uploads, forks, requests, control, checkpoints, runs)
_RESOURCES = (schedules, agents, dry_run, profiles, mcp_servers, skills, secret_values, webhooks)
_OPERATORS = (usage, account, admin, audit_log)
routers = [
    *(module.router for module in (*_SESSIONS, *_RESOURCES, *_OPERATORS)),
    files.content,
    workspace.content,
    uploads.content,
    file_work.router,
]
