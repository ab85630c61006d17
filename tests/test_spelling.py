"""Names that were probably meant as settings, and which of them keep a server from starting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.api.settings import Settings
from apps.api.spelling import doubts, known

ROOT = Path(__file__).parents[1]
NOWHERE = Path("/nowhere/.env")

MISSPELT = [
    ("RUNER_SLOTS", "RUNNER_SLOTS"),
    ("RUNNER_SLOT", "RUNNER_SLOTS"),
    ("runer_slots", "RUNNER_SLOTS"),
    ("RUNNRE_SLOTS", "RUNNER_SLOTS"),
    ("WORKSPACE_DIR", "WORKSPACES_DIR"),
    ("ANTROPIC_API_KEY", "ANTHROPIC_API_KEY"),
    ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY"),
    ("DATABASE_URI", "DATABASE_URL"),
    ("DATABSE_URL_FILE", "DATABASE_URL_FILE"),
    ("RATE_LIMIT_PER_MINUTE", "RATE_LIMIT_QUERY_PER_MINUTE"),
    ("SESSION_IDLE_SECS", "SESSION_IDLE_SECONDS"),
    ("AGENT_ISOLATON", "AGENT_ISOLATION"),
]


def found(environment: dict[str, str], file: Path = NOWHERE) -> list[tuple[str, str]]:
    return [(str(doubt), doubt.verdict) for doubt in doubts(environment, file)]


def env_file(directory: Path, *lines: str) -> Path:
    (directory / ".env").write_text("".join(f"{line}\n" for line in lines))
    return directory / ".env"


@pytest.mark.parametrize(("name", "meant"), MISSPELT)
def test_a_misspelt_name_is_refused_with_what_was_meant(tmp_path: Path, name: str, meant: str) -> None:
    told = f"is no setting; did you mean {meant}?"
    assert found({name: "s3cret"}) == [(f"{name} in the environment {told}", "refused")]
    file = env_file(tmp_path, f"{name}=s3cret")
    assert found({}, file) == found({name: "s3cret"}, file) == [(f"{name} in {file} {told}", "refused")]


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("DATABASE_URI", {"DATABASE_URL": ""}),
        ("DATABASE_URI", {"DATABASE_URL_FILE": ""}),
        ("DEV_DATABASE_URL", {}),
        ("DATABASE_URL_RO", {}),
        ("MODEL", {}),
        ("PORT0", {}),
        ("X_API_KEY", {}),
    ],
)
def test_what_may_be_another_programs_is_told_and_not_refused(name: str, environment: dict[str, str]) -> None:
    [(_, verdict)] = found({name: "x", **environment})
    assert verdict == "doubted"


def test_settings_and_other_programs_names_are_no_mistake(tmp_path: Path) -> None:
    names = [*Settings.model_fields, *known()]
    others = ["PATH", "HOME", "HOSTNAME", "REDIS_HOST", "KUBERNETES_PORT", "PGSSLMODE", "HTTPS_PROXY", "OPENAI_API_KEY",
              "REDIS_PASSWORD", "GITHUB_TOKEN", "PYTHONPATH", "UV_CACHE_DIR", "LOGNAME", "ANTHROPIC_AWS_API_KEY",
              "CLAUDE_CODE_OAUTH_SCOPES", "AWS_DEFAULT_REGION", "AWS_DEFAULT_PROFILE", "REDIS_SERVICE_PORT",
              "REDIS_TLS_URL", "CLAUDE_AGENT_API_PORT"]  # fmt: skip
    assert found(dict.fromkeys([*names, *others], "")) == []
    file = env_file(
        tmp_path, *(f"{name}=x" for name in names), "POSTGRES_PASSWORD=x", "HTTPS_PROXY=x", "COMPOSE_FILE=x"
    )
    assert found({}, file) == []


def test_every_unknown_name_of_the_file_is_refused_but_what_compose_hands_on_to_a_cloud(tmp_path: Path) -> None:
    file = env_file(tmp_path, "SOMETHING_ELSE=1", "# RUNER_SLOTS=1", "AWS_ACCESS_KEY_ID=x")
    told = [
        (f"SOMETHING_ELSE in {file} is no setting", "refused"),
        (f"AWS_ACCESS_KEY_ID in {file} is no setting", "doubted"),
    ]
    assert found({}, file) == told


@pytest.mark.parametrize("command", [["serve"], ["keys", "list"]])
def test_a_command_with_a_misspelt_setting_does_nothing(tmp_path: Path, command: list[str]) -> None:
    env_file(tmp_path, "RUNER_SLOTS=4")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MODEL": "mine", "DATABSE_URL": "s3cret"}
    words = [sys.executable, "-m", "apps.api.cli", *command]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "claude-agent-api: warning: MODEL in the environment is no setting; did you mean MODELS?",
        "claude-agent-api: wrong setting: DATABSE_URL in the environment is no setting; did you mean DATABASE_URL?",
        "claude-agent-api: wrong setting: RUNER_SLOTS in .env is no setting; did you mean RUNNER_SLOTS?",
    ]
