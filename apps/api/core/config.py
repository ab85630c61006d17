"""What an agent is configured with, in the SDK's own option names. Every dialect translates into this."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator

PermissionMode = Literal["default", "acceptEdits", "plan", "dontAsk", "bypassPermissions"]

DEFAULT_TOOLS = (
    "Bash",
    "Edit",
    "Glob",
    "Grep",
    "NotebookEdit",
    "Read",
    "Task",
    "TaskOutput",
    "TaskStop",
    "WebFetch",
    "WebSearch",
    "Write",
)
"""Tools of a session that names none. Being there is not being allowed: see `allowed_tools` and `permission_mode`."""

RESERVED_ENV = re.compile(
    r"(?:ANTHROPIC|CLAUDE|CLI_GUARD|CCR|BUN|LD|DYLD|GLIBC|OTEL|PYTHON|DISABLE|AWS|GOOGLE|AZURE)_.*|NODE_(?!ENV$).*"
    r"|(?:PATH|HOME|PWD|SHELL|IFS|ENV|BASH_ENV|TMPDIR|IS_SANDBOX|GCONV_PATH|API_TIMEOUT_MS"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|DATABASE_URL|REDIS_URL|API_KEY)",
    re.IGNORECASE,
)
"""Environment names that steer the agent process itself or its credentials; a client may not set them."""


def storable(value: str) -> str:
    """The text as given. Raises ValueError for what PostgreSQL cannot hold."""
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must not contain half of a surrogate pair") from error
    return value


Text = Annotated[str, AfterValidator(storable)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,127}$")]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,127}$")]
ToolRule = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_*-]{0,127}(\([^\x00-\x1f\x7f]{0,500}\))?$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]


class AgentConfig(BaseModel):
    """Configuration of a session's agent. Unset fields (None) leave the choice to the server's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName | None = None
    fallback_model: ModelName | None = None
    system_prompt: Annotated[Text, Field(max_length=100_000)] | None = None
    system_prompt_append: Annotated[Text, Field(max_length=100_000)] | None = None
    tools: Annotated[list[ToolName], Field(max_length=200)] | None = None
    allowed_tools: Annotated[list[ToolRule], Field(max_length=200)] | None = None
    disallowed_tools: Annotated[list[ToolRule], Field(max_length=200)] | None = None
    permission_mode: PermissionMode | None = None
    max_turns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_budget_usd: Annotated[float, Field(gt=0, le=100_000)] | None = None
    enable_file_checkpointing: bool | None = None
    cwd: Annotated[str, Field(max_length=1000)] | None = None
    env: Annotated[dict[EnvName, Annotated[Text, Field(max_length=32_000)]], Field(max_length=100)] | None = None

    @field_validator("cwd")
    @classmethod
    def _inside_the_workspace(cls, value: str | None) -> str | None:
        return None if value is None else confined(value)

    @field_validator("env")
    @classmethod
    def _not_reserved(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        reserved = sorted(name for name in value or {} if RESERVED_ENV.fullmatch(name))
        if reserved:
            raise ValueError(f"reserved by the server: {', '.join(reserved)}")
        return value

    def given(self) -> dict[str, Any]:
        """Only what was set, JSON-safe: the form that is stored."""
        return self.model_dump(exclude_none=True)

    def public(self) -> dict[str, Any]:
        """What a client may read back: values of `env` are withheld, since they may be secrets."""
        shown = self.given()
        if "env" in shown:
            shown["env"] = dict.fromkeys(shown["env"], "***")
        return shown


def confined(path: str) -> str:
    """A relative path that stays below the workspace, normalised.

    Raises:
        ValueError: absolute, climbing out, or not printable.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not path.isprintable():
        raise ValueError("must be a relative path inside the workspace")
    return str(pure)
