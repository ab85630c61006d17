"""Names that were probably meant as settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.api.settings import Settings
from apps.api.spelling import doubtful

NOWHERE = Path("/nowhere/.env")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RUNER_SLOTS", "RUNNER_SLOTS"),
        ("RUNNER_SLOT", "RUNNER_SLOTS"),
        ("runer_slots", "RUNNER_SLOTS"),
        ("RUNNRE_SLOTS", "RUNNER_SLOTS"),
        ("WORKSPACE_DIR", "WORKSPACES_DIR"),
        ("ANTROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("RATE_LIMIT_PER_MINUTE", "RATE_LIMIT_QUERY_PER_MINUTE"),
        ("SESSION_IDLE_SECS", "SESSION_IDLE_SECONDS"),
        ("AGENT_ISOLATON", "AGENT_ISOLATION"),
    ],
)
def test_a_misspelt_name_is_told_with_what_was_meant(tmp_path: Path, name: str, meant: str) -> None:
    assert doubtful({name: "s3cret"}, NOWHERE) == [f"{name} in the environment is no setting; did you mean {meant}?"]
    file = tmp_path / ".env"
    file.write_text(f"{name}=s3cret\n")
    assert doubtful({}, file) == [f"{name} in {file} is no setting; did you mean {meant}?"]


def test_settings_and_other_programs_names_are_no_mistake(tmp_path: Path) -> None:
    names = [*Settings.model_fields, *(name.upper() for name in Settings.model_fields)]
    others = ["PATH", "HOME", "HOSTNAME", "REDIS_HOST", "KUBERNETES_PORT", "PGSSLMODE", "HTTPS_PROXY", "OPENAI_API_KEY",
              "REDIS_PASSWORD", "GITHUB_TOKEN", "PYTHONPATH", "UV_CACHE_DIR", "LOGNAME"]  # fmt: skip
    assert doubtful(dict.fromkeys([*names, *others], ""), NOWHERE) == []
    file = tmp_path / ".env"
    file.write_text("".join(f"{name}=x\n" for name in names) + "POSTGRES_PASSWORD=x\nHTTPS_PROXY=x\nCOMPOSE_FILE=x\n")
    assert doubtful({}, file) == []


def test_every_unknown_name_of_the_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("SOMETHING_ELSE=1\n# RUNER_SLOTS=1\n")
    assert doubtful({}, file) == [f"SOMETHING_ELSE in {file} is no setting"]
