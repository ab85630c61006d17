"""Which variables a client may set, for its agents and for their MCP servers."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from apps.api.core.config import environment
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.parts import RegisteredServer, StdioServer
from apps.api.core.config.profiles import UNRESTRICTED
from apps.api.core.context import Core
from apps.api.core.sessions import prompts
from apps.api.core.sessions.admission import Choice, judge_preset
from apps.api.core.tenant import mcp, presets
from apps.api.core.tenant.presets import Draft
from apps.api.errors import ValidationError
from tests.world import World

STDIO = StdioServer(type="stdio", command="serve")
NAMED = RegisteredServer(type="registered", name="steered")


STEERS_THE_AGENT = """
GIT_SSH_COMMAND GIT_CONFIG_COUNT git_exec_path GIT_ASKPASS GIT_EXTERNAL_DIFF GIT_PROXY_COMMAND BASH_ENV BASH_FUNC_x
PROMPT_COMMAND PS4 SHELLOPTS OPENSSL_CONF RIPGREP_CONFIG_PATH LD_PRELOAD PYTHONPATH PATH BUN_OPTIONS NODE_OPTIONS
"""
STEERS_A_SERVER = """
npm_config_registry NPM_CONFIG_USERCONFIG Npm_Config_Registry UV_INDEX_URL PIP_INDEX_URL PIP_CONFIG_FILE
PERL5OPT PERL5LIB RUBYOPT RUBYLIB GEM_HOME JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH CARGO_HOME
RUSTC_WRAPPER RUSTFLAGS GOFLAGS GOPROXY GO111MODULE DENO_DIR MAVEN_OPTS APP_OPTIONS DOCKER_HOST XDG_CONFIG_HOME PHPRC
LUA_INIT DOTNET_STARTUP_HOOKS CORECLR_PROFILER EDITOR PAGER SSH_ASKPASS HOSTALIASES YARN_REGISTRY COREPACK_NPM_REGISTRY
"""
STEERS_NOTHING = """
API_TOKEN GITHUB_PERSONAL_ACCESS_TOKEN BRAVE_API_KEY NODE_ENV TEAM DEBUG LOG_LEVEL TZ LC_ALL PORT GOOD_NAME
FEATURE_FLAGS GIT_TOKEN GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL GIT_AUTHOR_DATE GIT_TERMINAL_PROMPT MEMORY_FILE_PATH
"""


@pytest.mark.parametrize("name", STEERS_THE_AGENT.split())
def test_what_steers_the_agent_is_reserved(name: str) -> None:
    assert environment.reserved([name]) == environment.steering([name]) == [name]


@pytest.mark.parametrize("name", STEERS_A_SERVER.split())
def test_what_makes_a_program_run_something_else_is_no_servers(name: str) -> None:
    assert (environment.reserved([name]), environment.steering([name])) == ([], [name])


def test_other_names_are_free() -> None:
    assert environment.steering(STEERS_NOTHING.split()) == []


@pytest.fixture
def core(world: World) -> Core:
    return world.core(mcp_stdio_commands=(("serve",),))


def config(**fields: Any) -> AgentConfig:
    return AgentConfig.model_validate(fields)


SUBAGENT = {"description": "d", "prompt": "p", "mcp_servers": {"x": STDIO.model_dump()}}
STEERED = config(env={"npm_config_registry": "http://127.0.0.1/"})


async def test_a_stdio_server_takes_no_variable_that_steers_it(core: Core, world: World) -> None:
    steered = STDIO.model_copy(update={"env": {"npm_config_registry": "http://127.0.0.1/"}})
    for field, judged in (
        ("mcp_servers.x.env", mcp.check(core, world.tenant_id, "mcp_servers.x", steered)),
        ("agents.a.mcp_servers.x.env", mcp.check(core, world.tenant_id, "agents.a.mcp_servers.x", steered)),
        ("env", mcp.put(core, world.tenant_id, "x", steered)),
        ("mcp_servers.x.env", mcp.resolve(core, world.tenant_id, {"mcp_servers.x": steered})),
    ):
        with pytest.raises(ValidationError, match="npm_config_registry") as raised:
            await judged
        assert raised.value.details["errors"][0]["field"] == field


@pytest.mark.parametrize(
    "holding",
    [
        {"mcp_servers": {"x": STDIO.model_dump()}},
        {"mcp_servers": {"x": NAMED.model_dump()}},
        {"agents": {"a": SUBAGENT}},
        {"agents": {"a": {**SUBAGENT, "mcp_servers": {"x": NAMED.model_dump()}}}},
    ],
    ids=["session", "registered", "subagent", "subagent's registered"],
)
async def test_a_stdio_server_inherits_no_variable_that_steers_it(
    core: Core, world: World, holding: dict[str, Any]
) -> None:
    await mcp.put(core, world.tenant_id, "steered", STDIO)
    both, serving = config(**holding, env=STEERED.env), config(**holding)
    refused = pytest.raises(ValidationError, match=r"inherits it: npm_config_registry")

    async def session(given: AgentConfig, agent: str | None = None) -> UUID:
        return await prompts.create_session(
            core, world.tenant_id, given, prompts.NO_LABELS, None, Choice(agent=agent, policy=UNRESTRICTED)
        )

    async def judge(draft: Draft) -> None:
        await judge_preset(core, world.tenant_id, draft, UNRESTRICTED)

    async def preset(name: str, given: AgentConfig) -> UUID:
        return await presets.create(world.db, world.tenant_id, name, Draft(None, None, given), judge)

    with refused:
        await session(both)
    with refused:
        await preset("both", both)
    with refused:
        await mcp.resolve(core, world.tenant_id, both.servers(), None, both.env or ())
    # Each half alone is fine; they meet when one is laid over the other.
    await preset("serving", serving)
    with refused:
        await session(STEERED, "serving")
    with refused:
        await presets.revise(world.db, world.tenant_id, "serving", {"env": STEERED.env}, judge, whole=False)
    session_id = await session(STEERED)
    with refused:
        await prompts.submit(core, world.tenant_id, None, prompts.Submission("hello", 60, session_id, config=serving))
