"""Names that somebody may have meant as settings, and that are none.

A misspelt setting has its default without a word. So a server does not start with one, where it is one: `.env` is ours,
but the environment is full of other programs' names, and refusing those would break what has worked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

from dotenv import dotenv_values

from apps.api import secret_files
from apps.api.settings import Settings

SIMILAR = 0.85
"""Part of two names that agrees (difflib's ratio): `RUNER_SLOTS` is similar, `REDIS_HOST` is not."""

SHORT = 8
"""Letters below which a name resembles too many: `MODEL` and `PORTS` may be anybody's."""

OTHERS = (
    *("POSTGRES_PASSWORD", "REDIS_PASSWORD", "DATABASE_PASSWORD", "TMPDIR", "TZ"),
    # Of the Claude CLI, and of the clouds' programs.
    *("ANTHROPIC_AWS_API_KEY", "ANTHROPIC_AWS_BASE_URL", "ANTHROPIC_BEDROCK_MANTLE_BASE_URL", "AWS_DEFAULT_PROFILE"),
    *("CLAUDE_BRIDGE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_REFRESH_TOKEN", "CLAUDE_CODE_OAUTH_SCOPES"),
)
"""What there may be besides, for docker compose and for the libraries."""

FAMILIES = (
    *("COMPOSE_", "DOCKER_", "PG", "HTTP_", "HTTPS_", "NO_PROXY", "SSL_CERT_", "NODE_EXTRA_CA_CERTS", "PYTHON"),
    "OTEL_",
)
"""Beginnings of further such names."""

CLOUDS = ("AWS_", "GOOGLE_", "AZURE_")
"""Beginnings of names that compose hands on from `.env`, and that nobody else reads there."""


class Doubt(NamedTuple):
    """A name, where it was found, and what was probably meant; and whether it is certain enough to refuse."""

    name: str
    place: str
    meant: str | None
    verdict: Literal["refused", "doubted"]

    def __str__(self) -> str:
        advice = f"; did you mean {self.meant}?" if self.meant else ""
        return f"{self.name} in {self.place} is no setting{advice}"


def doubts(environment: Mapping[str, str], file: Path) -> list[Doubt]:
    """One for each name that is no setting: similar ones of the environment, and all of an `.env` file. Values are not
    looked at.

    Refused is all of the file that is not somebody else's; and of the environment what resembles a setting that is not
    given, unless it is that setting's name with a word before or behind, such as `TEST_DATABASE_URL`.
    """
    given = dotenv_values(file, interpolate=False) if file.is_file() else {}
    found = [*_of_environment(environment, {name.upper() for name in (*environment, *given)}), *_of_file(given, file)]
    return list({doubt.name.upper(): doubt for doubt in found}.values())


def known() -> list[str]:
    """All names that are settings, and those of the variables that name a file with one."""
    return [*(name.upper() for name in Settings.model_fields), *secret_files.names(Settings)]


def _of_environment(environment: Mapping[str, str], given: set[str]) -> Iterator[Doubt]:
    for name in environment:
        if name.upper() in known() or (meant := _meant(name)) is None:
            continue
        plain = meant.removesuffix(secret_files.SUFFIX)
        is_given = not given.isdisjoint((plain, f"{plain}{secret_files.SUFFIX}"))
        another = is_given or f"_{meant}_" in f"_{name.upper()}_" or len(meant) < SHORT
        yield Doubt(name, "the environment", meant, "doubted" if another else "refused")


def _of_file(given: Mapping[str, str | None], file: Path) -> Iterator[Doubt]:
    for name in given:
        if name.upper() not in known() and not _is_others(name):
            meant = _meant(name)
            another = meant is None and name.upper().startswith(CLOUDS)
            yield Doubt(name, str(file), meant, "doubted" if another else "refused")


def _meant(name: str) -> str | None:
    return None if _is_others(name) else next(iter(get_close_matches(name.upper(), known(), 1, SIMILAR)), None)


def _is_others(name: str) -> bool:
    return name.upper() in OTHERS or name.upper().startswith(FAMILIES)
