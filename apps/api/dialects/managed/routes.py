"""Claude Managed Agents, `/compat/managed-agents`, one module for each resource. See docs/managed-agents.md."""

from __future__ import annotations

from apps.api.dialects.managed import (
    agents,
    deployment_runs,
    deployments,
    environments,
    events,
    files,
    resources,
    sessions,
    threads,
    vaults,
)
from apps.api.dialects.managed.common import PREFIX, TAG, error_shape
from apps.api.web.document import Description
from apps.api.web.doors import Router

__all__ = ["DESCRIPTION", "PREFIX", "error_shape", "router"]

router = Router()
_SESSIONS = (sessions, events, threads, files, resources)
for _resource in (agents, environments, *_SESSIONS, vaults, deployments, deployment_runs):
    router.include_router(_resource.routes)

DESCRIPTION = Description(
    "Claude Agent API: managed agents",
    "What the official `anthropic` clients call as `client.beta.agents`, `.environments`, `.sessions`, …, with the path"
    f" `{PREFIX}` in their base URL. Objects have the official fields: see the package, and docs/managed-agents.md for"
    " what is supported.",
    lambda path: path.startswith(f"{PREFIX}/"),
    {TAG: "As the official clients know them."},
)
