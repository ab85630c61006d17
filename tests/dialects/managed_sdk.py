"""What the installed `anthropic` package has of Managed Agents: routes, event types, fields. And the table in
docs/managed-agents.md, of what apps/api/dialects/managed/coverage.toml says of each: `python -m
tests.dialects.managed_sdk` writes it anew."""

from __future__ import annotations

import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import anthropic
from anthropic.types import beta
from anthropic.types.beta import sessions

ROOT = Path(__file__).parents[2]
COVERAGE = ROOT / "apps/api/dialects/managed/coverage.toml"
PAGE = ROOT / "docs/managed-agents.md"
BEGIN, END = "<!-- coverage: written by tests/dialects/managed_sdk.py -->", "<!-- end of coverage -->"

RESOURCES = (
    *("agents", "environments", "sessions", "vaults", "files", "skills", "deployments", "deployment_runs"),
    *("memory_stores", "dreams", "user_profiles", "tunnels"),
)
"""Those of `client.beta` that are of Managed Agents."""

BODIES = (
    *(
        "AgentCreateParams",
        "AgentUpdateParams",
        "AgentListParams",
        "EnvironmentCreateParams",
        "EnvironmentUpdateParams",
    ),
    *("EnvironmentListParams", "SessionCreateParams", "SessionUpdateParams", "SessionListParams"),
    *("DeploymentCreateParams", "DeploymentUpdateParams", "DeploymentListParams", "DeploymentRunListParams"),
    "BetaManagedAgentsScheduleParams",
    *("BetaCloudConfigParams", "BetaLimitedNetworkParams", "BetaPackagesParams", "BetaManagedAgentsModelConfigParams"),
    *("BetaManagedAgentsAgentWithOverridesParams", "BetaManagedAgentsBashToolConfigParams"),
    *("BetaManagedAgentsWebFetchToolConfigParams", "BetaManagedAgentsWebSearchToolConfigParams"),
    *("BetaManagedAgentsMCPToolsetParams", "BetaManagedAgentsMCPToolConfigParams", "BetaManagedAgentsCustomToolParams"),
)
"""What clients send, beside events."""

THINGS = (
    *("BetaManagedAgentsAgent", "BetaEnvironment", "BetaManagedAgentsSession", "BetaManagedAgentsSessionAgent"),
    *("BetaManagedAgentsDeployment", "BetaManagedAgentsDeploymentRun", "BetaManagedAgentsSchedule"),
    *("BetaManagedAgentsSessionUsage", "BetaManagedAgentsSessionStats", "BetaManagedAgentsModelConfig"),
)
"""What they are answered, beside events."""

_CALL = re.compile(r'self\._(get_api_list|get|post|delete|put|patch)\(\s*(?:path_template\(\s*)?"(/v1/[^"?]*)')
_METHODS = {"get_api_list": "GET"}
HEADERS = ("betas", "workspace_id")


def routes() -> set[str]:
    """`METHOD /path` of every call."""
    found = set()
    base = Path(str(anthropic.__file__)).parent / "resources/beta"
    for name in RESOURCES:
        files = [base / f"{name}.py"] if (base / f"{name}.py").exists() else sorted((base / name).rglob("*.py"))
        for file in files:
            for verb, path in _CALL.findall(file.read_text(encoding="utf-8")):
                found.add(f"{_METHODS.get(verb, verb.upper())} {path}")
    return found


def _members(union: Any) -> list[Any]:
    inner = typing.get_args(union)[0] if typing.get_origin(union) is typing.Annotated else union
    return list(typing.get_args(inner))


def told() -> dict[str, Any]:
    """Types of events that a stream has, with their models."""
    members = _members(sessions.BetaManagedAgentsStreamSessionEvents)
    return {member.model_fields["type"].annotation.__args__[0]: member for member in members}


def sent() -> dict[str, Any]:
    """Types of events that a client sends, with their parameters."""
    members = _members(sessions.BetaManagedAgentsEventParams)
    return {_literal(typing.get_type_hints(member)["type"]): member for member in members}


def _literal(hint: Any) -> str:
    while typing.get_origin(hint) is not typing.Literal:
        hint = typing.get_args(hint)[0]
    return str(typing.get_args(hint)[0])


def fields() -> dict[str, set[str]]:
    """Fields by what has them."""
    found = {name: {*typing.get_type_hints(_params(name))} for name in BODIES}
    found |= {f"send {type_}": {*typing.get_type_hints(params)} for type_, params in sent().items()}
    found |= {name: {*getattr(beta, name).model_fields} for name in THINGS}
    found |= {f"event {type_}": {*model.model_fields} for type_, model in told().items()}
    return {name: own - {*HEADERS} for name, own in found.items()}


def _params(name: str) -> Any:
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return getattr(beta, name, None) or getattr(__import__(f"anthropic.types.beta.{module}", fromlist=[name]), name)


def coverage() -> dict[str, Any]:
    """What the file says."""
    return tomllib.loads(COVERAGE.read_text(encoding="utf-8"))


def table() -> str:
    """The tables of the page."""
    said = coverage()
    lines = ["", "| route | |", "|---|---|"]
    lines += [f"| `{route}` | {what} |" for route, what in said["routes"].items()]
    for title, part in (("event that you send", "sent"), ("event that you get", "told")):
        lines += ["", f"| {title} | |", "|---|---|"]
        lines += [f"| `{name}` | {what} |" for name, what in said[part].items()]
    lines += ["", "| field | |", "|---|---|"]
    for name, own in said["fields"].items():
        lines += [f"| `{name}`: `{field}` | {why} |" for field, why in own.items() if field != "done"]
    return "\n".join([*lines, "", ""])


def page() -> str:
    """The page with these tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
