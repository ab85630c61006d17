"""The native API, `/api/v1`, in the order of its documentation."""

from __future__ import annotations

from apps.api.dialects.native import account, control, profiles, prompts, runs, secrets, sessions, skills

routers = [module.router for module in (prompts, sessions, control, runs, profiles, skills, secrets, account)]
