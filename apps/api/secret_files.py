"""Secrets by the names of files that hold them, which platforms mount: `DATABASE_URL_FILE` for `DATABASE_URL`.

What stands in an environment is shown by `docker inspect`, by a crash report, and to whoever may exec into a container.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

SUFFIX = "_FILE"


def names(settings: type[BaseSettings]) -> list[str]:
    """Those of the variables that name a file: one for each setting that is a secret."""
    return [f"{name}{SUFFIX}".upper() for name, field in settings.model_fields.items() if _is_secret(field.annotation)]


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


class SecretFiles(PydanticBaseSettingsSource):
    """Reads them. What is empty counts as left out, as elsewhere.

    Calling it raises pydantic.ValidationError, which names the variables: both are given, or a file cannot be read. It
    never holds what is in a file.
    """

    def __init__(self, settings: type[BaseSettings], *variables: PydanticBaseSettingsSource) -> None:
        """`variables`: the environment and the like, the most important one first."""
        super().__init__(settings)
        self._given: dict[str, str] = {}
        for source in reversed(variables):
            found: Mapping[str, str | None] = source.env_vars if isinstance(source, EnvSettingsSource) else {}
            self._given |= {name.lower(): value for name, value in found.items() if value is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """What is in the file of one setting; None if none is named."""
        path = self._given.get(f"{field_name}{SUFFIX.lower()}")
        return (_content(Path(path)) if path and _is_secret(field.annotation) else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        found, problems = {}, list(self._given_twice())
        for name, field in self.settings_cls.model_fields.items():
            try:
                found[name] = self.get_field_value(field, name)[0]
            except PydanticCustomError as error:
                problems.append(InitErrorDetails(type=error, loc=(f"{name}{SUFFIX.lower()}",), input=None))
        if problems:
            raise ValidationError.from_exception_data(self.settings_cls.__name__, problems, hide_input=True)
        return {name: value for name, value in found.items() if value is not None}

    def _given_twice(self) -> Iterator[InitErrorDetails]:
        for name in (file.removesuffix(SUFFIX) for file in names(self.settings_cls)):
            if self._given.get(name.lower()) and self._given.get(f"{name}{SUFFIX}".lower()):
                message = f"{name} and {name}{SUFFIX} are both given: leave one of them out"
                yield InitErrorDetails(type=PydanticCustomError("secret_twice", message), loc=(), input=None)


def _content(path: Path) -> str:
    """Of a file, without the end of its last line. Raises PydanticCustomError."""
    reason = "it is empty"
    try:
        if content := path.read_text(encoding="utf-8").rstrip("\r\n"):
            return content
    except OSError as error:
        reason = str(error.strerror)
    except ValueError:
        reason = "it is no text in UTF-8"
    raise PydanticCustomError(
        "secret_file", "cannot be read from {path}: {reason}", {"path": str(path), "reason": reason}
    )
