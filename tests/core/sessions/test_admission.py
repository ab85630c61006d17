"""The one gate: the dry run says of a request what submitting it does."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from apps.api.core.codec import decode
from apps.api.core.config import profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.parts import StdioServer
from apps.api.core.config.profiles import Policy
from apps.api.core.context import Core
from apps.api.core.sessions import admission, dry_run, prompts
from apps.api.core.sessions.admission import Choice
from apps.api.core.tenant import mcp, presets, vault
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.presets import Draft
from apps.api.errors import ApiError, Forbidden, NotFound, Problem, ValidationError, noting, refuse
from tests.world import World

PACKAGED = Policy(profiles.load(None))
STDIO = {"type": "stdio", "command": "serve"}
SECRET = "whsec_c2VjcmV0LW9mLXRoZS1ob29r"


@pytest.fixture
async def core(world: World) -> Core:
    """With a preset, a secret and a registered server of each kind."""
    core = world.core(mcp_stdio_commands=(("serve",),), repository_hosts=("127.0.0.1",), max_prompt_chars=100)
    await vault.put(world.db, core.settings, world.tenant_id, "KNOWN", SECRET)
    await mcp.put(core, world.tenant_id, "program", StdioServer.model_validate(STDIO))

    async def judge(draft: Draft) -> None:
        await admission.judge_preset(core, world.tenant_id, draft, PACKAGED)

    for name, profile, config in (
        ("plain", None, {"system_prompt": "of the preset", "max_turns": 5}),
        ("reader", "readonly", {"max_turns": 5}),
        ("serving", None, {"mcp_servers": {"p": {"type": "registered", "name": "program"}}}),
    ):
        draft = Draft(None, profile, AgentConfig.model_validate(config))
        await presets.create(world.db, world.tenant_id, name, draft, judge)
    return core


def request(
    config: dict[str, Any], agent: str | None = None, profile: str | None = None, **more: Any
) -> prompts.Submission:
    choice = Choice(profile, more.pop("policy", PACKAGED), agent)
    return prompts.Submission(
        **{"prompt": "hello", "timeout_seconds": 60, **more}, config=AgentConfig.model_validate(config), choice=choice
    )


async def both(core: Core, world: World, asked: prompts.Submission) -> tuple[dict[str, Any], dict[str, Any] | ApiError]:
    """What the dry run says, and the configuration of the session that then begins, or why none does."""
    said = await dry_run.preview(core, world.tenant_id, asked.wanted)
    try:
        submitted = await prompts.submit(core, world.tenant_id, None, asked)
    except ApiError as error:
        return said, error
    stored = await world.one("SELECT config::text FROM sessions WHERE id = $1", submitted.session_id)
    return said, AgentConfig.stored(decode(stored)).public()


async def test_an_option_that_the_request_takes_away_from_its_preset_is_not_shown(core: Core, world: World) -> None:
    said, stored = await both(core, world, request({"system_prompt": None}, "plain"))
    assert said["config"] == stored == {"max_turns": 5}


async def test_a_mention_that_would_be_refused_is_a_problem(core: Core, world: World) -> None:
    for prompt in ("look at @/etc/passwd", "/model other"):
        said, error = await both(core, world, request({}, prompt=prompt, expand_prompt=True))
        assert [(found["field"], found["code"]) for found in said["problems"]] == [("prompt", "validation_error")]
        assert isinstance(error, ValidationError)


OPTIONS: dict[str, list[Any]] = {
    "tools": [["Read"], ["Bash", "Read"], []],
    "allowed_tools": [["Read"], ["Bash(git:*)"], ["Bash"]],
    "permission_mode": ["plan", "dontAsk", "bypassPermissions"],
    "system_prompt": ["mine", None],
    "max_turns": [1, 10_000],
    "skills": [["tenant:nobody"], "all"],
    "env": [{"A": "b"}, {"npm_config_registry": "http://127.0.0.1/"}],
    "repository": [{"url": "https://127.0.0.1/a.git"}, {"url": "https://example.org/a.git"}],
    "hooks": [{"Stop": [{"url": "http://127.0.0.1:1/", "secret": f"${{{name}}}"}]} for name in ("KNOWN", "UNKNOWN")],
    "mcp_servers": [
        {"x": server}
        for server in (
            STDIO,
            {"type": "stdio", "command": "rm"},
            {"type": "http", "url": "http://127.0.0.1:1/"},
            {"type": "http", "url": "http://10.0.0.1/"},
            {"type": "registered", "name": "program"},
            {"type": "registered", "name": "nobody"},
        )
    ],
}
REST: dict[str, list[Any]] = {
    "agent": [None, None, "plain", "reader", "serving", "serving@7", "nobody"],
    "profile": [None, None, "readonly", "dev", "ci", "yolo"],
    "prompt": ["hello", "hello", "x" * 101, "@../up"],
    "expand_prompt": [False, True],
    "timeout_asked": [False, True],
    "timeout_seconds": [60, 86_400],
    "policy": [PACKAGED, PACKAGED, replace(PACKAGED, bound=("readonly",)), replace(PACKAGED, default="ci")],
}


async def test_the_dry_run_says_ok_exactly_when_submitting_succeeds(core: Core, world: World) -> None:
    chance, told = random.Random(7), {True: 0, False: 0}
    for _ in range(400):
        names = chance.sample(list(OPTIONS), chance.choice((0, 1, 1, 2, 3)))
        config = {name: chance.choice(OPTIONS[name]) for name in names}
        rest = {name: chance.choice(REST[name]) for name in chance.sample(list(REST), chance.choice((1, 2, 3)))}
        said, became = await both(core, world, request(config, **rest))
        assert said["ok"] is not isinstance(became, ApiError), (config, rest, said["problems"], became)
        told[said["ok"]] += 1
        if isinstance(became, ApiError):
            assert became.code in {found["code"] for found in said["problems"]}
        else:
            assert said["config"] == became
    assert min(told.values()) > 50, "both answers are tried"


async def test_whoever_repeats_a_request_is_answered_as_before_whatever_its_preset_became(
    core: Core, world: World
) -> None:
    asked = request({}, "plain", idempotency=Idempotency.of("key", "body"))
    first = await prompts.submit(core, world.tenant_id, None, asked)
    await presets.delete(world.db, world.tenant_id, "plain")
    again = await prompts.submit(core, world.tenant_id, None, asked)
    assert (again.session_id, again.run_id, again.repeated) == (first.session_id, first.run_id, True)
    with pytest.raises(NotFound):
        await prompts.submit(core, world.tenant_id, None, replace(asked, idempotency=None))


async def test_all_problems_are_told_at_once_and_the_first_decides_the_status(core: Core, world: World) -> None:
    server = {"mcp_servers": {"x": {"type": "registered", "name": "nobody"}}}
    with pytest.raises(ValidationError) as unknown:
        await prompts.submit(core, world.tenant_id, None, request({"tools": ["Bash"], **server}, profile="readonly"))
    told = [(found["field"], found.get("code")) for found in unknown.value.details["errors"]]
    assert told[0] == ("mcp_servers.x", None)
    assert ("tools", "tool_not_permitted") in told
    session_id: UUID = await world.session()
    change = request({"cwd": "sub", **server}, profile="dev", session_id=session_id)
    with pytest.raises(ValidationError) as fixed:
        await prompts.submit(core, world.tenant_id, None, change)
    assert {found["field"] for found in fixed.value.details["errors"]} == {"profile", "cwd", "mcp_servers.x"}


def test_the_first_problem_decides_and_a_tool_comes_first_among_what_a_policy_says() -> None:
    option, tool = Problem("env", "option_not_permitted", "no"), Problem("tools", "tool_not_permitted", "no")
    wrong, gone = Problem("cwd", "validation_error", "no"), Problem("agent", "agent_not_found", "No such agent.")
    refuse([])
    for found, kind, code in (
        ([option, tool], Forbidden, "tool_not_permitted"),
        ([wrong, tool], ValidationError, "validation_error"),
        ([gone], NotFound, "agent_not_found"),
        ([gone, wrong], NotFound, "agent_not_found"),
    ):
        with pytest.raises(kind) as caught:
            refuse(found)
        assert caught.value.code == code
        noted = list[Problem]()
        with noting(noted, "body"):
            refuse(found)
        assert len(found) == 1 or noted[1:] == found[1:]
