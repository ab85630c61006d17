"""The one configuration object, read once from the environment (and `.env`) and passed down.

Every setting is explained for operators in `.env.example` and docs/configuration.md; a test checks
that the three agree.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from apps.api import machine
from apps.api.secret_files import SecretFiles

TENANT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

ENV_FILE = Path(".env")
"""Where settings are read that the environment does not have; in the directory in which a command is started."""


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


T = TypeVar("T")
CommaList = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split)]
"""Written with commas in between."""

HOST = r"^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*(:[0-9]{1,5})?$"
"""Of agents' allowed hosts: `name`, `*.name` for all names below it, either with `:port`."""

Layer = Literal["off", "landlock", "namespaces"]
"""How agents are isolated from the machine, the weakest first: each has what those before it have."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def _pairs(value: str) -> tuple[tuple[str, str], ...]:
    parts = (part.strip().partition("=") for part in value.split(",") if part.strip())
    return tuple((pattern, model) for pattern, _, model in parts)


class Settings(BaseSettings):
    """Typed view of the environment. Times are seconds, sizes are bytes unless the name says otherwise.

    Raises:
        pydantic.ValidationError: a value is missing or out of range; the message names the variable.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        extra="ignore",
        frozen=True,
        str_strip_whitespace=True,
        hide_input_in_errors=True,  # the input of a refused URL holds a password
    )

    api_key: SecretStr | None = None
    encryption_keys: CommaList[SecretStr] = ()
    database_url: SecretStr = SecretStr("postgresql+asyncpg://postgres:postgres@localhost:53432/claude_agent_api")
    database_owner_url: SecretStr | None = None
    database_statement_cache: bool = True
    redis_url: SecretStr = SecretStr("redis://localhost:53380/0")
    redis_key_prefix: str = ""

    anthropic_api_key: SecretStr | None = None
    anthropic_auth_token: SecretStr | None = None
    anthropic_base_url: str | None = None
    claude_code_oauth_token: SecretStr | None = None
    claude_code_use_bedrock: bool = False
    aws_region: str | None = None
    anthropic_bedrock_base_url: str | None = None
    claude_code_use_vertex: bool = False
    anthropic_vertex_project_id: str | None = None
    cloud_ml_region: str | None = None
    anthropic_vertex_base_url: str | None = None
    cloud_model_ids: str = ""
    tenant_model_credentials: Literal["optional", "required"] = "optional"
    default_model: str = "claude-sonnet-5-5"
    model_silence_seconds: int = Field(300, ge=10, le=1800)
    models: CommaList[str] = ()
    model_aliases: str = "*sonnet*=claude-sonnet-5-5,*haiku*=claude-haiku-5-5,*opus*=claude-opus-5-5"

    host: str = "0.0.0.0"  # noqa: S104 - a server in a container listens to its network
    port: int = Field(54000, ge=0, le=65535)
    forwarded_allow_ips: str = "127.0.0.1"
    advertise_url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$")] | None = None
    log_level: LogLevel = "INFO"
    otel_exporter_otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    debug: bool = False
    web_console: bool = True
    api_docs: bool = True
    root_dialect: Literal["chat_server", "code_server", "execute_server"] | None = None
    anonymous_tenant: Annotated[str, Field(pattern=TENANT_NAME)] | None = None
    anonymous_in_production: bool = False
    allowed_hosts: CommaList[str] = ()
    allowed_origins: CommaList[str] = ()

    request_timeout: float = Field(300, gt=0, le=86_400)
    action_timeout_seconds: float = Field(3600, gt=0, le=7 * 86_400)
    park_after_seconds: float = Field(180, ge=0, le=7 * 86_400)
    rate_limit_query_per_minute: int = Field(60, ge=0)
    key_failures_per_minute: int = Field(60, ge=0)
    max_body_bytes: int = Field(8_000_000, ge=1024)
    max_streams_per_key: int = Field(100, ge=1)
    max_agent_message_bytes: int = Field(128_000_000, ge=1_000_000)
    max_prompt_chars: int = Field(400_000, ge=1)
    max_queued_runs_per_session: int = Field(100, ge=1)
    max_schedules_per_tenant: int = Field(100, ge=1, le=10_000)
    outbound_allow: CommaList[str] = ()

    profiles_file: Path | None = None
    default_profile: str | None = None

    enable_file_checkpointing: bool = False
    runner_slots: int = Field(default_factory=machine.slots, ge=0)
    max_live_sessions: int | None = Field(None, ge=1)
    prewarm: int = Field(default_factory=machine.ahead, ge=0, le=100)
    instance_lease_seconds: float = Field(10, ge=2, le=300)
    session_idle_seconds: float = Field(300, ge=0)
    background_task_seconds: float = Field(1800, ge=0, le=86_400)
    background_turn_seconds: float = Field(300, gt=0, le=86_400)
    background_patience_seconds: float = Field(30, ge=0, le=86_400)
    shutdown_grace_seconds: float = Field(30, ge=0)
    workspaces_dir: Path = Path(".data/workspaces")
    workspace_store_url: SecretStr | None = None
    workspace_max_bytes: int = Field(2_000_000_000, ge=1_000_000)
    max_file_bytes: int = Field(500_000_000, ge=1_000)
    workspace_max_files: int = Field(100_000, ge=100, le=1_000_000)
    max_workspace_copy_bytes: int = Field(1 << 30, ge=0)
    retention_events_days: int = Field(0, ge=0, le=36_500)
    retention_transcripts_days: int = Field(0, ge=0, le=36_500)
    retention_idle_sessions_days: int = Field(0, ge=0, le=36_500)
    retention_workspaces_days: int = Field(0, ge=0, le=36_500)
    retention_usage_days: int = Field(0, ge=0, le=36_500)
    agent_isolation: Literal["auto", "namespaces", "landlock", "off"] = "auto"
    agent_isolation_required: bool = False
    agent_unconfined_in_production: bool = False
    agent_seccomp: Literal["on", "off"] = "on"
    agent_network: Literal["direct", "open", "limited", "model_only"] = "open"
    agent_allowed_hosts: CommaList[Annotated[str, Field(pattern=HOST, max_length=260)]] = ()
    package_registries: CommaList[Annotated[str, Field(pattern=HOST, max_length=260)]] = ()
    agent_unix_sockets: Literal["on", "off"] = "on"
    agent_read_paths: Annotated[tuple[Path, ...], NoDecode] = ()
    agent_memory_bytes: int = Field(4_000_000_000, ge=500_000_000)
    agent_max_processes: int = Field(1024, ge=100, le=100_000)
    agent_cpus: float | None = Field(None, ge=0.01)
    agent_max_open_files: int = Field(16_384, ge=1024)
    agent_max_file_bytes: int = Field(10_000_000_000, ge=100_000_000)
    repository_hosts: CommaList[str] = (
        "github.com",
        "gitlab.com",
        "bitbucket.org",
        "codeberg.org",
    )
    max_repository_bytes: int = Field(500_000_000, ge=1)
    mcp_stdio_commands: Annotated[tuple[tuple[str, ...], ...], NoDecode] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where values come from, the most important first: see docs/configuration.md."""
        files = SecretFiles(settings_cls, env_settings, dotenv_settings)
        return init_settings, files, env_settings, dotenv_settings

    @field_validator(
        "api_key",
        "database_owner_url",
        "anthropic_api_key",
        "anthropic_auth_token",
        "claude_code_oauth_token",
        "anthropic_base_url",
        "aws_region",
        "anthropic_bedrock_base_url",
        "anthropic_vertex_project_id",
        "cloud_ml_region",
        "anthropic_vertex_base_url",
        "advertise_url",
        "otel_exporter_otlp_endpoint",
        "profiles_file",
        "default_profile",
        "root_dialect",
        "anonymous_tenant",
        "agent_cpus",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("claude_code_use_bedrock", "claude_code_use_vertex", mode="before")
    @classmethod
    def _empty_is_no(cls, value: object) -> object:
        return False if value == "" else value

    @field_validator("agent_read_paths", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(p for p in value.split(os.pathsep) if p) if isinstance(value, str) else value

    @field_validator("mcp_stdio_commands", mode="before")
    @classmethod
    def _split_command_lines(cls, value: object) -> object:
        lines = re.split(r"[;\n]", value) if isinstance(value, str) else ()
        return tuple(tuple(shlex.split(line)) for line in lines if line.strip()) if isinstance(value, str) else value

    @field_validator("outbound_allow", mode="after")
    @classmethod
    def _check_outbound_allow(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            try:
                ip_network(entry, strict=False)
            except ValueError as error:
                if not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", entry) or "/" in entry:
                    raise ValueError(f"{entry!r} is no host, host:port, address or network") from error
        return value

    @field_validator("allowed_hosts", mode="after")
    @classmethod
    def _check_allowed_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", entry):
                raise ValueError(f"{entry!r} is no name such as api.example.org or *.example.org, without a port")
        return value

    @field_validator("allowed_origins", mode="after")
    @classmethod
    def _check_allowed_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            # As browsers write them: nothing else would ever be equal to one.
            if not re.fullmatch(r"\*|https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", entry):
                raise ValueError(f"{entry!r} is no origin such as https://app.example.org, without a path")
        return value

    @field_validator("forwarded_allow_ips", mode="after")
    @classmethod
    def _check_forwarded_allow_ips(cls, value: str) -> str:
        for entry in value.split(",") if value not in ("", "*") else ():
            try:
                ip_network(entry.strip())
            except ValueError as error:  # uvicorn would take it for the name of a client, which none has
                raise ValueError(f"{entry.strip()!r} is no address and no network such as 10.1.0.0/16") from error
        return value

    @field_validator("encryption_keys", mode="after")
    @classmethod
    def _check_encryption_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            try:
                Fernet(key.get_secret_value())
            except ValueError as error:
                raise ValueError("each must be 32 random bytes in URL-safe base64 (see .env.example)") from error
        return value

    @field_validator("database_url", "database_owner_url", mode="after")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        scheme, found, _ = value.get_secret_value().partition("://")
        if not found or scheme.lower() not in ("postgres", "postgresql", "postgresql+asyncpg"):
            raise ValueError("must start with postgresql+asyncpg://, postgresql:// or postgres://")
        return value

    @field_validator("redis_url", mode="after")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        if urlsplit(value.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _check_api_key(self) -> Settings:
        if self.api_key is not None and len(self.api_key.get_secret_value()) < 16:
            raise ValueError("API_KEY: use at least 16 characters (for example: openssl rand -hex 32)")
        return self

    @model_validator(mode="after")
    def _check_agent_network(self) -> Settings:
        if (self.agent_network == "limited") != bool(self.agent_allowed_hosts):
            raise ValueError("AGENT_NETWORK=limited and AGENT_ALLOWED_HOSTS need each other")
        return self

    @model_validator(mode="after")
    def _check_anonymous_tenant(self) -> Settings:
        if self.anonymous_tenant and not (self.debug or self.anonymous_in_production):
            raise ValueError(
                "ANONYMOUS_TENANT lets everybody in who can reach the port: set ANONYMOUS_IN_PRODUCTION=true if that is"
                " a private network and you mean it (DEBUG=true does not need it)"
            )
        return self

    @field_validator("model_aliases", "cloud_model_ids", mode="after")
    @classmethod
    def _check_model_names(cls, value: str) -> str:
        for entry in filter(None, (part.strip() for part in value.split(","))):
            if not re.fullmatch(r"[^=\s]+=[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,127}", entry):
                raise ValueError(f"{entry!r} is not PATTERN=MODEL")
        return value

    @cached_property
    def aliases_of_models(self) -> tuple[tuple[str, str], ...]:
        """MODEL_ALIASES in order: (pattern as in file names, model)."""
        return _pairs(self.model_aliases)

    @cached_property
    def ids_in_the_cloud(self) -> tuple[tuple[str, str], ...]:
        """CLOUD_MODEL_IDS in order: (pattern as in file names, id)."""
        return _pairs(self.cloud_model_ids)

    @property
    def cloud(self) -> Literal["bedrock", "vertex"] | None:
        """Where the operator's model is, if it is not asked by the Messages API itself."""
        if self.claude_code_use_bedrock:
            return "bedrock"
        return "vertex" if self.claude_code_use_vertex else None

    @cached_property
    def workspaces_root(self) -> Path:
        """Absolute, symlink-free WORKSPACES_DIR. The SDK keys transcripts by it: the same on every host."""
        return self.workspaces_dir.expanduser().resolve()

    @property
    def asyncpg_dsn(self) -> str:
        """DATABASE_URL in the form that asyncpg takes."""
        # Not urlunsplit: it writes a URL without a host (postgresql:///db?host=/run/postgresql) with one slash only.
        return f"postgresql://{self.database_url.get_secret_value().partition('://')[2]}"

    @property
    def as_owner(self) -> Settings:
        """These settings with DATABASE_OWNER_URL, where it is set, in place of DATABASE_URL."""
        return self.model_copy(update={"database_url": self.database_owner_url or self.database_url})

    @property
    def live_session_limit(self) -> int:
        """How many CLI processes this instance keeps alive, warm ones included (~110 MB each)."""
        usual = min(self.runner_slots * 4, machine.agents())
        return max(self.runner_slots, self.max_live_sessions or usual)

    @property
    def operator_has_a_model(self) -> bool:
        """Whether some credential or endpoint for a model is set, for tenants that have none of their own."""
        return any(
            (
                self.anthropic_api_key,
                self.anthropic_auth_token,
                self.claude_code_oauth_token,
                self.anthropic_base_url,
                self.cloud,
            )
        )

    @property
    def model_is_configured(self) -> bool:
        """Whether agents may have a model: the operator's, or their tenant's."""
        return self.operator_has_a_model or self.tenant_model_credentials == "required"

    @property
    def agents_hold_the_credential(self) -> bool:
        """Whether agents are given the model's credential itself, past the gateway: a subscription's token, which is
        for a server that serves nobody but its owner, and which only the CLI itself may use."""
        others = (
            self.anthropic_api_key,
            self.anthropic_auth_token,
            self.cloud,
            self.tenant_model_credentials == "required",
        )
        return self.claude_code_oauth_token is not None and not any(others)

    @cached_property
    def hostname(self) -> str:
        """This host's name, for operators' listings only."""
        return socket.gethostname()
