"""What an agent process is told, and that it comes to know it."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from apps.api.core.config import environment
from apps.api.core.config.agent import AgentConfig
from apps.api.core.sessions import workspaces
from apps.api.runner.agent import options
from apps.api.runner.agent.scratch import Place
from apps.api.runner.guard import program
from apps.api.settings import Settings


def test_the_guard_lets_through_all_that_the_server_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    settings = Settings(
        _env_file=None,
        workspaces_dir=tmp_path,
        anthropic_base_url="http://127.0.0.1:1",
        anthropic_api_key="k",
        claude_code_oauth_token="t",
        model_silence_seconds=1200,
        enable_file_checkpointing=True,
    )
    workspace = workspaces.create(settings, uuid4(), None)
    place = Place(tmp_path / "place")
    mine = options.to_the_model(settings, "http://127.0.0.1:1", "a-token")
    env = options.environment(settings, AgentConfig(), workspace, place, place.config, model=mine)
    own = {name: value for name, value in env.items() if not name.startswith("CLI_GUARD_")}
    assert program.environment(env) == own
    assert [name for name, value in own.items() if value == "1200000"]


def test_no_agent_has_the_servers_credential_but_one_that_only_the_cli_may_use() -> None:
    keys = {"anthropic_api_key": "key-of-the-server", "anthropic_auth_token": "token-of-the-server"}
    for given in ({}, keys, dict([*keys.items()][1:])):
        settings = Settings(_env_file=None, claude_code_oauth_token="subscription" if given else None, **given)  # type: ignore[arg-type]
        env = options.to_the_model(settings, "http://127.0.0.1:1", "a-token")
        assert (env["ANTHROPIC_BASE_URL"], env["ANTHROPIC_API_KEY"]) == ("http://127.0.0.1:1", "a-token")
        assert not [value for value in env.values() if "server" in value or value == "subscription"]
    settings = Settings(_env_file=None, claude_code_oauth_token="subscription")
    assert options.to_the_model(settings, "http://127.0.0.1:1", "a-token") == {
        "CLAUDE_CODE_OAUTH_TOKEN": "subscription"
    }


@pytest.mark.parametrize("name", sorted(program._ALLOWED | {"LC_ALL"}))
def test_a_variable_that_a_client_may_set_arrives_and_every_other_is_refused(name: str) -> None:
    if environment.reserved([name]):
        return
    told = {name: "the server's", program.SESSION_PREFIX + name: "the session's"}
    assert program.environment(told) == {name: "the session's"}


def test_an_agent_is_led_to_no_cloud_by_the_servers_environment_nor_by_its_sessions() -> None:
    given = {"CLAUDE_CODE_USE_BEDROCK": "1", "CLAUDE_CODE_USE_VERTEX": "1", "AWS_REGION": "x"}
    assert program.environment(given) == {}
    assert program.environment({program.SESSION_PREFIX + "CLAUDE_CODE_USE_BEDROCK": "1"}) == {}
    plain = "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS"
    for cloud, wanted in ((False, None), (True, "1")):
        settings = Settings(_env_file=None, claude_code_use_vertex=cloud)
        assert options.to_the_model(settings, "http://127.0.0.1:1", "a-token").get(plain) == wanted
