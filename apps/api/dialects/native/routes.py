"""The native API, `/api/v1`, in the order of its documentation."""

from __future__ import annotations

from apps.api.dialects.native import (
    account,
    admin,
    agents,
    checkpoints,
    control,
    forks,
    mcp_servers,
    preview,
    profiles,
    prompts,
    requests,
    runs,
    secrets,
    sessions,
    skills,
    usage,
    webhooks,
    ws,
)

_SESSIONS = (prompts, ws, sessions, forks, requests, control, checkpoints, runs)
_RESOURCES = (agents, preview, profiles, mcp_servers, skills, secrets, webhooks, usage, account, admin)
routers = [module.router for module in (*_SESSIONS, *_RESOURCES)]
