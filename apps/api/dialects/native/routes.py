"""The native API, `/api/v1`, in the order of its documentation."""

from __future__ import annotations

from apps.api.dialects.native import (
    account,
    admin,
    agents,
    control,
    mcp_servers,
    profiles,
    prompts,
    requests,
    runs,
    secrets,
    sessions,
    skills,
    webhooks,
)

_MODULES = (prompts, sessions, requests, control, runs, agents, profiles, mcp_servers, skills, secrets, webhooks)
routers = [module.router for module in (*_MODULES, account, admin)]
