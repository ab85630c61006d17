"""From the parameters of a request to an agent's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from apps.api.auth import Principal
from apps.api.core.config import models
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.aliases import first_fit
from apps.api.core.context import Core
from apps.api.core.sessions.admission import Choice
from apps.api.core.tenant import presets
from apps.api.dialects.openai.errors import refused
from apps.api.dialects.openai.history import known
from apps.api.errors import NotFound
from apps.api.web.callers import policy_of

PRESET = "preset:"
_EFFORTS = {"minimal": "low"}
_FITTING = re.compile(r"[A-Za-z][A-Za-z0-9-]*(_[A-Za-z0-9-]+)*")
_FUNCTION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ESCAPED = "x-"
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(@[1-9][0-9]{0,8})?")


def tool_name(name: str) -> str | None:
    """Our name for a function: the same where it can be; None where it would be too long."""
    if _FITTING.fullmatch(name) and not name.startswith(_ESCAPED):
        return name
    made = _ESCAPED + re.sub(r"[^A-Za-z0-9]", lambda found: f"-{ord(found[0]):02x}", name)
    return made if len(made) <= 64 else None


def function_name(name: str) -> str:
    """The inverse of `tool_name`."""
    if not name.startswith(_ESCAPED):
        return name
    return re.sub(r"-([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), name.removeprefix(_ESCAPED))


def aliases(core: Core) -> list[str]:
    """Every name of a model that is no pattern: what `GET /models` lists."""
    named = [core.settings.default_model, *core.settings.models]
    for pattern, model in core.settings.aliases_of_models:
        named += [model] if set(pattern) & set("*?[") else [pattern, model]
    return list(dict.fromkeys(named))


def model_of(core: Core, asked: str) -> str | None:
    """The model that a client's name stands for, if there is one."""
    return asked if asked in aliases(core) else first_fit(core.settings.aliases_of_models, asked)


def no_model(asked: str) -> NotFound:
    """404 `model_not_found`."""
    text = f"The model {asked[:100]!r} does not exist, or you may not use it: see GET /models."
    return NotFound(text, details={"param": "model", "told": "model_not_found"})


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks of the agent.

    Attributes:
        preset: the reference of a preset, if that is its model.
        model: the model, unless a preset says so.
        structured: whether the answer is JSON by a schema.
    """

    preset: str | None
    model: str | None
    instructions: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    allowed: tuple[str, ...] = ()
    servers: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    effort: str | None = None

    @property
    def structured(self) -> bool:
        return self.schema is not None

    def config(self) -> AgentConfig:
        """The agent's configuration: all that requests can ask for, since the next one says it anew. A preset's own
        options stay where nothing is said."""
        asked: dict[str, Any] = {
            "system_prompt_append": self.instructions,
            "client_tools": list(self.tools) or None,
            "allowed_tools": list(self.allowed) or None,
            "mcp_servers": dict(self.servers) or None,
            "output_format": {"type": "json_schema", "schema": self.schema} if self.schema is not None else None,
            "effort": None if self.effort == "none" else self.effort and _EFFORTS.get(self.effort, self.effort),
            "thinking": {"type": "disabled"} if self.effort == "none" else None,
        }
        if self.preset is not None:
            asked = {name: value for name, value in asked.items() if value is not None}
        else:
            asked["model"] = self.model
        try:
            return AgentConfig.model_validate({**asked, "unattended": True})
        except ValidationError as error:
            found = error.errors()[0]
            param = ".".join(str(part) for part in found["loc"])
            raise refused(
                _PARAMS.get(str(found["loc"][0]), param), f"{param}: {found['msg']}", "invalid_value"
            ) from error

    def choice(self, core: Core, caller: Principal) -> Choice:
        """What the session is made of."""
        return Choice(policy=policy_of(core, caller), agent=self.preset)


_PARAMS = {
    "client_tools": "tools",
    "mcp_servers": "tools",
    "allowed_tools": "tools",
    "output_format": "response_format",
    "system_prompt_append": "instructions",
}


async def chosen(core: Core, caller: Principal, asked: str) -> tuple[str | None, str | None]:
    """The preset and the model that `model` names. Raises NotFound `model_not_found`."""
    if asked.startswith(PRESET):
        reference = asked.removeprefix(PRESET)
        try:
            if not _REFERENCE.fullmatch(reference):
                raise NotFound.of("agent")
            await presets.find(core.db.pool, caller.tenant_id, reference)
        except NotFound as error:
            raise no_model(asked) from error
        return reference, None
    model = model_of(core, asked)
    if model is None or not models.permitted(policy_of(core, caller).models, model):
        raise no_model(asked)
    return None, model


class Tools(NamedTuple):
    """What a request lets the agent use beside its own: functions of the client's as client tools, rules of what it may
    call unasked, and MCP servers."""

    functions: tuple[dict[str, Any], ...]
    allowed: tuple[str, ...] = ()
    servers: Mapping[str, Any] = MappingProxyType({})


def tools_of(tools: Sequence[dict[str, Any]] | None, choice: Any, parallel: bool | None, *, flat: bool) -> Tools:
    """The tools of a request. `flat`: as responses have them.

    Raises:
        BadRequest: a tool, or a choice among them, that cannot be honoured.
    """
    made, allowed, servers = list[dict[str, Any]](), list[str](), dict[str, Any]()
    wanted = _wanted(choice, flat=flat)
    for number, tool in enumerate(tools or ()):
        at, kind = f"tools[{number}]", tool.get("type")
        if flat and kind == "web_search":
            known(tool, {"type"}, at)
            allowed += ["WebSearch"] if wanted is None or "web_search" in wanted else []
        elif flat and kind == "mcp":
            label, server, rules = _server(tool, at)
            if wanted is None or label in wanted:
                servers[label] = server
                allowed += rules
        elif kind == "function":
            function = _function(tool if flat else tool.get("function"), tool, at, one_by_one=parallel is False)
            made += [function] if wanted is None or function_name(function["name"]) in wanted else []
        else:
            raise refused(at, f"{at}: tools of the type {str(kind)[:50]!r} are not supported by this server.")
    return Tools(tuple(made), tuple(allowed), servers)


_SERVER_FIELDS = {"type", "server_label", "server_url", "server_description", "headers", "authorization"}


def _server(tool: dict[str, Any], at: str) -> tuple[str, dict[str, Any], list[str]]:
    """An MCP server: its name, itself, and the rules that allow its tools. Raises BadRequest."""
    known(tool, _SERVER_FIELDS | {"require_approval", "allowed_tools"}, at)
    label, url = tool.get("server_label"), tool.get("server_url")
    if not isinstance(label, str) or not isinstance(url, str):
        raise refused(at, f"{at}: needs a server_label and a server_url.", "invalid_value")
    if tool.get("require_approval") != "never":
        raise refused(f"{at}.require_approval", f"{at}.require_approval: nobody can be asked here: send 'never'.")
    names, headers = tool.get("allowed_tools"), tool.get("headers") or {}
    if not isinstance(headers, dict) or not (names is None or isinstance(names, list)):
        raise refused(at, f"{at}: headers must be an object, and allowed_tools a list of names.", "invalid_value")
    if (secret := tool.get("authorization")) is not None:
        headers = {**headers, "Authorization": f"Bearer {secret}"}
    rules = [f"mcp__{label}"] if names is None else [f"mcp__{label}__{name}" for name in names]
    return label, {"type": "http", "url": url, "headers": headers}, rules


def told(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as a response has it: without what its server is shown."""
    kept = {name: value for name, value in tool.items() if name not in ("headers", "authorization")}
    return {"strict": None, **kept} if tool.get("type") == "function" else kept


def _function(given: Any, tool: dict[str, Any], at: str, *, one_by_one: bool) -> dict[str, Any]:
    if given is not tool:
        known(tool, {"type", "function"}, at)
        at = f"{at}.function"
    if not isinstance(given, dict):
        raise refused(at, f"{at}: must be an object", "invalid_value")
    known(given, {"type", "name", "description", "parameters", "strict"}, at)
    name = given.get("name")
    if not isinstance(name, str) or not _FUNCTION.fullmatch(name):
        text = f"{at}.name: must be 1 to 64 letters, digits, underscores and hyphens"
        raise refused(f"{at}.name", text, "invalid_value")
    ours = tool_name(name)
    if ours is None:
        raise refused(f"{at}.name", f"{at}.name: a name with so many underscores is too long for this server.")
    schema = given.get("parameters") or {"type": "object", "properties": {}}
    # Calls of tools that change nothing are made at the same time, others one by one.
    told = {"name": ours, "description": given.get("description") or name, "input_schema": schema}
    return {**told, "read_only": not one_by_one}


def _wanted(choice: Any, *, flat: bool) -> set[str] | None:
    """The functions that may be called; None: all. Raises BadRequest."""
    if choice in (None, "auto"):
        return None
    if choice == "none":
        return set()
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        given = choice if flat else choice.get("allowed_tools")
        tools = given.get("tools") if isinstance(given, dict) else None
        if isinstance(given, dict) and given.get("mode") == "auto" and isinstance(tools, list):
            inner = [t if flat else t.get("function") for t in tools if isinstance(t, dict)]
            return {str(t.get("name", t.get("server_label", t.get("type")))) for t in inner if isinstance(t, dict)}
    raise refused(
        "tool_choice", "tool_choice: a call cannot be forced here: 'auto', 'none', or allowed_tools with 'auto'."
    )


def schema_of(given: dict[str, Any] | None, at: str, *, flat: bool) -> dict[str, Any] | None:
    """The schema of the answer, if it is to have one. Raises BadRequest."""
    if given is None or given.get("type") == "text":
        known(given or {}, {"type"}, at)
        return None
    if given.get("type") != "json_schema":
        raise refused(f"{at}.type", f"{at}: {str(given.get('type'))[:50]!r} is not supported: send a json_schema.")
    inner = given if flat else given.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise refused(f"{at}.schema", f"{at}: lacks its schema", "invalid_value")
    known(given, {"type", "name", "schema", "strict", "description"} if flat else {"type", "json_schema"}, at)
    known(inner, {"type", "name", "schema", "strict", "description"}, at)
    return dict(inner["schema"])
