"""Which models a tenant and a key may use: lists of names, or of patterns as in file names."""

from __future__ import annotations

from collections.abc import Sequence

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.aliases import first_fit
from apps.api.core.config.profiles import Policy
from apps.api.errors import Problem

INHERITED = "inherit"
"""What a subagent says that has the session's model."""


def permitted(lists: Sequence[Sequence[str]], model: str) -> bool:
    """Whether each of the lists has a pattern that fits the model. Its mark for the CLI (`[1m]`) is no part of it."""
    name = model.partition("[")[0]
    return all(first_fit(((pattern, pattern) for pattern in patterns), name) for patterns in lists)


def problems(policy: Policy, config: AgentConfig) -> list[Problem]:
    """Models that a client asks for and that the lists of its tenant or key do not have. Short names of the CLI's own
    (`opus`) are judged by themselves: which model they mean, only the CLI knows."""
    if not policy.models:
        return []
    named = {"model": config.model or policy.default_model, "fallback_model": config.fallback_model}
    named |= {f"agents.{name}.model": agent.model for name, agent in (config.agents or {}).items()}
    shown = " and among ".join(", ".join(patterns) for patterns in policy.models)
    return [
        Problem(field, code="model_not_permitted", reason=f"{name} is not among {shown}")
        for field, name in named.items()
        if name and name != INHERITED and not permitted(policy.models, name)
    ]
