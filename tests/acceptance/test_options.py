"""Every option of a session can be changed later, and the change reaches the model: in a warm session, in a new
process, on another instance, and when the option is taken away again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from apps.api.core.config.agent import AgentConfig
from tests.acceptance.asking import ASKING, COMMAND, asked, decide
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse
from tests.mcp_things import serving, stdio
from tests.recorder import Asked, Recorder

SECRET = "OPTIONS_HOOK_KEY"
NOWHERE = {"url": "http://127.0.0.1:9/", "secret": "${OPTIONS_HOOK_KEY}", "on_failure": "allow", "timeout_seconds": 1}
MODEL, OTHER_MODEL = "claude-sonnet-5-5", "claude-opus-5-5"
PROMPT = (
    "run printenv WORD then run perl -e 1 then run perl -e 2 then run echo asked-a then run echo asked-b"
    ' then use tool Read {"file_path": "{workspace}/left/x"} then use tool Read {"file_path": "{workspace}/right/x"}'
    " then answer by schema"
)


@dataclass(frozen=True)
class Told:
    """What became of one prompt: its events, and what the model was asked meanwhile."""

    events: list[Sse]
    asked: list[Asked]

    def of(self, kind: str) -> dict[str, Any]:
        return next(event.data for event in self.events if event.event == kind)

    @property
    def body(self) -> dict[str, Any]:
        return self.asked[0].body

    @property
    def system(self) -> str:
        return str(self.body["system"])

    @property
    def refused(self) -> str:
        return str([denied["tool_input"] for denied in self.of("result")["permission_denials"]])

    @property
    def results(self) -> str:
        return str([e.data["content"] for e in self.events if e.event == "message" and e.data["role"] == "user"])


def which(words: str, *given: str) -> list[str]:
    return [word for word in given if word in words]


def schema(name: str) -> dict[str, Any]:
    properties = {name: {"type": "string"}}
    return {"type": "json_schema", "schema": {"type": "object", "properties": properties, "required": [name]}}


def helper(**more: Any) -> dict[str, Any]:
    return {"description": "d", "prompt": "p", **more}


@dataclass(frozen=True)
class Option:
    """Two values of an option, and what is seen of each, and without one."""

    one: Any
    other: Any
    look: Callable[[Told], Any]
    seen: tuple[Any, Any, Any]


OPTIONS: dict[str, Option] = {
    "model": Option(
        OTHER_MODEL,
        "claude-haiku-5-5",
        lambda t: t.body["model"],
        (OTHER_MODEL, "claude-haiku-5-5", "claude-sonnet-5-5"),
    ),
    "system_prompt": Option(
        "PROMPT-A", "PROMPT-B", lambda t: which(t.system, "PROMPT-A", "PROMPT-B"), (["PROMPT-A"], ["PROMPT-B"], [])
    ),
    "system_prompt_append": Option(
        "MORE-A", "MORE-B", lambda t: which(t.system, "MORE-A", "MORE-B"), (["MORE-A"], ["MORE-B"], [])
    ),
    "tools": Option(
        ["Bash", "Read", "Glob", "Grep", "Task"],
        ["Bash", "Read", "Glob", "Grep", "NotebookEdit"],
        lambda t: which(str(t.of("init")["tools"]), "Task'", "NotebookEdit"),
        (["Task'"], ["NotebookEdit"], ["Task'", "NotebookEdit"]),
    ),
    "allowed_tools": Option(
        ["Bash(printenv:*)", "Bash(perl -e 1)"],
        ["Bash(printenv:*)", "Bash(perl -e 2)"],
        lambda t: which(t.refused, "perl -e 1", "perl -e 2"),
        (["perl -e 2"], ["perl -e 1"], ["perl -e 1", "perl -e 2"]),
    ),
    "ask_tools": Option(  # of what runs without asking; nobody is there to ask
        ["Bash(echo asked-a)"],
        ["Bash(echo asked-b)"],
        lambda t: which(t.refused, "asked-a", "asked-b"),
        (["asked-a"], ["asked-b"], []),
    ),
    "disallowed_tools": Option(
        ["Glob"],
        ["Grep"],
        lambda t: which(str(t.of("init")["tools"]), "Glob", "Grep"),
        (["Grep"], ["Glob"], ["Glob", "Grep"]),
    ),
    "permission_mode": Option(
        "dontAsk", "acceptEdits", lambda t: t.of("init")["permission_mode"], ("dontAsk", "acceptEdits", "default")
    ),
    "task_budget": Option(
        {"total": 40_000},
        {"total": 50_000},
        lambda t: t.body["output_config"].get("task_budget", {}).get("total"),
        (40_000, 50_000, None),
    ),
    "betas": Option(
        ["context-1m-2025-08-07"],
        [],
        lambda t: "context-1m" in t.asked[0].headers["anthropic-beta"],
        (True, False, False),
    ),
    "thinking": Option(
        {"type": "adaptive", "display": "summarized"},
        {"type": "adaptive"},
        lambda t: t.body["thinking"]["display"] == "summarized",
        (True, False, False),
    ),
    "effort": Option("low", "high", lambda t: t.body["output_config"]["effort"], ("low", "high", "medium")),
    "client_tools": Option(
        [{"name": "left", "description": "d", "input_schema": {"type": "object"}}],
        [{"name": "right", "description": "d", "input_schema": {"type": "object"}}],
        lambda t: which(str(t.of("init")["tools"]), "mcp__client__left", "mcp__client__right"),
        (["mcp__client__left"], ["mcp__client__right"], []),
    ),
    "output_format": Option(
        schema("left"),
        schema("right"),
        lambda t: list(t.of("result")["structured_output"] or ()),
        (["left"], ["right"], []),
    ),
    "mcp_servers": Option(
        {"one": stdio()},
        {"two": stdio()},
        lambda t: sorted(server["name"] for server in t.of("init")["mcp_servers"]),
        (["client", "one"], ["client", "two"], []),
    ),
    "agents": Option(
        {"alpha": helper()},
        {"beta": helper(permission_mode="plan")},
        lambda t: which(str(t.of("init")["agents"]), "alpha", "beta"),
        (["alpha"], ["beta"], []),
    ),
    "skills": Option(
        ["tenant:seen"], [], lambda t: which(str(t.of("init")["tools"]), "'Skill'"), (["'Skill'"], [], [])
    ),
    "hooks": Option(
        {"Stop": [NOWHERE]},
        {"UserPromptSubmit": [NOWHERE]},
        lambda t: sorted({event.data["hook_event"] for event in t.events if event.event == "hook"}),
        (["Stop"], ["UserPromptSubmit"], []),
    ),
    "enable_file_checkpointing": Option(
        False, True, lambda t: any(event.event == "checkpoint" for event in t.events), (False, True, False)
    ),
    "add_dirs": Option(
        ["left"],
        ["right"],
        lambda t: which(t.refused, "/left/", "/right/"),
        (["/right/"], ["/left/"], ["/left/", "/right/"]),
    ),
    "env": Option(
        {"WORD": "word-a"},
        {"WORD": "word-b"},
        lambda t: which(t.results, "word-a", "word-b"),
        (["word-a"], ["word-b"], []),
    ),
}
ALONE = {"unattended", "max_turns", "max_budget_usd", "max_session_usd", "fallback_model", "resources"}
"""Each has a test of its own, since what it changes is how a run ends, or what there is in the workspace."""
FIXED = {"cwd", "repository"}
TAKEN_AWAY = dict.fromkeys(OPTIONS)


def values(number: int) -> dict[str, Any]:
    """The first or the second value of every option."""
    return {name: (option.one, option.other)[number] for name, option in OPTIONS.items()}


def test_the_catalogue_has_every_option() -> None:
    assert {*OPTIONS, *ALONE, *FIXED} == set(AgentConfig.model_fields)


@pytest.fixture
async def tenant(fleet: Fleet) -> None:
    """A skill and the hooks' secret, in the shared fleet."""
    await provide(fleet[0])


async def provide(instance: Instance) -> None:
    skill = {"description": "d", "content": "say seen"}
    for path, body in ((f"/secrets/{SECRET}", {"value": "k" * 32}), ("/skills/seen", skill)):
        response = await instance.client.put(f"/api/v1{path}", json=body)
        assert response.status_code in (200, 201), response.text


class Talk:
    """A session of which every option is changed with each prompt."""

    def __init__(self, fleet: Fleet, recorded: Recorder) -> None:
        self._workspaces, self._recorded = fleet.env["WORKSPACES_DIR"], recorded

    async def begin(self, instance: Instance) -> None:
        self.id = await instance.session(cwd="here", unattended=True, **values(0))
        self._prompt = PROMPT.replace("{workspace}", f"{self._workspaces}/{self.id}")

    async def see(self, instance: Instance, which_one: int, **config: Any) -> None:
        """Send a prompt, and look at what it says of every option."""
        before = self._recorded.count
        events = await instance.follow(await instance.prompt(self.id, self._prompt, **config))
        conversation = next(event.data["sdk_session_id"] for event in events if event.event == "init")
        told = Told(events, self._recorded.of(conversation, before))
        seen = {name: option.look(told) for name, option in OPTIONS.items()}
        assert seen == {name: option.seen[which_one] for name, option in OPTIONS.items()}


@pytest.mark.slow
async def test_every_change_reaches_the_model_warm_and_in_a_new_process(
    fleet: Fleet, recorded: Recorder, tenant: None
) -> None:
    talk = Talk(fleet, recorded)
    await talk.begin(fleet[0])
    await talk.see(fleet[0], 0)
    await talk.see(fleet[1], 1, **values(1))
    assert (await fleet[1].post(f"/sessions/{talk.id}/reset", {"mode": "soft"})).status_code == 200
    await talk.see(fleet[2], 0, **values(0))
    await talk.see(fleet[0], 2, **TAKEN_AWAY)


@pytest.mark.slow
async def test_every_change_reaches_the_model_on_another_instance(start_fleet: StartFleet, recorded: Recorder) -> None:
    fleet = await start_fleet(2, SESSION_IDLE_SECONDS="0")
    await provide(fleet[0])
    talk = Talk(fleet, recorded)
    await talk.begin(fleet[0])
    await talk.see(fleet[0], 0)
    await talk.see(fleet[1], 1, **values(1))
    await talk.see(fleet[0], 2, **TAKEN_AWAY)


async def ended(instance: Instance, session_id: str, prompt: str, **config: Any) -> str:
    """How a run has ended: `succeeded`, or the code of its error."""
    events = await instance.follow(await instance.prompt(session_id, prompt, **config))
    return next((e.data["code"] for e in events if e.event == "error"), str(events[-1].data["status"]))


BOUNDS: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"max_turns": 10, "max_budget_usd": 0.000001, "fallback_model": None}, ("model_not_found", "max_budget_exceeded")),
    ({"max_turns": 1, "max_budget_usd": 100}, ("model_not_found", "max_turns_exceeded")),
    ({"max_turns": 10, "fallback_model": "claude-haiku-5-5"}, ("succeeded", "succeeded")),
]
"""What is changed in a session, and how two prompts end then: for a model that there is not, and for three tools."""


async def test_a_changed_bound_holds_from_the_next_prompt_on_and_in_a_new_process(fleet: Fleet) -> None:
    session_id = await fleet[0].session(permission_mode="bypassPermissions", model=MODEL)

    async def check(changes: dict[str, Any], seen: tuple[str, str]) -> None:
        found = await ended(fleet[1], session_id, f"fail with 404 for {MODEL}", **changes)
        assert (found, await ended(fleet[2], session_id, "use 3 tools")) == seen, changes

    owners = set[str]()
    for changes, seen in BOUNDS:
        await check(changes, seen)
        owners.add((await fleet.owner_of(session_id)).id)
    assert len(owners) == 1
    assert "use 3 tools" in (await fleet[1].ask(session_id, "recall"))["result"]
    assert (await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})).status_code == 200
    await check(*BOUNDS[0])


@pytest.fixture(scope="module")
async def unattended(fleet: Fleet) -> str:
    """A warm session in which a command was refused, since nobody is asked."""
    session_id = await fleet[0].session(**ASKING, unattended=True)
    refused = await fleet[0].ask(session_id, COMMAND)
    assert [denied["tool_name"] for denied in refused["permission_denials"]] == ["Bash"]
    return session_id


async def test_a_warm_agent_stays_where_nothing_has_changed_that_it_uses(fleet: Fleet, unattended: str) -> None:
    def agent() -> list[int]:
        return [process.pid for process in owner.agent_of(unattended) if "claude" in process.name()]

    owner = await fleet.owner_of(unattended)
    before = agent()
    assert before
    await put(fleet[1], "/secrets/UNRELATED", {"value": "x"})
    await fleet[2].ask(unattended, "say next")
    assert agent() == before


async def test_a_session_that_is_attended_again_asks(fleet: Fleet, unattended: str) -> None:
    run_id = await fleet[1].prompt(unattended, COMMAND, unattended=False)
    await decide(fleet[2], await asked(fleet[1], run_id), decision="deny")


@pytest.mark.parametrize("name", sorted(FIXED))
async def test_what_is_fixed_when_a_session_is_created_says_so(fleet: Fleet, name: str) -> None:
    value = {"cwd": "elsewhere", "repository": {"url": "https://github.com/octocat/Hello-World"}}[name]
    session_id = await fleet[0].session()
    response = await fleet[1].post("/query/single", {"prompt": "say no", "session_id": session_id, name: value})
    assert response.status_code == 422
    assert response.json()["error"]["details"]["errors"][0]["field"] == name


# --- what a tenant gives its agents beside their configuration


async def put(instance: Instance, path: str, body: dict[str, Any]) -> None:
    response = await instance.client.put(f"/api/v1{path}", json=body)
    assert response.status_code in (200, 201), response.text


@pytest.mark.slow
async def test_a_warm_agent_knows_what_its_tenant_has_changed_meanwhile(fleet: Fleet) -> None:
    """A skill, a secret of an MCP server, and a registered server; in a session without servers no secret matters."""
    await put(fleet[0], "/secrets/CHANGING", {"value": "four"})
    await put(fleet[0], "/mcp-servers/changing", stdio())
    servers = {"things": stdio(SCALE="${CHANGING}"), "other": {"type": "registered", "name": "changing"}}
    session_id = await fleet[0].session(permission_mode="bypassPermissions", mcp_servers=servers)
    prompt = 'use tool mcp__things__weigh {"thing": "it"} then use tool mcp__other__weigh {"thing": "other"}'

    async def told() -> tuple[list[str], bool]:
        events = await fleet[1].follow(await fleet[1].prompt(session_id, prompt))
        said = str([e.data["content"] for e in events if e.event == "message" and e.data["role"] == "user"])
        init = next(e.data for e in events if e.event == "init")
        weights = which(said, "it weighs 4", "it weighs 6", "other weighs 0", "other weighs 2")
        return weights, "tenant:new" in init["skills"]

    assert await told() == (["it weighs 4", "other weighs 0"], False)
    await put(fleet[1], "/secrets/CHANGING", {"value": "sixsix"})
    await put(fleet[2], "/mcp-servers/changing", stdio(SCALE="22"))
    await put(fleet[2], "/skills/new", {"description": "d", "content": "say new"})
    assert await told() == (["it weighs 6", "other weighs 2"], True)
    assert (await fleet[0].client.delete("/api/v1/skills/new")).status_code == 204
    assert await told() == (["it weighs 6", "other weighs 2"], False)
    # Whoever uses the tenant's servers without naming them would have it, too.
    assert (await fleet[0].client.delete("/api/v1/mcp-servers/changing")).status_code == 204


# --- subagents


async def test_a_subagent_has_its_own_mcp_server_skill_and_mode(fleet: Fleet, recorded: Recorder) -> None:
    """Secrets reach its servers as they were stored: the agent's program would put variables of its own into them,
    which are the operator's."""
    await put(fleet[0], "/secrets/SUB_KEY", {"value": "hush-sub-secret"})
    await put(fleet[0], "/secrets/DOLLAR_KEY", {"value": "pa${HOME}ss"})
    await put(fleet[0], "/skills/known", {"description": "d", "content": "THE TEXT OF THE SKILL"})
    own = helper(mcp_servers={"things": stdio(SCALE="${SUB_KEY}")})
    knowing = helper(skills=["tenant:known"], permission_mode="acceptEdits")
    allowed = ["mcp__things__weigh", "mcp__far__weigh"]
    with serving("http") as (url, seen):
        far = {"type": "http", "url": url, "headers": {"Authorization": "Bearer ${DOLLAR_KEY}"}}
        agents = {"own": own, "knowing": knowing, "far": helper(mcp_servers={"far": far})}
        session_id = await fleet[0].session(agents=agents, unattended=True, allowed_tools=allowed)
        await fleet[1].ask(session_id, 'delegate to own: use tool mcp__things__weigh {"thing": "a cat"}')
        await fleet[1].ask(session_id, 'delegate to far: use tool mcp__far__weigh {"thing": "a dog"}')
        for prompt, refused in (("delegate to knowing: write made.txt: made", 0), ("write made.txt: made", 1)):
            answer = await fleet[1].ask(session_id, prompt)
            assert len(answer["permission_denials"]) == refused
        init = next(e.data for e in await fleet[1].follow(answer["run_id"]) if e.event == "init")
        asked = "".join(request.text for request in recorded.of(init["sdk_session_id"]))
        for text in ("a cat weighs 15 stone", "a dog weighs 0 stone", "THE TEXT OF THE SKILL"):
            assert text in asked
        assert {header for header in seen if header} == {"Bearer pa${HOME}ss"}
        said = (await fleet[2].get(f"/sessions/{session_id}/messages")).text
        assert "hush-sub-secret" not in said + asked
        shown = await fleet[2].get(f"/sessions/{session_id}")
        assert shown.json()["config"]["agents"]["own"]["mcp_servers"]["things"]["env"] == {"SCALE": "***"}
        assert "hush-sub-secret" not in shown.text
        assert (await fleet[0].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200


@pytest.mark.parametrize(
    ("agent", "field", "status"),
    [
        ({"mcp_servers": {"x": {"type": "stdio", "command": "sh"}}}, "agents.a.mcp_servers.x.command", 403),
        ({"mcp_servers": {"x": stdio(SCALE="${NOT_THERE}")}}, "agents.a.mcp_servers.x", 422),
        ({"mcp_servers": {"x": {"type": "registered", "name": "nobody"}}}, "agents.a.mcp_servers.x", 422),
        ({"mcp_servers": {"x": {"type": "http", "url": "http://10.0.0.1/"}}}, "agents.a.mcp_servers.x.url", 422),
        ({"skills": ["tenant:nobody"]}, "agents.a.skills", 422),
        ({"permission_mode": "bypassPermissions"}, "agents.a.permission_mode", 422),
        ({"memory": "user"}, "agents.a.memory", 422),
    ],
)
async def test_what_a_subagent_may_not_have_is_refused_and_previewed_by_its_field(
    fleet: Fleet, agent: dict[str, Any], field: str, status: int
) -> None:
    body = {"prompt": "say no", "agents": {"a": helper(**agent)}}
    refused = await fleet[0].post("/query/single", body)
    assert refused.status_code == status, refused.text
    details = refused.json()["error"]["details"]
    assert field in (details.get("field"), *(error["field"] for error in details.get("errors", ())))
    previewed = (await fleet[1].post("/agents/preview", body)).json()
    assert field in [problem["field"] for problem in previewed["problems"]]
    assert previewed["ok"] is False
