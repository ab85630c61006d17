"""Secrets that a setting names by the file that holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from apps.api.secret_files import names
from apps.api.settings import Settings

ROOT = Path(__file__).parents[1]
PASSWORD = "correct-horse-battery"

VALUES = {
    "API_KEY": PASSWORD,
    "ENCRYPTION_KEYS": f"{'k' * 43}=,{'l' * 43}=",
    "DATABASE_URL": f"postgresql://u:{PASSWORD}@h/db",
    "DATABASE_OWNER_URL": f"postgresql://o:{PASSWORD}@h/db",
    "REDIS_URL": f"redis://:{PASSWORD}@h/0",
    "ANTHROPIC_API_KEY": PASSWORD,
    "ANTHROPIC_AUTH_TOKEN": PASSWORD,
    "CLAUDE_CODE_OAUTH_TOKEN": PASSWORD,
    "WORKSPACE_STORE_URL": f"s3://{PASSWORD}/prefix",
}


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, *names(Settings)):
        monkeypatch.delenv(name.upper(), raising=False)


def written(directory: Path, name: str, content: str) -> str:
    (directory / name).write_bytes(content.encode())
    return str(directory / name)


def refusal(env_file: Path | None = None) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings(_env_file=env_file)
    assert PASSWORD not in str(caught.value)
    return [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in caught.value.errors()]


def as_text(value: object) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    return ",".join(part.get_secret_value() for part in parts if isinstance(part, SecretStr))


def test_every_secret_may_be_in_a_file() -> None:
    assert {name.removesuffix("_FILE") for name in names(Settings)} == VALUES.keys()


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["no end", "line end", "of Windows"])
def test_what_is_in_the_file_is_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: str) -> None:
    monkeypatch.setenv(f"{name}_FILE", written(tmp_path, "secret", VALUES[name] + end))
    made = Settings(_env_file=None)
    assert as_text(getattr(made, name.lower())) == VALUES[name]
    assert name.lower() in made.model_fields_set
    assert PASSWORD not in repr(made)


def test_the_env_file_may_name_it_too_and_an_empty_variable_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text(
        f"DATABASE_URL_FILE={written(tmp_path, 'of-the-file', VALUES['DATABASE_URL'])}\nAPI_KEY_FILE=/nowhere\n"
    )
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("API_KEY_FILE", "")
    made = Settings(_env_file=file)
    assert as_text(made.database_url) == VALUES["DATABASE_URL"]
    assert made.api_key is None
    other = "postgresql://x@y/z"
    monkeypatch.setenv("DATABASE_URL_FILE", written(tmp_path, "of-the-environment", other))
    assert as_text(Settings(_env_file=file).database_url) == other
    given = Settings(_env_file=file, database_url=SecretStr("postgresql://given@h/db"))
    assert as_text(given.database_url) == "postgresql://given@h/db"


def test_a_value_and_a_file_with_one_are_refused_by_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text(f"REDIS_URL={VALUES['REDIS_URL']}\n")
    for name in ("REDIS_URL", "API_KEY"):
        monkeypatch.setenv(f"{name}_FILE", written(tmp_path, name, VALUES[name]))
    monkeypatch.setenv("API_KEY", PASSWORD)
    assert refusal(file) == [
        "API_KEY and API_KEY_FILE are both given: leave one of them out",
        "REDIS_URL and REDIS_URL_FILE are both given: leave one of them out",
    ]


def test_a_file_that_cannot_be_read_is_told_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + PASSWORD.encode())
    cases = {
        "API_KEY": (tmp_path / "nowhere{0}", "No such file or directory"),
        "REDIS_URL": (tmp_path, "Is a directory"),
        "DATABASE_URL": (Path(written(tmp_path, "empty", "\n")), "it is empty"),
        "ANTHROPIC_API_KEY": (tmp_path / "binary", "it is no text in UTF-8"),
    }
    for name, (path, _) in cases.items():
        monkeypatch.setenv(f"{name}_FILE", str(path))
    told = {f"{name.lower()}_file: cannot be read from {path}: {reason}" for name, (path, reason) in cases.items()}
    assert set(refusal()) == told


def test_what_is_in_the_file_is_checked_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL_FILE", written(tmp_path, "url", f"mysql://u:{PASSWORD}@h/db"))
    [problem] = refusal()
    assert problem.startswith("database_url: ")


def test_an_operator_hears_it_in_one_line(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "API_KEY_FILE": "/nowhere/key"}
    words = [sys.executable, "-m", "apps.api.cli", "serve"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    told = (
        "claude-agent-api: wrong setting: API_KEY_FILE: cannot be read from /nowhere/key: No such file or directory\n"
    )
    assert (done.returncode, done.stderr) == (2, told)
