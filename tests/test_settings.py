"""Settings: what the environment may say, and what an operator hears when it says something wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from apps.api.core.config.aliases import current_model
from apps.api.machine import agents
from apps.api.settings import Settings

KEY = "a-key-of-sixteen"
PASSWORD = "correct-horse"


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        for given in [n for n in os.environ if n.lower() == name]:
            monkeypatch.delenv(given)


def settings(**given: object) -> Settings:
    return Settings(_env_file=None, **given)  # type: ignore[arg-type]


def refusal(**given: object) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**given)
    return str(caught.value)


# --- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "POSTGRESQL"])
@pytest.mark.parametrize(
    "rest",
    [
        "user:pass@db.example:5432/app",
        "user:p%40ss%2Fword%25@db.example/app?sslmode=require",
        "postgres@/app?host=/run/postgresql",
        "/app?host=/run/postgresql",
        "user@[::1]:5432/app",
    ],
)
def test_the_driver_gets_the_database_url_in_its_own_form(scheme: str, rest: str) -> None:
    assert settings(database_url=f"{scheme}://{rest}").asyncpg_dsn == f"postgresql://{rest}"


@pytest.mark.parametrize(
    "url", ["mysql://h/db", "h/db", "postgresql:db", "http://h/db", "", "postgresql+psycopg://h/db", "postgresql"]
)
def test_another_database_is_refused(url: str) -> None:
    message = refusal(database_url=url)
    assert "database_url" in message
    assert "postgresql+asyncpg://" in message


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://:secret@h/1", "unix:///run/redis.sock?db=1"])
def test_redis_urls_are_kept_as_they_are(url: str) -> None:
    assert settings(redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize("url", ["http://h", "h:6379", "", "memcached://h"])
def test_another_cache_is_refused(url: str) -> None:
    message = refusal(redis_url=url)
    assert "redis_url" in message
    assert "redis://" in message


# --- values that are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("PORT", ""),
        ("DEBUG", "perhaps"),
        ("LOG_LEVEL", "LOUD"),
        ("REQUEST_TIMEOUT", "0"),
        ("REQUEST_TIMEOUT", "86401"),
        ("REQUEST_TIMEOUT", "nan"),
        ("RATE_LIMIT_QUERY_PER_MINUTE", "-1"),
        ("RATE_LIMIT_QUERY_PER_MINUTE", "ten"),
        ("MAX_BODY_BYTES", "100"),
        ("MAX_PROMPT_CHARS", "0"),
        ("MAX_QUEUED_RUNS_PER_SESSION", "0"),
        ("RUNNER_SLOTS", "-1"),
        ("MAX_LIVE_SESSIONS", "0"),
        ("INSTANCE_LEASE_SECONDS", "1"),
        ("INSTANCE_LEASE_SECONDS", "301"),
        ("SESSION_IDLE_SECONDS", "-1"),
        ("SHUTDOWN_GRACE_SECONDS", "-1"),
        ("AGENT_ISOLATION", "maybe"),
        ("DATABASE_URL", "mysql://h/db"),
        ("REDIS_URL", "http://h"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as caught:
        settings()
    assert [problem["loc"] for problem in caught.value.errors()] == [(variable.lower(),)]


@pytest.mark.parametrize("key", ["short", "x" * 15, "   padded   spaces   "[:16]])
def test_an_api_key_that_could_be_guessed_is_refused(key: str) -> None:
    message = refusal(api_key=key)
    assert "API_KEY" in message
    assert "16" in message


def test_an_api_key_of_sixteen_characters_is_taken() -> None:
    taken = settings(api_key=KEY).api_key
    assert taken is not None
    assert taken.get_secret_value() == KEY


@pytest.mark.parametrize(
    "wrong",
    [
        {"database_url": f"mysql://u:{PASSWORD}@h/db"},
        {"redis_url": f"http://:{PASSWORD}@h"},
        {"database_url": f"postgresql://u:{PASSWORD}@h/db", "api_key": "short"},
        {"anthropic_api_key": PASSWORD, "port": "http"},
    ],
    ids=["database", "redis", "key", "another"],
)
def test_what_an_operator_hears_holds_no_secret(wrong: dict[str, object]) -> None:
    assert PASSWORD not in refusal(**wrong)


def test_settings_that_are_printed_hold_no_secret() -> None:
    made = settings(
        api_key=f"{PASSWORD}-and-more",
        database_url=f"postgresql://u:{PASSWORD}@h/db",
        redis_url=f"redis://:{PASSWORD}@h",
        anthropic_api_key=PASSWORD,
        claude_code_oauth_token=PASSWORD,
    )
    assert PASSWORD not in repr(made)
    assert PASSWORD not in made.model_dump_json()


@pytest.mark.parametrize("key", ["short", "k" * 44, "a b", f"{'k' * 43}=,short"])
def test_an_encryption_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    message = refusal(encryption_keys=key)
    assert "encryption_keys" in message
    assert key not in message


@pytest.mark.parametrize("entry", ["http://host", "a b", "host:port", "10.0.0.0/99", "host/24", "user@host"])
def test_an_exception_for_outbound_requests_that_is_none_is_refused(entry: str) -> None:
    assert "outbound_allow" in refusal(outbound_allow=entry)


def test_exceptions_for_outbound_requests_are_separated_by_commas() -> None:
    made = settings(outbound_allow="hooks.internal, hooks.internal:8443,10.1.0.0/16,::1,[::1]:80")
    assert made.outbound_allow == ("hooks.internal", "hooks.internal:8443", "10.1.0.0/16", "::1", "[::1]:80")


def test_encryption_keys_are_separated_by_commas() -> None:
    first, second = "k" * 43 + "=", "l" * 43 + "="
    made = settings(encryption_keys=f" {first}, {second},")
    assert [key.get_secret_value() for key in made.encryption_keys] == [first, second]
    assert settings(encryption_keys="").encryption_keys == ()
    assert first not in repr(made)


# --- values that are missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["API_KEY", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL"])
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    assert getattr(settings(), variable.lower()) is None


def test_without_a_credential_no_model_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not settings().model_is_configured
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    assert not settings().model_is_configured
    for name in ("anthropic_api_key", "claude_code_oauth_token", "anthropic_base_url"):
        assert settings(**{name: "something"}).model_is_configured


def test_the_environment_wins_over_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=1111\nDEFAULT_MODEL=from-the-file\nSOMETHING_ELSE=ignored\n")
    monkeypatch.setenv("PORT", "2222")
    made = Settings(_env_file=file)
    assert (made.port, made.default_model) == (2222, "from-the-file")


def test_spaces_around_a_value_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_MODEL", "  claude-opus-5-5 ")
    assert settings().default_model == "claude-opus-5-5"


# --- what follows from a value -------------------------------------------------------------------------------------


def test_paths_that_agents_may_read_are_a_list_as_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_READ_PATHS", os.pathsep.join(["/opt/data", "", "/srv/more"]))
    assert settings().agent_read_paths == (Path("/opt/data"), Path("/srv/more"))
    monkeypatch.setenv("AGENT_READ_PATHS", "")
    assert settings().agent_read_paths == ()


def test_the_root_of_workspaces_is_absolute_and_has_no_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert settings(workspaces_dir=tmp_path / "link" / "w").workspaces_root == (tmp_path / "real" / "w").resolve()
    assert settings(workspaces_dir="relative").workspaces_root == Path.cwd().resolve() / "relative"


@pytest.mark.parametrize(
    ("slots", "given", "limit"),
    [(1, None, min(4, agents())), (999_999, None, 999_999), (4, 10, 10), (4, 2, 4), (0, None, 0), (0, 3, 3)],
    ids=[
        "four per slot",
        "no memory for more",
        "as given",
        "never less than the slots",
        "no runner",
        "no runner, given",
    ],
)
def test_how_many_agent_processes_stay_alive(slots: int, given: int | None, limit: int) -> None:
    assert settings(runner_slots=slots, max_live_sessions=given).live_session_limit == limit


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        settings().port = 1  # type: ignore[misc]


def test_allowed_command_lines_are_split_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_STDIO_COMMANDS", "python -m 'our server'; npx -y thing\n\n; ")
    assert settings().mcp_stdio_commands == (("python", "-m", "our server"), ("npx", "-y", "thing"))
    monkeypatch.setenv("MCP_STDIO_COMMANDS", "")
    assert settings().mcp_stdio_commands == ()
    monkeypatch.delenv("MCP_STDIO_COMMANDS")
    assert "mcp_stdio_commands" in refusal(mcp_stdio_commands="python 'half")


# --- older servers -------------------------------------------------------------------------------------------------


def test_callers_without_a_key_are_let_in_only_where_that_is_meant() -> None:
    assert "ANONYMOUS_IN_PRODUCTION=true" in refusal(anonymous_tenant="guests")
    assert "ANONYMOUS_TENANT" in refusal(anonymous_tenant="guests", debug=False)
    assert settings(anonymous_tenant="guests", anonymous_in_production=True).anonymous_tenant == "guests"
    assert settings(anonymous_tenant="guests", debug=True).anonymous_tenant == "guests"
    assert settings(anonymous_tenant="").anonymous_tenant is None
    assert "anonymous_tenant" in refusal(anonymous_tenant="no name", debug=True)


def test_allowed_hosts_are_names() -> None:
    assert settings(allowed_hosts="api.example.org, *.example.org,x_1,*").allowed_hosts[1] == "*.example.org"
    for wrong in ("http://api.example.org", "api.example.org:443", "*x", "a..b", "[::1]", "a/b", "*.*.b", "."):
        assert "is no name such as" in refusal(allowed_hosts=wrong)


def test_allowed_origins_are_as_browsers_write_them() -> None:
    right = ("https://app.example.org", "http://localhost:3000", "http://[::1]:8080", "*")
    assert settings(allowed_origins=", ".join(right)).allowed_origins == right
    for wrong in (
        "app.example.org",
        "https://app.example.org/",
        "https://App.example.org",
        "ftp://a",
        "null",
        "https://*.b",
    ):
        assert "is no origin such as" in refusal(allowed_origins=wrong)


def test_proxies_that_are_believed_are_addresses_and_networks() -> None:
    for right in ("127.0.0.1", "*", "", "10.0.0.0/8, 2001:db8::/32,::1"):
        assert settings(forwarded_allow_ips=right).forwarded_allow_ips == right
    for wrong in ("nginx", "10.0.0.5/8", "127.0.0.1,", "*,127.0.0.1", "127.0.0.1 10.0.0.1"):
        assert "is no address and no network" in refusal(forwarded_allow_ips=wrong)


def test_aliases_of_models_are_patterns_in_order() -> None:
    given = settings(model_aliases="claude-3*=claude-a, *opus*=claude-b", models="claude-c")
    assert given.aliases_of_models == (("claude-3*", "claude-a"), ("*opus*", "claude-b"))
    asked = ("Claude-3-opus", "opus", "claude-b", "claude-c", "gpt", "", None)
    answering = ["claude-a", "claude-b", "claude-b", "claude-c", None, None, None]
    assert [current_model(given, name) for name in asked] == answering
    for wrong in ("opus", "opus=", "=claude", "a=b c"):
        assert "PATTERN=MODEL" in refusal(model_aliases=wrong)
    assert settings(model_aliases="").aliases_of_models == ()


def test_only_a_dialect_that_exists_can_be_at_the_root() -> None:
    assert "root_dialect" in refusal(root_dialect="native")
    assert settings(root_dialect="").root_dialect is None
