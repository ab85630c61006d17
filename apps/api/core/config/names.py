"""What names and texts may look like: the types that configuration is built from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationInfo

from apps.api.core import codec
from apps.api.core.config import rules

T = TypeVar("T")


def storable(value: str) -> str:
    """The text as given. Raises ValueError for what PostgreSQL cannot hold."""
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must not contain half of a surrogate pair") from error
    return value


def _document(value: dict[str, Any]) -> dict[str, Any]:
    codec.check(value, storable=True)
    return value


STORED: dict[str, Any] = {"stored": True}
"""Context for validating what was stored, perhaps by a release that was less strict: see `unless_stored`."""


def unless_stored(check: Callable[[T], T]) -> Callable[[T, ValidationInfo], T]:
    """A check of what clients send. What is stored was judged when it came, and is judged again where it is used."""
    return lambda value, info: value if info.context == STORED else check(value)


def confined(path: str) -> str:
    """A relative path that stays below the workspace, normalised.

    Raises:
        ValueError: absolute, climbing out, not printable, or with a name that no file can have (255 bytes, Linux).
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not path.isprintable():
        raise ValueError("must be a relative path inside the workspace")
    if any(len(part.encode()) > 255 for part in pure.parts):
        raise ValueError("has a name of more than 255 bytes")
    return str(pure)


class Part(BaseModel):
    """A part of a configuration: refuses fields it does not know, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Text = Annotated[str, AfterValidator(storable)]
Document = Annotated[dict[str, Any], AfterValidator(_document)]
"""An object whose fields are nobody's business here, and that is stored: see `codec.check`."""

_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?")


def _decimal(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and not _DECIMAL.fullmatch(value)):
        raise ValueError("must be a number, or a decimal as text")
    return value


Usd = Annotated[
    float,
    BeforeValidator(
        _decimal, json_schema_input_type=float | Annotated[str, StringConstraints(pattern=f"^{_DECIMAL.pattern}$")]
    ),
]
"""Money that a client names: a number, or what the API tells of money."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,127}$")]
ModelPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*?][A-Za-z0-9._:@/*?-]{0,127}$")]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,127}$")]
_Rule = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_*-]{0,127}(\([^\x00-\x1f\x7f]{0,500}\))?$")]
ToolRule = Annotated[_Rule, AfterValidator(unless_stored(rules.check))]
Denial = Annotated[_Rule, AfterValidator(unless_stored(rules.check_denial))]
"""A rule of what never runs."""

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""Of an MCP server, a preset, a profile, a subagent, a skill or a command."""

SkillName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_:-]{0,127}$")]
"""The name of a skill; `plugin:skill` for one of a plugin."""

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
SecretRef = Annotated[str, StringConstraints(pattern=r"^\$\{[A-Z][A-Z0-9_]{0,63}\}$")]
"""`${NAME}`: the value of the tenant's secret of that name."""

EndUser = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
"""For whom a client of ours asks: a name or id of theirs, which means nothing to us."""

SECRET_REFS = re.compile(r"\$\{([A-Z][A-Z0-9_]{0,63})\}")
"""Where a text refers to secrets."""
